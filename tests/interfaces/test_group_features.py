"""Tables of the group on instructions: similarity against brain score, and samples of texts."""

import numpy as np
import pytest

from bids_mllm.interfaces.check_record import check_path
from bids_mllm.interfaces.group_features import coupling_rows, text_sample_rows
from bids_mllm.io.derivatives import MapName, outputs, write_map
from bids_mllm.io.files import write_json, write_tsv
from bids_mllm.io.grids import ParcelGrid
from bids_mllm.io.results import ModelResult

GRID = ParcelGrid(("a", "b"))
LAYERS = [0, 8, 16]
KEYS = ["AR", "VU", "NU"]


def written_result(folder, participant="01", *, layers=LAYERS):
    """Return the results of one model: training prefers layer 8 under AR, 16 under VU, and nothing is known of NU."""
    result = ModelResult(MapName(participant, "life", "MNI", extension=".tsv"), "m", folder)
    values = {"AR": ([0.1, 0.4, 0.2], [0.2, 0.3, 0.9]), "VU": ([0.1, 0.2, 0.3], [0.8, 0.2, 0.1]), "NU": (np.nan, 0.5)}
    for key, maps in values.items():
        for stat, by_layer in zip(("cvr2", "r"), maps, strict=True):
            wide = np.broadcast_to(np.asarray(by_layer, dtype=np.float32), 3)[: len(layers), None] + [0.05, -0.05]
            kept = np.ones(2, dtype=bool)
            write_map(result.path(stat, f"generated{key}"), wide[0] if len(wide) == 1 else wide, kept, GRID, {})
    sidecar = {"Layers": layers, "Conditions": [*(f"generated{key}" for key in KEYS), "media"]}
    write_map(result.path("r", "best"), np.zeros(2), np.ones(2, dtype=bool), GRID, sidecar)
    return result


def write_checks(folder, layers=LAYERS):
    pairs = [("AR", "VU", 0.1), ("AR", "NU", 0.3), ("VU", "NU", 0.8)]
    rows = [
        {"pooling": "generated", "layer": layer, "instruction_a": a, "instruction_b": b, "null_a": None,
         "null_b": None, "cka": cka + layer, "relative_difference": 1 - cka}
        for layer in layers for a, b, cka in pairs
    ]  # fmt: skip
    rows.append({**rows[-1], "instruction_b": "scrambled", "null_b": "scrambled", "cka": 100.0})
    write_tsv(check_path(folder, "m", "conditioning", ".tsv"), rows)
    texts = {"tfidf": [[1, 0.2, 0.4], [0.2, 1, None], [0.4, None, 1]]}
    write_json(check_path(folder, "m", "coupling", ".json"), {"Instructions": KEYS, "TextSimilarity": texts})


def test_similarity_stands_beside_the_score_on_the_layer_that_training_chose(tmp_path):
    write_checks(tmp_path)
    results = [written_result(tmp_path, "01"), written_result(tmp_path, "02")]
    rows = coupling_rows(results)
    places = [(row["participant"], row["instruction"], row["layer"]) for row in rows]
    assert places == [("01", "AR", 8), ("01", "VU", 16), ("02", "AR", 8), ("02", "VU", 16)]
    first, second = rows[:2]
    assert (first["cka"], second["cka"]) == pytest.approx((8 + 0.2, 16 + 0.45))
    assert (first["relative_difference"], first["text_tfidf"]) == pytest.approx((0.8, 0.3))
    # Held-out scores take no part in the choice: other layers have a higher r.
    assert (first["r"], second["r"]) == pytest.approx((0.3, 0.1), rel=1e-5)
    assert (first["condition"], first["pooling"]) == ("generatedAR", "generated")
    assert set(first) < set(outputs()["tables"]["coupling"]["Columns"])


def test_models_with_one_layer_and_without_checks(tmp_path):
    result = written_result(tmp_path, layers=[0])
    assert coupling_rows([result]) == []
    write_checks(tmp_path, [0])
    assert [(row["layer"], row["cka"]) for row in coupling_rows([result])] == [
        (0, pytest.approx(0.2)),
        (0, pytest.approx(0.45)),
    ]


def test_a_few_clips_show_what_was_said_under_each_instruction(tmp_path):
    folder = tmp_path / "sourcedata" / "texts" / "model-m"
    for film, n_clips in (("film-a.mkv", 4), ("film-b.mkv", 2)):
        for key in ("VU", "AR"):
            clips = range(n_clips if (film, key) != ("film-b.mkv", "VU") else 1)
            rows = [{"start": 2.0 * n, "end": 2.0 * n + 2, "text": f"{key} {film} {n}"} for n in clips]
            write_tsv(folder / f"{film}_instruction-{key}_texts.tsv", rows)
    rows = text_sample_rows(tmp_path, ["silent", "m"])
    assert [(row["instruction"], row["stimulus"], row["start"], row["text"]) for row in rows] == [
        ("AR", "film-a.mkv", "2", "AR film-a.mkv 1"),
        ("AR", "film-a.mkv", "6", "AR film-a.mkv 3"),
        ("AR", "film-b.mkv", "2", "AR film-b.mkv 1"),
        ("VU", "film-a.mkv", "2", "VU film-a.mkv 1"),
        ("VU", "film-a.mkv", "6", "VU film-a.mkv 3"),
        ("VU", "film-b.mkv", "2", "n/a"),
    ]
    assert set(rows[0]) == set(outputs()["tables"]["textsamples"]["Columns"])
