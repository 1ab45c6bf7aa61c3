"""The part of the encoders of sound that needs torch: inputs by the real feature extractor, and their pooling."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bids_mllm.exceptions import CheckpointError
from bids_mllm.features.models.audio_encoders import Sound
from bids_mllm.features.models.audio_inputs import checked_sound
from bids_mllm.features.models.encoders_extractor import Batch
from bids_mllm.features.models.tap import mean_over
from bids_mllm.records import BoolArray, ClipMedia

# What a feature extractor may give; its attention mask is left out, since clips of one length need none and
# the models that pad to a fixed window read all of it.
INPUT_NAMES = ("input_values", "input_features", "is_longer")


@dataclass(frozen=True)
class PartOfCheckpoint:
    """A class of transformers whose weights are read with further arguments; random ones are drawn without them.

    Attributes
    ----------
    model_class
        The class.
    arguments
        Of its ``from_pretrained``, such as a `key_mapping` from the names of a larger model.
    """

    model_class: Any
    arguments: Mapping[str, Any]

    def from_pretrained(self, folder: Path, **arguments: Any) -> Any:
        """Return what the class reads from a checkpoint."""
        return self.model_class.from_pretrained(folder, **self.arguments, **arguments)

    def _from_config(self, config: Any, **arguments: Any) -> Any:
        """Return the class's model with the weights that it draws by itself."""
        return self.model_class._from_config(config, **arguments)


def load_feature_extractor(extractor_class: Any, folder: Path) -> Any:
    """Return the feature extractor of a checkpoint.

    Parameters
    ----------
    extractor_class
        A class of transformers with ``from_pretrained``.
    folder
        The checkpoint.

    Raises
    ------
    CheckpointError
        When its settings cannot be used.
    """
    try:
        with warnings.catch_warnings():
            # Some models were trained with filter banks whose narrowest bands are empty; that is how they are.
            warnings.filterwarnings("ignore", "At least one mel filter has all zero values", UserWarning)
            return extractor_class.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"The feature extractor of {folder} cannot be loaded ({type(error).__name__}); copy the checkpoint again."
        ) from error


def model_inputs(extractor: Any, sounds: Sequence[NDArray[np.float32]], sampling_rate: int) -> dict[str, torch.Tensor]:
    """Return the inputs of clips of one length, as the feature extractor makes them for each clip alone.

    One clip at a time, so that nothing is normalised, padded or drawn at random over a batch.

    Parameters
    ----------
    extractor
        The feature extractor of the checkpoint.
    sounds
        For each clip an array (n_samples,) of float32.
    sampling_rate
        Hz of the samples.

    Returns
    -------
    inputs
        For each argument of the model a tensor with one row a clip.
    """
    made = [extractor(sound, sampling_rate=sampling_rate, return_tensors="pt") for sound in sounds]
    inputs = {name: torch.cat([one[name] for one in made]) for name in INPUT_NAMES if name in made[0]}
    if "is_longer" in inputs:
        # CLAP's extractor calls one clip of each batch, drawn at random, longer than the window where none is.
        inputs["is_longer"] = torch.zeros_like(inputs["is_longer"])
    return inputs


def pool_groups(groups: Sequence[BoolArray]) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """Return the pooling by groups of tokens.

    Tokens outside a layer's groups are not touched, so whatever they hold has no part in the result.

    Parameters
    ----------
    groups
        For each layer a mask (n_groups, n_tokens).

    Returns
    -------
    pool
        From states (n_clips, n_tokens, n_channels) and the layer's number to float32 features
        (n_clips, n_groups * n_channels), group after group.
    """

    def pool(states: torch.Tensor, layer: int) -> torch.Tensor:
        masks = groups[layer]
        if states.shape[1] != masks.shape[1]:
            raise CheckpointError(
                f"Layer {layer} of the model has {states.shape[1]} tokens, but its configuration says "
                f"{masks.shape[1]}; check config.json."
            )
        spans = [torch.from_numpy(np.flatnonzero(mask)).to(states.device) for mask in masks]
        return mean_over(states, spans).flatten(1)

    return pool


def sound_batches(extractor: Any, sound: Sound) -> Callable[[Sequence[ClipMedia]], Batch]:
    """Return the function that makes a batch of clips of one length.

    Parameters
    ----------
    extractor
        The feature extractor of the checkpoint.
    sound
        What the model takes and which of its tokens hold sound.
    """

    def batch(clips: Sequence[ClipMedia]) -> Batch:
        sounds = [
            checked_sound(clip, sampling_rate=sound.sampling_rate, shortest=sound.shortest, longest=sound.longest)
            for clip in clips
        ]
        return Batch(model_inputs(extractor, sounds, sound.sampling_rate), pool_groups(sound.groups(len(sounds[0]))))

    return batch
