"""Splits written out and read again, and every way in which a file of them can be wrong."""

import copy
import json

import numpy as np
import pytest

from bids_mllm.exceptions import DesignError
from bids_mllm.fit.cv_file import folds_from_values, folds_to_values
from bids_mllm.fit.folds import SegmentClock, make_folds

NAMES = ["task-a", "task-b", "task-c", "task-d"]
RUN = np.repeat(np.arange(4), [30, 25, 40, 35])
VOLUME = np.concatenate([np.arange(5, 35), np.arange(5, 30), np.r_[5:20, 25:50], np.arange(5, 40)])
GROUPS = np.array([0, 1, 0, 2])
POSITION = VOLUME * 2.0
PURGE = 12.0


def read(values, **changes):
    options = {"position": POSITION, "purge": PURGE, "source": "split.json"} | changes
    return folds_from_values(values, RUN, VOLUME, NAMES, GROUPS, **options)


@pytest.fixture(scope="module")
def folds():
    return make_folds(RUN, POSITION, GROUPS, run_names=NAMES, test_runs=None, n_folds=2, purge=PURGE)


@pytest.fixture
def values(folds):
    return copy.deepcopy(folds_to_values(folds, RUN, VOLUME, NAMES))


def same(one, other):
    assert [fold.name for fold in one] == [fold.name for fold in other]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.train, b.train)
        np.testing.assert_array_equal(a.test, b.test)
        assert len(a.inner) == len(b.inner)
        for (fit_a, held_a), (fit_b, held_b) in zip(a.inner, b.inner, strict=True):
            np.testing.assert_array_equal(fit_a, fit_b)
            np.testing.assert_array_equal(held_a, held_b)


def test_what_was_written_is_read(folds, values):
    same(read(json.loads(json.dumps(values))), folds)


def test_ranges_are_half_open_and_skip_gaps(values):
    assert values[0]["Test"] == {"task-a": [[5, 35]], "task-c": [[5, 20], [25, 50]]}
    assert values[0]["Train"] == {"task-b": [[5, 30]], "task-d": [[5, 40]]}


def test_parts_of_one_run_are_written_and_read():
    run, volume = np.zeros(100, dtype=int), np.arange(100)
    cut = make_folds(
        run, volume * 2.0, np.zeros(1, dtype=int), run_names=["task-a"], test_runs=None, n_folds=4, purge=10.0
    )
    written = folds_to_values(cut, run, volume, ["task-a"])
    assert written[1]["Test"] == {"task-a": [[25, 50]]}
    again = folds_from_values(
        written, run, volume, ["task-a"], np.zeros(1, dtype=int), position=volume * 2.0, purge=10.0, source="s"
    )
    same(again, cut)
    with pytest.raises(DesignError, match=r"show one film 10\.00 s apart .* leave 12\.00 s out"):
        folds_from_values(
            written, run, volume, ["task-a"], np.zeros(1, dtype=int), position=volume * 2.0, purge=12.0, source="s"
        )


def test_volumes_that_are_no_rows_are_passed_over(folds, values):
    values[0]["Test"] = {"task-a": [[0, 500]], "task-c": [[0, 500]]}
    same(read(values), folds)


def test_no_folds():
    with pytest.raises(DesignError, match=r"split\.json holds no folds"):
        read([])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda v: v[0].pop("Train"), "fold task-a, task-c has no Train"),
        (lambda v: v[0].pop("Inner"), "fold task-a, task-c has no Inner"),
        (lambda v: v[0].update(Inner=[]), "fold task-a, task-c has no inner folds"),
        (lambda v: v[1]["Test"].update({"task-x": [[0, 9]]}), "names the run task-x, .* there are task-a, task-b"),
        (lambda v: v[1].update(Test={"task-b": [[5]]}), r"has \[\[5\]\] for the run task-b, .*\[first, end\]"),
        (lambda v: v[0]["Train"].update({"task-a": [[5, 9]]}), "volume 5 of task-a is on both sides of fold task-a"),
        (
            lambda v: (v[0]["Train"].update({"task-c": [[5, 20]]}), v[0]["Test"].pop("task-c")),
            r"volume 5 of task-c and volume 5 of task-a show one film 0\.00 s apart",
        ),
        (lambda v: v[0].update(Test={"task-a": [[5, 7]]}), "2 are held out, but at least 10 and 3 are needed"),
        (
            lambda v: v[0]["Inner"][0].update(Validation={"task-a": [[5, 35]]}),
            "inner fold 1 of fold task-a, task-c has volumes that are not in Train",
        ),
        (lambda v: v.append(copy.deepcopy(v[0])), "volume 5 of task-a is tested in two folds"),
        (lambda v: v.__setitem__(0, 3), "fold 1 has no Train"),
    ],
)
def test_what_is_wrong_is_named(values, change, sentence):
    change(values)
    with pytest.raises(DesignError, match=sentence):
        read(values)


def test_training_volumes_next_to_a_held_out_neighbour_are_refused():
    """Runs a, b and d are segments 1, 2 and 3 of one film; b is held out and touches the ends of the others."""
    film = np.where(RUN == 2, 1, 0)
    number = np.array([1, 2, 9, 3])[RUN]
    clock = SegmentClock(film, number, POSITION - 10, 80 - POSITION, margin=8.0)
    folds = make_folds(
        RUN, POSITION, np.arange(4), run_names=NAMES, test_runs=[1], n_folds=2, purge=PURGE, segments=clock
    )
    written = folds_to_values(folds, RUN, VOLUME, NAMES)
    options = {"position": POSITION, "purge": PURGE, "source": "s.json", "segments": clock}
    same(folds_from_values(written, RUN, VOLUME, NAMES, np.arange(4), **options), folds)
    written[0]["Train"]["task-d"] = [[5, 40]]
    with pytest.raises(DesignError, match=r"volume 5 of task-d trains in fold task-b within 8\.00 s of a neighbouring"):
        folds_from_values(written, RUN, VOLUME, NAMES, np.arange(4), **options)
