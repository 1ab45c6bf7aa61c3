"""The how-to page on Apptainer and Slurm: its job scripts are shell, and every option in them exists."""

import importlib.util
import re
import shlex
import subprocess
from importlib.machinery import SourceFileLoader

import pytest

from bids_mllm.cli import parser as app_parser
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "howto" / "apptainer_and_slurm.md").read_text(encoding="utf-8")
#: Options of sbatch and of apptainer run that the page may use; both are checked by hand against their manuals.
SBATCH = {
    "--job-name", "--array", "--partition", "--gres", "--cpus-per-task", "--mem", "--time", "--requeue", "--output",
    "--dependency", "--account", "--qos", "--constraint", "--signal", "--open-mode",
}  # fmt: skip
APPTAINER = {"--cleanenv", "--containall", "--no-home", "--nv"}
APPTAINER_WITH_VALUE = {"--env", "-B", "--bind", "--workdir", "--net", "--network"}


def load(name, path):
    loader = SourceFileLoader(name, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


page_blocks = load("page_blocks", REPOSITORY / "tests" / "slurm" / "page_blocks.py")
slurm_array = load("slurm_array_of_page", REPOSITORY / "bin" / "slurm-array")
SCRIPTS = page_blocks.job_scripts(PAGE)
COMMANDS = [
    command
    for block in page_blocks.FENCE.findall(PAGE)
    for command in re.sub(r"\\\n", " ", block).splitlines()
    if command.startswith("slurm-array ")
]


def words_of_app(script):
    """Return the options of bids-mllm in a job script, having checked those of apptainer before them."""
    joined = re.sub(r"\\\n", " ", script)
    joined = re.sub(r"\$\{\w+:\+(.*?)\}", r"\1", joined)  # words that are there where the variable holds something
    line = next(line for line in joined.splitlines() if re.match(r"(exec )?(apptainer|singularity) run ", line))
    words = shlex.split(line)
    words = words[words.index("run") + 1 :]
    while words[0].startswith("-"):
        option, equals, _ = words.pop(0).partition("=")
        assert option in APPTAINER | APPTAINER_WITH_VALUE
        if option in APPTAINER_WITH_VALUE and not equals:
            words.pop(0)
    assert words[0].endswith(".sif")
    return words[1:]


def test_page_has_complete_job_scripts():
    assert len(SCRIPTS) >= 4
    levels = [words_of_app(script)[2] for script in SCRIPTS]
    assert set(levels) == {"participant", "group"}
    assert any("--array" in script for script in SCRIPTS)
    assert len(COMMANDS) >= 3


@pytest.mark.parametrize("script", SCRIPTS)
def test_job_script_is_shell_with_options_that_exist(script):
    found = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    used = set(re.findall(r"^#SBATCH (--[a-z-]+)", script, flags=re.MULTILINE))
    assert used <= SBATCH
    assert script.count("#SBATCH") == len(re.findall(r"^#SBATCH --", script, flags=re.MULTILINE))
    app_parser.build_parser().parse_args(words_of_app(script))


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_the_clean_environment_drops_is_handed_over(script):
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_MEM_PER_NODE"):
        assert f'--env "{name}=${name}"' in script
    # Where Slurm sets none, an empty one would hide all GPUs.
    devices = '${CUDA_VISIBLE_DEVICES:+--env "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES"}'
    assert (devices in script) == ("--gres=gpu" in script)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_with_a_gpu_use_the_image_that_can(script):
    has_gpu = "--nv" in script or re.search(r"^#SBATCH --(gres=(.*[,/:])?gpu|gpus)", script, flags=re.MULTILINE)
    assert re.findall(r"\S+\.sif", script) == ["bids-mllm-cuda.sif" if has_gpu else "bids-mllm.sif"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_folder_of_the_app_is_bound(script):
    bound = {bind.split(":")[1]: bind.split(":")[2:] for bind in re.findall(r"-B (\S+)", script)}
    for word in words_of_app(script):
        path = word.rpartition("=")[2]
        if path.startswith("/"):
            assert any(path == target or path.startswith(f"{target}/") for target in bound)
    assert bound["/data/movies"] == ["ro"]
    assert bound["/data/out"] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_slurm_array_are_understood(command):
    ours, _, passed = command.partition(" -- ")
    slurm_array.build_parser().parse_args(shlex.split(ours)[1:])
    app_parser.build_parser().parse_args(["/data", "/out", "participant", *shlex.split(passed)])


def test_adapted_script_has_the_places_and_resources_of_the_test():
    script = (
        "#!/bin/bash\n#SBATCH --array=1-20%4\n#SBATCH --gres=gpu:1\n#SBATCH --mem=64G\n#SBATCH --partition=big\n"
        "apptainer run -B /data/out:/data/out x.sif /data/out /my/data/out q=/data/out/a /data/output\n"
    )
    assert page_blocks.adapted(script, {"/data/out": "/tmp/o u"}, 3) == (
        "#!/bin/bash\n#SBATCH --array=1-3%4\n#SBATCH --mem=2500M\n#SBATCH --partition=cpu\n"
        "apptainer run -B /tmp/o u:/tmp/o u x.sif /tmp/o u /my/data/out q=/tmp/o u/a /data/output\n"
    )
