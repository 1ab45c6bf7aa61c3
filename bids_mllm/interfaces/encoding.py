"""Node that fits and scores every feature space of one participant, since they share the brain data."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from bids_mllm.fit.ridge import alpha_at_edge, alpha_grid, fit_ridge, linear_gram
from bids_mllm.interfaces.rows import GridKey, Rows, make_rows, stack_features, stack_targets, without_windows
from bids_mllm.io.design import read_design
from bids_mllm.io.files import read_json, write_json
from bids_mllm.io.scores import save_scores
from bids_mllm.io.store import FeatureEntry, canonical_json
from bids_mllm.records import Condition, FloatArray, ModelScores, ParticipantDesign, WindowGrid
from bids_mllm.score.correlation import pearson_r, r2_score_columns
from bids_mllm.score.selection import ScoreBoard


@dataclass(frozen=True)
class FitOptions:
    """What the fit depends on besides the data; `alphas` is (lowest, highest, number)."""

    delays: tuple[int, ...]
    alphas: tuple[float, float, int]
    n_folds: int
    high_pass: float
    layers: tuple[int, ...] | None


class _FitInputSpec(BaseInterfaceInputSpec):
    design = File(exists=True, mandatory=True, desc="JSON of a ParticipantDesign")
    bold = File(exists=True, mandatory=True, desc="JSON that PrepareBold wrote")
    manifests = InputMultiPath(File(exists=True), mandatory=True, desc="JSONs of feature entries")
    models = traits.List(traits.Str(), mandatory=True, desc="keys, in the order of the report")
    options = traits.Str(mandatory=True, desc="JSON of FitOptions")
    device = traits.Str("cpu", usedefault=True, nohash=True)
    max_block_bytes = traits.Int(2**31, usedefault=True, nohash=True, desc="memory for one block of voxels")
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)
    cache_dir = traits.Str(mandatory=True, nohash=True, desc="scores of models fitted before, by digest")
    app_version = traits.Str(mandatory=True)


class _FitOutputSpec(TraitedSpec):
    scores = File(exists=True, desc="JSON: for each model the file of its scores")


class FitScores(SimpleInterface):
    """Fit and score all models x instructions x layers of one participant in one space."""

    input_spec = _FitInputSpec
    output_spec = _FitOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        design = read_design(Path(self.inputs.design))
        bold = read_json(Path(self.inputs.bold))
        options = fit_options_from_json(self.inputs.options)
        manifests = [read_json(Path(path)) for path in self.inputs.manifests]
        lost = lost_windows(manifests)
        design = without_windows(design, {key: set(reasons) for key, reasons in lost.items()})
        rows = make_rows(design, delays=options.delays, n_folds=options.n_folds)
        index: dict[str, str] = {}
        widths: dict[str, int] = {}
        Y: FloatArray | None = None
        for model in self.inputs.models:
            own = [manifest for manifest in manifests if manifest["model"] == model]
            path = self._cached(bold["sha256"], own, lost)
            if not path.is_file():
                if Y is None:
                    Y = stack_targets(np.load(bold["series"], mmap_mode="r"), rows)
                features = ModelFeatures(design, model, own, options)
                features.warnings += lost_words(lost)
                scores = score_model(
                    features,
                    rows,
                    Y,
                    options,
                    device=self.inputs.device,
                    max_block_bytes=self.inputs.max_block_bytes,
                )
                save_scores(path, scores)
            index[model] = str(path)
            widths[model] = own[0]["entries"][0]["width"]
        out = Path(runtime.cwd) / "scores.json"
        write_json(
            out,
            {
                "models": index,
                "widths": widths,
                "n_rows": len(rows.run_of_row),
                "lost_windows": [[*key, reasons] for key, reasons in lost.items()],
            },
        )
        self._results["scores"] = str(out)
        return runtime

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
        n_folds=content["n_folds"],
        high_pass=content["high_pass"],
        layers=None if layers is None else tuple(layers),
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
        self._entries = {
            (manifest["stim_file"], row["origin"], row["step"], row["length"], _condition(row)): FeatureEntry(
                Path(row["path"]), row["n_windows"], row["n_layers"], row["width"]
            )
            for manifest in manifests
            for row in manifest["entries"]
        }
        self.conditions = tuple(dict.fromkeys(_condition(row) for row in manifests[0]["entries"]))
        n_layers = manifests[0]["entries"][0]["n_layers"]
        chosen = options.layers if options.layers is not None and n_layers > 1 else None
        self.layers = tuple(range(n_layers)) if chosen is None else tuple(x for x in chosen if x < n_layers)
        absent = sorted(set(chosen or ()) - set(self.layers))
        self.warnings = tuple(f"{model} has no layer {layer}; it was left out." for layer in absent)
        if not self.layers:
            raise UsageError(
                f"--layers asks for {', '.join(map(str, chosen or ()))}, but {model} has the layers 0 to "
                f"{n_layers - 1}; choose among these."
            )

    def matrix(self, rows: Rows, condition: Condition, layer: int) -> FloatArray:
        """Delayed design matrix of one feature space, (n_rows, n_features * n_delays)."""

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
    rows: Rows,
    Y: FloatArray,
    options: FitOptions,
    *,
    device: str = "cpu",
    max_block_bytes: int = 2**31,
) -> ModelScores:
    """Fit and score every condition and layer of one model on all outer folds.

    Parameters
    ----------
    features
    rows
    Y : (n_rows, n_voxels) float
        z-scored targets.
    options
    device
        Where the fits run: cpu or cuda.
    max_block_bytes
        Bound of the working arrays of one block of voxels.
    """
    low, high, n_alphas = options.alphas
    alphas = alpha_grid(low, high, int(n_alphas))
    board = ScoreBoard(features.conditions, features.layers, n_voxels=Y.shape[1], n_folds=len(rows.folds))
    warnings: list[str] = list(features.warnings)
    spaces = [(c, k) for c in range(len(features.conditions)) for k in range(len(features.layers))]
    label = f"fit sub-{features.design.participant} {features.model}"
    for c, k in tqdm(spaces, desc=label, unit="space", mininterval=5):
        condition, layer = features.conditions[c], features.layers[k]
        X = features.matrix(rows, condition, layer)
        if not np.any(X):
            warnings.append(
                f"{features.model} {condition.label} layer {layer} does not vary over time and was set aside."
            )
        gram = linear_gram(X, device=device)
        for number, fold in enumerate(rows.folds):
            fit = fit_ridge(gram, Y, fold, alphas=alphas, device=device, max_block_bytes=max_block_bytes)
            truth = Y[fold.test]
            board.add(
                number,
                c,
                k,
                r=pearson_r(truth, fit.predictions),
                r2=r2_score_columns(truth, fit.predictions),
                cv_r2=fit.cv_r2,
                alpha=fit.best_alphas,
                at_edge=alpha_at_edge(fit.best_alphas, alphas),
            )
    return board.result(features.model, fold_names=tuple(fold.name for fold in rows.folds), warnings=tuple(warnings))
