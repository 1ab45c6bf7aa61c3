"""Confounds of a hand-made fMRIPrep-like table, read through nilearn."""

import json

import numpy as np
import pandas as pd
import pytest
from volumes import bold_run

from bids_mllm.exceptions import InputDataError
from bids_mllm.io.confounds import STRATEGIES, load_confounds

N = 40
MOTION = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
KINDS = ("", "_derivative1", "_power2", "_derivative1_power2")
FULL = {f"{name}{kind}" for name in MOTION for kind in KINDS}


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    columns = {}
    for name in MOTION:
        values = rng.standard_normal(N).cumsum()
        change = np.concatenate([[np.nan], np.diff(values)])
        columns |= {name: values, f"{name}_derivative1": change}
        columns |= {f"{name}_power2": values**2, f"{name}_derivative1_power2": change**2}
    for name in ("csf", "white_matter", "global_signal"):
        columns[name] = 900 + rng.standard_normal(N)
        columns[f"{name}_derivative1"] = np.concatenate([[np.nan], np.diff(columns[name])])
    for k in range(3):
        columns[f"cosine{k:02d}"] = np.cos(np.pi * (k + 1) * (np.arange(N) + 0.5) / N)
    for k in range(7):
        columns[f"a_comp_cor_{k:02d}"] = rng.standard_normal(N)
        columns[f"w_comp_cor_{k:02d}"] = rng.standard_normal(N)
    columns["non_steady_state_outlier00"] = np.eye(N)[0]
    columns["framewise_displacement"] = np.concatenate([[np.nan], rng.random(N - 1)])
    return pd.DataFrame(columns)


@pytest.fixture
def run(tmp_path, table):
    run = bold_run(tmp_path, n_volumes=N, confounds=True)
    table.to_csv(run.confounds, sep="\t", index=False, na_rep="n/a")
    described = {}
    for k in range(7):
        for letter, mask in (("a", "combined"), ("w", "WM")):
            described[f"{letter}_comp_cor_{k:02d}"] = {"Mask": mask, "Method": "aCompCor", "Retained": True}
    run.confounds.with_suffix(".json").write_text(json.dumps(described))
    return run


EXPECTED = {
    "motion": FULL,
    "simple": FULL | {"csf", "white_matter"},
    "compcor": FULL | {f"cosine{k:02d}" for k in range(3)} | {f"a_comp_cor_{k:02d}" for k in range(5)},
}


def test_every_strategy_is_tested():
    assert set(EXPECTED) | {"none"} == set(STRATEGIES)


@pytest.mark.parametrize("strategy", EXPECTED)
def test_the_columns_of_each_strategy(run, table, strategy):
    values, names = load_confounds(run, strategy)
    assert set(names) == EXPECTED[strategy]
    assert values.shape == (N, len(names))
    assert np.isfinite(values).all()
    for column, name in zip(values.T, names, strict=True):
        expected = table[name].bfill().to_numpy()
        np.testing.assert_allclose(column - column.mean(), expected - expected.mean(), atol=1e-9, err_msg=name)


def test_the_first_value_of_a_derivative_is_the_next(run):
    values, names = load_confounds(run, "motion")
    column = values[:, names.index("rot_z_derivative1")]
    assert column[0] == column[1]


def test_none_needs_no_file(tmp_path):
    assert load_confounds(bold_run(tmp_path), "none") == (None, ())


def test_a_run_without_confounds_says_what_is_missing(tmp_path):
    with pytest.raises(InputDataError, match=r"task-a_run-1 of sub-01 has no desc-confounds_timeseries.tsv"):
        load_confounds(bold_run(tmp_path), "simple")


def test_columns_that_are_not_there_name_file_and_strategy(run, table):
    table.drop(columns=["csf", "rot_x"]).to_csv(run.confounds, sep="\t", index=False, na_rep="n/a")
    with pytest.raises(InputDataError) as caught:
        load_confounds(run, "simple")
    text = str(caught.value)
    assert str(run.confounds) in text
    assert "simple" in text
    assert "--confounds" in text
    assert "\n" not in text


def test_a_dangling_link_is_one_sentence(run):
    run.confounds.unlink()
    run.confounds.symlink_to("gone")
    with pytest.raises(InputDataError, match=r"do not serve the strategy motion"):
        load_confounds(run, "motion")


def test_confounds_of_another_length(run, table):
    table.iloc[:-3].to_csv(run.confounds, sep="\t", index=False, na_rep="n/a")
    with pytest.raises(InputDataError, match=r"37 rows but the BOLD .* has 40"):
        load_confounds(run, "motion")
