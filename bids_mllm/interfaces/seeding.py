"""One seed for every source of chance that a third-party library may use."""

import random

import numpy as np


def seed_everything(seed: int) -> None:
    """Seed Python and numpy's legacy generator; a family that uses torch seeds it when it loads its model."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  libraries that draw from the global generator
