"""What makes the tables of the group run again."""

from bids_mllm.interfaces.check_record import check_path
from bids_mllm.io.derivatives import MapName
from bids_mllm.io.files import write_tsv
from bids_mllm.io.results import ModelResult
from bids_mllm.workflows.group import _feature_signatures


def test_new_checks_and_texts_of_its_models_count(tmp_path):
    results = [ModelResult(MapName("01", "life", "MNI"), "m", tmp_path)]
    texts = tmp_path / "sourcedata/texts/model-m/film_instruction-AR_texts.tsv"
    seen = [_feature_signatures(results)]
    for path in (check_path(tmp_path, "m", "conditioning", ".tsv"), texts):
        write_tsv(path, [{"a": 1}])
        seen.append(_feature_signatures(results))
        write_tsv(path, [{"a": 12}])
        seen.append(_feature_signatures(results))
    assert len(set(seen)) == 5
    write_tsv(check_path(tmp_path, "other", "conditioning", ".tsv"), [{"a": 1}])
    assert _feature_signatures(results) == seen[-1]
