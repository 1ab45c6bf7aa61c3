"""In which precision a system is factored: float32 where that is exact enough, float64 elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bids_mllm.exceptions import DesignError

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "float64"]
#: Condition of a system up to which a float32 factor is used: errors of the validation R2 stay below 1e-5.
FLOAT32_CONDITION = 500.0
POWER_STEPS = 12
# Share of the largest eigenvalue below which float32 cannot tell an eigenvalue from 0.
NOISE = 1e-4
# The power method comes near an eigenvalue from one side; half of the smallest one is on the other.
SAFETY = 0.5


@dataclass(frozen=True)
class Spectrum:
    """Bounds of the eigenvalues of a positive semi-definite matrix; `smallest` may be 0."""

    largest: float
    smallest: float = 0.0


def spectrum_of(values: "torch.Tensor") -> Spectrum:
    """Bounds from the eigenvalues that a decomposition in float32 gave; below its noise the smallest counts as 0."""
    largest = max(float(values[-1]), 0.0)
    smallest = float(values[0])
    return Spectrum(largest, smallest if smallest > NOISE * largest else 0.0)


def spectrum(matrix: "torch.Tensor", alpha: float) -> Spectrum:
    """Estimate the extreme eigenvalues of a matrix, the smallest only as far as float32 can tell.

    Parameters
    ----------
    matrix : torch.Tensor, (n, n)
    alpha
        The lowest penalty: where the largest eigenvalue over it is small already, the smallest is not looked for.
    """
    import torch

    single = matrix.to(torch.float32, copy=True)
    largest = _power_method(lambda vector: single @ vector, single)
    if largest <= FLOAT32_CONDITION * alpha:
        return Spectrum(largest)
    single.diagonal().add_(alpha)
    factor, info = torch.linalg.cholesky_ex(single)
    if int(info) > 0:
        return Spectrum(largest)
    inverse = _power_method(lambda vector: torch.cholesky_solve(vector[:, None], factor)[:, 0], factor)
    return Spectrum(largest, max(0.0, SAFETY * (1.0 / inverse - alpha)))


def _power_method(apply: "Callable[[torch.Tensor], torch.Tensor]", like: "torch.Tensor") -> float:
    import torch

    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(like.shape[0], generator=generator, dtype=torch.float64).to(like)
    value = 0.0
    for _ in range(POWER_STEPS):
        norm = float(vector.norm())
        if norm == 0.0:
            return 0.0
        vector = apply(vector / norm)
        value = float(vector.norm())
    return value


def working_dtype(alpha: float, bounds: Spectrum, precision: Precision) -> "torch.dtype":
    """Precision of the factor of ``K + alpha I``."""
    import torch

    if precision != "auto":
        return torch.float64 if precision == "float64" else torch.float32
    condition = (bounds.largest + alpha) / (bounds.smallest + alpha)
    return torch.float32 if condition <= FLOAT32_CONDITION else torch.float64


def cholesky(matrix: "torch.Tensor", alpha: float) -> "torch.Tensor":
    """Lower Cholesky factor; a DesignError that names alpha where rounding leaves no positive definite matrix."""
    import torch

    factor: torch.Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) > 0:
        raise DesignError(
            f"With alpha {alpha:g} the ridge system is singular to working precision (largest diagonal entry "
            f"{float(matrix.diagonal().max()):g}); start the grid of penalties higher."
        )
    return factor
