"""What the encoders of sound share before their weights are loaded, on top of what all encoders share.

Models that pad sound to a fixed window see mostly silence where a clip is short: 1.5 s of 30 s is a twentieth. So
each family says which of its tokens hold sound of the clip, layer by layer, and only those are averaged.
Importing this module loads neither torch nor transformers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bids_mllm.exceptions import CheckpointError, UsageError
from bids_mllm.features.extractor import Cost, ExtractionPlan, Family, ReadOut
from bids_mllm.features.models import encoders
from bids_mllm.features.models.checkpoint import BYTES_OF_DTYPE
from bids_mllm.features.models.encoders import EncoderFamily, Found, Layout
from bids_mllm.records import BoolArray, MediaRequest, ModelSpec

# Part of the identity: changes when the rule by which tokens are averaged does.
POOLED = "tokens that hold sound of the clip"


@dataclass(frozen=True)
class Load:
    """The work on one clip: floating-point operations, and the most numbers that are held at a time."""

    flops: float
    held: float

    def __add__(self, other: "Load") -> "Load":
        """Two parts that run one after the other."""
        return Load(self.flops + other.flops, max(self.held, other.held))


@dataclass(frozen=True)
class Sound:
    """What a model takes of a clip's sound and what becomes of it.

    Attributes
    ----------
    sampling_rate
        Hz.
    shortest, longest
        Samples of a clip; None where there is no most.
    groups
        For a clip of some samples and for each layer a mask (n_groups, n_tokens): a group's features are the
        mean over its tokens, and the layer's features are those of its groups in a row.
    load
        The work on a clip of some samples.
    """

    sampling_rate: int
    shortest: int
    longest: int | None
    groups: Callable[[int], tuple[BoolArray, ...]]
    load: Callable[[int], Load]

    def n_samples(self, spec: ModelSpec, window: float) -> int:
        """Return the samples of a window in seconds, or raise a UsageError when the model cannot take them."""
        n_samples = round(window * self.sampling_rate)
        if n_samples < self.shortest:
            raise UsageError(
                f"A window of {window:g} s is too short for {spec.key}, which needs at least "
                f"{self.shortest / self.sampling_rate:.3g} s; lengthen the window."
            )
        if self.longest is not None and n_samples > self.longest:
            raise UsageError(
                f"A window of {window:g} s is too long for {spec.key}, which takes at most "
                f"{self.longest / self.sampling_rate:.4g} s; shorten the window."
            )
        return n_samples


def transformer_load(*, n_layers: int, width: int, inner: int, n_tokens: int, n_heads: int, dense: bool) -> Load:
    """Work of equal transformer blocks on one clip.

    Parameters
    ----------
    n_layers, width, inner
        Blocks, features of a token, features between the two matrices of the feed-forward part.
    n_tokens
        Of one clip.
    n_heads
        Of the attention.
    dense
        Whether the attention's weights are held in memory whole, as without a fused implementation.
    """
    flops = n_tokens * 2 * (4 * width**2 + 2 * width * inner) + 4 * n_tokens**2 * width
    scores = 3 * n_heads * n_tokens**2 if dense else 0
    return Load(n_layers * flops, n_tokens * (6 * width + 2 * inner) + scores)


def check_agreement(found: Found, name: str, in_config: int, in_settings: int) -> None:
    """Raise a CheckpointError when the model and its feature extractor do not fit one another."""
    if in_config != in_settings:
        raise CheckpointError(
            f"{found.folder} has a model for {in_config} {name} and a feature extractor that makes {in_settings}; "
            "copy both from one checkpoint."
        )


def sound_layout(
    found: Found,
    sound: Sound,
    *,
    n_layers: int,
    width: int,
    weights: tuple[str, ...] = ("",),
    identity: Mapping[str, Any] | None = None,
) -> Layout:
    """Return the layout of a model that reads sound.

    Parameters
    ----------
    found
        The checkpoint.
    sound
        What the model takes; kept as the layout's settings.
    n_layers, width
        Layers with the embedding, and features of each.
    weights
        Prefixes of the names of the weights that a clip passes through.
    identity
        Further values that change a number and that the checkpoint's files do not hold.

    Raises
    ------
    UsageError
        When the window is shorter or longer than what the model takes.
    """
    n_samples = sound.n_samples(found.spec, found.window)
    return Layout(
        request=MediaRequest("audio", sampling_rate=sound.sampling_rate),
        n_layers=n_layers,
        width=width,
        n_tokens=max(mask.shape[1] for mask in sound.groups(n_samples)),
        identity={"pooled": POOLED, "sampling_rate": sound.sampling_rate, **(identity or {})},
        settings=sound,
        weights=weights,
    )


def installed_version(package: str) -> str | None:
    """Return the version of a package without its local part, or None where it is not installed."""
    try:
        return version(package).split("+")[0]
    except PackageNotFoundError:
        return None


def plan_audio(family: EncoderFamily, spec: ModelSpec, readout: ReadOut) -> ExtractionPlan:
    """Return what an extraction will do, with the family's own estimate of its work; no weight is loaded."""
    plan = encoders.plan(family, spec, readout)
    sound: Sound = family.layout(encoders.find(family, spec, readout.window)).settings
    load = sound.load(sound.n_samples(spec, readout.window))
    weight_bytes = plan.cost.weight_bytes if plan.cost else 0
    held = round(load.held * BYTES_OF_DTYPE[spec.dtype])
    return replace(plan, cost=Cost(flops=load.flops, weight_bytes=weight_bytes, clip_bytes=held))


def audio_family(family: EncoderFamily) -> Family:
    """Return the registry's `Family` of an encoder of sound."""
    return Family(family.name, partial(plan_audio, family), partial(encoders.load, family))
