"""Losses: value, gradient and factored Hessian in a model's raw outputs."""
