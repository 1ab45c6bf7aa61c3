"""A node computes on its device and leaves nothing there: the model is freed at its end, also when it failed."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from film_jobs import extract, tasks_of

from bids_mllm.exceptions import BidsMllmError, UsageError
from bids_mllm.features.extractor import Extractor, ReadOut
from bids_mllm.features.models import instructed
from bids_mllm.features.models.tiny import TINY_CHECKPOINTS
from bids_mllm.interfaces import ceiling, device
from bids_mllm.interfaces.bands import FitJointly
from bids_mllm.interfaces.ceiling import EstimateCeiling
from bids_mllm.interfaces.device import forget_locals, on_device
from bids_mllm.interfaces.encoding import FitScores
from bids_mllm.interfaces.extraction import Machine, ModelTask
from bids_mllm.records import ModelSpec
from bids_mllm.simulate.films import write_film

Refs = list["weakref.ref[torch.nn.Module]"]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    write_film(path, seconds=6.0, seed=1)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"tiny={TINY_CHECKPOINTS['qwen25vl'](tmp_path_factory.mktemp('checkpoint') / 'tiny')}"


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A PyTorch that says to have two devices; returns what is done with them, each with the current device."""
    events: list[tuple[str, str]] = []
    current = ["cuda:0"]

    @contextmanager
    def use(chosen: object) -> Iterator[None]:
        current.append(current[-1] if chosen is None else str(chosen))
        events.append(("current", current[-1]))
        try:
            yield
        finally:
            current.pop()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", use)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append(("empty", current[-1])))
    return events


def watched(task: ModelTask, refs: Refs, fail: Exception | None = None, *, where: str = "decoder") -> ModelTask:
    """A task whose model is referred to weakly once loaded, and fails in the midst of a forward call, if it is to."""

    def load(spec: ModelSpec, readout: ReadOut, place: str) -> Extractor:
        extractor: Any = task.family.load(spec, readout, place)
        model = extractor._extractor._model
        refs.append(weakref.ref(model))
        if fail is not None and where == "load":
            raise fail
        if fail is not None:
            model.get_decoder().layers[1].register_forward_pre_hook(_failing(model, fail, refs))
        return extractor  # type: ignore[no-any-return]

    return replace(task, family=replace(task.family, load=load))


def weights(refs: Refs) -> set[str]:
    """Where the weights are of the models that still exist; those on meta take no memory."""
    models = [model for ref in refs if (model := ref()) is not None]
    return {tensor.device.type for model in models for tensor in model.state_dict().values()}


def _failing(model: torch.nn.Module, error: Exception, refs: Refs) -> Callable[..., None]:
    def fail(*_: object) -> None:
        states = torch.nn.Linear(1, 1)  # stands for what a forward call computes
        refs.append(weakref.ref(states))
        raise error from ValueError(type(model).__name__)

    return fail


def test_the_model_is_freed_after_a_node(film: Path, tiny: str, tmp_path: Path) -> None:
    refs: Refs = []
    gc.disable()
    try:
        extract(film, [watched(task, refs) for task in tasks_of(film, [tiny], tmp_path)], tmp_path)
        assert [ref() for ref in refs] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("where", ["decoder", "load"])
@pytest.mark.parametrize("error", [BidsMllmError("It failed."), ValueError("It failed.")], ids=["kept", "raised"])
def test_the_model_is_freed_after_a_failure(
    film: Path, tiny: str, tmp_path: Path, error: Exception, where: str
) -> None:
    refs: Refs = []
    tasks = [watched(task, refs, error, where=where) for task in tasks_of(film, [tiny], tmp_path)]
    gc.disable()
    try:
        # The error lives on, as it does in a worker until its crash file is written.
        with pytest.raises(type(error), match="It failed") as raised:
            extract(film, tasks, tmp_path)
        assert raised.value is error
        assert [ref() for ref in refs[1:]] == [None] * (where == "decoder")
        assert weights(refs) in ({"meta"}, set())
        del raised
        error.__traceback__ = None
        gc.collect()
        assert not any(ref() for ref in refs)
    finally:
        gc.enable()


