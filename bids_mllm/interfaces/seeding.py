"""One seed for every source of chance that a third-party library may use."""

import random

import numpy as np


def seed_everything(seed: int) -> None:
    """Seed Python, numpy's legacy generator and, where it is imported already, torch."""
    import sys

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  libraries that draw from the global generator
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
