"""The tiny checkpoints: small, repeatable, and read by the real classes and processors."""

import hashlib
import importlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bids_mllm.features.instructions import load_instructions
from bids_mllm.features.models.loading import load_model, load_tokenizer
from bids_mllm.features.models.tiny import (
    FAMILIES,
    TINY_CHECKPOINTS,
    save_tiny_qwen25vl,
    tiny_bert_tokenizer,
    tiny_llama_tokenizer,
    tiny_tokenizer,
)
from bids_mllm.features.models.tiny.files import split_processor_files

HAS_TORCHVISION = find_spec("torchvision") is not None
CLASSES = {
    "qwen25vl": "Qwen2_5_VLForConditionalGeneration",
    "llavaonevision": "LlavaOnevisionForConditionalGeneration",
    "llavanextvideo": "LlavaNextVideoForConditionalGeneration",
    "videollava": "VideoLlavaForConditionalGeneration",
    "instructblipvideo": "InstructBlipVideoForConditionalGeneration",
    "qwen2audio": "Qwen2AudioForConditionalGeneration",
    "qwen25omni": "Qwen2_5OmniThinkerForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
}
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
# What a user's message of media and the text "Look." becomes, written out by hand.
RENDERED = {
    "qwen25vl": SYSTEM
    + "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Look.<|im_end|>\n<|im_start|>assistant\n",
    "llavaonevision": "<|im_start|>user <video>\nLook.<|im_end|><|im_start|>assistant\n",
    "llavanextvideo": "USER: <video>\nLook. ASSISTANT:",
    "videollava": "USER: <video>\nLook. ASSISTANT:",
    "qwen2audio": SYSTEM
    + "<|im_start|>user\nAudio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\nLook.<|im_end|>\n<|im_start|>assistant\n",
    "qwen25omni": SYSTEM
    + "<|im_start|>user\n<|vision_bos|><|VIDEO|><|vision_eos|><|audio_bos|><|AUDIO|><|audio_eos|>Look.<|im_end|>\n"
    + "<|im_start|>assistant\n",
    "internvl": "<|im_start|>user\n<video>\nLook.<|im_end|>\n<|im_start|>assistant\n",
}
N_FRAMES = {"videollava": 8, "instructblipvideo": 4}
# Each media token, and how many of them the default sizes give for 1.49 s and N_FRAMES (else 4) frames of
# 60 x 80 pixels. Qwen's processors make 56 x 84 of these: 2 steps of 4 x 6 patches, 4 to a token. 149 frames
# of 10 ms give (149 - 1) // 2 + 1 = 75 and (75 - 2) // 2 + 1 = 37 tokens.
MEDIA_TOKENS = {
    "qwen25vl": {"<|video_pad|>": 2 * 4 * 6 // 4},
    "llavaonevision": {"<video>": 4 * 3 * 3 + 1},
    "llavanextvideo": {"<video>": 4 * 4 * 4 // 4},
    "videollava": {"<video>": 8 * (3 * 3 + 1)},
    "instructblipvideo": {"<video>": 4 * 8},
    "qwen2audio": {"<|AUDIO|>": 37},
    "qwen25omni": {"<|VIDEO|>": 2 * 4 * 6 // 4, "<|AUDIO|>": 37},
    "internvl": {"<IMG_CONTEXT>": 4 * 2 * 2},
}
MEDIA_IDS = {
    "<|video_pad|>": "video_token_id",
    "<video>": "video_token_id",
    "<|VIDEO|>": "video_token_id",
    "<|AUDIO|>": "audio_token_id",
    "<IMG_CONTEXT>": "image_token_id",
}
# The thinker's processor has a default size of its own, which wins over the checkpoint's unless one is given.
OMNI_SIZE = {"videos_kwargs": {"size": {"shortest_edge": 4 * 28 * 28, "longest_edge": 8 * 28 * 28}}}


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _class(family: str) -> Any:
    return getattr(importlib.import_module("transformers"), CLASSES[family])


def _load(family: str, folder: Path) -> Any:
    return load_model(_class(family), folder, dtype="float32", device="cpu")


def _media(family: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames (n_frames, 60, 80, 3) of noise around a colour, and 1.49 s of a chord at 16 kHz."""
    rng = np.random.default_rng(seed)
    frames = rng.uniform(0, 255, size=3) + rng.normal(0, 30, size=(N_FRAMES.get(family, 4), 60, 80, 3))
    seconds = np.arange(int(1.49 * 16000)) / 16000
    chord = sum(np.sin(2 * np.pi * pitch * seconds) for pitch in rng.uniform(100, 4000, size=5))
    return frames.clip(0, 255).astype(np.uint8), (0.1 * chord).astype(np.float32)


def _messages(family: str, text: str) -> list[dict[str, Any]]:
    kinds = {"qwen2audio": ["audio"], "qwen25omni": ["video", "audio"]}.get(family, ["video"])
    return [{"role": "user", "content": [*({"type": kind} for kind in kinds), {"type": "text", "text": text}]}]


def _inputs(family: str, processor: Any, media: tuple[np.ndarray, np.ndarray], text: str) -> Any:
    frames, audio = media
    if family == "instructblipvideo":
        return processor(images=frames, text=text, return_tensors="pt")
    prompt = processor.apply_chat_template(_messages(family, text), tokenize=False, add_generation_prompt=True)
    arguments: dict[str, Any] = {} if family == "qwen2audio" else {"videos": [frames]}
    if family in ("qwen2audio", "qwen25omni"):
        arguments |= {"audio": [audio], "sampling_rate": 16000}
    if family == "qwen25omni":
        arguments |= OMNI_SIZE
    return processor(text=prompt, return_tensors="pt", **arguments)


@torch.no_grad()
def _last_token(model: Any, inputs: Any) -> torch.Tensor:
    """Hidden states of the last token: (n_layers + 1, width)."""
    outputs = model(**inputs, output_hidden_states=True)
    outputs = outputs.get("language_model_outputs", outputs)
    return torch.stack([states[0, -1] for states in outputs.hidden_states])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {family: TINY_CHECKPOINTS[family](root / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def processor_of(folders: dict[str, Path]) -> Callable[[str], Any]:
    from transformers import AutoProcessor

    def get(family: str) -> Any:
        if family != "qwen2audio" and not HAS_TORCHVISION:
            pytest.skip("the real video processor needs torchvision")
        return AutoProcessor.from_pretrained(folders[family])

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_bytes_fast_and_small(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    torch.manual_seed(123)
    state = torch.get_rng_state()
    start = time.process_time()
    again = TINY_CHECKPOINTS[family](tmp_path / "again")
    assert time.process_time() - start < 1.0
    assert torch.equal(torch.get_rng_state(), state)
    digests = _digests(folders[family])
    assert _digests(again) == digests
    assert {"config.json", "generation_config.json", "tokenizer.json", "processor_config.json"} <= set(digests)
    assert ("chat_template.jinja" in digests) == (family in RENDERED)
    assert sum(path.stat().st_size for path in again.rglob("*") if path.is_file()) < 3_000_000
    other = _digests(TINY_CHECKPOINTS[family](tmp_path / "other", seed=7))
    assert {name for name in digests if other[name] != digests[name]} == {"model.safetensors"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_product_loads_every_weight_and_the_tokenizer(family: str, folders: dict[str, Path]) -> None:
    model, tokenizer = _load(family, folders[family]), load_tokenizer(folders[family])
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 48)
    for token in MEDIA_TOKENS[family]:
        assert getattr(model.config, MEDIA_IDS[token]) == tokenizer.convert_tokens_to_ids(token)
    ends = model.generation_config.eos_token_id
    names = tokenizer.convert_ids_to_tokens(ends if isinstance(ends, list) else [ends])
    assert names in (["<|im_end|>", "<|endoftext|>"], ["</s>"])
    text = "Zażółć 影片 ?! What's\nin the video?"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("family", sorted(RENDERED))
def test_the_chat_template_is_the_hubs(family: str, folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(folders[family])
    rendered = tokenizer.apply_chat_template(_messages(family, "Look."), tokenize=False, add_generation_prompt=True)
    assert rendered == RENDERED[family]
    ids = tokenizer(rendered)["input_ids"]
    for token in set(re.findall(r"<[^<>]+>", rendered)):
        assert ids.count(tokenizer.convert_tokens_to_ids(token)) == rendered.count(token)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_real_processor_and_model_tell_clips_instructions_and_layers_apart(
    family: str, folders: dict[str, Path], processor_of: Callable[[str], Any]
) -> None:
    processor, model = processor_of(family), _load(family, folders[family])
    texts = [instruction.text for instruction in load_instructions()[:2]]
    inputs = [[_inputs(family, processor, _media(family, seed), text) for seed in range(3)] for text in texts]
    ids = inputs[0][0]["input_ids"][0].tolist()
    for token, count in MEDIA_TOKENS[family].items():
        assert ids.count(processor.tokenizer.convert_tokens_to_ids(token)) == count
    states = torch.stack([torch.stack([_last_token(model, one) for one in clips]) for clips in inputs])
    assert states.shape == (2, 3, 5, 48)
    centred = states - states.mean(dim=1, keepdim=True)
    clips, whole = centred[0].norm(dim=(0, 2)), states[0].norm(dim=(0, 2))
    assert (clips[1:] > 0.02 * whole[1:]).all()
    instructions = (centred[0] - centred[1]).norm(dim=(0, 2))
    assert (instructions[1:] > 0.1 * clips[1:]).all()
    similarity = torch.corrcoef(centred[0, :, 1:].transpose(0, 1).flatten(1))
    assert similarity.fill_diagonal_(0).abs().max() < 0.99


@pytest.mark.parametrize("family", FAMILIES)
def test_the_processor_would_write_the_same_settings(
    family: str, folders: dict[str, Path], processor_of: Callable[[str], Any], tmp_path: Path
) -> None:
    from transformers import AutoProcessor

    ours = json.loads((folders[family] / "processor_config.json").read_text("utf-8"))
    split = split_processor_files(shutil.copytree(folders[family], tmp_path / "split"))
    assert (split / "preprocessor_config.json").is_file() == (family != "instructblipvideo")
    for processor in (processor_of(family), AutoProcessor.from_pretrained(split)):
        processor.save_pretrained(tmp_path / "again")
        theirs = json.loads((tmp_path / "again" / "processor_config.json").read_text("utf-8"))
        for name, value in ours.items():
            found = {key: theirs[name].get(key) for key in value} if isinstance(value, dict) else theirs[name]
            assert found == value


def test_size_and_depth_are_as_asked(tmp_path: Path) -> None:
    for family in FAMILIES:
        folder = TINY_CHECKPOINTS[family](tmp_path / family, hidden_size=64, n_layers=2, intermediate_size=80)
        text = json.loads((folder / "config.json").read_text("utf-8"))["text_config"]
        assert (text["hidden_size"], text["num_hidden_layers"], text["intermediate_size"]) == (64, 2, 80)
        weights = load_file(folder / "model.safetensors")
        queries = [values for name, values in weights.items() if name.endswith("q_proj.weight")]
        assert sum(values.shape[1] == 64 for values in queries) == 2


def test_a_benchmark_size_is_mostly_language_model(tmp_path: Path) -> None:
    folder = save_tiny_qwen25vl(tmp_path / "large", hidden_size=512, n_layers=8, intermediate_size=1376, n_heads=8)
    weights = load_file(folder / "model.safetensors")
    total = sum(values.numel() for values in weights.values())
    vision = sum(values.numel() for name, values in weights.items() if "visual" in name)
    assert total >= 20_000_000
    assert vision < 0.05 * total
    assert all(values.isfinite().all() for values in weights.values())


def test_an_instructblip_checkpoint_of_the_class_for_images_becomes_one_for_videos(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = TINY_CHECKPOINTS["instructblipvideo"](tmp_path / "image", as_image=True)
    assert json.loads((folder / "config.json").read_text("utf-8"))["model_type"] == "instructblip"
    model, tokenizer = _load("instructblipvideo", folder), load_tokenizer(folder)
    assert model.config.video_token_id is None
    assert "<video>" not in tokenizer.get_vocab()
    videos = load_file(folders["instructblipvideo"] / "model.safetensors")
    images = load_file(folder / "model.safetensors")
    assert all(torch.equal(images[name], values) for name, values in videos.items())
    if not HAS_TORCHVISION:
        return
    from transformers import InstructBlipVideoProcessor

    processor = InstructBlipVideoProcessor.from_pretrained(folder)
    model.config.video_token_id = processor.tokenizer.convert_tokens_to_ids("<video>")
    model.resize_token_embeddings(len(processor.tokenizer))
    inputs = _inputs("instructblipvideo", processor, _media("instructblipvideo", 0), "Look.")
    assert inputs["input_ids"][0].tolist().count(len(tokenizer)) == 32
    assert _last_token(model, inputs).isfinite().all()


def test_a_whole_omni_checkpoint_gives_the_same_thinker(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = TINY_CHECKPOINTS["qwen25omni"](tmp_path / "whole", as_whole=True)
    assert json.loads((folder / "config.json").read_text("utf-8"))["model_type"] == "qwen2_5_omni"
    names = set(load_file(folder / "model.safetensors"))
    assert {name.split(".")[0] for name in names} == {"talker", "thinker"}
    alone, inside = _load("qwen25omni", folders["qwen25omni"]), _load("qwen25omni", folder)
    expected = alone.state_dict()
    assert all(torch.equal(values, expected[name]) for name, values in inside.state_dict().items())
    assert inside.config.to_dict()["text_config"] == alone.config.to_dict()["text_config"]


# transformers counts the tokens, a tensor, with numpy.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_omni_interleaves_the_sound_of_a_video_with_its_frames(
    folders: dict[str, Path], processor_of: Callable[[str], Any]
) -> None:
    processor = processor_of("qwen25omni")
    frames, audio = _media("qwen25omni", 0)
    prompt = "<|vision_bos|><|VIDEO|><|vision_eos|>Look."
    inputs = processor(
        text=prompt,
        videos=[frames],
        audio=[audio],
        audio_from_video_indices=[0],
        load_audio_from_video=True,
        sampling_rate=16000,
        return_tensors="pt",
        **OMNI_SIZE,
    )
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    middle = ["<|VIDEO|>"] * 12 + ["<|AUDIO|>"] * 37
    expected = ["<|vision_bos|>", "<|audio_bos|>", *middle, "<|audio_eos|>", "<|vision_eos|>"]
    assert tokens[: len(expected)] == expected
    model = _load("qwen25omni", folders["qwen25omni"])
    assert _last_token(model, {**inputs, "use_audio_in_video": True}).isfinite().all()


def test_instructions_are_short_in_every_tokenizer() -> None:
    tokenizers = (tiny_tokenizer(), tiny_llama_tokenizer(("<video>", "<pad>"), None), tiny_bert_tokenizer())
    for tokenizer in tokenizers:
        assert max(len(tokenizer(instruction.text)["input_ids"]) for instruction in load_instructions()) <= 24
    assert tokenizers[1]("USER: <video>\nLook")["input_ids"][0] == tokenizers[1].bos_token_id
    assert tokenizers[1]("<video>", add_special_tokens=False)["input_ids"] == [len(tokenizers[1]) - 2]


def test_an_unknown_name_is_an_attribute_error() -> None:
    package = importlib.import_module("bids_mllm.features.models.tiny")
    with pytest.raises(AttributeError, match="save_tiny_nothing"):
        package.save_tiny_nothing  # noqa: B018


def test_the_package_is_light_until_a_checkpoint_is_asked_for() -> None:
    code = (
        "import sys\n"
        "from bids_mllm.features.models.tiny import TINY_CHECKPOINTS\n"
        "found = {'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'loaded {found}' if found else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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
