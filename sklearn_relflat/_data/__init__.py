"""Inputs, targets and sample weights as validated batches."""
