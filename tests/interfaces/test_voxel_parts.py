"""Voxels that do not fit into memory at once are taken part by part, and nothing that is found changes."""

from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest

from bids_mllm.align.windows import align_run
from bids_mllm.fit.memory import PROCESS, SMALLEST_BLOCK, fit_memory, part_of_targets
from bids_mllm.interfaces import ceiling, encoding
from bids_mllm.interfaces.bands import Band, _Joint, join_bands, join_pairs
from bids_mllm.interfaces.brain import Brain
from bids_mllm.interfaces.encoding import FitOptions, FitScores, ModelFeatures
from bids_mllm.interfaces.inference import InferenceOptions
from bids_mllm.interfaces.rows import CVOptions, make_rows, stack_targets
from bids_mllm.io.scores import load_held_out, load_scores
from bids_mllm.records import Condition, ParticipantDesign, Run, Showing

TR, N_VOLUMES, N_VOXELS = 2.0, (70, 60, 50), 700
# More voxels than a part has; they do not vary.
FLAT = 300
INFERENCE = InferenceOptions(n_permutations=50, block_length=5)


class Features:
    """Stands for the features of a model: made up for every volume."""

    memory = ModelFeatures.memory

    def __init__(self, design, width, name="m", keys=("A", "B")):
        self.design, self.width, self.model = design, width, name
        self.conditions, self.layers, self.warnings = tuple(Condition("last", key) for key in keys), (0, 1), ("Words.",)
        self._block_length = INFERENCE.block_length

    def matrix(self, rows, condition, layer):
        seed = 10 * self.conditions.index(condition) + layer + self.width
        return np.random.default_rng(seed).normal(size=(sum(N_VOLUMES), self.width))


class Study:
    """One participant of three films with a series on disk."""

    def __init__(self, folder, label="01"):
        runs = tuple(
            Run(label, None, film, None, "T1w", None, None, None, TR, 0.0, n, None, (Showing(film, 0.0),))
            for film, n in zip("abc", N_VOLUMES, strict=True)
        )
        windows = tuple(align_run(run, dict.fromkeys("abc", 500.0), window=None) for run in runs)
        self.design = ParticipantDesign(label, "T1w", runs, windows, (), None)
        self.rows = make_rows(self.design, delays=(0, 1), cv=CVOptions())
        rng = np.random.default_rng(0)
        X = Features(self.design, 4).matrix(self.rows, Condition("last", "B"), 1)
        series = X @ rng.normal(size=(4, N_VOXELS)) + 2 * rng.normal(size=(sum(N_VOLUMES), N_VOXELS))
        series[:, :FLAT] = 0.0
        self.series = folder / f"series_{label}.npy"
        np.save(self.series, series.astype(np.float32))

    @property
    def brain(self):
        return Brain(self.series, self.rows, "cpu")


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path)


def options_of(**changes):
    made = {"delays": (0, 1), "alphas": (1e-1, 1e4, 6), "high_pass": 0.0, "layers": None, "inference": INFERENCE}
    return FitOptions(**made | changes)


def scarce(need, share):
    """Memory for so much of the voxels and the smallest block."""
    return need.fixed + PROCESS + SMALLEST_BLOCK + int(share * (need.targets + need.predictions))


def assert_same(found, expected):
    for field in fields(expected):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(other, np.ndarray):
            assert (one.shape, one.dtype) == (other.shape, other.dtype), field.name
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=field.name)
        else:
            assert one == other, field.name


@pytest.mark.parametrize("solver", ["exact", "himalaya"])
@pytest.mark.parametrize("width", [4, 150], ids=["columns", "kernel"])
def test_fits_in_parts_are_the_fits_of_all(study, tmp_path, monkeypatch, width, solver):
    features, options = Features(study.design, width), options_of(equal_rank=3, solver=solver)
    sizes = []
    fit_part = encoding._fit_part
    monkeypatch.setattr(encoding, "_fit_part", lambda *given: sizes.append(given[1].Y.shape[1]) or fit_part(*given))
    brain = Brain(study.series, study.rows, "cpu", wide=solver == "himalaya")
    found = {}
    for name, memory in (("all", 2**34), ("parts", scarce(features.memory(brain), 0.4))):
        node = FitScores()
        node.inputs.memory_bytes, node.inputs.max_block_bytes = memory, 2**30
        path = tmp_path / f"{name}.npz"
        node._fit(path, features, brain, options)
        found[name] = [load_scores(path), load_scores(tmp_path / f"{name}_rank.npz")]
        found[name].append(load_held_out(tmp_path / f"{name}_heldout.npz"))
    assert sizes == [N_VOXELS, 234, 234, 232]
    for one, other in zip(found["parts"], found["all"], strict=True):
        assert_same(one, other)
    scores, _, held_out = found["parts"]
    assert np.isnan(scores.best_r[:FLAT]).all()
    assert np.isfinite(scores.best_r[FLAT:]).all()
    assert np.isfinite(held_out.p_max[FLAT:]).all()
    assert scores.fold_cv_r2.max() > 0.01


