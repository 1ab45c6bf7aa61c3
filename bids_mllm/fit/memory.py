"""How much memory a fit takes, told before the work, so that parts and blocks of voxels fit into what there is."""

from dataclasses import dataclass, replace

from bids_mllm.exceptions import DesignError
from bids_mllm.fit.design import PRIMAL_SHARE

DOUBLE, SINGLE = 8, 4
# Square matrices over the training rows that live at once, in float64: Gram, copy, factor, inverse, one more.
SQUARES = 5
# Maps of each feature space while they are collected, and once more when they are put together.
MAPS = 12
SMALLEST_BLOCK = 2**26
# What a process with the libraries holds beside its arrays, and what the allocator does not give back at once.
PROCESS = 2**29
# Where targets go part by part, the share of what they may take that the working arrays of a block get, the bytes from
# which more is of no use to these, and the fewest targets of a part.
BLOCK_SHARE, LARGEST_BLOCK, SMALLEST_PART = 0.25, 2**30, 256
GIB = 1024**3


@dataclass(frozen=True)
class FitMemory:
    """Bytes that a fit takes.

    Attributes
    ----------
    fixed
        Features, square matrices and what is kept of all targets; no choice of parts or blocks makes it smaller.
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

    def part(self, n_part: int, n_targets: int) -> "FitMemory":
        """Bytes when so many of the targets are taken at once."""
        share = n_part / n_targets
        return replace(self, targets=int(self.targets * share), predictions=int(self.predictions * share))


def fit_memory(
    n_rows: int,
    n_test: int,
    n_targets: int,
    *,
    n_volumes: int,
    n_features: int,
    n_delays: int,
    n_spaces: int = 1,
    n_blocks: int = 0,
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
    n_blocks
        Blocks of held-out rows whose products are kept.
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
    # Products and energies of blocks, and once more when they are put together.
    fixed += (MAPS * n_spaces + 4 * n_blocks) * SINGLE * n_targets
    targets = (SINGLE + (DOUBLE if wide else SINGLE)) * n_rows * n_targets
    return FitMemory(fixed, targets, 4 * SINGLE * n_test * n_targets)


def joint_memory(n_rows: int, n_test: int, n_targets: int, *, n_kernels: int, n_joint: int, wide: bool) -> FitMemory:
    """Estimate the memory of fits of several kernels.

    Parameters
    ----------
    n_rows
    n_test
        Held-out rows of the largest outer fold.
    n_targets
    n_kernels
        Kernels that are kept.
    n_joint
        Kernels of one fit, of each of which the predictions are kept.
    wide
        As for :func:`fit_memory`.

    Returns
    -------
    need : FitMemory
    """
    targets = (SINGLE + (DOUBLE if wide else SINGLE)) * n_rows * n_targets
    # Predictions of each kernel and their copy to score, of all, and the held-out targets.
    return FitMemory(
        DOUBLE * (n_kernels + SQUARES) * n_rows**2, targets, SINGLE * (2 * n_joint + 4) * n_test * n_targets
    )


def part_of_targets(need: FitMemory, n_targets: int, available: int) -> int:
    """How many targets to take at once: all where they fit, else equal parts.

    What the process itself takes is left free. Every part costs the decompositions of the kernels again, which is
    little as long as it has more targets than there are rows.

    Parameters
    ----------
    need
        Of all targets at once, from :func:`fit_memory`.
    n_targets
    available
        Bytes that the fit may take.

    Returns
    -------
    n_part : int
        At least a few, even where these do not fit; :func:`block_bytes` tells that.
    """
    left = available - PROCESS - need.fixed
    if n_targets == 0 or need.targets + need.predictions + SMALLEST_BLOCK <= left:
        return n_targets
    block = max(SMALLEST_BLOCK, min(LARGEST_BLOCK, BLOCK_SHARE * left))
    most = max(SMALLEST_PART, int((left - block) * n_targets / (need.targets + need.predictions)))
    return -(-n_targets // -(-n_targets // most))


def block_bytes(need: FitMemory, available: int) -> int:
    """Bytes for the working arrays of one block of targets.

    Parameters
    ----------
    need
        Of the targets that are taken at once.
    available
        Bytes that the fit may take.

    Returns
    -------
    left : int
        What fixed arrays and voxels leave, without the process itself where that leaves a block.

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
            f"The fits need about {wanted:.2f} GiB ({fixed:.2f} for features, kernels and maps, {voxels:.2f} for the "
            f"fewest voxels at once), but {available / GIB:.2f} GiB are allowed; raise --mem, run fewer processes, "
            "or take fewer runs or a coarser space."
        )
    return max(SMALLEST_BLOCK, left - PROCESS)
