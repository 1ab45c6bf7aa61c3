"""Feature tables of the user's."""

import hashlib
import json
from pathlib import Path

import pytest

from bids_mllm.exceptions import StimulusError
from bids_mllm.io.tables import read_feature_table, table_path

TABLE = "onset\tduration\tloud\twords\n0\t1.5\t0.25\t2\n1.5\t1.5\t-1e-3\t0\n"


def feature_table(tmp_path, text=TABLE):
    path = tmp_path / "life" / "life01.tsv"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def read(tmp_path):
    return read_feature_table(tmp_path, "life/life01.mkv")


def test_the_table_of_a_stimulus_has_its_path():
    assert table_path(Path("f"), "a/b.c.mkv") == Path("f/a/b.c.tsv")


def test_a_table_is_read_with_means_where_nothing_is_said(tmp_path):
    path = feature_table(tmp_path)
    assert read(tmp_path) == {
        "path": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "columns": ["loud", "words"],
        "aggregation": ["mean", "mean"],
        "onset": [0.0, 1.5],
        "duration": [1.5, 1.5],
        "values": [[0.25, 2.0], [-0.001, 0.0]],
    }


@pytest.mark.parametrize("name", ["life/life01.json", "features.json"])
def test_descriptions_say_how_a_column_is_brought_to_windows_and_count_in_the_digest(tmp_path, name):
    feature_table(tmp_path)
    plain = read(tmp_path)["sha256"]
    (tmp_path / name).write_text(json.dumps({"words": {"Aggregation": "sum"}, "loud": {"Units": "dB"}}))
    content = read(tmp_path)
    assert content["aggregation"] == ["mean", "sum"]
    assert content["sha256"] != plain


def test_the_description_beside_the_table_comes_before_that_of_the_folder(tmp_path):
    feature_table(tmp_path)
    (tmp_path / "features.json").write_text('{"words": {"Aggregation": "sum"}}')
    (tmp_path / "life" / "life01.json").write_text('{"loud": {"Aggregation": "sum"}}')
    assert read(tmp_path)["aggregation"] == ["sum", "mean"]


@pytest.mark.parametrize("bad", ["n/a", "", "inf", "-inf", "nan", "1,5", "high"])
def test_gaps_text_and_infinity_name_line_and_column(tmp_path, bad):
    path = feature_table(tmp_path, TABLE + f"3\t1\t{bad}\t1\n")
    with pytest.raises(StimulusError) as caught:
        read(tmp_path)
    assert f"{path}, line 4: loud is {bad!r}" in str(caught.value)


def test_a_short_row_is_a_gap(tmp_path):
    feature_table(tmp_path, TABLE + "3\t1\t2\n")
    with pytest.raises(StimulusError, match=r"line 4: words is None"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["onset\tduration\n0\t1\n", "duration\tonset\ta\n", "onset,duration,a\n0,1,2\n", ""])
def test_columns_that_are_missing(tmp_path, text):
    feature_table(tmp_path, text)
    with pytest.raises(StimulusError, match=r"expected the tab-separated columns onset, duration"):
        read(tmp_path)


def test_a_table_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(StimulusError, match=r"life01.tsv does not exist"):
        read(tmp_path)
    feature_table(tmp_path).write_bytes(b"\xff\xfe")
    with pytest.raises(StimulusError, match=r"cannot be read as text"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"loud": {"Aggregation": "max"}}', "loud of .* Aggregation 'max'; expected mean or sum"),
        ('{"loud": "sum"}', "expected mean or sum"),
        ("[]", "must hold a JSON object"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_faults_of_descriptions(tmp_path, text, words):
    feature_table(tmp_path)
    (tmp_path / "features.json").write_text(text)
    with pytest.raises(StimulusError, match=words):
        read(tmp_path)
