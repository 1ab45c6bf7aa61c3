"""The block of a page on conditioning, and the table of generated texts."""

import xml.etree.ElementTree as ElementTree
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from bids_mllm.report.conditioning import (
    ModelChecks,
    conditioning_blocks,
    conditioning_chart,
    conditioning_warnings,
    coupling_curve,
    difference_range,
    pooling_table,
    text_samples,
)
from bids_mllm.report.content import Bullets, Heading, Paragraph, Picture, Table
from bids_mllm.report.style import PALETTE

SVG = "{http://www.w3.org/2000/svg}"
REAL = ("AR", "VU", "SU", "NU")
NULLS = {"NULLempty": "empty", "ARscrambled": "scrambled", "VUscrambled": "scrambled"}
WARNING = "The instructions make no difference to qwen25vl7b with the pooling last."


def range_facts(median: float | None) -> dict[str, float | None]:
    return dict.fromkeys(("Median", "Smallest", "Largest"), median)


def pair_rows(n_layers: int = 5) -> list[dict[str, str]]:
    """Differences that grow with the layer and, with the pooling last, stay at almost nothing."""
    rng = np.random.default_rng(0)
    rows = []
    for pooling, size in (("generated", 0.2), ("last", 2e-4)):
        for layer in range(n_layers):
            for a, b in combinations((*REAL, *NULLS), 2):
                if a in NULLS:
                    continue
                value = size * (0.5 + layer) * rng.uniform(0.7, 1.3) * (2 if b in NULLS else 1)
                rows.append(
                    {
                        "pooling": pooling, "layer": str(layer), "instruction_a": a, "instruction_b": b,
                        "null_a": "n/a", "null_b": NULLS.get(b, "n/a"),
                        "relative_difference": "n/a" if pooling == "last" and layer == 0 else f"{value:.6g}",
                        "cka": "0.5",
                    }
                )  # fmt: skip
    return rows


def coupling_rows(n_layers: int = 5) -> list[dict[str, str]]:
    return [
        {
            "pooling": pooling, "layer": str(layer), "text_similarity": text, "representation_similarity": measure,
            "r": f"{0.1 * layer if measure == 'cka' else -0.9:.3g}", "p": "0.01" if layer > 2 else "0.4",
        }
        for pooling in ("generated", "last")
        for layer in range(n_layers)
        for text in ("embedding", "tfidf")
        for measure in ("cka", "cosine")
    ]  # fmt: skip


def make_checks(**changes: Any) -> ModelChecks:
    poolings = {
        pooling: {
            "Instructions": 4, "Pairs": 6, "Conditioned": conditioned, "LayersWithoutDifference": [],
            "RelativeDifference": range_facts(median), "CKA": range_facts(0.5),
            "MedianDifferenceFromNull": {"empty": 0.4, "scrambled": None},
        }
        for pooling, conditioned, median in (("generated", True, 0.25), ("last", False, 0.00041))
    }  # fmt: skip
    summary = {"Clips": 9000, "ClipsCompared": 2000, "Warnings": [WARNING], "Poolings": poolings}
    values: dict[str, Any] = {
        "model": "qwen25vl7b", "summary": summary, "pairs": tuple(pair_rows()), "coupling": tuple(coupling_rows()),
    }  # fmt: skip
    return ModelChecks(**(values | changes))


def texts_of(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(element.itertext()).strip() for element in root.iter(f"{SVG}text")]


def test_warnings_in_words_come_first() -> None:
    blocks = conditioning_blocks(make_checks())
    assert [type(block) for block in blocks] == [Heading, Bullets, Paragraph, Table, Picture]
    assert blocks[1] == Bullets((WARNING,), "warning")
    assert conditioning_warnings([make_checks(), make_checks()]) == (WARNING, WARNING)
    assert blocks[2].text.startswith("9000 clips checked, 2000 of them compared between instructions")


def test_the_table_keeps_small_differences_apart_from_none() -> None:
    table = pooling_table(make_checks())
    assert table.columns == (
        "Pooling", "Instructions", "Make a difference", "Relative difference", "Linear CKA",
        "Difference from null, empty", "Difference from null, scrambled",
        "Median r with texts, model's embeddings", "Median r with texts, TF-IDF",
    )  # fmt: skip
    first, second = table.rows
    assert first == ("generated", 4, "yes", "0.25 (0.25 to 0.25)", "0.5 (0.5 to 0.5)", "0.4", None, 0.2, 0.2)
    assert second[2:4] == ("no", "0.00041 (0.00041 to 0.00041)")


