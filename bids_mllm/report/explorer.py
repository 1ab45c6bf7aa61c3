"""Curves of scores over layers, of which readers choose the region, the model and the condition."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bids_mllm.records import FloatArray
from bids_mllm.report.content import ExplorerBlock
from bids_mllm.report.packing import packed
from bids_mllm.report.style import distinct_colours

#: Stored parts of 1; scores are whole numbers of these in 16 bits, so they lie between -3.2 and 3.2.
PARTS = 10_000
_MISSING = -32768


@dataclass(frozen=True)
class LayerScores:
    """Scores of one model.

    Parameters
    ----------
    model
    layers : increasing layer numbers
    conditions
        Poolings and instructions.
    values
        From the name of a score to its values, shape (n_regions, n_conditions, n_layers); NaN where there is none.
    """

    model: str
    layers: tuple[int, ...]
    conditions: tuple[str, ...]
    values: Mapping[str, FloatArray]


def explorer_block(
    regions: Mapping[str, Sequence[str]], scores: Sequence[LayerScores], *, caption: str
) -> ExplorerBlock:
    """Return an explorer of the curves of all models.

    Parameters
    ----------
    regions
        From a heading to names of regions; all of them in the order of the values.
    scores
        One entry a model, all with the same scores.
    caption

    Returns
    -------
    ExplorerBlock

    Raises
    ------
    ValueError
        When the values of a model do not have one place a region, condition and layer.
    """
    n_regions, start, models = sum(map(len, regions.values())), 0, []
    for one in scores:
        shape = (n_regions, len(one.conditions), len(one.layers))
        for name, values in one.values.items():
            if np.shape(values) != shape:
                raise ValueError(
                    f"The values {name!r} of {one.model} have the shape {np.shape(values)}, but {shape} was expected: "
                    "pass regions x conditions x layers."
                )
        last = max(len(one.layers) - 1, 1)
        depths = [round(number / last, 3) for number in range(len(one.layers))]
        models.append(
            {
                "name": one.model, "layers": list(one.layers), "conditions": list(one.conditions),
                "depths": depths, "start": start,
            }
        )  # fmt: skip
        start += int(np.prod(shape))
    names = list(dict.fromkeys(name for one in scores for name in one.values))
    n_colours = max(len(scores), *(len(one.conditions) for one in scores))
    content = {
        "regions": {heading: list(own) for heading, own in regions.items()},
        "models": models,
        "measures": [{"label": name, "values": _measure(scores, name)} for name in names],
        "parts": PARTS,
        "colours": list(distinct_colours(n_colours)),
    }
    return ExplorerBlock(content, caption)


def _measure(scores: Sequence[LayerScores], name: str) -> str:
    flat = np.concatenate([np.asarray(one.values[name], dtype=float).reshape(-1) for one in scores])
    whole = np.clip(np.round(np.nan_to_num(flat) * PARTS), _MISSING + 1, -_MISSING - 1)
    return packed(np.where(np.isfinite(flat), whole, _MISSING).astype(np.int16))