def test_bands_and_pairs_in_parts_are_those_of_all(study):
    options = options_of(alphas=(1.0, 1e3, 3))
    models = {"m": Features(study.design, 4, keys=("A", "B", "C")), "n": Features(study.design, 6, "n")}
    scores = {
        name: SimpleNamespace(conditions=one.conditions, layers=one.layers, fold_cv_r2=np.ones((3, 3, 2)) * [0, 1])
        for name, one in models.items()
    }
    work = _Joint(study.brain, models, scores, options, 2**28)
    bands = [Band("m", "m"), Band("n", "n")]
    (whole,) = work.parts(2, 2, 2**34)
    assert whole.brain.n_voxels == N_VOXELS
    n_rows = len(study.rows.run_of_row)
    parts = list(work.parts(2, 2, PROCESS + SMALLEST_BLOCK + 8 * 7 * n_rows**2 + 4 * n_rows * N_VOXELS))
    assert [part.brain.n_voxels for part in parts] == [234, 234, 232]
    assert_same(join_bands([part.fit_bands(bands) for part in parts]), work.fit_bands(bands))
    keys = ("A", "B", "C")
    assert_same(join_pairs([part.fit_pairs("m", keys) for part in parts]), work.fit_pairs("m", keys))


def test_a_ceiling_in_parts_is_that_of_all(tmp_path, monkeypatch):
    viewers = []
    for label in ("01", "02", "03"):
        study = Study(tmp_path, label)
        noise = np.random.default_rng(int(label)).normal(size=(sum(N_VOLUMES), N_VOXELS))
        np.save(study.series, (np.load(study.series) + noise).astype(np.float32))
        viewers.append(ceiling.Viewer(study.design, study.rows, study.series))
    sizes = []
    prepare = ceiling.prepare_targets
    monkeypatch.setattr(
        ceiling, "prepare_targets", lambda Y, *rest, **words: sizes.append(Y.shape[1]) or prepare(Y, *rest, **words)
    )
    found = [
        ceiling.ceiling_from_participants(viewers, options_of(), "participants", "cpu", 2**28, memory_bytes=memory)
        for memory in (2**34, 2**26)
    ]
    assert sizes == [N_VOXELS, 234, 234, 232]
    assert found[0].facts == found[1].facts
    np.testing.assert_allclose(found[1].ceiling, found[0].ceiling, atol=1e-4)
    assert np.isfinite(found[0].ceiling).any()


@pytest.mark.parametrize("voxels", [slice(None), slice(290, 310), slice(650, 900)])
def test_targets_are_the_same_from_the_file_and_from_the_array(study, monkeypatch, voxels):
    series = np.load(study.series)
    expected = stack_targets(series, study.rows)[:, voxels]
    np.testing.assert_array_equal(stack_targets(study.series, study.rows, voxels), expected)
    monkeypatch.setattr("bids_mllm.interfaces.rows.SCALED_BYTES", 3000)
    np.testing.assert_array_equal(stack_targets(series, study.rows, voxels), expected)


def test_parts_fit_beside_what_is_fixed_and_have_about_one_size():
    need = fit_memory(12_000, 2_400, 200_000, n_volumes=12_500, n_features=3_584, n_delays=5, n_spaces=20)
    assert part_of_targets(need, 200_000, 2**40) == 200_000
    assert part_of_targets(need, 200_000, need.total + PROCESS + SMALLEST_BLOCK) == 200_000
    for available in (need.fixed + 2**31, need.fixed + 2**33, need.total):
        n_part = part_of_targets(need, 200_000, available)
        assert need.part(n_part, 200_000).total + PROCESS + SMALLEST_BLOCK <= available
        n_parts = -(-200_000 // n_part)
        assert n_parts * n_part - 200_000 < n_parts
    assert part_of_targets(need, 200_000, 0) == 256
    assert part_of_targets(need, 100, 0) == 100
