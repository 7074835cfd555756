"""The demo, which ``python -m sklearn_relflat`` runs."""
