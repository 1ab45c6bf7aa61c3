"""Node that fits and scores every feature space of one participant, since they share the brain data."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiPath,
    SimpleInterface,
    TraitedSpec,
    traits,
)
from tqdm import tqdm

from bids_mllm.exceptions import UsageError
from bids_mllm.fit.cv_file import folds_to_values
from bids_mllm.fit.design import Design, delayed_design
from bids_mllm.fit.memory import FitMemory, block_bytes, fit_memory, part_of_targets
from bids_mllm.fit.projection import equal_rank_columns
from bids_mllm.fit.ridge import alpha_at_edge, alpha_grid, fit_ridge
from bids_mllm.interfaces.brain import Brain
from bids_mllm.interfaces.device import on_its_device
from bids_mllm.interfaces.inference import InferenceOptions, PartInference, join_inference, part_inference
from bids_mllm.interfaces.rows import (
    CVOptions,
    GridKey,
    Rows,
    make_rows,
    stack_features,
    without_windows,
)
from bids_mllm.io.design import read_design
from bids_mllm.io.files import read_json, write_json
from bids_mllm.io.scores import save_held_out, save_scores
from bids_mllm.io.store import FeatureEntry, canonical_json
from bids_mllm.outcomes import ModelScores
from bids_mllm.records import Condition, FloatArray, Fold, ParticipantDesign, WindowGrid
from bids_mllm.score.held_out import score_fold, scored_predictions
from bids_mllm.score.selection import ScoreBoard, join_scores


@dataclass(frozen=True)
class FitOptions:
    """What the fit depends on besides the data.

    `alphas` is (lowest, highest, number); `equal_rank` a number of principal components that stand for the features
    of every model, None for the features themselves.
    """

    delays: tuple[int, ...]
    alphas: tuple[float, float, int]
    high_pass: float
    layers: tuple[int, ...] | None
    cv: CVOptions = field(default_factory=CVOptions)
    solver: Literal["exact", "himalaya"] = "exact"
    equal_rank: int | None = None
    inference: InferenceOptions = field(default_factory=InferenceOptions)


class _FitInputSpec(BaseInterfaceInputSpec):
    design = File(exists=True, mandatory=True, desc="JSON of a ParticipantDesign")
    bold = File(exists=True, mandatory=True, desc="JSON that PrepareBold wrote")
    manifests = InputMultiPath(File(exists=True), mandatory=True, desc="JSONs of feature entries")
    models = traits.List(traits.Str(), mandatory=True, desc="keys, in the order of the report")
    options = traits.Str(mandatory=True, desc="JSON of FitOptions")
    device = traits.Str("cpu", usedefault=True, nohash=True)
    memory_bytes = traits.Int(2**34, usedefault=True, nohash=True, desc="memory that may be taken in all")
    max_block_bytes = traits.Int(2**31, usedefault=True, nohash=True, desc="memory for one block of voxels at most")
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)
    cache_dir = traits.Str(mandatory=True, nohash=True, desc="scores of models fitted before, by digest")
    app_version = traits.Str(mandatory=True)


class _FitOutputSpec(TraitedSpec):
    scores = File(exists=True, desc="JSON: for each model the file of its scores")


class FitScores(SimpleInterface):
    """Fit and score all models x instructions x layers of one participant in one space."""

    input_spec = _FitInputSpec
    output_spec = _FitOutputSpec

    @on_its_device
    def _run_interface(self, runtime: Any) -> Any:
        design = read_design(Path(self.inputs.design))
        bold = read_json(Path(self.inputs.bold))
        options = fit_options_from_json(self.inputs.options)
        manifests = [read_json(Path(path)) for path in self.inputs.manifests]
        lost = lost_windows(manifests)
        design = without_windows(design, {key: set(reasons) for key, reasons in lost.items()})
        rows = make_rows(design, delays=options.delays, cv=options.cv)
        brain = Brain(Path(bold["series"]), rows, self.inputs.device, wide=options.solver == "himalaya")
        index: dict[str, dict[str, Any]] = {}
        for model in self.inputs.models:
            own = [manifest for manifest in manifests if manifest["model"] == model]
            path = self._cached(bold["sha256"], own, lost)
            if not all(one.is_file() for one in _files(path, options).values()):
                features = ModelFeatures(design, model, own, options)
                features.warnings += (*lost_words(lost), *rank_words(features, brain, options))
                self._fit(path, features, brain, options)
            first = own[0]["entries"][0]
            files = {name: str(one) for name, one in _files(path, options).items()}
            sizes = {"width": first["width"], "n_layers": first["n_layers"], "n_spaces": n_spaces(own, options)}
            index[model] = files | sizes
        self._write(Path(runtime.cwd), index, rows, design, lost)
        return runtime

    def _fit(self, path: Path, features: "ModelFeatures", brain: Brain, options: FitOptions) -> None:
        """Fit one model and keep its scores; those by which it counts as fitted come last."""
        need, allowed = features.memory(brain), self.inputs.memory_bytes
        n_part = part_of_targets(need, brain.n_voxels, allowed)
        limit = min(self.inputs.max_block_bytes, block_bytes(need.part(n_part, brain.n_voxels), allowed))
        parts = [_fit_part(features, part, options, limit) for part in brain.parts(n_part)]
        n_usable = [part.n_usable for part in parts]
        if options.equal_rank is not None:
            ranked = [part.ranked for part in parts if part.ranked is not None]
            save_scores(_files(path, options)["equal_rank"], join_scores(ranked, n_usable))
        save_held_out(_files(path, options)["held_out"], join_inference([part.inference for part in parts]))
        save_scores(path, join_scores([part.scores for part in parts], n_usable))

    def _write(
        self,
        folder: Path,
        index: Mapping[str, Mapping[str, Any]],
        rows: Rows,
        design: ParticipantDesign,
        lost: Mapping[GridKey, Mapping[int, str]],
    ) -> None:
        labels = [run.label for run in design.runs]
        out = folder / "scores.json"
        write_json(
            out,
            {
                "models": index,
                "n_rows": len(rows.run_of_row),
                "folds": folds_to_values(rows.folds, rows.run_of_row, rows.volume_of_row, labels),
                "lost_windows": [[*key, reasons] for key, reasons in lost.items()],
            },
        )
        self._results["scores"] = str(out)

    def _cached(
        self, bold_digest: str, manifests: Sequence[Mapping[str, Any]], lost: Mapping[GridKey, Mapping[int, str]]
    ) -> Path:
        parts = {
            "bold": bold_digest,
            "design": hashlib.sha256(Path(self.inputs.design).read_bytes()).hexdigest(),
            "features": sorted(canonical_json(manifest) for manifest in manifests),
            "lost": sorted([*map(str, key), sorted(windows)] for key, windows in lost.items()),
            "options": json.loads(self.inputs.options),
            "version": self.inputs.app_version,
        }
        digest = hashlib.sha256(canonical_json(parts).encode()).hexdigest()
        return Path(self.inputs.cache_dir) / f"{digest}.npz"


@dataclass(frozen=True)
class _FittedPart:
    """What is kept of one model in some of the voxels."""

    scores: ModelScores
    ranked: ModelScores | None
    inference: PartInference
    n_usable: int


def _fit_part(features: "ModelFeatures", brain: Brain, options: FitOptions, limit: int) -> _FittedPart:
    """Fit and test one model in the voxels of a brain; its predictions are not kept."""
    ranked = None
    if options.equal_rank is not None:
        ranked = score_model(features, brain, options, max_block_bytes=limit, rank=options.equal_rank)[0]
    scores, predictions = score_model(features, brain, options, max_block_bytes=limit)
    labels = [run.label for run in features.design.runs]
    inference = part_inference(
        brain.rows, brain.Y, predictions, labels, options.inference, max_block_bytes=min(limit, 2**28)
    )
    return _FittedPart(scores, ranked, inference, len(brain.targets.usable))


def n_spaces(manifests: Sequence[Mapping[str, Any]], options: FitOptions) -> int:
    """Count the feature spaces of one model that are fitted."""
    rows = manifests[0]["entries"]
    conditions = len(dict.fromkeys(_condition(row) for row in rows))
    n_layers = int(rows[0]["n_layers"])
    wanted = range(n_layers) if options.layers is None or n_layers == 1 else options.layers
    return conditions * sum(layer < n_layers for layer in wanted)


def _files(path: Path, options: FitOptions) -> dict[str, Path]:
    """Files of one model: scores, inference and, where asked for, scores at equal rank."""
    files = {"scores": path, "held_out": path.with_name(f"{path.stem}_heldout.npz")}
    if options.equal_rank is not None:
        files["equal_rank"] = path.with_name(f"{path.stem}_rank.npz")
    return files


def rank_words(features: "ModelFeatures", brain: Brain, options: FitOptions) -> tuple[str, ...]:
    """Say where a model has fewer components than it is to be compared at."""
    most = min([features.width, *(len(fold.train) for fold in brain.rows.folds)])
    if options.equal_rank is None or options.equal_rank <= most:
        return ()
    return (
        f"{features.model} has {most} components at most, fewer than the {options.equal_rank} of --equal-rank: its "
        "scores at equal rank are at that rank.",
    )


def lost_windows(manifests: Sequence[Mapping[str, Any]]) -> dict[GridKey, dict[int, str]]:
    """Return for each grid the windows that a model has no features of, with the reason.

    What one model lacks is left out for all, so that all are fitted to the same rows.
    """
    lost: dict[GridKey, dict[int, str]] = {}
    for manifest in manifests:
        for row in manifest["entries"]:
            if row.get("masked"):
                key = (manifest["stim_file"], row["origin"], row["step"], row["length"])
                lost.setdefault(key, {}).update({int(window): reason for window, reason in row["masked"].items()})
    return lost


def lost_words(lost: Mapping[GridKey, Mapping[int, str]]) -> tuple[str, ...]:
    """Say which windows are left out, one sentence a stimulus."""
    windows: dict[str, dict[tuple[float, int], str]] = {}
    for (stim_file, origin, *_), reasons in lost.items():
        windows.setdefault(stim_file, {}).update({(origin, window): reason for window, reason in reasons.items()})
    return tuple(
        f"{len(reasons)} windows of {stim_file} have no features and are left out, with the volumes that they belong "
        f"to: {next(iter(reasons.values()))}"
        if len(reasons) > 1
        else f"One window of {stim_file} has no features and is left out, with the volumes that it belongs to: "
        f"{next(iter(reasons.values()))}"
        for stim_file, reasons in windows.items()
    )


def fit_options_from_json(text: str) -> FitOptions:
    """Rebuild FitOptions from the JSON of its fields."""
    content = json.loads(text)
    layers = content["layers"]
    return FitOptions(
        delays=tuple(content["delays"]),
        alphas=tuple(content["alphas"]),
        high_pass=content["high_pass"],
        layers=None if layers is None else tuple(layers),
        cv=CVOptions(**content["cv"]),
        solver=content["solver"],
        equal_rank=content["equal_rank"],
        inference=InferenceOptions(**content["inference"]),
    )


class ModelFeatures:
    """The feature spaces of one model over the runs of one design, read from the store when asked for."""

    def __init__(
        self,
        design: ParticipantDesign,
        model: str,
        manifests: Sequence[Mapping[str, Any]],
        options: FitOptions,
    ) -> None:
        self.design = design
        self.model = model
        self.high_pass = options.high_pass
        self._block_length = options.inference.block_length
        self._entries = {
            (manifest["stim_file"], row["origin"], row["step"], row["length"], _condition(row)): FeatureEntry(
                Path(row["path"]), row["n_windows"], row["n_layers"], row["width"]
            )
            for manifest in manifests
            for row in manifest["entries"]
        }
        self.conditions = tuple(dict.fromkeys(_condition(row) for row in manifests[0]["entries"]))
        n_layers = manifests[0]["entries"][0]["n_layers"]
        self.width = int(manifests[0]["entries"][0]["width"])
        chosen = options.layers if options.layers is not None and n_layers > 1 else None
        self.layers = tuple(range(n_layers)) if chosen is None else tuple(x for x in chosen if x < n_layers)
        absent = sorted(set(chosen or ()) - set(self.layers))
        self.warnings = tuple(f"{model} has no layer {layer}; it was left out." for layer in absent)
        if not self.layers:
            raise UsageError(
                f"--layers asks for {', '.join(map(str, chosen or ()))}, but {model} has the layers 0 to "
                f"{n_layers - 1}; choose among these."
            )

    def memory(self, brain: Brain) -> FitMemory:
        """What the fits of this model take."""
        rows = brain.rows
        n_test = sum(len(fold.test) for fold in rows.folds)
        return fit_memory(
            len(rows.run_of_row),
            n_test,
            brain.n_voxels,
            n_volumes=sum(run.n_volumes for run in self.design.runs),
            n_features=self.width,
            n_delays=len(rows.delays),
            n_spaces=len(self.conditions) * len(self.layers),
            n_blocks=n_test // self._block_length,
            wide=brain.wide,
        )

    def matrix(self, rows: Rows, condition: Condition, layer: int) -> FloatArray:
        """Features of one space in all volumes, (n_volumes, n_features), before delays."""

        def read(run: int, showing: int) -> FloatArray:
            windows = self.design.windows[run]
            grid: WindowGrid = windows.grids[showing]
            key = (windows.stim_files[showing], grid.origin, grid.step, grid.length, condition)
            return self._entries[key].read(layer)

        return stack_features(self.design, rows, read, high_pass=self.high_pass)


def _condition(row: Mapping[str, Any]) -> Condition:
    return Condition(row["pooling"], row["instruction"])


def score_model(
    features: ModelFeatures,
    brain: Brain,
    options: FitOptions,
    *,
    max_block_bytes: int = 2**31,
    rank: int | None = None,
) -> tuple[ModelScores, list[FloatArray]]:
    """Fit and score every condition and layer of one model on all outer folds.

    Parameters
    ----------
    features
    brain
    options
    max_block_bytes
        Bound of the working arrays of one block of voxels.
    rank
        Principal components that stand for the features; None for the features themselves.

    Returns
    -------
    scores : ModelScores
    predictions
        Of the nested choice, one array (n_scored, n_voxels) an outer fold.
    """
    rows = brain.rows
    n_test = [fold.scored.shape[1] for fold in rows.folds]
    board = ScoreBoard(features.conditions, features.layers, n_voxels=brain.Y.shape[1], n_test=n_test)
    warnings: list[str] = list(features.warnings)
    spaces = [(c, k) for c in range(len(features.conditions)) for k in range(len(features.layers))]
    label = f"fit sub-{features.design.participant} {features.model}" + (f" rank {rank}" if rank else "")
    for c, k in tqdm(spaces, desc=label, unit="space", mininterval=5):
        condition, layer = features.conditions[c], features.layers[k]
        space = Space(features.matrix(rows, condition, layer), brain, rank)
        if not space.varies:
            warnings.append(
                f"{features.model} {condition.label} layer {layer} does not vary over time and was set aside."
            )
        for number, fold in enumerate(rows.folds):
            _score_fold(board, (number, c, k), space.design(fold), brain, fold, options, max_block_bytes)
    predictions = [board.best_predictions(number) for number in range(len(rows.folds))]
    names = tuple(fold.name for fold in rows.folds)
    return board.result(features.model, fold_names=names, warnings=tuple(warnings)), predictions


class Space:
    """One feature space: its design is the same for all folds, or at equal rank one of each fold's own."""

    def __init__(self, X: FloatArray, brain: Brain, rank: int | None) -> None:
        self.X, self.brain, self.rank = X, brain, rank
        self.varies = bool(np.any(np.nan_to_num(X)))

    @cached_property
    def whole(self) -> Design:
        """The design of all features."""
        return delayed_design(self.X, self.brain.rows.delayed, device=self.brain.device)

    def design(self, fold: Fold) -> Design:
        """The design for one outer fold."""
        if self.rank is None or not self.varies:
            return self.whole
        rows, device = self.brain.rows.delayed, self.brain.device
        rank = min(self.rank, self.X.shape[1], len(fold.train))
        columns = equal_rank_columns(self.X, rows, fold, rank=rank, device=device)
        return delayed_design(columns, rows, device=device)


def _score_fold(
    board: ScoreBoard,
    place: tuple[int, int, int],
    design: Design,
    brain: Brain,
    fold: Fold,
    options: FitOptions,
    max_block_bytes: int,
) -> None:
    low, high, n_alphas = options.alphas
    alphas = alpha_grid(low, high, int(n_alphas))
    fit = fit_ridge(
        design, brain.targets, fold, alphas=alphas, device=brain.device, solver=options.solver,
        max_block_bytes=max_block_bytes,
    )  # fmt: skip
    scored = scored_predictions(fit.predictions, fold)
    scores = score_fold(brain.Y, scored, fold, brain.rows.segment_of_row, device=brain.device)
    board.add(
        *place,
        r=scores.r,
        r2=scores.r2,
        r_rows=scores.r_rows,
        cv_r2=fit.cv_r2,
        alpha=fit.best_alphas,
        at_edge=alpha_at_edge(fit.best_alphas, alphas),
        predictions=scored,
    )
