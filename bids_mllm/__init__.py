"""Which model, which instruction and which layer predicts which part of each brain."""

__version__ = "0.1.0"
