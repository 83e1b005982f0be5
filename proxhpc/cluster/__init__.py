"""Where jobs run: the only room that knows submitit and Slurm commands."""
