"""Writing the small files of a data set: JSON, tables and images, the same bytes for the same values."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bids_mllm.records import FloatArray


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write `values`, indented, and make the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as BIDS wants it: tabs, ``n/a`` for what is missing, nine digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, sep="\t", index=False, na_rep="n/a", float_format="%.9g", lineterminator="\n")


def write_image(path: Path, values: NDArray[Any], affine: FloatArray, *, repetition_time: float | None = None) -> None:
    """Write a compressed NIfTI image in MNI space; a series (nx, ny, nz, n_volumes) carries its TR in s."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(np.ascontiguousarray(values), affine)
    image.set_sform(affine, code="mni")
    image.set_qform(affine, code="mni")
    image.header.set_xyzt_units("mm", "sec")
    if repetition_time is not None:
        image.header.set_zooms((*image.header.get_zooms()[:3], repetition_time))
    nibabel.save(image, path)
