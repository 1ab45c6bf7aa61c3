"""himalaya's global backend is entered and left."""

from contextlib import contextmanager

import pytest
import torch
from himalaya.backend import get_backend, set_backend

from bids_mllm.exceptions import UsageError
from bids_mllm.fit.backend import himalaya_backend


@pytest.fixture(params=["numpy", "torch"])
def former(request):
    before = get_backend().name
    set_backend(request.param)
    yield request.param
    set_backend(before)


def test_the_former_backend_comes_back(former):
    with himalaya_backend("cpu") as backend:
        assert backend.name == get_backend().name == "torch"
    assert get_backend().name == former


def test_the_former_backend_comes_back_after_an_exception(former):
    with pytest.raises(ZeroDivisionError), himalaya_backend("cpu"):
        raise ZeroDivisionError
    assert get_backend().name == former


def test_an_unknown_device_lists_the_choices(former):
    with pytest.raises(ValueError, match="'cpu', 'cuda'"), himalaya_backend("tpu"):
        pass
    assert get_backend().name == former


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_a_missing_gpu_is_said_in_a_sentence(former):
    with pytest.raises(UsageError, match="no CUDA device"), himalaya_backend("cuda"):
        pass
    assert get_backend().name == former


def test_the_device_is_current_within_the_backend(former, monkeypatch):
    """himalaya puts new tensors on PyTorch's current device, whatever number the fit has."""
    current = []

    @contextmanager
    def use(device):
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "device", use)
    monkeypatch.setattr("himalaya.backend.set_backend", lambda name: (name, tuple(current)))
    with himalaya_backend("cuda:2") as backend:
        assert backend == ("torch_cuda", ("cuda:2",))
    assert current == []
    with pytest.raises(UsageError, match=r"cuda:3, but PyTorch finds 3 CUDA devices"), himalaya_backend("cuda:3"):
        pass


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is present")
def test_cuda_is_entered(former):
    with himalaya_backend("cuda") as backend:
        assert backend.name == "torch_cuda"
    assert get_backend().name == former
