"""Latency and speed of a recipe: measured, kept with every sample, reported and compared."""
