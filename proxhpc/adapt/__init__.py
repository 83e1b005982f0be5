"""Refiners of one's own: examples from teachers, and what is trained on them."""
