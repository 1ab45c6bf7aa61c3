"""Numbers as text in a page: gzip in base64, which browsers unpack by themselves."""

import base64
import gzip
from typing import Any

import numpy as np
from numpy.typing import NDArray


def packed(values: NDArray[Any] | bytes) -> str:
    """Return the bytes of an array, little-endian and in C order, as base64 of gzip; the same bytes give the same."""
    content = values if isinstance(values, bytes) else _little_endian(values).tobytes()
    return base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode("ascii")


def _little_endian(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False)
