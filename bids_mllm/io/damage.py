"""Damage inside a media file: what is broken from when to when, and the parts that were lost altogether."""

from contextlib import closing
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bids_mllm.io.streams import MISSING_TOLERANCE, ChosenStreams, open_media, packet_stamps
from bids_mllm.records import Stimulus

_FETCH = "check that the file is complete and fetch it again."
_SENTENCES = {
    "picture": f"is damaged {{when}}: the picture there cannot be decoded; {_FETCH}",
    "sound": f"is damaged {{when}}: the sound there cannot be decoded; {_FETCH}",
    "lost": f"is damaged {{when}}: a part of the file is lost there; {_FETCH}",
    "format": "changes the format of its sound {when}; convert the file so that it keeps one.",
}
Broken = Literal["picture", "sound", "lost", "format"]


@dataclass(frozen=True)
class Damage:
    """A stretch that cannot be used: seconds on the stimulus clock (`end` infinite = to the end of the stream).

    For `settle` seconds behind it a decoder that remembers earlier data still gives other numbers.
    """

    begin: float
    end: float
    broken: Broken
    settle: float = 0.0

    def sentence(self, stim_file: str) -> str:
        """Say what is broken in which file from when to when."""
        end = f"to {self.end:.2f} s" if np.isfinite(self.end) else "s to its end"
        return f"The stimulus {stim_file} " + _SENTENCES[self.broken].format(when=f"from {self.begin:.2f} {end}")


class LostParts:
    """Where both chosen streams of a file lack packets at once.

    A picture may stand still and a sound may rest, but a file in which both pause for so long has lost a part. The
    packets are read (not decoded) when a pause is first asked about, thus not at all in a usual film.

    Parameters
    ----------
    stimulus
        The file.
    chosen
        Its streams.
    """

    def __init__(self, stimulus: Stimulus, chosen: ChosenStreams) -> None:
        self._stimulus = stimulus
        self._chosen = chosen
        self._parts: dict[int, list[tuple[float, float]]] | None = None

    def within(self, index: int, begin: float, end: float) -> tuple[float, float] | None:
        """Return the lost part of one stream in its pause between two packets, or None where it only rests.

        Parameters
        ----------
        index
            The stream.
        begin, end
            Starts of the packets before and after the pause, in seconds on the stimulus clock.

        Returns
        -------
        tuple of float or None
            Seconds at which the last packet before ends and the next one starts.
        """
        if end - begin <= MISSING_TOLERANCE:
            return None
        if self._parts is None:
            self._parts = self._find()
        return next((part for part in self._parts.get(index, []) if part[0] < end and part[1] > begin), None)

    def _find(self) -> dict[int, list[tuple[float, float]]]:
        chosen = self._chosen
        with closing(open_media(self._stimulus.path, self._stimulus.stim_file)) as container:
            stamps = packet_stamps(container, chosen, self._stimulus.stim_file)
            bases = {index: float(container.streams[index].time_base or 0) for index in stamps}
        if len(stamps) < 2 or any(len(found) < 2 for found in stamps.values()):
            return {}
        pauses = {}
        for index, found in stamps.items():
            times = found[:, 0] * bases[index] - chosen.zero
            steps = np.diff(times)
            long = np.flatnonzero(steps > MISSING_TOLERANCE)
            pauses[index] = [(times[k], times[k] + float(np.median(steps)), times[k + 1]) for k in long]
        one, other = pauses
        return {
            index: [(rest, end) for begin, rest, end in pauses[index] if _both_pause(begin, end, pauses[second])]
            for index, second in ((one, other), (other, one))
        }


def _both_pause(begin: float, end: float, pauses: list[tuple[float, float, float]]) -> bool:
    return any(min(end, stop) - max(begin, start) > MISSING_TOLERANCE / 2 for start, _, stop in pauses)
