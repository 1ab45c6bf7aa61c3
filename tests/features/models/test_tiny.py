"""The tiny checkpoint: small, repeatable, and of the real classes."""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from bids_mllm.features.instructions import load_instructions
from bids_mllm.features.models.tiny import save_tiny_qwen25vl, tiny_tokenizer


def test_it_is_small_and_follows_from_the_seed(tiny_folder: Path, tmp_path: Path) -> None:
    assert sum(path.stat().st_size for path in tiny_folder.iterdir()) < 1_500_000
    weights = load_file(tiny_folder / "model.safetensors")
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = load_file(save_tiny_qwen25vl(tmp_path / "again") / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    other = load_file(save_tiny_qwen25vl(tmp_path / "other", seed=7) / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not torch.equal(weights["lm_head.weight"], other["lm_head.weight"])


def test_size_and_depth_are_as_asked(tmp_path: Path) -> None:
    folder = save_tiny_qwen25vl(tmp_path / "wide", hidden_size=64, n_layers=2)
    weights = load_file(folder / "model.safetensors")
    assert weights["lm_head.weight"].shape[1] == 64
    layers = {name.split(".layers.")[1].split(".")[0] for name in weights if ".layers." in name}
    assert layers == {"0", "1"}


def test_any_text_survives_the_tokenizer_and_instructions_are_short() -> None:
    tokenizer = tiny_tokenizer()
    for text in ("Zażółć gęślą 影片 ?!\n", *(i.text for i in load_instructions())):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    lengths = [len(tokenizer(instruction.text)["input_ids"]) for instruction in load_instructions()]
    assert max(lengths) <= 24


def test_a_torchvision_of_another_build_gives_one_clear_sentence(tiny_folder: Path, tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    info = tmp_path / "torchvision-0.99.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99\n")
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from bids_mllm.exceptions import CheckpointError\n"
        "from bids_mllm.features.extractor import ReadOut\n"
        "from bids_mllm.features.registry import load_family, resolve_models\n"
        f"spec, = resolve_models(['tiny={tiny_folder}'])\n"
        "try:\n"
        "    load_family(spec.family).load(spec, ReadOut(1.5, ('media',), ()), 'cpu')\n"
        "except CheckpointError as error:\n"
        "    sys.exit(str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "install a torchvision that matches torch, or none." in done.stderr


def test_planning_loads_neither_torch_nor_transformers(tiny_folder: Path) -> None:
    code = (
        "import sys\n"
        "from bids_mllm.features.extractor import ReadOut\n"
        "from bids_mllm.features.registry import load_family, resolve_models\n"
        f"spec, = resolve_models(['tiny={tiny_folder}'])\n"
        "load_family(spec.family).plan(spec, ReadOut(1.5, ('media',), ()))\n"
        "found = {'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'loaded {found}' if found else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
