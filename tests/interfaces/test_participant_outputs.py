"""Which maps and rows come of a participant's scores, on hand-made and simulated results."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from bids_mllm.interfaces.inference import InferenceOptions, part_inference
from bids_mllm.interfaces.participant_maps import (
    ModelResults,
    bands_maps,
    model_maps,
    pair_labels,
    pair_partitions,
    pairs_maps,
)
from bids_mllm.interfaces.participant_tables import (
    ComparisonOptions,
    compare_pairs,
    comparison_rows,
    count_rows,
    hierarchy_rows,
    layer_rows,
    partition_rows,
    rate_of,
    score_rows,
    with_whole,
)
from bids_mllm.interfaces.rows import Rows
from bids_mllm.outcomes import BandScores, CeilingMap, ModelScores, PairScores
from bids_mllm.records import Atlas, Condition, Fold
from bids_mllm.score.paired import BlockScores

N_VOXELS, N_ROWS = 12, 600
ATLAS = Atlas(
    "toy",
    12,
    tuple(np.arange(12).reshape(3, 4)),
    ("one", "two", "three"),
    ("area",) * 3,
    (1, 2, 3),
    (4, 4, 8),
    (1.0, 2.0, 3.0),
)
CEILING = CeilingMap(np.r_[np.full(8, 0.5), np.full(2, 0.01), np.nan, 0.25].astype(np.float32), {"Method": "made up"})


def rows_of(n_runs=3):
    run = np.repeat(np.arange(n_runs), N_ROWS // n_runs)
    fold = Fold("test", np.arange(0), np.arange(N_ROWS), ())
    return Rows((1,), (), (), run, np.arange(N_ROWS), run, (fold,))


def held_out_of(Y, predictions, *, n_permutations=199, **changes):
    options = InferenceOptions(n_permutations=n_permutations, **changes)
    labels = ["task-a", "task-b", "task-c"]
    return part_inference(rows_of(), Y, [predictions], labels, options, max_block_bytes=2**26).held_out


def scores_of(model, *, layers=(0, 1, 2), seed=0):
    rng = np.random.default_rng(seed)
    conditions = (Condition("generated", "AR"), Condition("media"))
    shape = (2, len(layers), N_VOXELS)
    r, cv_r2 = rng.uniform(0, 0.5, shape).astype(np.float32), rng.uniform(0, 0.2, shape).astype(np.float32)
    best = rng.integers(0, 2, N_VOXELS).astype(np.int16)
    return ModelScores(
        model=model, conditions=conditions, layers=layers, r=r, r_concatenated=r - 0.01, r2=r**2, cv_r2=cv_r2,
        alpha=np.ones_like(r), alpha_edge=np.zeros(shape, dtype=bool), best_r=r[0, 0], best_r2=r[0, 0] ** 2,
        best_condition=best, best_layer=np.zeros(N_VOXELS, dtype=np.int16), condition_best_r=r[:, 0],
        condition_best_layer=np.zeros((2, N_VOXELS), dtype=np.int16), fold_cv_r2=cv_r2.mean(axis=-1)[None],
        fold_names=("test",),
    )  # fmt: skip


@pytest.fixture(scope="module")
def study():
    """Two models: the first predicts the first region, the second the second, both nothing in the third."""
    rng = np.random.default_rng(0)
    Y = rng.normal(size=(N_ROWS, N_VOXELS)).astype(np.float32)
    predictions = {}
    for number, model in enumerate(("alpha", "beta")):
        predicted = rng.normal(size=Y.shape)
        predicted[:, 4 * number : 4 * number + 4] += Y[:, 4 * number : 4 * number + 4]
        predictions[model] = predicted.astype(np.float32)
    return Y, predictions


@pytest.fixture(scope="module")
def results(study):
    Y, predictions = study
    held_out = {model: held_out_of(Y, own) for model, own in predictions.items()}
    rates = rate_of({model: one.p for model, one in held_out.items()}, "bh")
    return {
        model: ModelResults(scores_of(model, seed=number), held_out[model], rates[model], CEILING, None, 5)
        for number, model in enumerate(held_out)
    }


def maps_of(maps):
    return {(stat, desc): (np.asarray(values), extra) for stat, desc, values, extra in maps}


def test_inference_is_of_the_held_out_rows_in_their_order(study):
    Y, predictions = study
    whole = held_out_of(Y, predictions["alpha"])
    rows = rows_of()
    back = np.arange(N_ROWS)[::-1].copy()
    turned = Rows((1,), (), (), rows.run_of_row, rows.volume_of_row, rows.segment_of_row, (
        Fold("late", np.arange(0), back[:250], ()), Fold("early", np.arange(0), back[250:], ()),
    ))  # fmt: skip
    options = InferenceOptions(n_permutations=199)
    parts = [predictions["alpha"][fold.test] for fold in turned.folds]
    again = part_inference(turned, Y, parts, ["task-a", "task-b", "task-c"], options, max_block_bytes=2**26).held_out
    np.testing.assert_allclose(again.r_concatenated, whole.r_concatenated)
    np.testing.assert_array_equal(again.p, whole.p)
    assert whole.run_names == ("task-a", "task-b", "task-c")
    assert whole.facts["RowsByRun"] == [200, 200, 200]
    for run in range(3):
        mine = rows.run_of_row == run
        expected = [np.corrcoef(Y[mine, v], predictions["alpha"][mine, v])[0, 1] for v in range(N_VOXELS)]
        np.testing.assert_allclose(whole.r_by_run[run], expected, atol=1e-6)
    np.testing.assert_allclose(whole.block_products.sum(axis=0), whole.r_concatenated, atol=1e-5)


def test_parts_of_one_run_are_named_apart(study):
    Y, predictions = study
    rows = rows_of()
    cut = Rows((1,), (), (), np.zeros(N_ROWS, dtype=int), rows.volume_of_row, rows.segment_of_row, rows.folds)
    options = InferenceOptions(n_permutations=99)
    found = part_inference(cut, Y, [predictions["alpha"]], ["task-a"], options, max_block_bytes=2**26).held_out
    assert found.run_names == ("task-a, part 1", "task-a, part 2", "task-a, part 3")


def test_too_few_rows_are_said_and_stop_nothing(study):
    Y, predictions = study
    found = held_out_of(Y, predictions["alpha"], block_length=150)
    assert np.isnan(found.p).all()
    assert found.facts["Method"] is None
    assert "whole blocks" in found.facts["Reason"]
    assert np.isfinite(found.r_concatenated).all()


def test_the_rate_is_over_the_voxels_of_all_models():
    rates = rate_of({"a": np.array([0.01, 0.5]), "b": np.array([0.02, np.nan])}, "bh")
    np.testing.assert_allclose(rates["a"], [0.03, 0.5])
    np.testing.assert_allclose(rates["b"], [0.03, np.nan])


def test_every_map_is_declared_and_holds_what_it_says(results):
    from bids_mllm.io.derivatives import outputs

    maps = maps_of(model_maps(results["alpha"]))
    assert {stat for stat, _ in maps} <= set(outputs()["maps"])
    assert list(maps)[-1] == ("r", "best")
    scores = results["alpha"].scores
    np.testing.assert_array_equal(maps["rconcat", "generatedAR"][0], scores.r_concatenated[0])
    np.testing.assert_array_equal(maps["q", "best"][0], results["alpha"].q)
    assert maps["rbyrun", "best"][0].shape == (3, N_VOXELS)
    assert maps["rbyrun", "best"][1]["Runs"] == ["task-a", "task-b", "task-c"]
    assert maps["p", "best"][1]["Test"]["BlockLength"] == 10
    normalized = maps["rnormalized", "media"][0]
    np.testing.assert_allclose(normalized[:, :8], scores.r[1][:, :8] / 0.5, rtol=1e-6)
    assert np.isnan(normalized[:, 8:11]).all()
    # Three of five layers were fitted: their depths are those among all five.
    assert maps["depth", "media"][1]["Depths"] == maps["r", "media"][1]["Depths"] == [0.0, 0.25, 0.5]
    np.testing.assert_allclose(maps["depth", "media"][0], scores.cv_r2[1].argmax(axis=0) / 4)


def test_without_ceiling_rank_and_layers_their_maps_are_missing(results):
    one = ModelResults(scores_of("m", layers=(0,)), results["alpha"].held_out, results["alpha"].q, None, None, 1)
    stats = {stat for stat, *_ in model_maps(one)}
    assert not stats & {"rnormalized", "requalrank", "depth", "depthmass"}
    ranked = ModelResults(one.scores, one.held_out, one.q, None, scores_of("m", layers=(0,), seed=9), 1)
    maps = maps_of(model_maps(ranked))
    np.testing.assert_array_equal(maps["requalrank", "media"][0], ranked.equal_rank.r[1, 0])


def blocks_of(results):
    held_out = {model: one.held_out for model, one in results.items()}
    return lambda model: BlockScores(held_out[model].block_products, held_out[model].block_energies)


def test_models_are_compared_on_the_planted_difference(results):
    options = ComparisonOptions("bh", 999, 0)
    comparisons = compare_pairs(list(results), blocks_of(results), [ATLAS], options)
    (one,) = comparisons
    assert (one.model_a, one.model_b) == ("alpha", "beta")
    rows = {row["roi"]: row for row in comparison_rows("01", comparisons, [ATLAS], options)}
    assert list(rows) == ["all", "one", "two", "three"]
    r = {model: result.held_out.r_concatenated for model, result in results.items()}
    for name, voxels in (("one", slice(0, 4)), ("two", slice(4, 8)), ("all", slice(None))):
        expected = (r["alpha"] - r["beta"])[voxels].mean()
        assert rows[name]["mean_difference"] == pytest.approx(expected, abs=1e-5)
    assert rows["one"]["p"] == rows["two"]["p"] == pytest.approx(0.001)
    assert rows["three"]["p"] > 0.05
    assert (rows["one"]["n_a_higher"], rows["one"]["n_b_higher"]) == (4, 0)
    assert (rows["two"]["n_a_higher"], rows["two"]["n_b_higher"]) == (0, 4)
    assert rows["one"]["q"] == pytest.approx(0.002)


def test_one_model_or_hardly_any_rows_have_no_comparison(results):
    options = ComparisonOptions()
    assert compare_pairs(["alpha"], blocks_of(results), [], options) == []
    assert comparison_rows("01", [], [], options) == []
    assert pair_labels(["a", "b", "c"]) == [("a", "b"), ("a", "c"), ("b", "c")]


def test_region_rows_know_ceiling_significance_and_intervals(results):
    rows = score_rows("01", results["alpha"], ATLAS, seed=0)
    best = {row["roi"]: row for row in rows if row["condition"] == "best"}
    assert best["one"]["significant_share"] == 1.0
    assert best["three"]["significant_share"] == 0.0
    scores = results["alpha"].scores
    assert best["one"]["r_normalized"] == pytest.approx(float(scores.best_r[:4].mean() / 0.5), rel=1e-5)
    assert (best["three"]["n_ceiling"], best["three"]["noise_ceiling"]) == (1, 0.25)
    by_run = results["alpha"].held_out.r_by_run[:, :4].mean(axis=1)
    assert by_run.min() <= best["one"]["r_low"] < best["one"]["r_high"] <= by_run.max()
    assert np.isnan(best["one"]["depth"])
    single = next(row for row in rows if row["layer"] == 1)
    assert single["depth"] == 0.25  # layers 0 to 2 of five were fitted
    assert np.isnan(single["r_low"])
    assert np.isnan(single["significant_share"])


def test_region_rows_combine_the_p_of_their_voxels(results):
    rows = score_rows("01", results["alpha"], ATLAS, seed=0)
    best = {row["roi"]: row for row in rows if row["condition"] == row["layer"] == "best"}
    assert list(best) == ["all", "one", "two", "three"]
    p = results["alpha"].held_out.p
    for name, members in zip(("all", *ATLAS.names), (np.arange(12), *ATLAS.members), strict=True):
        assert best[name]["p"] == pytest.approx(false_discovery_control(p[members]).min())
    # The first model predicts the first region alone, each voxel better than all 199 permutations.
    assert best["one"]["p"] == pytest.approx(0.005)
    assert min(best["two"]["p"], best["three"]["p"]) > 0.05
    others = [row for row in rows if "best" not in (row["condition"], row["layer"])]
    assert others
    assert all(np.isnan(row["p"]) for row in others)


def test_all_voxels_are_a_region_of_their_own(results):
    rows = [row for row in score_rows("01", results["alpha"], ATLAS, seed=0) if row["roi"] == "all"]
    scores = results["alpha"].scores
    # Each condition with three layers and with the best one, and the nested choice.
    assert [(row["condition"], row["layer"]) for row in rows] == [
        *[("generatedAR", layer) for layer in (0, 1, 2, "best")],
        *[("media", layer) for layer in (0, 1, 2, "best")],
        ("best", "best"),
    ]
    assert [row["kind"] for row in rows] == ["all"] * 9
    assert rows[5]["r"] == pytest.approx(float(scores.r[1, 1].mean()), rel=1e-6)
    assert (rows[-1]["r"], rows[-1]["n_voxels"]) == (pytest.approx(float(scores.best_r.mean()), rel=1e-6), 12)
    assert rows[-1]["coverage"] == 1.0
    assert with_whole(with_whole(ATLAS)).names == ("all", "one", "two", "three")


def test_regions_of_noise_are_not_found_more_often_than_by_chance():
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        Y, predicted = rng.normal(size=(2, N_ROWS, N_VOXELS)).astype(np.float32)
        held_out = held_out_of(Y, predicted, n_permutations=99, seed=seed)
        result = ModelResults(scores_of("m"), held_out, held_out.p, None, None, 5)
        rows = score_rows("01", result, ATLAS, seed=0)
        found += [
            row["p"] <= 0.05 for row in rows if row["condition"] == row["layer"] == "best" and row["roi"] != "all"
        ]
    assert np.mean(found) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(found))


def test_choices_are_counted_in_regions_where_the_model_predicts(results):
    planted = scores_of("alpha")
    planted.best_condition[:] = [0, 0, 1, 1, 1, 1, 1, -1, 0, 0, 0, 0]
    planted.best_layer[:] = [0, 1, 2, 2, 0, 0, 1, -1, 2, 2, 2, 2]
    planted.best_r[:] = [0.1, 0.2, -0.1, 0.3, 0.1, 0.1, 0.1, 0.5, 0.0, np.nan, -1, 0]
    one = ModelResults(planted, results["alpha"].held_out, results["alpha"].q, None, None, 5)
    rows = count_rows("01", one, ATLAS)
    counts = {(row["roi"], row["choice"], row["value"]): row["count"] for row in rows}
    assert len(counts) == len(rows) == 4 * 5
    assert [counts["one", "condition", label] for label in ("generatedAR", "media")] == [2, 1]
    assert [counts["one", "layer", layer] for layer in (0, 1, 2)] == [1, 1, 1]
    assert [counts["two", "condition", label] for label in ("generatedAR", "media")] == [0, 3]
    assert [counts["all", "layer", layer] for layer in (0, 1, 2)] == [3, 2, 1]
    shares = {row["roi"]: row["share"] for row in rows if row["value"] == "media"}
    assert shares == pytest.approx({"all": 4 / 6, "one": 1 / 3, "two": 1, "three": np.nan}, nan_ok=True)
    assert {row["n_voxels"] for row in rows if row["roi"] == "three"} == {0}


def test_layer_rows_and_the_hierarchy(results):
    planted = scores_of("alpha")
    profile = np.zeros((3, N_VOXELS), dtype=np.float32)
    for region, layer in enumerate((0, 1, 2)):
        profile[layer, 4 * region : 4 * region + 4] = 0.3
    planted.cv_r2[:] = profile
    one = ModelResults(planted, results["alpha"].held_out, results["alpha"].q, None, None, 3)
    rows = layer_rows("01", one, ATLAS)
    depths = {row["roi"]: row["depth"] for row in rows if row["condition"] == "media"}
    assert depths == {"one": 0.0, "two": 0.5, "three": 1.0}
    assert all(row["depth"] == row["depth_voxels"] == pytest.approx(row["depth_mass"]) for row in rows)
    found = hierarchy_rows(rows, seed=0)
    assert [row["rho"] for row in found] == [pytest.approx(1.0)] * 6
    assert found[0]["n_rois"] == 3
    assert found[0]["smallest_p"] == pytest.approx(1 / 3)
    unranked = [{**row, "hierarchy": float("nan")} for row in rows]
    assert hierarchy_rows(unranked, seed=0) == []


def test_bands_give_product_unique_and_shared_parts():
    r2, without = np.array([0.5, 0.2]), np.array([[0.3, 0.2], [0.4, 0.0]])
    scores = BandScores(
        ("motion", "words"), (("stimulus layer 0", "stimulus layer 0"),), np.sqrt(r2), r2,
        np.array([[0.3, 0], [0.2, 0.2]]), np.sqrt(without), without, np.array([[0.6, 0], [0.4, 1]]),
    )  # fmt: skip
    maps = maps_of(bands_maps(scores, CeilingMap(np.array([0.9, 0.9]), {})))
    np.testing.assert_allclose(maps["r2unique", "motion"][0], [0.2, 0.0])
    np.testing.assert_allclose(maps["r2unique", "words"][0], [0.1, 0.2])
    # Without one band the other is left: 0.4 + 0.3 - 0.5.
    np.testing.assert_allclose(maps["r2shared", "joint"][0], [0.2, 0.0])
    np.testing.assert_allclose(maps["rnormalizedunique", "words"][0], (np.sqrt(r2) - np.sqrt(without[1])) / 0.9)
    assert ("rnormalizedunique", "words") not in maps_of(bands_maps(scores, None))


def test_pairs_are_parted_in_both_measures():
    r2 = np.array([[0.3, 0.2], [0.25, 0.0], [0.1, 0.1]])
    joint = np.array([[0.4, 0.2], [0.35, 0.3], [0.3, 0.1]])
    pairs = ((0, 1), (0, 2), (1, 2))
    scores = PairScores("m", ("gAR", "gVU", "gCR"), (3,), pairs, np.sqrt(r2), r2, np.sqrt(joint), joint)
    ceiling = CeilingMap(np.array([0.8, 0.8]), {})
    in_r2, in_r = pair_partitions(scores, ceiling)
    assert (in_r2.measure, in_r.measure) == ("R2", "normalized r")
    np.testing.assert_allclose(in_r2.unique_1[0], [0.15, 0.2])
    np.testing.assert_allclose(in_r2.unique_2[0], [0.1, 0.0])
    np.testing.assert_allclose(in_r2.shared[0], [0.15, 0.0])
    maps = maps_of(pairs_maps(scores, ceiling))
    assert maps["r2shared", "pairs"][0].shape == (3, 2)
    assert maps["r2shared", "pairs"][1]["Pairs"] == [["gAR", "gVU"], ["gAR", "gCR"], ["gVU", "gCR"]]
    np.testing.assert_allclose(maps["rnormalizedfirst", "pairs"][0][0], (np.sqrt(joint[0]) - np.sqrt(r2[1])) / 0.8)
    rows = partition_rows("01", scores, ceiling, [])
    assert len(rows) == 6
    assert rows[0]["unique_a"] == pytest.approx(0.175)
    assert rows[0]["n_voxels"] == 2
