"""Checks shared by the rooms; each raises one sentence that names the value and what was expected."""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_in_allowed(value: str, allowed: Collection[str], name: str) -> str:
    """Return `value` when it is one of `allowed`, else raise a ValueError that lists the choices."""
    if value not in allowed:
        choices = ", ".join(repr(a) for a in sorted(allowed))
        raise ValueError(f"{name} is {value!r}, but must be one of {choices}.")
    return value


def check_same_samples(name_a: str, n_a: int, name_b: str, n_b: int) -> None:
    """Raise a ValueError that gives both lengths when they differ."""
    if n_a != n_b:
        raise ValueError(f"{name_a} has {n_a} samples and {name_b} has {n_b}; both need one row for each TR.")


def check_finite(name: str, values: NDArray[Any]) -> None:
    """Raise a ValueError that counts the non-finite entries of `values` when there are any."""
    n_bad = int(values.size - np.count_nonzero(np.isfinite(values)))
    if n_bad:
        raise ValueError(
            f"{name} has {n_bad} non-finite values of {values.size}; set the rows or columns "
            "that hold them aside first."
        )