def test_closing_frees_memory_on_the_models_own_device(
    film: Path, tiny: str, tmp_path: Path, cuda: list[tuple[str, str]]
) -> None:
    [task] = tasks_of(film, [tiny], tmp_path)
    extractor: Any = task.family.load(task.spec, task.readout, "cpu")._extractor  # type: ignore[attr-defined]
    extractor._device = torch.device("cuda:1")
    model = weakref.ref(extractor._model)
    extractor.close()
    assert model() is None
    assert ("empty", "cuda:1") in cuda
    assert ("empty", "cuda:0") not in cuda


@pytest.mark.parametrize("error", [None, ValueError("no"), KeyboardInterrupt("no")])
def test_a_device_is_current_and_its_memory_given_back(
    cuda: list[tuple[str, str]], error: BaseException | None
) -> None:
    with pytest.raises(type(error), match="no") if error is not None else nullcontext(), on_device("cuda:1"):
        assert cuda == [("current", "cuda:1")]
        if error is not None:
            raise error
    assert cuda[-1] == ("empty", "cuda:1")


def test_the_cpu_needs_no_torch_of_cuda(cuda: list[tuple[str, str]]) -> None:
    with on_device("cpu"):
        pass
    assert cuda == []


def test_extraction_is_on_the_device_of_the_node(
    film: Path, tiny: str, tmp_path: Path, cuda: list[tuple[str, str]]
) -> None:
    seen: list[str] = []

    def load(spec: ModelSpec, readout: ReadOut, place: str) -> Extractor:
        seen.extend([place, cuda[-1][1]])
        raise BidsMllmError("Far enough.")

    [task] = tasks_of(film, [tiny], tmp_path)
    with pytest.raises(BidsMllmError, match="Far enough"):
        extract(film, [replace(task, family=replace(task.family, load=load))], tmp_path, Machine("cuda:1"))
    assert seen == ["cuda:1", "cuda:1"]
    assert cuda[-1] == ("empty", "cuda:1")


def test_features_from_a_gpu_are_found_by_a_build_for_the_cpu(
    film: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    found = []
    for build in ("2.9.1+cpu", "2.9.1+cu128", "2.9.1"):
        if "cu1" in build:
            request.getfixturevalue("cuda")
        monkeypatch.setattr(instructed, "version", lambda _, build=build: build)
        found.append([entry.path for task in tasks_of(film, [tiny], tmp_path) for entry in task.entries])
    assert found[0] == found[1] == found[2]
    monkeypatch.setattr(instructed, "version", lambda _: "2.10.0")
    assert next(entry.path for task in tasks_of(film, [tiny], tmp_path) for entry in task.entries) not in found[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_a_missing_device_is_said_before_anything_is_loaded(film: Path, tiny: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"PyTorch finds no CUDA device here; choose the device cpu"):
        extract(film, tasks_of(film, [tiny], tmp_path), tmp_path, Machine("cuda"))


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Devices that nodes made current."""
    devices: list[str] = []

    @contextmanager
    def note(chosen: str) -> Iterator[None]:
        devices.append(chosen)
        yield

    monkeypatch.setattr(device, "on_device", note)
    monkeypatch.setattr(ceiling, "on_device", note)
    return devices


@pytest.mark.parametrize("interface", [FitScores, FitJointly, EstimateCeiling])
def test_fits_are_on_the_device_of_the_node(entered: list[str], interface: Any) -> None:
    nothing = SimpleNamespace(device="cuda:1", designs=[], bolds=[], cvs="[]", method="participants")
    with pytest.raises((AttributeError, IndexError)):  # nothing is there to be fitted
        interface._run_interface(SimpleNamespace(inputs=nothing), SimpleNamespace(cwd="."))
    assert entered == ["cuda:1"]


def test_variables_of_causes_are_forgotten_too() -> None:
    refs: Refs = []

    def first() -> None:
        model = torch.nn.Linear(1, 1)
        refs.append(weakref.ref(model))
        raise ValueError("first")

    def second() -> None:
        try:
            first()
        except ValueError as error:
            raise KeyError("second") from error

    try:
        second()
    except KeyError as error:
        kept: BaseException = error
    assert refs[0]() is not None
    forget_locals(kept)
    assert refs[0]() is None
