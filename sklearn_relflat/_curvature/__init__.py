"""Curvature of the empirical risk in a layer's weight, in one pass over the data."""
