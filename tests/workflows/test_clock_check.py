"""The clocks of a simulated study agree, and a wrong start time is found."""

from dataclasses import replace

import numpy as np
import pytest
from nipype.interfaces.utility import Merge
from nipype.pipeline.engine import Node, Workflow

from bids_mllm.cli.parser import parse_settings
from bids_mllm.interfaces.clock import check_clock
from bids_mllm.io.bold import prepare_runs
from bids_mllm.io.clock import load_fast_features
from bids_mllm.report.clock_charts import clock_warnings
from bids_mllm.simulate import dataset
from bids_mllm.simulate.drivers import make_drivers
from bids_mllm.workflows.clock import connect_clock, fast_feature_nodes
from bids_mllm.workflows.plan import plan_study


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Plan, and design, series and fast features of a participant who saw eleven minutes of film."""
    folder = tmp_path_factory.mktemp("clock")
    with pytest.MonkeyPatch.context() as patch:
        # Answers of the language model take long and have no say in this.
        patch.setattr(
            dataset, "make_drivers", lambda *given: tuple(d for d in make_drivers(*given) if d.name != "model")
        )
        study = dataset.simulate_dataset(folder / "bids", participants=1, run_seconds=130.0, runs={"bourne": 5}, seed=4)
    words = (study, folder / "out", "participant", "--models", "motionenergy", "--sloppy", "-w", folder / "work")
    plan = plan_study(parse_settings([str(word) for word in words]))
    (design,) = plan.designs
    prepare_runs(design.runs, folder / "series.npy", strategy="motion", high_pass=0.01)
    features = {}
    for number, (stim_file, node) in enumerate(fast_feature_nodes(plan).items()):
        node.base_dir = str(folder / str(number))
        name, found = load_fast_features(node.run().outputs.features)
        assert name == stim_file
        features[name] = found
    return plan, (design, np.load(folder / "series.npy"), features)


def test_the_curve_of_the_simulated_study_peaks_where_a_response_does(watched):
    _, data = watched
    check = check_clock(*data)
    assert check.features == ("sound", "pictures")
    peak = check.peaks[check.features.index("pictures")]
    assert 3.0 < peak < 8.0
    assert clock_warnings(check) == ()


def test_a_start_time_that_is_five_seconds_wrong_is_warned_about(watched):
    _, (design, series, features) = watched
    late = replace(design, runs=tuple(replace(run, start_time=run.start_time + 5.0) for run in design.runs))
    (sentence,) = clock_warnings(check_clock(late, series, features))
    assert "pictures" in sentence
    assert "StartTime" in sentence


def test_without_media_files_there_is_nothing_to_check(watched):
    """Only feature tables are asked for: the plan has no stimuli."""
    plan, (design, _, _) = watched
    nodes = fast_feature_nodes(replace(plan, stimuli={}))
    assert nodes == {}
    workflow = Workflow("w")
    connect_clock(workflow, design, nodes, Node(Merge(1), name="bold"), Node(Merge(1), name="maps_x"))
    assert not workflow.list_node_names()
