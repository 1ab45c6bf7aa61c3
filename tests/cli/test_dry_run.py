"""What a dry run says of the work to come: every model on every film, in numbers that follow from its plan."""

import re
from pathlib import Path

import numpy as np
import pytest

from bids_mllm.cli.dry_run import CORE_FLOPS, GPU_FLOPS, clip_bytes, model_lines
from bids_mllm.features.extractor import Cost, ExtractionPlan, ReadOut
from bids_mllm.features.instructions import load_instructions
from bids_mllm.features.registry import load_family, resolve_models
from bids_mllm.io.clips import probe_stimulus
from bids_mllm.records import Condition, MediaRequest

CONDITIONS = tuple(Condition("last", key) for key in "ABCD")
LINE = re.compile(
    r"  (\S+): (\d+) clips, (\S+) TFLOP, about (.+) on a data centre's GPU or (.+) on a processor core, "
    r"(\S+) GB on disk"
)
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "days": 86400.0}


def planned(cost: Cost | None) -> ExtractionPlan:
    return ExtractionPlan({}, MediaRequest("video", n_frames=8), CONDITIONS, 29, 3584, cost=cost)


def seconds_of(words: str) -> float:
    number, unit = words.split()
    return float(number) * UNITS[unit]


def test_the_lines_of_a_large_model_are_its_cost_times_the_clips() -> None:
    cost = Cost(flops=34e12, weight_bytes=16_600_000_000, clip_bytes=412_000_000)
    head, first, second = model_lines("big", planned(cost), {"a/b.mkv": 24_161, "c.mkv": 1})
    assert head == (
        "big: 4 conditions x 29 layers x 3584 features; 16.60 GB of weights and 0.412 GB a clip of a batch on the "
        "device, 34 TFLOP a clip."
    )
    # Half an hour for ten hours of film, as computed for one H200 at half of its peak.
    found = LINE.fullmatch(first)
    assert found is not None
    assert found.group(1, 2) == ("a/b.mkv", "24161")
    assert float(found[3]) == pytest.approx(34 * 24_161, rel=5e-3)
    assert seconds_of(found[4]) == pytest.approx(34e12 * 24_161 / 4.945e14, rel=0.03)
    assert seconds_of(found[4]) == pytest.approx(0.47 * 3600, rel=0.05)
    assert seconds_of(found[5]) == pytest.approx(34e12 * 24_161 / CORE_FLOPS, rel=0.01)
    # Two bytes a value.
    assert float(found[6]) == pytest.approx(2 * 4 * 29 * 3584 * 24_161 / 1e9, abs=1e-3)
    assert second.startswith("  c.mkv: 1 clips, 34 TFLOP, about 0.1 s on")


def test_a_model_without_weights_has_no_flop() -> None:
    assert model_lines("small", planned(None), {"a.mkv": 10}) == [
        "small: 4 conditions x 29 layers x 3584 features; without weights, on the CPU.",
        f"  a.mkv: 10 clips, {2 * 4 * 29 * 3584 * 10 / 1e9:.3f} GB on disk",
    ]
    assert clip_bytes(planned(None)) == 2 * 4 * 29 * 3584


@pytest.mark.parametrize(
    ("work", "words"), [(59.0, "59.0 s"), (119.0, "119.0 s"), (121.0, "2.0 min"), (9000.0, "2.5 h"), (2e5, "2.3 days")]
)
def test_durations_are_in_the_unit_that_suits_them(work: float, words: str) -> None:
    [_, line] = model_lines("m", planned(Cost(GPU_FLOPS * work, 1, 1)), {"a.mkv": 1})
    found = LINE.fullmatch(line)
    assert found is not None
    assert found[4] == words


def clips_of(film: Path, repetition_time: float) -> int:
    """Windows of one TR that fit into the film, for showings that start with a volume."""
    stimulus = probe_stimulus(film, film.name)
    seconds = min(stimulus.video_duration or 0.0, stimulus.audio_duration or 0.0)
    return int(np.floor(seconds / repetition_time + 1e-6))


