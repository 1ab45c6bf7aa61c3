"""Parts of the command line that need no data."""

import os
import subprocess
import sys

from bids_mllm.cli import run


def test_group_without_results(call, tmp_path):
    (tmp_path / "bids").mkdir()
    result = call(tmp_path / "bids", tmp_path / "out", "group")
    assert result.status == 70
    assert "no results of the participant level" in result.err


def plan_of(study, tmp_path, *words):
    from bids_mllm.cli.parser import parse_settings
    from bids_mllm.workflows.plan import plan_study

    models = ["motionenergy", f"tiny={study / 'models/qwen25vltiny'}"]
    given = [study, tmp_path, "participant", "-w", tmp_path / "w", *words, "--models", *models]
    return plan_study(parse_settings([str(word) for word in given]), only_list=True)


def test_trust_in_remote_code_reaches_the_models(study, tmp_path):
    trusted = plan_of(study, tmp_path, "--trust-remote-code")
    assert [dict(model.parameters).get("trust_remote_code") for model in trusted.models] == [None, True]
    assert not any("trust_remote_code" in model.parameters for model in plan_of(study, tmp_path).models)


def test_null_instructions_stand_beside_the_real_ones(study, tmp_path):
    plan = plan_of(study, tmp_path, "--instructions", "AR", "ESA", "--null-instructions", "empty", "scrambled")
    keys = [instruction.key for instruction in plan.instructions["tiny"]]
    assert keys == ["AR", "ESA", "NULLempty", "ARscrambled", "ESAscrambled"]
    assert "motionenergy" not in plan.instructions


def test_the_hub_is_never_asked(monkeypatch, study, tmp_path):
    from bids_mllm.cli.parser import parse_settings

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    run._set_up_environment(parse_settings([str(study), str(tmp_path), "participant"]))
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_group_refuses_what_it_would_ignore(call, tmp_path):
    (tmp_path / "bids").mkdir()
    result = call(tmp_path / "bids", tmp_path / "out", "group", "--space", "T1w", "--delays", "1")
    assert result.status == 2
    assert "--delays, --space has no effect at the group level" in result.err


def test_an_unforeseen_error_while_planning_is_one_sentence(call, study, tmp_path, monkeypatch):
    from bids_mllm.workflows import plan

    def break_down(*_arguments, **_options):
        raise KeyError("oddity")

    monkeypatch.setattr(plan, "find_runs", break_down)
    result = call(study, tmp_path / "out", "participant")
    assert result.status == 70
    assert "Traceback" not in result.err
    assert result.err.strip().splitlines()[-1].startswith("bids-mllm: The workflow could not be built (KeyError:")


THREADS = """
import sys
import numpy
from threadpoolctl import threadpool_info
from bids_mllm.cli import run
from bids_mllm.cli.parser import parse_settings
before = {pool["num_threads"] for pool in threadpool_info()}
run._set_up_environment(parse_settings(sys.argv[1:]))
print(before, {pool["num_threads"] for pool in threadpool_info()})
"""


def test_threads_of_a_library_that_is_loaded_are_bound_too(study, tmp_path):
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    words = [sys.executable, "-c", THREADS, str(study), str(tmp_path), "participant", "--omp-nthreads", "1"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["{2}", "{1}"]
