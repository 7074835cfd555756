"""What all results have in common, whatever was measured."""
