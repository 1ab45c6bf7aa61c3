"""Which devices are found, with CUDA_VISIBLE_DEVICES and an nvidia-smi of our own, and what --device makes of them."""

import os
import time

import pytest

from bids_mllm.cli import devices
from bids_mllm.config import Settings
from bids_mllm.exceptions import UsageError
from bids_mllm.workflows import gpus
from bids_mllm.workflows.gpus import visible_devices

UUIDS = [
    "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77",
    "GPU-6a1c1e7c-0d35-4f5e-9c1e-0c2e6d5b1f01",
    "GPU-6a1c9b02-7e61-4b0f-8f53-2f4a7c9d3e02",
]
MIGS = ["MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"]


def gpu_lines(n):
    return [f"GPU {i}: NVIDIA A100-SXM4-40GB (UUID: {UUIDS[i]})" for i in range(n)]


WITH_MIG = [
    *gpu_lines(1),
    *(f"  MIG 3g.20gb     Device  {i}: (UUID: {name})" for i, name in enumerate(MIGS)),
    f"GPU 1: NVIDIA A100-SXM4-40GB (UUID: {UUIDS[1]})",
]


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine without nvidia-smi, driver and variables; returns its folder of programs."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    # Setting them first makes pytest put them back, also where the code under test has set them.
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(gpus, "DRIVER_FOLDER", tmp_path / "proc")
    monkeypatch.setattr(gpus, "DEVICE_FOLDER", tmp_path / "dev")
    monkeypatch.setattr(devices, "_torch_sees_gpu", lambda: True)
    return programs


def install_smi(programs, lines, *, then=""):
    script = programs / "nvidia-smi"
    said = "".join(f"echo '{line}'\n" for line in lines)
    script.write_text(f'#!/bin/sh\n[ "$*" = --list-gpus ] || exit 9\n{said}{then}\n')
    script.chmod(0o755)


def show_driver(tmp_path, n):
    for i in range(n):
        (tmp_path / "proc" / f"0000:{i}7:00.0").mkdir(parents=True)


def test_a_machine_without_gpus():
    assert visible_devices().names == ()


@pytest.mark.parametrize("n", [1, 3])
def test_nvidia_smi_lists_the_gpus(machine, tmp_path, n):
    install_smi(machine, gpu_lines(n))
    show_driver(tmp_path, 2)
    found = visible_devices()
    assert (found.names, found.source, len(found)) == (tuple("012"[:n]), "nvidia-smi", n)


@pytest.mark.parametrize("then", ["exit 1", "exec /bin/sleep 60", "/bin/sleep 60"], ids=["fails", "hangs", "child"])
def test_an_nvidia_smi_without_an_answer_is_left_alone(machine, tmp_path, monkeypatch, then):
    monkeypatch.setattr(gpus, "SMI_SECONDS", 0.5)
    install_smi(machine, gpu_lines(3), then=then)
    begin = time.monotonic()
    assert visible_devices().names == ()
    show_driver(tmp_path, 2)
    found = visible_devices()
    assert (found.names, found.source) == (("0", "1"), "the driver")
    assert time.monotonic() - begin < 10


def test_device_files_tell_where_the_driver_shows_no_folder(tmp_path):
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / "dev" / name).touch()
    assert visible_devices().names == ("0", "1")


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("2", ("2",)),
        ("2,0", ("2", "0")),
        (" 1 , 2 ", ("1", "2")),
        ("0,-1,2", ("0",)),
        ("0,3,1", ("0",)),
        ("1,nothing,2", ("1",)),
        ("1,1", ()),
        (UUIDS[1], (UUIDS[1],)),
        (f"{UUIDS[2]},{UUIDS[0]}", (UUIDS[2], UUIDS[0])),
        ("GPU-5d5b,GPU-6a1c1", ("GPU-5d5b", "GPU-6a1c1")),
        ("GPU-5d5b,GPU-6a1c,GPU-6a1c9", ("GPU-5d5b",)),
        ("GPU-00000000,GPU-5d5b", ()),
        (f"{UUIDS[0]},GPU-5d5b", ()),
    ],
)
def test_the_variable_chooses_among_three(machine, monkeypatch, variable, names):
    install_smi(machine, gpu_lines(3))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    found = visible_devices()
    assert (found.names, found.source) == (names, "CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(
    ("variable", "names"),
    [("2,3", ("2", "3")), ("GPU-5d5b,GPU-6a1c", ("GPU-5d5b", "GPU-6a1c")), (",".join(MIGS), (MIGS[0],)), ("", ())],
)
def test_the_variable_is_believed_where_nothing_else_tells(monkeypatch, variable, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_devices().names == names


def test_a_number_is_checked_against_what_the_driver_shows(tmp_path, monkeypatch):
    show_driver(tmp_path, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2,0")
    assert visible_devices().names == ("1",)


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        (None, (MIGS[0],)),
        (MIGS[1], (MIGS[1],)),
        (",".join(MIGS), (MIGS[0],)),
        ("MIG-GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77/1/0", ("MIG-GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77/1/0",)),
        ("0,1", ("0",)),
        ("1", ("1",)),
        ("MIG-0000", ()),
    ],
)
def test_a_process_sees_one_mig_device(machine, monkeypatch, variable, names):
    install_smi(machine, WITH_MIG)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_devices().names == names


