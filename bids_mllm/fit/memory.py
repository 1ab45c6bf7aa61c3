"""How much memory a fit takes, told before the work, so that blocks fit into what there is."""

from dataclasses import dataclass

from bids_mllm.exceptions import DesignError
from bids_mllm.fit.design import PRIMAL_SHARE

DOUBLE, SINGLE = 8, 4
# Square matrices over the training rows that live at once, in float64: Gram, copy, factor, inverse, one more.
SQUARES = 5
# Maps of each feature space while they are collected, and once more when they are put together.
MAPS = 12
SMALLEST_BLOCK = 2**26
GIB = 1024**3


@dataclass(frozen=True)
class FitMemory:
    """Bytes that a fit takes.

    Attributes
    ----------
    fixed
        Features and square matrices; no choice of blocks makes it smaller.
    targets
        The targets, twice: as they come and as the solver keeps them.
    predictions
        Held-out predictions of a feature space, of the best one so far, and for the tests those of all splits beside
        the held-out targets.
    """

    fixed: int
    targets: int
    predictions: int

    @property
    def total(self) -> int:
        """All of it without the blocks."""
        return self.fixed + self.targets + self.predictions


def fit_memory(
    n_rows: int,
    n_test: int,
    n_targets: int,
    *,
    n_volumes: int,
    n_features: int,
    n_delays: int,
    n_spaces: int = 1,
    wide: bool = False,
) -> FitMemory:
    """Estimate the memory of the fits of one model.

    Parameters
    ----------
    n_rows
        Rows of the design.
    n_test
        Held-out rows over all outer folds.
    n_targets
        Voxels.
    n_volumes, n_features, n_delays
        Of the features before delays.
    n_spaces
        Feature spaces whose maps are kept.
    wide
        Whether the solver keeps the targets in float64.

    Returns
    -------
    need : FitMemory
    """
    columns = n_features * n_delays
    if columns <= PRIMAL_SHARE * n_rows:
        fixed = DOUBLE * (3 * n_rows * columns + SQUARES * columns**2)
    else:
        fixed = DOUBLE * (2 * n_volumes * n_features + SQUARES * n_rows**2)
    fixed += MAPS * SINGLE * n_spaces * n_targets
    targets = (SINGLE + (DOUBLE if wide else SINGLE)) * n_rows * n_targets
    return FitMemory(fixed, targets, 4 * SINGLE * n_test * n_targets)


def block_bytes(need: FitMemory, available: int) -> int:
    """Bytes for the working arrays of one block of targets.

    Parameters
    ----------
    need
        From :func:`fit_memory`.
    available
        Bytes that the fit may take.

    Returns
    -------
    left : int
        What fixed arrays and voxels leave.

    Raises
    ------
    DesignError
        When not even the smallest block is left; gives both figures.
    """
    left = available - need.total
    if left < SMALLEST_BLOCK:
        wanted, fixed, voxels = (
            size / GIB for size in (need.total + SMALLEST_BLOCK, need.fixed, need.targets + need.predictions)
        )
        raise DesignError(
            f"The fits need about {wanted:.2f} GiB ({fixed:.2f} for features and kernels, {voxels:.2f} for voxels), "
            f"but {available / GIB:.2f} GiB are allowed; raise --mem, run fewer processes, or take fewer runs or "
            "a coarser space."
        )
    return left
