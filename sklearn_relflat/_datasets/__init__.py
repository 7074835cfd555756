"""Data sets of the experiments, made or read."""
