"""The node that checks features: from a store with known content to tables, sidecars and what a page reads."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bids_mllm.exceptions import StoreError
from bids_mllm.features.conditioning import linear_cka
from bids_mllm.features.controls import null_instructions
from bids_mllm.features.coupling import mantel, tfidf_similarity
from bids_mllm.features.instructions import load_instructions
from bids_mllm.interfaces.conditioning import (
    COUPLING_COLUMNS,
    MATRIX_COLUMNS,
    PAIR_COLUMNS,
    CheckConditioning,
    StoredFeatures,
    read_checks,
)
from bids_mllm.io.files import read_json, read_tsv
from bids_mllm.io.store import FeatureStore
from bids_mllm.records import Condition, Instruction, ModelSpec

REAL = load_instructions()[:4]
INSTRUCTIONS = (*REAL, *null_instructions(REAL[:2], ("empty", "scrambled"), 0))
FILMS = {"b.mkv": 70, "a.mkv": 9}
N_LAYERS, WIDTH = 3, 6
Values = dict[tuple[str, Condition], np.ndarray]


def made_values(conditions: tuple[Condition, ...]) -> Values:
    """Features (n_windows, n_layers, width) of each film and condition, all different, that float16 holds exactly."""
    rng = np.random.default_rng(0)
    return {
        (film, condition): rng.normal(size=(n_windows, N_LAYERS, WIDTH)).astype(np.float16).astype(np.float32)
        for film, n_windows in FILMS.items()
        for condition in conditions
    }


def conditions_of(*poolings: str) -> tuple[Condition, ...]:
    return (Condition("media"), *(Condition(p, i.key) for p in poolings for i in INSTRUCTIONS))  # type: ignore[arg-type]


def write_store(
    folder: Path,
    values: Values,
    model: str = "tiny",
    masked: Mapping[tuple[str, int], str] | None = None,
    max_new_tokens: int = 8,
    edition: str = "",
) -> list[Path]:
    """Put features into a store, and return a manifest of each film as the extraction writes it."""
    store, manifests = FeatureStore(folder / "store"), []
    for film, n_windows in FILMS.items():
        rows = []
        for (own, condition), features in values.items():
            if own != film:
                continue
            entry = store.entry(
                {
                    "media": {"sha256": film + edition, "kind": "video"},
                    "grid": [0.0, 1.49, 1.49, n_windows],
                    "model": {"name": model, "max_new_tokens": max_new_tokens},
                    "condition": condition.label,
                },
                n_windows=n_windows,
                n_layers=N_LAYERS,
                width=WIDTH,
            )
            faults = {window: reason for (name, window), reason in (masked or {}).items() if name == film}
            told = features.copy()
            told[list(faults)] = np.nan
            for chunk in entry.missing_chunks():
                at = entry.rows(chunk)
                own_faults = {w: reason for w, reason in faults.items() if at.start <= w < at.stop}
                entry.write(chunk, told[at], masked=own_faults)
            place = {"origin": 0.0, "step": 1.49, "length": 1.49}
            names = {"pooling": condition.pooling, "instruction": condition.instruction}
            shape = {"n_windows": n_windows, "n_layers": N_LAYERS, "width": WIDTH}
            rows.append(place | names | {"path": str(entry.path)} | shape)
        path = folder / f"{model}_{film}.json"
        path.write_text(json.dumps({"model": model, "stim_file": film, "entries": rows}))
        manifests.append(path)
    return manifests


def spec_of(key: str = "tiny", **changes: Any) -> ModelSpec:
    return ModelSpec(key, "qwen25vl", "video", **({"kind": "instruction-tuned video"} | changes))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def check(
        manifests: list[Path],
        spec: ModelSpec,
        instructions: tuple[Instruction, ...] = INSTRUCTIONS,
        *,
        out: str = "out",
        seed: int = 0,
    ) -> Any:
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        monkeypatch.chdir(work)
        model = asdict(spec) | {"parameters": dict(spec.parameters)}
        interface = CheckConditioning(
            manifests=[str(path) for path in manifests],
            model=json.dumps(model),
            instructions=json.dumps([asdict(instruction) for instruction in instructions]),
            output_dir=str(tmp_path / out),
            random_seed=seed,
            app_version="0",
        )
        return interface.run(cwd=str(work)).outputs

    return check


def stacked(values: Values, condition: Condition, layer: int) -> np.ndarray:
    """Films in the order of their names, as the node reads them."""
    return np.concatenate([values[film, condition][:, layer] for film in sorted(FILMS)])


def test_tables_hold_what_the_store_holds(tmp_path: Path, run: Callable[..., Any]) -> None:
    values = made_values(conditions_of("generated", "last"))
    others = write_store(tmp_path, made_values((Condition("stimulus"),)), model="other")
    outputs = run([*write_store(tmp_path, values), *others], spec_of())
    checks = tmp_path / "out/sourcedata/checks"
    assert Path(outputs.summary) == checks / "model-tiny_conditioning.json"
    assert {path.name for path in checks.glob("[!.]*")} == {
        "model-tiny_covered.json",
        *(
            f"model-tiny_{name}{extension}"
            for name in ("conditioning", "columns", "coupling")
            for extension in (".tsv", ".json")
        ),
    }
    pairs = read_tsv(checks / "model-tiny_conditioning.tsv")
    real = [i.key for i in REAL]
    expected = [p for p in combinations([i.key for i in INSTRUCTIONS], 2) if p[0] in real]
    assert len(pairs) == len(expected) * 2 * N_LAYERS
    for row in pairs:
        a, b = (Condition(row["pooling"], row[name]) for name in ("instruction_a", "instruction_b"))  # type: ignore[arg-type]
        cka = linear_cka(stacked(values, a, int(row["layer"])), stacked(values, b, int(row["layer"])))
        assert float(row["cka"]) == pytest.approx(cka, abs=2e-6)
        assert (row["n_clips"], row["duplicate"]) == ("79", "false")
    kinds = {row["instruction_b"]: row["null_b"] for row in pairs}
    assert kinds == {"VU": "n/a", "VQ": "n/a", "VC": "n/a", "NULLempty": "empty"} | dict.fromkeys(
        ("ARscrambled", "VUscrambled"), "scrambled"
    )
    columns = read_tsv(checks / "model-tiny_columns.tsv")
    assert len(columns) == len(conditions_of("generated", "last")) * N_LAYERS
    media = next(row for row in columns if row["condition"] == "media" and row["layer"] == "2")
    assert (media["instruction"], media["null"], media["n_clips"], media["n_columns"]) == ("n/a", "n/a", "79", "6")
    assert float(media["largest"]) == pytest.approx(np.abs(stacked(values, Condition("media"), 2)).max(), rel=1e-5)


def test_the_coupling_is_over_real_instructions(tmp_path: Path, run: Callable[..., Any]) -> None:
    values = made_values(conditions_of("last"))
    run(write_store(tmp_path, values), spec_of())
    rows = read_tsv(tmp_path / "out/sourcedata/checks/model-tiny_coupling.tsv")
    assert {row["text_similarity"] for row in rows} == {"tfidf"}, "without weights there are no embeddings"
    assert len(rows) == N_LAYERS * 2
    matrices = [stacked(values, Condition("last", i.key), 1) for i in REAL]
    cka = np.array([[linear_cka(a, b) for b in matrices] for a in matrices])
    expected = mantel(tfidf_similarity([i.text for i in REAL]), cka)
    row = next(r for r in rows if r["layer"] == "1" and r["representation_similarity"] == "cka")
    assert float(row["r"]) == pytest.approx(expected.r, abs=1e-4)
    assert (row["n_instructions"], row["n_pairs"], row["n_permutations"]) == ("4", "6", "23")
    assert float(row["p"]) == pytest.approx(expected.p, abs=1e-6)
    facts = read_json(tmp_path / "out/sourcedata/checks/model-tiny_coupling.json")
    assert facts["Instructions"] == ["AR", "VU", "VQ", "VC"]
    np.testing.assert_allclose(facts["TextSimilarity"]["tfidf"], tfidf_similarity([i.text for i in REAL]), atol=1e-6)


def test_the_models_own_embeddings_of_the_texts(tmp_path: Path, run: Callable[..., Any]) -> None:
    from bids_mllm.features.models.text_embeddings import text_embeddings
    from bids_mllm.features.models.tiny import save_tiny_qwen25vl

    spec = spec_of(source=str(save_tiny_qwen25vl(tmp_path / "checkpoint")))
    run(write_store(tmp_path, made_values(conditions_of("last"))), spec)
    rows = read_tsv(tmp_path / "out/sourcedata/checks/model-tiny_coupling.tsv")
    assert {row["text_similarity"] for row in rows} == {"embedding", "tfidf"}
    facts = read_json(tmp_path / "out/sourcedata/checks/model-tiny_coupling.json")
    vectors = text_embeddings(spec, [i.text for i in REAL])
    assert vectors is not None
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(facts["TextSimilarity"]["embedding"], units @ units.T, atol=1e-5)


def test_every_column_is_described(tmp_path: Path, run: Callable[..., Any]) -> None:
    run(write_store(tmp_path, made_values(conditions_of("last"))), spec_of())
    for name, described in (
        ("conditioning", PAIR_COLUMNS),
        ("columns", MATRIX_COLUMNS),
        ("coupling", COUPLING_COLUMNS),
    ):
        path = tmp_path / f"out/sourcedata/checks/model-tiny_{name}.tsv"
        sidecar = read_json(path.with_suffix(".json"))
        assert path.read_text().splitlines()[0].split("\t") == list(described)
        assert {column: sidecar[column]["Description"] for column in described} == described


def test_the_summary_says_how_it_was_done_and_what_is_wrong(tmp_path: Path, run: Callable[..., Any]) -> None:
    values = made_values(conditions_of("generated", "last"))
    for film in FILMS:
        for number, instruction in enumerate(REAL):
            first = values[film, Condition("last", "AR")]
            values[film, Condition("last", instruction.key)] = first + np.float32(number)
    summary = read_json(Path(run(write_store(tmp_path, values), spec_of()).summary))
    assert (summary["Clips"], summary["ClipsMasked"], summary["ClipsCompared"], summary["Layers"]) == (79, 0, 79, 3)
    assert "evenly spaced" in summary["ClipChoice"]
    assert summary["Instructions"]["AR"] == REAL[0].text
    assert summary["Instructions"]["NULLempty"] == ""
    assert summary["NullInstructions"] == {"NULLempty": "empty", "ARscrambled": "scrambled", "VUscrambled": "scrambled"}
    assert summary["Poolings"]["last"]["Conditioned"] is False
    assert summary["Poolings"]["last"]["LayersWithoutDifference"] == [1, 2]
    assert summary["Poolings"]["generated"]["Conditioned"] is True
    assert set(summary["Poolings"]["generated"]["MedianDifferenceFromNull"]) == {"empty", "scrambled"}
    (warning,) = summary["Warnings"]
    assert warning.startswith("The instructions make no difference to tiny with the pooling last: on layers 1-2 ")


def test_masked_windows_are_left_out_and_counted(tmp_path: Path, run: Callable[..., Any]) -> None:
    values = made_values(conditions_of("last"))
    masked = {("b.mkv", 3): "broken frames", ("b.mkv", 66): "broken frames", ("a.mkv", 0): "broken frames"}
    summary = read_json(Path(run(write_store(tmp_path, values, masked=masked), spec_of()).summary))
    assert (summary["Clips"], summary["ClipsMasked"], summary["Warnings"]) == (76, 3, [])
    kept = {film: np.array([(film, w) not in masked for w in range(n)]) for film, n in FILMS.items()}
    a, b = (
        np.concatenate([values[film, Condition("last", key)][kept[film], 2] for film in sorted(FILMS)])
        for key in ("AR", "VU")
    )
    row = next(
        r
        for r in read_tsv(tmp_path / "out/sourcedata/checks/model-tiny_conditioning.tsv")
        if (r["layer"], r["instruction_a"], r["instruction_b"]) == ("2", "AR", "VU")
    )
    assert float(row["cka"]) == pytest.approx(linear_cka(a, b), abs=2e-6)


def test_values_missing_without_a_mask_are_a_fault(tmp_path: Path, run: Callable[..., Any]) -> None:
    """A layer that overflowed for a whole clip must not pass as a clip that could not be decoded."""
    values = made_values(conditions_of("last"))
    for condition in conditions_of("last"):
        values["b.mkv", condition][5, 2] = np.nan
    summary = read_json(Path(run(write_store(tmp_path, values), spec_of()).summary))
    assert (summary["Clips"], summary["ClipsMasked"]) == (79, 0)
    (warning,) = summary["Warnings"]
    assert "not finite in 8 of 24 feature matrices (first: media layer 2, 6 values)" in warning


def test_a_model_without_instructions_has_its_matrices_checked(tmp_path: Path, run: Callable[..., Any]) -> None:
    checks = tmp_path / "out/sourcedata/checks"
    checks.mkdir(parents=True)
    for name in ("conditioning.tsv", "coupling.tsv", "coupling.json"):
        (checks / f"model-motion_{name}").write_text("of an earlier call\n")
    manifests = write_store(tmp_path, made_values((Condition("stimulus"),)), model="motion")
    outputs = run(manifests, spec_of("motion", kind="low-level"), ())
    assert {path.name for path in checks.glob("[!.]*")} == {
        "model-motion_covered.json",
        "model-motion_conditioning.json",
        "model-motion_columns.tsv",
        "model-motion_columns.json",
    }
    summary = read_json(Path(outputs.summary))
    assert (summary["Poolings"], summary["Warnings"], summary["Clips"]) == ({}, [], 79)
    found = read_checks(tmp_path / "out", "motion")
    assert found is not None
    assert (len(found.matrices), found.pairs, found.coupling) == (N_LAYERS, (), ())


def test_a_random_control_keeps_its_key_in_the_names(tmp_path: Path, run: Callable[..., Any]) -> None:
    manifests = write_store(tmp_path, made_values(conditions_of("last")), model="tiny+random")
    run(manifests, spec_of("tiny+random", weights="random", source="nowhere"))
    found = read_checks(tmp_path / "out", "tiny+random")
    assert found is not None
    assert {row["text_similarity"] for row in found.coupling} == {"tfidf"}
    assert read_checks(tmp_path / "out", "tiny") is None


def test_conditions_with_other_windows_are_refused(tmp_path: Path) -> None:
    manifests = [json.loads(p.read_text()) for p in write_store(tmp_path, made_values(conditions_of("last")))]
    manifests[0]["entries"].pop()
    with pytest.raises(StoreError, match="The conditions of tiny do not all have the same stimuli"):
        StoredFeatures("tiny", manifests)
    with pytest.raises(StoreError, match="or it has none"):
        StoredFeatures("tiny", [])
    manifests = [json.loads(p.read_text()) for p in write_store(tmp_path, made_values(conditions_of("last")))]
    manifests[1]["entries"][0]["n_layers"] = 2
    with pytest.raises(StoreError, match="2 different numbers of layers or columns"):
        StoredFeatures("tiny", manifests)
