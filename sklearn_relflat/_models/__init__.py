"""The one view of a fitted model that everything above shares."""