@pytest.mark.parametrize(
    ("n_gpus", "seen", "device"), [(2, True, "cuda"), (2, False, "cpu"), (0, True, "cpu"), (0, False, "cpu")]
)
def test_auto_needs_a_device_and_a_torch_that_sees_it(machine, monkeypatch, n_gpus, seen, device):
    install_smi(machine, gpu_lines(n_gpus))
    monkeypatch.setattr(devices, "_torch_sees_gpu", lambda: seen)
    assert devices.resolve_device("auto") == device
    assert len(visible_devices()) == (0 if device == "cpu" else n_gpus)


def test_torch_is_not_asked_in_vain(monkeypatch):
    monkeypatch.setattr(devices, "_torch_sees_gpu", lambda: pytest.fail("asked"))
    assert devices.resolve_device("auto") == "cpu"
    assert devices.resolve_device("cpu") == "cpu"
    assert "CUDA_DEVICE_ORDER" not in os.environ


@pytest.mark.parametrize(("variable", "left"), [(None, "1"), ("2,0", "0"), ("GPU-5d5b,GPU-6a1c9", "GPU-6a1c9")])
def test_one_of_the_visible_devices(machine, monkeypatch, variable, left):
    install_smi(machine, gpu_lines(3))
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert devices.resolve_device("cuda:1") == "cuda"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left
    assert visible_devices().names == (left,)


def test_devices_are_numbered_as_nvidia_smi_does(machine, monkeypatch):
    install_smi(machine, gpu_lines(1))
    devices.resolve_device("cuda")
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    devices.resolve_device("cuda")
    assert os.environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_number_that_is_not_visible(machine, monkeypatch):
    install_smi(machine, gpu_lines(3))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    with pytest.raises(UsageError, match=r"--device is cuda:2, but .* cuda:0 \(2\), cuda:1 \(0\), by CUDA_VISIBLE"):
        devices.resolve_device("cuda:2")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,0"


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_without_a_gpu(monkeypatch, device):
    with pytest.raises(UsageError, match=rf"--device is {device}, but no NVIDIA driver.*--device cpu"):
        devices.resolve_device(device)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(UsageError, match=r"CUDA_VISIBLE_DEVICES is '-1', which leaves no GPU visible"):
        devices.resolve_device(device)


def test_cuda_with_a_torch_for_the_cpu_alone(machine, monkeypatch):
    install_smi(machine, gpu_lines(1))
    monkeypatch.setattr(devices, "_torch_sees_gpu", lambda: False)
    with pytest.raises(UsageError, match=r"--device is cuda, but this PyTorch finds no CUDA device.*--device cpu"):
        devices.resolve_device("cuda")


@pytest.mark.parametrize(
    ("plugin", "device", "expected"),
    [("SLURM", "cuda", "cuda"), ("PBS", "cuda:1", "cuda:1"), ("SGE", "auto", "cpu"), ("SLURM", "cpu", "cpu")],
)
def test_jobs_on_other_machines_have_their_own_devices(tmp_path, plugin, device, expected):
    file = tmp_path / "plugin.yml"
    file.write_text(f"plugin: {plugin}\n")
    settings = Settings(
        bids_dir=tmp_path, output_dir=tmp_path, analysis_level="participant", device=device, use_plugin=file
    )
    assert devices.device_of_run(settings) == expected


@pytest.mark.parametrize("plugin", ["Linear", "MultiProc", None])
def test_nodes_on_this_machine_need_a_device_here(machine, tmp_path, plugin):
    file = tmp_path / "plugin.yml"
    file.write_text(f"plugin: {plugin}\n")
    settings = Settings(
        bids_dir=tmp_path, output_dir=tmp_path, analysis_level="participant", device="cuda:0",
        use_plugin=file if plugin else None,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"--device is cuda:0, but no NVIDIA driver"):
        devices.device_of_run(settings)
    install_smi(machine, gpu_lines(2))
    assert devices.device_of_run(settings) == "cuda"


def test_torch_of_this_machine_is_asked(monkeypatch):
    import torch

    monkeypatch.undo()
    assert devices._torch_sees_gpu() == torch.cuda.is_available()


def test_a_torch_that_hangs_sees_none(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(devices, "TORCH_SECONDS", 0.01)
    monkeypatch.setattr(devices, "answer_of", lambda command, seconds: gpus.answer_of(["/bin/sleep", "60"], seconds))
    begin = time.monotonic()
    assert not devices._torch_sees_gpu()
    assert time.monotonic() - begin < 10
