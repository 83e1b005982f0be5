"""Integers that add, and what they cost in FLOPs."""
