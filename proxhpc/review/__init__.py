"""People mark what was done with documents right or wrong; their marks are gold records."""
