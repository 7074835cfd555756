"""Callbacks and mixins for the training of skorch nets."""
