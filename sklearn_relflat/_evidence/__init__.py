"""How well measures order runs by what was to be predicted."""
