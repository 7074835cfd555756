"""How long work shows how far it is, and how its parts run side by side."""
