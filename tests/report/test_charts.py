"""Charts hold the texts and the lengths of what was handed over."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest

from bids_mllm.records import Fold, Showing
from bids_mllm.report.design_charts import (
    alignment_chart,
    constant_stretches,
    cv_chart,
    fold_roles,
    showing_extent,
)
from bids_mllm.report.style import BOLD, FILM, MASKED, TEST, TRAIN, UNUSED, distinct_colours

from .samples import make_folds, make_run, make_windows

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(element.itertext()).strip() for element in root.iter(f"{SVG}text")]


def widths_of_colour(svg: bytes, colour: str) -> list[float]:
    """Widths of the boxes filled with one colour, plain or hatched, in points, without the legend's."""
    root = ElementTree.fromstring(svg)
    fills = [f"fill: {colour.lower()}"]
    for pattern in root.iter(f"{SVG}pattern"):
        if colour.lower() in ElementTree.tostring(pattern, encoding="unicode").lower():
            fills.append(f"fill: url(#{pattern.get('id')})")
    legends = [group for group in root.iter(f"{SVG}g") if group.get("id", "").startswith("legend")]
    named = {id(path) for legend in legends for path in legend.iter(f"{SVG}path")}
    widths = []
    for path in root.iter(f"{SVG}path"):
        if id(path) not in named and any(fill in path.get("style", "") for fill in fills):
            numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.get("d", ""))]
            widths.append(max(numbers[::2]) - min(numbers[::2]))
    return widths


def test_constant_stretches_against_a_hand_made_case() -> None:
    assert constant_stretches(np.array([0, 0, 1, 1, 1, 0])) == [(0, 0, 2), (1, 2, 3), (0, 5, 1)]
    assert constant_stretches(np.array([], dtype=int)) == []


def test_alignment_chart_names_every_run_and_the_clock() -> None:
    runs = [make_run("life01", run=1), make_run("life02")]
    found = texts(alignment_chart(runs, [make_windows(run) for run in runs]))
    assert "ses-001_task-life01_run-1" in found
    assert "ses-001_task-life02" in found
    assert any("seconds on the run's clock" in text for text in found)
    assert {"BOLD, used", "BOLD, masked out", "stimulus"} <= set(found)


def test_alignment_bars_are_as_long_as_the_volumes_and_the_film() -> None:
    run = make_run("life01", n_volumes=60)
    svg = alignment_chart([run], [make_windows(run, before=3, after=6)])
    (used,) = widths_of_colour(svg, BOLD)
    masked = sorted(widths_of_colour(svg, MASKED))
    (film,) = widths_of_colour(svg, FILM)
    second = used / (51 * 1.49)
    assert masked == pytest.approx([3 * 1.49 * second, 6 * 1.49 * second], rel=1e-3)
    assert film == pytest.approx(80.0 * second, rel=1e-3)


def test_showing_without_duration_ends_with_the_media_or_the_last_window() -> None:
    run = make_run("life01")
    windows = make_windows(run, before=3, after=4)
    open_ended = Showing("films/life01.mkv", run_onset=2.0, media_onset=10.0)
    assert showing_extent(open_ended, windows, 0) == pytest.approx((2.0, 72.25))
    unreported = replace(windows, report={})
    last_end = windows.end[windows.valid].max()
    assert showing_extent(open_ended, unreported, 0) == pytest.approx((2.0, 2.0 + last_end - 10.0))


def test_fold_roles_mark_rows_in_neither_part_as_unused() -> None:
    fold = Fold("a", np.array([0, 1]), np.array([3]), ())
    np.testing.assert_array_equal(fold_roles(fold, 5), [0, 0, 2, 1, 2])


def test_cv_chart_names_folds_runs_roles_and_counts_inner_folds() -> None:
    folds, run_of_row = make_folds(3, 20)
    labels = ["task-a", "task-b", "task-c"]
    svg = cv_chart(folds, run_of_row, labels)
    found = texts(svg)
    assert {*labels, "run 1", "run 2", "run 3", "train", "test", "purged or unused", "inner folds"} <= set(found)
    assert found.count("2") == 3
    for colour in (TRAIN, TEST, UNUSED):
        assert colour.lower() in svg.decode().lower()


@pytest.mark.parametrize("n_colours", [1, 8, 9, 13])
def test_colours_differ_up_to_thirteen(n_colours: int) -> None:
    assert len(set(distinct_colours(n_colours))) == n_colours
