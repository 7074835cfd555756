"""A weight layer as w times its features, and what a forward pass shows of it."""
