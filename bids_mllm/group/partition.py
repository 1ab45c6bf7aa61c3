"""What two instructions explain alone and together, over participants."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bids_mllm.group.maps import mean_maps

KEYS = ("model", "condition_a", "condition_b", "roi", "kind", "measure")
PARTS = ("unique_a", "unique_b", "shared", "joint")
#: Kinds of regions that are summarised: all voxels, and sets such as visual and language.
KINDS = ("all", "set")


def partition_means(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Average the parts of every pair of instructions over participants, in all voxels and in each set of regions.

    Parameters
    ----------
    rows
        Rows of all participants with the keys participant, `KEYS` and `PARTS` (NaN where undefined).

    Returns
    -------
    means : list of dict
        One a model, pair, region and measure in the order of first appearance: each part's mean and ``<part>_sem``
        over participants that have all parts (n_participants), and ``<part>_percent`` of the two unique parts and the
        shared one: 100 times the mean part over the mean joint score, which add up to 100; NaN where that is not
        above 0. A part below 0, as noise gives, has a percent below 0.
    """
    collected: dict[tuple[Any, ...], list[list[float]]] = {}
    for row in rows:
        if row["kind"] in KINDS:
            own = collected.setdefault(tuple(row[key] for key in KEYS), [])
            values = [float(row[part]) for part in PARTS]
            if np.isfinite(values).all():
                own.append(values)
    means = []
    for key, members in collected.items():
        mean, sem, _ = mean_maps([np.array(one) for one in members] or [np.full(len(PARTS), np.nan)])
        entry: dict[str, Any] = dict(zip(KEYS, key, strict=True))
        joint = float(mean[-1])
        for number, part in enumerate(PARTS):
            entry[part], entry[f"{part}_sem"] = float(mean[number]), float(sem[number])
        for number, part in enumerate(PARTS[:-1]):
            entry[f"{part}_percent"] = 100 * float(mean[number]) / joint if joint > 0 else float("nan")
        means.append({**entry, "n_participants": len(members)})
    return means
