"""Scatters hold the planted points and lines."""

from pathlib import Path

import numpy as np
import pytest
from chart_samples import PEOPLE, Outputs
from scipy.stats import linregress

from bids_mllm.io.files import read_tsv, write_tsv
from bids_mllm.workflows.scatter_figures import coupling_figures, regression

KEYS = ("AR", "VU", "NU", "SU")
SIMILARITY = [[1.0, 0.1, 0.2, 0.3], [0.1, 1.0, 0.4, 0.5], [0.2, 0.4, 1.0, 0.6], [0.3, 0.5, 0.6, 1.0]]


def _checked(layer: int, a: str, b: str) -> tuple[float, float]:
    return 0.1 * (layer + 1), 0.2 + 0.5 * SIMILARITY[KEYS.index(a)][KEYS.index(b)] + 0.01 * layer


def test_scatters_find_the_planted_lines(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    outputs.scores(
        dict.fromkeys(outputs.models, 0.2), by_layer=lambda *key: 0.3 - 0.02 * key[-1] + 0.01 * PEOPLE.index(key[0]),
        layers=4, missing=[("03", "whole brain")],
    )  # fmt: skip
    outputs.checks("videollm", {"embedding": SIMILARITY}, KEYS, _checked, layers=4)
    texts, brain = coupling_figures(outputs.results)
    (panel,) = texts.options["panels"]
    assert (panel["slope"], panel["intercept"], panel["r"]) == pytest.approx((0.5, 0.23, 1.0))
    assert panel["title"] == "generated, layer 3: r = 0.50, p = 0.25"
    assert sorted(row["point"] for row in texts.rows) == ["AR-NU", "AR-SU", "AR-VU", "NU-SU", "VU-NU", "VU-SU"]
    (panel,) = brain.options["panels"]
    assert (panel["slope"], panel["r"]) == pytest.approx((-0.2, -1.0))
    assert [(row["point"], row["x"], row["y"]) for row in brain.rows[:2]] == [
        ("0", pytest.approx(0.1), pytest.approx(0.305)), ("1", pytest.approx(0.2), pytest.approx(0.285)),
    ]  # fmt: skip
    assert "r = -1.00" in brain.caption
    assert "whole brain" in brain.caption


def test_texts_without_a_similarity_have_no_point(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    unknown = [[None if "SU" in (a, b) else SIMILARITY[i][j] for j, b in enumerate(KEYS)] for i, a in enumerate(KEYS)]
    nothing = [[None] * len(KEYS) for _ in KEYS]
    outputs.checks("videollm", {"embedding": SIMILARITY, "tfidf": unknown, "none": nothing}, KEYS, _checked, layers=2)
    path = tmp_path / "sourcedata" / "checks" / "model-videollm_coupling.tsv"
    write_tsv(
        path,
        [{**row} | ({"r": "n/a", "p": "n/a"} if row["text_similarity"] == "tfidf" else {}) for row in read_tsv(path)],
    )
    (figure,) = coupling_figures(outputs.results)
    assert [panel["name"] for panel in figure.options["panels"]] == ["generated, embedding", "generated, tfidf"]
    points = [row["point"] for row in figure.rows if row["panel"] == "generated, tfidf"]
    assert sorted(points) == ["AR-NU", "AR-VU", "VU-NU"]
    assert figure.options["panels"][1]["title"] == "generated, layer 1: r = 1.00"


def test_a_line_is_that_of_the_least_squares() -> None:
    x, y = np.random.default_rng(3).standard_normal((2, 20))
    expected = linregress(x, y)
    found = regression([{"x": float(a), "y": float(b)} for a, b in zip(x, y, strict=True)])
    assert found == pytest.approx((expected.slope, expected.intercept, expected.rvalue))


@pytest.mark.parametrize("points", [[(0, 1), (1, 2)], [(1, 1), (1, 2), (1, 3)], [(1, 1), (2, 1), (3, 1)]])
def test_few_points_or_none_that_differ_have_no_line(points: list[tuple[int, int]]) -> None:
    assert regression([{"x": x, "y": y} for x, y in points]) is None


def test_without_tables_there_are_no_scatters(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    assert coupling_figures(outputs.results) == []
    outputs.checks("videollm", {}, KEYS[:1], _checked, layers=2)
    assert coupling_figures(outputs.results) == []


def _coupled(person: str, key: str, cka: float | str, r: float) -> dict[str, object]:
    return {
        "participant": person, "model": "videollm", "condition": f"generated{key}", "pooling": "generated",
        "instruction": key, "layer": 3, "text_embedding": "n/a", "text_tfidf": 0.5, "cka": cka,
        "relative_difference": "n/a", "r": r,
    }  # fmt: skip


def test_instructions_are_points_of_their_means_over_participants(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path)
    rows = [
        _coupled(person, key, cka, 0.1 + 0.5 * cka + shift)
        for person, shift in (("01", 0.02), ("02", -0.02))
        for key, cka in (("AR", 0.2), ("VU", 0.4), ("NU", 0.8))
    ]
    path = outputs.results[0].name.of_group().path(tmp_path, extension=".tsv", stat="coupling")
    path.parent.mkdir(parents=True)
    write_tsv(path, [*rows, _coupled("02", "SU", "n/a", 0.9)])
    (figure,) = coupling_figures(outputs.results)
    (panel,) = figure.options["panels"]
    assert (panel["slope"], panel["intercept"], panel["r"]) == pytest.approx((0.5, 0.1, 1.0))
    assert [(row["point"], row["x"], row["y"]) for row in figure.rows] == [
        ("AR", 0.2, pytest.approx(0.2)), ("VU", 0.4, pytest.approx(0.3)), ("NU", 0.8, pytest.approx(0.5)),
    ]  # fmt: skip
    # The page of a participant is the same before and after the group is made.
    assert coupling_figures(outputs.results, participant="01") == []