def test_ranges_by_layer_are_over_the_pairs_they_are_said_to_be_over() -> None:
    checks = make_checks()
    real = difference_range(checks, "generated")
    rows = [r for r in checks.pairs if r["pooling"] == "generated" and r["layer"] == "3"]
    values = [float(r["relative_difference"]) for r in rows if r["null_b"] == "n/a"]
    assert len(values) == 6
    assert real.layers == (0, 1, 2, 3, 4)
    assert (real.median[3], real.lowest[3], real.highest[3]) == (np.median(values), min(values), max(values))
    scrambled = difference_range(checks, "generated", null="scrambled")
    own = [
        float(r["relative_difference"])
        for r in rows
        if (r["instruction_a"], r["instruction_b"]) in (("AR", "ARscrambled"), ("VU", "VUscrambled"))
    ]
    assert (len(own), scrambled.median[3]) == (2, np.median(own))
    empty = [float(r["relative_difference"]) for r in rows if r["instruction_b"] == "NULLempty"]
    assert (len(empty), difference_range(checks, "generated", null="empty").median[3]) == (4, np.median(empty))
    assert np.isnan(difference_range(checks, "last").median[0])


def test_a_null_instruction_that_is_listed_first_counts_alike() -> None:
    checks = make_checks()
    turned = tuple(
        r
        | {
            "instruction_a": r["instruction_b"], "instruction_b": r["instruction_a"],
            "null_a": r["null_b"], "null_b": r["null_a"],
        }
        for r in checks.pairs
    )  # fmt: skip
    for null in (None, "empty", "scrambled"):
        found = difference_range(make_checks(pairs=turned), "generated", null=null)
        np.testing.assert_array_equal(found.median, difference_range(checks, "generated", null=null).median)


def test_the_curve_of_the_coupling_is_that_of_cka() -> None:
    layers, r, p = coupling_curve(make_checks(), "last", "tfidf")
    assert layers == (0, 1, 2, 3, 4)
    np.testing.assert_allclose(r, [0, 0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(p, [0.4, 0.4, 0.4, 0.01, 0.01])


def test_the_chart_names_what_it_draws() -> None:
    svg = conditioning_chart(make_checks())
    found = texts_of(svg)
    assert {"generated", "last", "generated, from empty null", "last, from scrambled null"} <= set(found)
    assert {"generated, TF-IDF", "last, model's embeddings", "relative difference", "layer (0 = embedding)"} <= set(
        found
    )
    for colour in PALETTE[:2]:
        assert colour.lower() in svg.decode().lower()
    assert svg == conditioning_chart(make_checks())


def test_the_picture_says_in_words_what_it_shows() -> None:
    picture = conditioning_blocks(make_checks())[-1]
    assert "qwen25vl7b" in picture.alt
    assert "with the pooling last the median difference over layers is 0.00041" in picture.alt
    assert "correlation of text similarity" in picture.alt


def test_without_coupling_there_is_one_chart() -> None:
    checks = make_checks(coupling=())
    assert "Texts against features" not in texts_of(conditioning_chart(checks))
    picture = conditioning_blocks(checks)[-1]
    assert "correlation" not in picture.alt
    assert "Right" not in picture.caption
    assert len(pooling_table(checks).columns) == 7


def test_a_model_without_instructions_has_words_alone() -> None:
    summary = {"Clips": 90, "ClipsCompared": 90, "Warnings": [], "Poolings": {}}
    blocks = conditioning_blocks(ModelChecks("motionenergy", summary))
    assert blocks == (
        Heading("motionenergy"),
        Paragraph("90 clips checked; without instructions there is nothing to compare."),
    )


def test_one_instruction_or_constant_features_make_no_figure() -> None:
    rows = tuple(row | {"relative_difference": "n/a"} for row in pair_rows())
    for pairs in ((), rows):
        assert not any(isinstance(block, Picture) for block in conditioning_blocks(make_checks(pairs=pairs)))


def sample_rows(n_clips: int = 7) -> list[dict[str, str]]:
    return [
        {"start": f"{1.5 * k:g}", "end": f"{1.5 * k + 1.5:g}", "instruction": key, "text": f"{key} text {k}"}
        for key in ("AR", "VU")
        for k in range(n_clips)
    ]


def test_text_samples_are_evenly_spaced_clips_under_every_instruction() -> None:
    table = text_samples("life/life01.mkv", sample_rows(), model="qwen25vl7b")
    assert table.caption == "What qwen25vl7b generated for 3 of 7 clips of life/life01.mkv."
    assert table.columns == ("Instruction", "Clip (s)", "Generated text")
    assert table.rows == tuple(
        (key, f"{1.5 * k:.2f} to {1.5 * k + 1.5:.2f}", f"{key} text {k}") for k in (0, 3, 6) for key in ("AR", "VU")
    )


@pytest.mark.parametrize(("keys", "expected"), [(("VU",), ["VU"] * 2), (("VU", "AR"), ["VU", "AR"] * 2)])
def test_text_samples_of_some_instructions_in_their_order(keys: tuple[str, ...], expected: list[str]) -> None:
    table = text_samples("a.mkv", sample_rows(), model="m", instructions=keys, n_clips=2)
    assert [row[0] for row in table.rows] == expected


def test_clips_without_a_text_are_passed_over() -> None:
    rows = [row | ({"text": "n/a"} if row["start"] == "0" else {}) for row in sample_rows(3)]
    table = text_samples("a.mkv", rows, model="m")
    assert [row[1] for row in table.rows] == ["1.50 to 3.00"] * 2 + ["3.00 to 4.50"] * 2
    assert text_samples("a.mkv", [], model="m").rows == ()
