"""Least squares and logistic regression penalised by relative flatness; no torch."""
