"""Representativeness from local densities, and the bound."""
