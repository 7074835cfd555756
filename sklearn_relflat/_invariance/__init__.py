"""Reparameterizations that change no prediction, and what they do to measures."""
