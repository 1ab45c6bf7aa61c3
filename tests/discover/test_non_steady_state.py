"""Volumes that fMRIPrep flags as taken before the magnetisation was steady."""

import pytest

from bids_mllm.discover.runs import _non_steady_state


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("trans_x\n0.1\n0.2\n0.3\n", 0),
        ("trans_x\tnon_steady_state_outlier00\n0.1\t1.0\n0.2\t0.0\n", 1),
        (
            "non_steady_state_outlier00\tcsf\tnon_steady_state_outlier01\n1\tn/a\t0\n0\t5\t1\n0\t6\t0\n0\t6\t0\n",
            2,
        ),
    ],
)
def test_flagged_volumes_are_counted(tmp_path, rows, expected):
    path = tmp_path / "confounds.tsv"
    path.write_text(rows)
    assert _non_steady_state(path) == expected


def test_no_confounds(tmp_path):
    assert _non_steady_state(None) == 0
    assert _non_steady_state(tmp_path / "gone.tsv") == 0