def test_every_model_and_film_has_its_line(call, study) -> None:
    tiny = f"tiny={study / 'models/qwen25vltiny'}"
    options = ("--sloppy", "--instructions", "AR", "ESA", "--poolings", "generated", "last", "--max-new-tokens", "2")
    models = ("--models", "melspectrogram", tiny, f"tiny+random={study / 'models/qwen25vltiny'}")
    result = call(study, study.parent / "out", "participant", *options, *models, "--dry-run")
    assert result.status == 0
    table = [line.split("\t") for line in result.out.splitlines()]
    shown = sorted({name for row in table[1:] for name in row[table[0].index("stim_file")].split(",")})
    assert len(shown) == 4
    lines = result.err.splitlines()
    heads = [number for number, line in enumerate(lines) if re.match(r"(melspectrogram|tiny(\+random)?): ", line)]
    assert len(heads) == 3
    [spec] = resolve_models([tiny], sloppy=True)
    readout = ReadOut(1.49, ("generated", "last"), load_instructions()[:1] + load_instructions()[:1], 2)
    cost = load_family(spec.family).plan(spec, readout).cost
    assert cost is not None
    for head in heads:
        own = lines[head + 1 : head + 1 + len(shown)]
        assert [line.split(":")[0].strip() for line in own] == shown
        for line, film in zip(own, shown, strict=True):
            n_clips = int(line.split(": ")[1].split()[0])
            assert n_clips == clips_of(study / "stimuli" / film, 1.49)
            if LINE.fullmatch(line):
                assert float(line.split(" clips, ")[1].split()[0]) == pytest.approx(
                    cost.flops * n_clips / 1e12, rel=0.02
                )
    for head, conditions, layers, width in zip(heads, (1, 4, 4), (1, 5, 5), (32, 48, 48), strict=True):
        assert f"{conditions} conditions x {layers} layers x {width} features" in lines[head]
    total = sum(
        2 * conditions * layers * width * int(line.split(": ")[1].split()[0]) / 1e9
        for head, conditions, layers, width in zip(heads, (1, 4, 4), (1, 5, 5), (32, 48, 48), strict=True)
        for line in lines[head + 1 : head + 1 + len(shown)]
    )
    [store] = [line for line in lines if line.startswith("Feature store: about ")]
    assert float(store.split()[3]) == pytest.approx(total, abs=0.006)


def test_tables_of_atlases_models_and_ceilings_are_among_the_files_to_come(call, study, tmp_path) -> None:
    words = (study, tmp_path / "out", "participant", "--sloppy", "--dry-run", "--models", "melspectrogram")
    stem = "sub-02/func/sub-02_task-bourne+life+wolf_space-MNI152NLin2009cAsym"
    lines = call(*words).err.splitlines()
    assert f"{stem}_desc-encoding_mask.nii.gz" in lines
    assert f"{stem}_stat-clocklag_statmap.tsv" in lines
    assert f"{stem}_stat-noiseceiling_statmap.nii.gz, if a held-out film was seen more than once" in lines
    assert "sub-02*.html" in lines
    assert not [line for line in lines if "atlas-" in line or "modelcomparison" in line]
    atlas = study / "sourcedata/truth/atlas-planted_dseg.nii.gz"
    more = call(*words, "motionenergy", "--atlas", atlas, "--noise-ceiling", "none").err.splitlines()
    assert f"{stem}_stat-modelcomparison_statmap.tsv" in more
    name = stem.replace("_space-MNI152NLin2009cAsym", "_space-MNI152NLin2009cAsym_atlas-planted")
    assert f"{name}_model-motionenergy_stat-*_statmap.tsv" in more
    assert not [line for line in more if "noiseceiling" in line]


def test_a_checkpoint_that_is_not_there_is_said_and_the_others_are_estimated(call, study, tmp_path) -> None:
    result = call(
        study, tmp_path / "out", "participant", "--sloppy", "--dry-run", "--models", "qwen25vl7b", "melspectrogram"
    )
    assert result.status == 0
    lines = result.err.splitlines()
    [said] = [line for line in lines if line.startswith("qwen25vl7b: ")]
    assert said.startswith("qwen25vl7b: not in the estimates, since its checkpoint is not usable yet. The model Qwen/")
    assert "bids-mllm-models prefetch Qwen/Qwen2.5-VL-7B-Instruct" in said
    assert any(line.startswith("melspectrogram: 1 conditions x 1 layers") for line in lines)
    assert not (tmp_path / "out").exists()


def test_a_first_run_that_shows_nothing_is_listed_like_any_other(call, own_study, tmp_path) -> None:
    (own_study / "task-bourne01_events.tsv").unlink()
    found = call(own_study, tmp_path / "out", "participant", "--models", "motionenergy", "--sloppy", "--dry-run")
    assert found.status == 0, found.err
    rows = [line.split("\t") for line in found.out.splitlines()]
    first = dict(zip(rows[0], rows[1], strict=True))
    assert (first["task"], first["stim_file"], first["n_windows"]) == ("bourne01", "n/a", "0")
    assert "motionenergy: " in found.err
