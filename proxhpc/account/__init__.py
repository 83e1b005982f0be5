"""Additive counts, and their FLOPs."""
