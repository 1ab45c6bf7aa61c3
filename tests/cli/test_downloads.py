"""``--allow-download`` against stand-ins for the hub and TemplateFlow: what is fetched, when, and never without it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bucket_server import Bucket, bucket
from hub_server import COMMIT, Hub, hub

from bids_mllm.cli import downloads
from bids_mllm.cli.downloads import fetch_missing
from bids_mllm.cli.parser import parse_settings
from bids_mllm.exceptions import InputDataError, UsageError
from bids_mllm.io.template_fetch import ADDRESS_VARIABLE

MNI = "MNI152NLin2009cAsym"
T1W = f"tpl-{MNI}/tpl-{MNI}_res-02_T1w.nii.gz"
PARCELS = f"tpl-{MNI}/tpl-{MNI}_res-02_atlas-Schaefer2018_desc-400Parcels7Networks_dseg.nii.gz"
MODEL = ("--models", "tiny=owner/name", "--family", "qwen25vl")


@dataclass(frozen=True)
class Network:
    """Both servers, and the folders that get what they serve."""

    hub: type[Hub]
    bucket: type[Bucket]
    cache: Path
    templates: Path
    served: Path

    @property
    def asked(self) -> tuple[str, ...]:
        return (*self.hub.asked, *self.bucket.asked)

    def files(self) -> set[str]:
        """Names of the files of the checkpoint in the hub's cache."""
        return {path.name for path in self.cache.rglob("snapshots/*/*")}


@pytest.fixture
def network(study, tmp_path, monkeypatch) -> Iterator[Network]:
    served = Path(shutil.copytree(study / "models" / "qwen25vltiny", tmp_path / "served"))
    for name in ("pytorch_model.bin", "modeling_own.py"):
        (served / name).write_bytes(b"never fetched")
    cache, templates = tmp_path / "hub", tmp_path / "templates"
    templates.mkdir()
    (templates / "laid-out").touch()
    with hub(served) as (endpoint, hub_handler), bucket() as (address, bucket_handler):
        for name, value in {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(cache),
            "TEMPLATEFLOW_HOME": str(templates),
            ADDRESS_VARIABLE: address,
        }.items():
            monkeypatch.setenv(name, value)
        yield Network(hub_handler, bucket_handler, cache, templates, served)


@pytest.fixture
def settings_of(study, tmp_path) -> Callable:
    def make(*words: str, level: str = "participant"):
        given = (str(study), str(tmp_path / "out"), level, "-w", str(tmp_path / "work"), *words)
        return parse_settings([*given, "--allow-download"])

    return make


def run(network: Network, *words: object) -> subprocess.CompletedProcess[str]:
    """Call the app in a process of its own, since the hub's client reads its settings when it is imported."""
    command = [sys.executable, "-m", "bids_mllm.cli.run", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=dict(os.environ))


def test_a_call_fetches_what_is_missing_once_and_then_works_without_the_option(network, study, tmp_path):
    some = ("--sloppy", "--participant-label", "01", "--instructions", "AR", "--poolings", "media", "--nprocs", "1")
    words = (study, tmp_path / "out", "participant", "-w", tmp_path / "work", *MODEL, *some, "--stages", "features")
    refused = run(network, *words)
    assert refused.returncode == 70
    assert network.asked == (), "without the option nothing may be asked"
    assert "owner/name is not in the local cache of the hub" in refused.stderr
    assert "bids-mllm-models prefetch owner/name --to DIR" in refused.stderr
    assert "--allow-download" in refused.stderr

    done = run(network, *words, "--allow-download")
    assert done.returncode == 0, done.stderr
    assert f"Fetched owner/name at commit {COMMIT} into the hub's cache." in done.stderr
    assert network.files() == {path.name for path in (study / "models" / "qwen25vltiny").iterdir()}
    assert network.bucket.asked == (T1W,)
    assert (network.templates / T1W).stat().st_size > 0
    before = network.asked

    again = run(network, *words, "--allow-download")
    assert again.returncode == 0, again.stderr
    assert run(network, *words).returncode == 0
    assert network.asked == before, "what is here is not asked for again"


def test_a_dry_run_fetches_nothing(network, settings_of):
    fetch_missing(settings_of(*MODEL, "--dry-run"))
    assert network.asked == ()
    assert not network.cache.exists()


def test_without_the_option_no_process_is_started(network, study, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads.subprocess, "Popen", None)
    fetch_missing(parse_settings([str(study), str(tmp_path / "out"), "participant"]))
    assert network.asked == ()


def test_a_settings_file_cannot_allow_downloads(tmp_path, study):
    file = tmp_path / "settings.toml"
    file.write_text("allow_download = true\n")
    words = [str(study), str(tmp_path / "out"), "participant", "--config-file", str(file)]
    assert not parse_settings(words).allow_download


def test_an_atlas_is_fetched_for_its_spaces(network, settings_of):
    fetch_missing(settings_of("--atlas", "Schaefer400", "Glasser", "--space", f"{MNI}:res-2", "T1w", "fsaverage6"))
    asked = [name for name in network.bucket.asked if not name.endswith(".tsv")]
    fsaverage = [f"tpl-fsaverage_hemi-{side}_den-164k_atlas-Schaefer2018_seg-7n_scale-400" for side in "LR"]
    assert asked == [T1W, PARCELS, *(f"tpl-fsaverage/{name}_dseg.label.gii" for name in fsaverage)]
    assert network.hub.asked == ()


