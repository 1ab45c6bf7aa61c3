"""The command ``bids-mllm-models``, and fetching from a hub on this machine with the hub's own client."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import COMMIT, hub

from bids_mllm.cli.models import main
from bids_mllm.features.models.fetch import wanted_files
from bids_mllm.features.registry import load_registry, load_unavailable

REGISTRY = load_registry()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bids_mllm.features.models.tiny import save_tiny_qwen25vl

    return save_tiny_qwen25vl(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def call(capsys):
    """Call the command in this process: (status, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = int(error.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def prefetch(endpoint: str, out: Path, *arguments: str, offline: str = "0") -> subprocess.CompletedProcess[str]:
    """Call ``prefetch`` in a process of its own, since the client reads its settings when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(out / "home"), "HF_HUB_OFFLINE": offline}
    words = [sys.executable, "-m", "bids_mllm.cli.models", "prefetch", *arguments, "--to", str(out / "models")]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)


def test_list_has_a_row_a_model_with_aligned_columns(call) -> None:
    status, out, _ = call("list")
    head, *lines = out.splitlines()
    rows, last = lines[: len(REGISTRY)], lines[len(REGISTRY) :]
    assert status == 0
    assert [row.split()[0] for row in rows] == list(REGISTRY)
    place = {name: head.index(name) for name in ("kind", "hub id", "layers x width", "licence", "commercial", "memory")}
    row = rows[list(REGISTRY).index("videomaelarge")]
    assert row[place["kind"] :].startswith("unimodal video  ")
    assert row[place["hub id"] :].startswith("MCG-NJU/videomae-large  ")
    assert row[place["layers x width"] :].startswith("25 x 1024  ")
    assert row[place["licence"] :].startswith("cc-by-nc-4.0  ")
    assert row[place["commercial"] :].startswith("no  ")
    assert row[place["memory"] :] == "1.2 GB float32"
    unknown = rows[list(REGISTRY).index("videochatr1")]
    assert unknown[place["licence"] :].startswith("?  ")
    assert unknown[place["commercial"] :].startswith("?  ")
    assert [line.split()[0] for line in last] == [model.key for model in load_unavailable()]


def test_list_of_a_kind(call) -> None:
    status, out, _ = call("list", "--kind", "in-context")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["qwen25omni7bicl", "internvl38bicl"]
    assert call("list", "--kind", "nothing")[0] == 2


def test_list_as_json(call) -> None:
    status, out, _ = call("list", "--json")
    values = {value["key"]: value for value in json.loads(out)}
    assert status == 0
    assert list(values) == list(REGISTRY)
    assert values["qwen25vl7b"]["parameters"]["max_frames"] == 16
    assert values["qwen25vl7b"]["sloppy"]["max_frames"] == 4
    assert values["qwen25vl7b"]["commercial"] is True
    assert values["videochatr1"]["commercial"] is None


def test_show_says_everything(call) -> None:
    status, out, _ = call("show", "qwen25vl7b")
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert status == 0
    assert lines["source"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert lines["revision"] == REGISTRY["qwen25vl7b"].revision
    assert (lines["layers"], lines["width"], lines["commercial"]) == ("29", "3584", "yes")
    assert "max_pixels = 100352" in lines["parameters"]
    assert lines["with --sloppy"] == "max_frames = 4, max_pixels = 50176"
    assert lines["remote code"] == "no"
    assert "revision: ?" in call("show", "videochatr1")[1]
    assert "remote code: yes" in call("show", "kimiaudio7b")[1]


def test_show_of_a_model_that_cannot_be_had(call) -> None:
    status, _, err = call("show", "tvlt")
    assert status == 2
    assert err.startswith("bids-mllm-models: The model tvlt cannot be had: ")


def test_check_of_a_folder(call, checkpoint, tmp_path) -> None:
    status, out, _ = call("check", "tiny", checkpoint)
    assert status == 0
    assert out.endswith("tiny: 0 of 8 findings are wrong\n")
    assert all(line.startswith(("ok     ", "note   ")) for line in out.splitlines()[:-1])
    assert call("check", checkpoint)[0] == 0
    status, out, _ = call("check", "qwen25vl7b", checkpoint)
    assert status == 1
    assert "wrong  configuration: The checkpoint has 5 layers, but the record of qwen25vl7b says 29." in out


def test_check_without_a_folder_says_how_to_fetch_it(call, tmp_path, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    status, out, _ = call("check", "vitbase")
    assert status == 1
    assert "bids-mllm-models prefetch google/vit-base-patch16-224 --to DIR" in out
    assert call("check", "motionenergy")[0] == 2


def test_prefetch_fetches_what_is_needed_and_checks_it(checkpoint, tmp_path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "served"))
    for name in ("pytorch_model.bin", "consolidated.pt", "modeling_own.py", "README.md", "model.fp32.safetensors"):
        (folder / name).write_bytes(b"never fetched")
    with hub(folder) as (endpoint, handler):
        found = prefetch(endpoint, tmp_path, "owner/name", "--family", "qwen25vl")
        asked = {path.rpartition("/")[2] for path in handler.asked if "/resolve/" in path}
    assert found.returncode == 0, found.stderr
    expected = {path.name for path in checkpoint.iterdir()}
    assert asked == expected
    fetched = tmp_path / "models" / "name"
    assert {path.name for path in fetched.iterdir()} == expected | {".cache"}
    assert all((fetched / name).read_bytes() == (checkpoint / name).read_bytes() for name in expected)
    assert f"name: owner/name at commit {COMMIT} is in {fetched}\n" in found.stdout
    assert "name: 0 of 8 findings are wrong" in found.stdout
    assert found.stdout.endswith(f"Ask for them with: --models name={fetched}\n")


def test_prefetch_of_a_checkpoint_that_does_not_fit(checkpoint, tmp_path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "served"))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("{{ part.text }}", ""))
    with hub(folder) as (endpoint, _):
        found = prefetch(endpoint, tmp_path, "owner/name", "--family", "qwen25vl", "--revision", COMMIT)
    assert found.returncode == 1
    assert "wrong  instructions: The checkpoint's chat template does not keep the instruction" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("owner/name",), "has no weights as *.safetensors, and pickled weights are never fetched; give --revision"),
        (("owner/name", "--revision", "v9"), "owner/name has no revision v9; give another with --revision."),
        (("owner/absent",), "The hub has no owner/absent, or it is private"),
        (("owner/gated",), "owner/gated is open only to those who accepted its terms"),
    ],
)
def test_prefetch_of_what_the_hub_does_not_give(tmp_path, arguments, sentence) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    with hub(folder) as (endpoint, handler):
        found = prefetch(endpoint, tmp_path, *arguments, "--family", "vit")
        assert not any("/resolve/" in path for path in handler.asked)
    assert found.returncode == 70
    assert sentence in found.stderr
    assert found.stderr.count("\n") == 1


def test_prefetch_without_a_network(tmp_path) -> None:
    found = prefetch("http://127.0.0.1:9", tmp_path, "vitbase")
    assert found.returncode == 70
    assert "google/vit-base-patch16-224 cannot be fetched (" in found.stderr
    assert "check the network" in found.stderr
    assert found.stderr.count("\n") == 1
    offline = prefetch("http://127.0.0.1:9", tmp_path, "vitbase", offline="1")
    assert offline.returncode == 70
    assert "while HF_HUB_OFFLINE is set" in offline.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("motionenergy",), "motionenergy has no weights, so there is nothing to fetch"),
        (("kimiaudio7b",), "runs code from the repository moonshotai/Kimi-Audio-7B-Instruct; read it there"),
        (("tvlt",), "tvlt cannot be had"),
        (("vitbase={}",), "is a folder, so there is nothing to fetch"),
    ],
)
def test_requests_that_cannot_be_fetched(call, tmp_path, arguments, sentence) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    words = [argument.format(tmp_path) for argument in arguments]
    status, _, err = call("prefetch", *words, "--to", tmp_path / "out")
    assert status == 2
    assert sentence in err
    assert not (tmp_path / "out").exists()


def test_files_that_are_fetched() -> None:
    names = (
        "config.json", "generation_config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
        "tokenizer.json", "merges.txt", "vocab.txt", "chat_template.jinja", "qformer_tokenizer/tokenizer.json",
    )  # fmt: skip
    others = (
        "pytorch_model.bin", "model.pt", "optimizer.pth", "weights.pkl", "tf_model.h5", "flax_model.msgpack",
        "model.fp32-00001-of-00002.safetensors", "model.fp16.safetensors", "onnx/config.json",
        "original/model.safetensors", "README.md", "modeling_own.py", "whisper-large-v3/model.safetensors",
    )  # fmt: skip
    assert wanted_files([*names, *others]) == tuple(sorted(names))
    code = {"modeling_own.py", "whisper-large-v3/model.safetensors"}
    assert set(wanted_files([*names, *others], remote_code=True)) == {*names, *code}


@pytest.mark.parametrize("arguments", [[], ["list"], ["show"], ["check"], ["prefetch"]])
def test_help_imports_nothing_heavy(arguments) -> None:
    code = (
        "import sys\nfrom bids_mllm.cli.models import main\n"
        "try:\n    main([*sys.argv[1:], '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub', 'safetensors', 'nipype', 'bids'}\n"
        "sys.stderr.write(' '.join(sorted(heavy & set(sys.modules))))"
    )
    found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert found.stderr == ""
    assert "usage: bids-mllm-models" in found.stdout


def test_list_needs_no_torch() -> None:
    code = (
        "import sys\nfrom bids_mllm.cli.models import main\nmain(['list'])\n"
        "sys.stderr.write(' '.join({'torch', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stderr == ""


def test_wrong_usage(call) -> None:
    assert call()[0] == 2
    assert call("prefetch", "vitbase")[0] == 2
    assert call("show", "nothing")[0] == 2
