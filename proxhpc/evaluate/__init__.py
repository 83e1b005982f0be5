"""Evaluate refiners on gold data: documents for which people decided what to keep."""
