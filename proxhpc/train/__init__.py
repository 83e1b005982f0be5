"""Train refiners on examples."""
