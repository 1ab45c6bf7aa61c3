"""What the outputs say of where their runs come from, with several derivatives."""

import json
from dataclasses import replace
from pathlib import Path

from bids_mllm.cli.parser import parse_settings
from bids_mllm.workflows.facts import container_facts, dataset_facts, map_facts, sources
from bids_mllm.workflows.plan import plan_study
from bids_mllm.workflows.reports import participant_warnings


def test_every_derivative_is_linked_and_every_file_named_in_its_own(own_study, tmp_path):
    main, other = own_study / "derivatives" / "fmriprep", tmp_path / "again"
    described = {"Name": "again", "BIDSVersion": "1.8.0", "GeneratedBy": [{"Name": "again", "Version": "7"}]}
    for bold in sorted(main.glob("sub-01/**/*task-life01*_desc-preproc_bold.nii.gz")):
        moved = other / bold.relative_to(main)
        moved.parent.mkdir(parents=True, exist_ok=True)
        bold.rename(moved)
    (other / "dataset_description.json").write_text(json.dumps(described))
    named = ("--derivatives", f"fmriprep={main}", f"again={other}")
    words = (own_study, tmp_path / "out", "participant", "--participant-label", "01", *named, "--sloppy")
    plan = plan_study(parse_settings([str(word) for word in words]))
    assert plan.derivatives == {"fmriprep": main, "again": other}
    assert {run.derivative for run in plan.designs[0].runs if run.task == "life01"} == {"again"}
    uris = sources(plan, plan.designs[0].runs)
    roots = {"raw": own_study, **plan.derivatives}
    for uri in uris:
        _, name, path = uri.split(":")
        assert (roots[name] / Path(path)).is_file(), uri
    of_life = [uri for uri in uris if "task-life01" in uri and not uri.startswith("bids:raw:")]
    assert {uri.split(":")[1] for uri in of_life if "preproc" in uri} == {"again"}
    assert {uri.split(":")[1] for uri in of_life if "confounds" in uri} == {"fmriprep"}
    facts = dataset_facts(plan)
    assert {name: (tmp_path / "out" / link).resolve() for name, link in facts["links"].items()} == roots
    assert {"URL": "bids:again:", "Version": "7"} in facts["sources"]


def test_the_sidecar_tells_where_confounds_were_removed_before(study, tmp_path):
    words = (study, tmp_path / "out", "participant", "--participant-label", "01", "--confounds", "motion", "--sloppy")
    plan = plan_study(parse_settings([str(word) for word in words]))
    design = plan.designs[0]
    assert map_facts(plan, design)["sidecar"]["Confounds"] == "motion"
    cleaned = replace(design, runs=tuple(replace(run, denoised=True) for run in design.runs))
    assert map_facts(plan, cleaned)["sidecar"]["Confounds"] == "removed in fmriprep"


def test_an_atlas_that_serves_only_another_space_is_a_warning_on_the_page(own_study, tmp_path):
    atlas = own_study / "sourcedata/truth/atlas-planted_dseg.nii.gz"
    words = (own_study, tmp_path / "out", "participant", "--participant-label", "01", "--sloppy", "--atlas", str(atlas))
    plan = plan_study(parse_settings([str(word) for word in words]))
    design = plan.designs[0]
    assert not [one for one in participant_warnings(plan, design, (), failed=False) if "planted" in one]
    unserved = replace(plan, atlases={("01", design.place): ()})
    (told,) = (one for one in participant_warnings(unserved, design, (), failed=False) if "planted" in one)
    assert design.place in told


def test_the_container_that_ran_is_told(monkeypatch):
    for name in ("BIDS_MLLM_CONTAINER", "BIDS_MLLM_IMAGE", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):
        monkeypatch.delenv(name, raising=False)
    assert container_facts() is None
    monkeypatch.setenv("BIDS_MLLM_CONTAINER", "docker")
    monkeypatch.setenv("BIDS_MLLM_IMAGE", "bids-mllm:1.2.3-cpu")
    assert container_facts() == {"Type": "docker", "Tag": "bids-mllm:1.2.3-cpu"}
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/bids-mllm.sif")  # an image made for Docker
    assert container_facts() == {"Type": "apptainer", "Tag": "bids-mllm:1.2.3-cpu"}
