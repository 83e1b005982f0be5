"""What is on disk: paths, the frozen plan, models, ledgers, leases, progress."""
