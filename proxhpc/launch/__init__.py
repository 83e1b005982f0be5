"""Plan a run and advance it: the one step function."""
