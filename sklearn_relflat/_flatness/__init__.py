"""Relative flatness (Definition 3) and its result."""
