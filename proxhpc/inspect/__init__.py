"""Documents of a run before and after, with the programs that made the difference."""
