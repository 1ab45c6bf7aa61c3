"""Dockerfile and Singularity.def: linted, alike, pinned and complete, as far as can be seen without an engine."""

import os
import re
import shlex
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bids_mllm import __version__
from bids_mllm.cli.environment import CACHES
from bids_mllm.io.derivatives import CODE_URL

ROOT = Path(__file__).parents[2]
DOCKERFILE, DEFINITION, INSTALLER = (
    (ROOT / name).read_text("utf-8") for name in ("Dockerfile", "Singularity.def", "bin/_image.sh")
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
#: Set in the image and nowhere among the caches that the app moves by itself.
FIXED = {
    "LANG": "C.UTF-8",
    "PYTHONNOUSERSITE": "1",
    "MPLBACKEND": "Agg",
    "NO_ET": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": "/opt/huggingface",
    "TEMPLATEFLOW_HOME": "/opt/templateflow",
    "TEMPLATEFLOW_AUTOUPDATE": "0",
}


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile as (word, rest), with continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    lines = [line.strip() for line in joined.splitlines() if line.strip()]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def pairs(word: str) -> dict[str, str]:
    """Return the names and values of the ENV or LABEL instructions."""
    texts = [rest for name, rest in instructions() if name == word]
    return dict(pair.split("=", 1) for text in texts for pair in shlex.split(text))


def section(name: str) -> list[str]:
    """Return the lines of a section of the definition file, without comments."""
    text = re.search(rf"^%{name}\n(.*?)(?=^%|\Z)", DEFINITION, flags=re.MULTILINE | re.DOTALL)
    assert text, f"Singularity.def has no section %{name}"
    lines = (line.strip() for line in text[1].splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def arguments() -> dict[str, str]:
    return dict(line.split("=", 1) for line in section("arguments"))


def docker_style(text: str) -> str:
    """Return a value of the definition file as the Dockerfile writes it."""
    return re.sub(r"\{\{ (\w+) \}\}", r"${\1}", text).replace("/tmp/bids-mllm-$(id -u)/", "/tmp/bids-mllm/")


def definition_environment() -> dict[str, str]:
    exports = [line.removeprefix("export ") for line in section("environment")]
    return {name: docker_style(value.strip('"')) for name, value in (line.split("=", 1) for line in exports)}


def test_hadolint_finds_nothing():
    program = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([program, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_front_end_is_fetched():
    assert "syntax=" not in DOCKERFILE


def test_both_recipes_begin_with_the_same_image():
    begun = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    stages = {rest.split()[-1] for word, rest in instructions() if word == "FROM" and " AS " in rest}
    assert [image for image in begun if image not in stages] == ["debian:bookworm-slim"]
    assert "Bootstrap: docker\nFrom: debian:bookworm-slim\n" in DEFINITION
    assert pairs("LABEL")["org.opencontainers.image.base.name"] == "docker.io/library/debian:bookworm-slim"


def test_environment_is_complete():
    found = pairs("ENV")
    for name, value in FIXED.items():
        assert found[name] == value
    assert found["PATH"].split(":")[0] == "/opt/bids-mllm/bin"
    caches = [name for name, value in found.items() if value.startswith("/tmp/bids-mllm/")]
    assert {"MPLCONFIGDIR", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"} == {
        *caches
    }
    assert set(caches) <= set(CACHES), "a cache that the app does not know to move"
    assert found["BIDS_MLLM_IMAGE"] == "bids-mllm:${VERSION}-${VARIANT}"


def test_both_recipes_have_the_same_environment():
    docker, definition = pairs("ENV"), definition_environment()
    assert docker.pop("BIDS_MLLM_CONTAINER") == "docker"
    assert definition.pop("BIDS_MLLM_CONTAINER") == "apptainer"
    assert docker == definition


def test_both_recipes_have_the_same_labels():
    labels = dict(line.split(None, 1) for line in section("labels"))
    assert {name: docker_style(value) for name, value in labels.items()} == pairs("LABEL")


def test_labels_say_what_the_package_says():
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in pairs("LABEL").items()}
    assert labels["title"] == PROJECT["name"]
    assert labels["description"] == PROJECT["description"]
    assert labels["licenses"] == PROJECT["license"]
    assert labels["vendor"] == PROJECT["authors"][0]["name"]
    assert labels["source"] == CODE_URL
    assert labels["version"] == "${VERSION}"
    assert labels["revision"] == "${REVISION}"


def test_both_recipes_have_the_same_arguments_with_the_same_defaults():
    given: dict[str, set[str]] = {}
    for word, rest in instructions():
        if word == "ARG":
            name, value = rest.split("=", 1)
            given.setdefault(name, set()).add(value)
    assert all(len(values) == 1 for values in given.values()), "an argument has two defaults"
    assert {name: values.pop() for name, values in given.items()} == arguments()
    assert arguments()["VERSION"] == __version__
    assert (arguments()["VARIANT"], arguments()["PREFETCH"]) == ("cpu", "0")


def test_both_recipes_take_the_same_files_and_steps():
    files = [line.split() for line in section("files")]
    assert [Path(target) for _, target in files] == [Path("/opt/image", Path(source).name) for source, _ in files]
    copied = {
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert {source for source, _ in files} == copied
    steps = re.search(r"for step in ([a-z ]+); do", DEFINITION)
    assert steps is not None
    run = re.findall(r"^RUN bash \S*_image\.sh (\w+)$", DOCKERFILE, flags=re.MULTILINE)
    assert ["check", *run, "clean"] == steps[1].split()
    assert sum(word == "RUN" for word, _ in instructions()) == len(run), "the Dockerfile installs something by itself"


def test_context_of_the_build_is_what_is_copied():
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in ignored
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert kept == {source for source, _ in (line.split() for line in section("files"))}


def test_entry_point_is_the_app():
    last = dict(instructions())
    assert last["ENTRYPOINT"] == '["bids-mllm"]'
    assert section("runscript") == ['exec bids-mllm "$@"']
    assert section("test") == ["exec python -m bids_mllm.cli.selftest"]
    assert any("--containall" in line for line in section("help"))


def test_every_requirement_of_the_image_is_pinned_and_pins_hold_for_every_install():
    pinned = {
        canonicalize_name(line.partition("==")[0])
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    }
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["atlases"], "setuptools"]
    assert {canonicalize_name(Requirement(text).name) for text in wanted} <= pinned
    assert "export PIP_CONSTRAINT=$PWD/constraints.txt" in INSTALLER
    assert "constraints.txt" in DOCKERFILE
    installs = re.findall(r"pip3? install\b", INSTALLER)
    assert len(installs) == 1, "a second place that installs, which may miss the pins"
    assert 'optional-dependencies"]["atlases"]' in INSTALLER


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"VARIANT": "gpu"}, "VARIANT is 'gpu', which is neither cpu nor cuda; pass one of these two."),
        ({"PREFETCH": "yes"}, "PREFETCH is 'yes', which is neither 0 nor 1; pass 1 to put the templates"),
    ],
)
@pytest.mark.parametrize("step", ["check", "requirements", "app"])
def test_wrong_argument_ends_with_one_sentence_before_anything_is_done(variables, sentence, step, tmp_path):
    environment = {"PATH": str(tmp_path), **variables}  # no program can be found, so that nothing can be installed
    done = subprocess.run(
        ["/bin/bash", ROOT / "bin" / "_image.sh", step],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"The image of bids-mllm cannot be built: {sentence}")
    assert done.stderr.count("\n") == 1


def test_unknown_step_is_named(tmp_path):
    done = subprocess.run(
        ["/bin/bash", ROOT / "bin" / "_image.sh", "build"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (
        1,
        "The image of bids-mllm cannot be built: 'build' is no step of _image.sh.\n",
    )


def test_scripts_are_plain_bash():
    for script in (ROOT / "bin" / "_image.sh", *(ROOT / "tests" / "containers").glob("*.sh"), ROOT / ".ci" / "run"):
        assert subprocess.run(["/bin/bash", "-n", script], check=False).returncode == 0
    assert os.access(ROOT / "tests" / "containers" / "run", os.X_OK)
