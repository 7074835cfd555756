"""The measures that relative flatness competes with."""
