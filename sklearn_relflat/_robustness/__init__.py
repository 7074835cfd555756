"""Feature robustness (Definition 1): the loss under perturbed features."""
