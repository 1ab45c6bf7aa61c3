"""Quick probes of films: the same lengths as from reading all of it, without a hash and without a trace."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bids_mllm.exceptions import StimulusError
from bids_mllm.io import clips, streams
from bids_mllm.io.probes import ProbeCache
from bids_mllm.simulate.films import write_film


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of packets of each reading."""
    counts: list[int] = []
    plain = streams.packet_stamps

    def counted(*arguments: object) -> object:
        stamps = plain(*arguments)  # type: ignore[arg-type]
        counts.append(sum(map(len, stamps.values())))
        return stamps

    monkeypatch.setattr(streams, "packet_stamps", counted)
    return counts


def test_the_end_of_a_film_tells_its_length(tmp_path: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    write_film(tmp_path / "film.mkv", seconds=40.0, seed=1)
    full = clips.probe_stimulus(tmp_path / "film.mkv", "film.mkv")
    monkeypatch.setattr(clips, "_sha256", lambda path: pytest.fail("a quick probe must not hash"))
    quick = clips.probe_stimulus(tmp_path / "film.mkv", "film.mkv", quick=True)
    assert quick == replace(full, sha256="")
    assert quick.video_duration == pytest.approx(40.0, abs=0.05)
    assert seen[1] < 0.5 * seen[0]


def test_a_stream_that_ends_early_is_read_in_full(tmp_path: Path, seen: list[int]) -> None:
    import av

    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10, options={"g": "12"})
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        audio = container.add_stream("flac", rate=8000)
        for second in range(5):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
            sound.sample_rate, sound.pts = 8000, 8000 * second
            container.mux(audio.encode(sound))
        container.mux(audio.encode())
        for number in range(400):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number % 256, np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
    full = clips.probe_stimulus(path, "film.mkv")
    assert full.audio_duration == pytest.approx(5.0, abs=0.2)
    assert clips.probe_stimulus(path, "film.mkv", quick=True) == replace(full, sha256="")
    assert seen[-1] == seen[0]


def test_quick_probes_use_what_is_known_and_leave_nothing(tmp_path: Path) -> None:
    write_film(tmp_path / "film.mkv", seconds=2.0, seed=1)
    memory = tmp_path / "work" / "stimuli.json"
    assert ProbeCache(memory, quick=True).probe("film.mkv", tmp_path).sha256 == ""
    assert not memory.exists()
    memory.parent.mkdir()
    known = ProbeCache(memory).probe("film.mkv", tmp_path)
    assert known.sha256
    assert ProbeCache(memory, quick=True).probe("film.mkv", tmp_path) == known


def test_a_film_that_is_not_here_names_the_command(tmp_path: Path) -> None:
    (tmp_path / "film.mkv").symlink_to("../.git/annex/objects/gone.mkv")
    with pytest.raises(StimulusError, match=rf"datalad get {tmp_path / 'film.mkv'}"):
        ProbeCache(None, quick=True).probe("film.mkv", tmp_path)
