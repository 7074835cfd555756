"""Scorers and the choice among candidates."""
