"""One experiment for each claim: a frozen configuration in, records out."""
