"""Small label files of every form, made by hand."""

import nibabel as nib
import numpy as np
from nibabel.cifti2 import BrainModelAxis, LabelAxis

from bids_mllm.io.grids import GrayordinateGrid

LEFT, RIGHT = "CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT"
THALAMUS = "CIFTI_STRUCTURE_THALAMUS_LEFT"
#: Vertices of a mesh of six that are in the grayordinates.
GRAY = (0, 1, 2, 4, 5)


def label_gii(path, labels, names):
    table = nib.gifti.GiftiLabelTable()
    for key, name in names.items():
        label = nib.gifti.GiftiLabel(key=key, red=1, green=0, blue=0, alpha=1)
        label.label = name
        table.labels.append(label)
    array = nib.gifti.GiftiDataArray(
        np.asarray(labels, dtype=np.int32), intent="NIFTI_INTENT_LABEL", datatype="NIFTI_TYPE_INT32"
    )
    nib.gifti.GiftiImage(darrays=[array], labeltable=table).to_filename(path)
    return path


def annot(path, labels, names):
    """Labels are rows of the table of names, -1 for none."""
    colours = np.array([[10 * row + 1, 20, 30, 0, 0] for row in range(len(names))])
    nib.freesurfer.write_annot(path, np.asarray(labels), colours, names, fill_ctab=True)
    return path


def brain_axis(*, gray=GRAY, n_vertices=6, with_thalamus=True, shape=(3, 3, 3)):
    axis = BrainModelAxis.from_surface(list(gray), n_vertices, LEFT) + BrainModelAxis.from_surface(
        list(gray), n_vertices, RIGHT
    )
    if not with_thalamus:
        return axis
    inside = np.zeros(shape, dtype=bool)
    inside[1, 1, :2] = True
    return axis + BrainModelAxis.from_mask(inside, name=THALAMUS, affine=np.diag([2.0, 2.0, 2.0, 1.0]))


def dlabel(path, labels, names, axis):
    rows = LabelAxis(["atlas"], [{key: (name, (1, 0, 0, 1)) for key, name in {0: "???", **names}.items()}])
    image = nib.Cifti2Image(np.asarray(labels, dtype=np.float32)[None], header=(rows, axis))
    image.nifti_header.set_intent("NIFTI_INTENT_CONNECTIVITY_DENSE_LABELS")
    image.to_filename(path)
    return path


def gray_grid(**options):
    return GrayordinateGrid(brain_axis(**options))
