"""Defaults of a model that the command line shows without importing torch."""

NO_BACKBONE = "none"
CROSSING_LAYERS = 8  # of 30 in SmolLM2
