"""Pictures of the measures, as scikit-learn's Displays."""
