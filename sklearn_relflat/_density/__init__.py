"""Kernel densities in R^m with a bandwidth for each sample."""