def test_the_group_fetches_templates_of_its_results(network, settings_of, monkeypatch):
    monkeypatch.setattr(downloads, "_spaces", lambda settings: ["MNI152NLin6Asym"])
    fetch_missing(settings_of(level="group"))
    assert network.bucket.asked == ("tpl-MNI152NLin6Asym/tpl-MNI152NLin6Asym_res-02_T1w.nii.gz",)
    assert network.hub.asked == ()


def test_an_unfinished_checkpoint_is_completed(network, settings_of):
    fetch_missing(settings_of(*MODEL))
    (weights,) = network.cache.rglob("snapshots/*/model.safetensors")
    weights.resolve().unlink()
    weights.unlink()
    fetch_missing(settings_of(*MODEL))
    assert weights.is_file()


def test_code_of_a_checkpoint_is_fetched_only_where_it_is_trusted(network, settings_of):
    remote = ("--models", "kimi=owner/name", "--family", "kimiaudio")
    with pytest.raises(UsageError, match=r"runs code from the repository owner/name; read it there.*--trust-remote"):
        fetch_missing(settings_of(*remote))
    assert network.hub.asked == ()
    fetch_missing(settings_of(*remote, "--trust-remote-code"))
    assert "modeling_own.py" in network.files()
    assert "pytorch_model.bin" not in network.files()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--models", "tiny=owner/absent", "--family", "qwen25vl"), "The hub has no owner/absent, or it is private"),
        ((*MODEL, "--model-revision", "v9"), "owner/name has no revision v9; give another with --model-revision."),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence(network, settings_of, words, sentence):
    with pytest.raises(InputDataError) as caught:
        fetch_missing(settings_of(*words))
    assert str(caught.value).startswith(sentence)
    assert caught.value.exit_status == 70


def test_without_a_network(network, settings_of, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputDataError, match=r"owner/name cannot be fetched \(.*check the network"):
        fetch_missing(settings_of(*MODEL))
    monkeypatch.setenv(ADDRESS_VARIABLE, "http://127.0.0.1:9")
    with pytest.raises(InputDataError, match=r"T1w.nii.gz cannot be fetched from .* \(no connection\)"):
        fetch_missing(settings_of("--models", "motionenergy"))


@pytest.mark.parametrize("option", ["--reports-only", "--boilerplate-only"])
def test_checkpoints_are_fetched_only_where_models_may_run(network, settings_of, option):
    fetch_missing(settings_of(*MODEL, option))
    assert network.hub.asked == ()
    assert network.bucket.asked == (T1W,)


def child_that(tmp_path: Path, *lines: str) -> str:
    """Return a program that stands in for the Python which fetches."""
    program = tmp_path / "child"
    program.write_text("\n".join(("#!/bin/sh", "cat > /dev/null", *lines, "")))
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(("end", "status"), [("exit 1", "1"), ("exit 2", "2"), ("kill -9 $$", "-9")])
def test_a_download_that_dies_is_told(settings_of, tmp_path, monkeypatch, caplog, end, status):
    child = child_that(tmp_path, "echo 'fetched: Fetched owner/name.'", "echo 'a line of a library'", end)
    monkeypatch.setattr(downloads.sys, "executable", child)
    caplog.set_level("INFO", "bids_mllm")
    monkeypatch.setattr(downloads.logger, "propagate", True)
    monkeypatch.setattr(downloads.logger, "handlers", [])  # those of other tests
    with pytest.raises((InputDataError, UsageError)) as caught:
        fetch_missing(settings_of())
    sentence = f"The download ended with status {status}; call the same command again, or without --allow-download."
    assert str(caught.value) == sentence
    assert caplog.messages == ["Fetched owner/name."]


def test_what_came_before_an_error_is_told_too(network, settings_of, monkeypatch, caplog):
    network.bucket.faults[PARCELS] = "absent"
    caplog.set_level("INFO", "bids_mllm")
    monkeypatch.setattr(downloads.logger, "propagate", True)
    monkeypatch.setattr(downloads.logger, "handlers", [])  # those of other tests
    with pytest.raises(InputDataError, match=f"^{PARCELS} cannot be fetched"):
        fetch_missing(settings_of("--atlas", "Schaefer400", "--space", f"{MNI}:res-2"))
    assert caplog.messages == [f"Fetched {network.templates / T1W}."]


def test_sigterm_leaves_nothing_half_fetched(network, study, tmp_path):
    network.bucket.faults[T1W] = "stalled"
    words = (study, tmp_path / "out", "participant", "-w", tmp_path / "work", "--models", "motionenergy")
    command = [sys.executable, "-m", "bids_mllm.cli.run", *map(str, words), "--allow-download"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as app:
        until = time.monotonic() + 60
        while T1W not in network.bucket.asked and time.monotonic() < until:
            time.sleep(0.05)
        assert list(network.templates.glob(".fetching-*"))
        app.send_signal(signal.SIGTERM)  # to the app alone, as some schedulers do
        _, err = app.communicate(timeout=30)
    assert app.returncode == 143, err
    assert err.startswith("bids-mllm: Ended by SIGTERM")
    assert "Traceback" not in err
    assert [path.name for path in network.templates.iterdir()] == ["laid-out"]


def test_the_order_holds_no_secret(settings_of, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    child = child_that(tmp_path, f"env > {kept}")
    Path(child).write_text(Path(child).read_text().replace("/dev/null", f"{kept}.json"))
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(downloads.sys, "executable", child)
    fetch_missing(settings_of(*MODEL))
    assert set(json.loads(Path(f"{kept}.json").read_text())) == {
        "models", "revision", "family", "remote_code", "spaces", "atlases"
    }  # fmt: skip
    names = {line.partition("=")[0] for line in kept.read_text().splitlines()}
    assert "HF_TOKEN" in names
    assert not set(downloads.OFFLINE) & names
