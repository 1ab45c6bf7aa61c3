"""What the plan must know of splits, noise ceilings and joint fits before anything runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from bids_mllm.config import PARTICIPANT, Settings
from bids_mllm.exceptions import InputDataError, UsageError
from bids_mllm.features.controls import null_kind
from bids_mllm.fit.folds import Scheme, check_scheme
from bids_mllm.interfaces.ceiling import (
    Viewer,
    matched_repeats,
    no_repeats,
    sharing_viewers,
    too_few_participants,
)
from bids_mllm.interfaces.rows import CVOptions, make_rows
from bids_mllm.records import Instruction, ModelSpec, ParticipantDesign

# Poolings whose hidden states depend on the instruction.
INSTRUCTED_POOLINGS = ("generated", "last", "instruction")


def cv_options(settings: Settings, participant: str) -> CVOptions:
    """Return how the rows of a participant are split; reads the file of ``--cv-file``.

    Raises
    ------
    UsageError
        When the file cannot be read or holds no list of folds.
    """
    scheme: Scheme = check_scheme(settings.cv)
    repeats: Literal["each", "average"] = "average" if settings.repeats == "average" else "each"
    if settings.cv_file is None:
        return CVOptions(scheme=scheme, n_folds=settings.n_folds, repeats=repeats)
    path = Path(str(settings.cv_file).replace(PARTICIPANT, participant))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--cv-file {path} cannot be read ({error}); expected JSON with a list Folds.") from error
    folds = content.get("Folds") if isinstance(content, dict) else None
    if not isinstance(folds, list):
        raise UsageError(f"--cv-file {path} has no list Folds; give a *_split.json of a participant or one like it.")
    return CVOptions(
        scheme=scheme, n_folds=settings.n_folds, values=tuple(folds), source=path.name, repeats=repeats
    )  # fmt: skip


def ceiling_method(settings: Settings, designs: Sequence[ParticipantDesign], design: ParticipantDesign) -> str | None:
    """Return how the noise ceiling of a participant is estimated; None where ``auto`` finds no repeats.

    Raises
    ------
    InputDataError
        When what was asked for cannot be had for this participant.
    """
    asked = settings.noise_ceiling
    if asked == "none":
        return None
    viewers = [_viewer(settings, one) for one in designs if one is design]
    if asked in ("auto", "repeats"):
        if matched_repeats(viewers[0]) is not None:
            return "repeats"
        if asked == "auto":
            return None
        raise InputDataError(no_repeats(design.participant))
    viewers += [_viewer(settings, one) for one in designs if one.place == design.place and one is not design]
    others = [viewer.design.participant for viewer in sharing_viewers(viewers)]
    if len(others) < 2:
        raise InputDataError(too_few_participants(design.participant, others))
    return asked


def _viewer(settings: Settings, design: ParticipantDesign) -> Viewer:
    """A participant without a series: what is needed to pair rows."""
    cv = cv_options(settings, design.participant)
    return Viewer(design, make_rows(design, delays=settings.delays, cv=cv), Path())


def check_joint(
    settings: Settings, models: Sequence[ModelSpec], instructions: Mapping[str, Sequence[Instruction]]
) -> None:
    """Refuse bands and partitions that name what is not fitted or has no instructions to pair."""
    fitted = [*(model.key for model in models), *settings.feature_table]
    bands = [name.partition(":")[0] for name in settings.bands]
    for option, names in (("--bands", bands), ("--partition", settings.partition)):
        absent = [name for name in names if name not in fitted]
        if absent:
            raise UsageError(
                f"{option} names {', '.join(absent)}, but the models and tables asked for are {', '.join(fitted)}."
            )
    joint_bands(settings, instructions)
    for name in settings.partition:
        real = [one for one in instructions.get(name, ()) if null_kind(one) is None]
        if len(real) < 2 or not set(settings.poolings) & set(INSTRUCTED_POOLINGS):
            raise UsageError(
                f"--partition names {name}, which has {len(real)} instructions under the poolings "
                f"{', '.join(settings.poolings)}, but two or more are needed with one of "
                f"{', '.join(INSTRUCTED_POOLINGS)}; name a model that follows instructions."
            )


def joint_bands(settings: Settings, instructions: Mapping[str, Sequence[Instruction]]) -> list[dict[str, Any]]:
    """Return the fields of each band of ``--bands``: MODEL, or MODEL:GROUP for the instructions of a group.

    Raises
    ------
    UsageError
        When a model has no instructions of that group, or no pooling that carries any is read out.
    """
    bands = []
    for name in settings.bands:
        model, colon, group = name.partition(":")
        real = [one for one in instructions.get(model, ()) if null_kind(one) is None]
        keys = [one.key for one in real if one.group == group] if colon else []
        if colon and (not keys or not set(settings.poolings) & set(INSTRUCTED_POOLINGS)):
            known = ", ".join(dict.fromkeys(one.group for one in real)) or "none"
            raise UsageError(
                f"--bands names {name}, but the groups of instructions that are asked of {model} are {known}, and "
                f"one of the poolings {', '.join(INSTRUCTED_POOLINGS)} is needed."
            )
        bands.append({"name": name, "model": model, "instructions": keys})
    return bands


def with_split_of_file(settings: Settings, design: ParticipantDesign) -> ParticipantDesign:
    """Mark the test runs where the file of ``--cv-file`` keeps whole runs apart, as for names and sidecars."""
    if settings.cv_file is None:
        return design
    rows = make_rows(design, delays=settings.delays, cv=cv_options(settings, design.participant))
    tested = {int(run) for fold in rows.folds for run in rows.run_of_row[fold.test]}
    trained = {int(run) for fold in rows.folds for run in rows.run_of_row[fold.train]}
    return design if tested & trained else replace(design, test_runs=tuple(sorted(tested)))
