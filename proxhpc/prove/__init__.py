"""Trains small models on several corpora, and says on which they learn more."""
