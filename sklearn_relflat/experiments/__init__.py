"""Experiments that anybody can run again, one file for each claim."""
