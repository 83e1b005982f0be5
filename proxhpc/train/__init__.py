"""Trains a refiner of one's own."""
