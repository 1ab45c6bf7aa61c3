"""The InstructBLIPVideo family: four frames through a Q-Former that reads the instruction too, before Vicuna.

The media's tokens depend on the instruction, so that prompts share the vision tower alone. The prompt is the query
tokens of all frames, then the instruction; there is no chat template.

Trained checkpoints were written for the sister class of single images: they are read with the class for videos,
whose weights have the same names, and the token that stands for an image stands for a frame's query token.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from bids_mllm.exceptions import CheckpointError
from bids_mllm.features.models.architecture import Architecture, MediaBatch, Setup
from bids_mllm.features.models.frame_inputs import pixel_values, settle_frames
from bids_mllm.features.models.instructed import instructed_family
from bids_mllm.records import ClipMedia

#: Further frames would be dropped without a word.
N_FRAMES = 4
#: The same in all tokenizers of the Llama models.
UNKNOWN_TOKEN = 0
QFORMER_TOKENIZER = "qformer_tokenizer"


def count_tokens(config: Mapping[str, Any], height: int, width: int, n_frames: int) -> int:
    """Return the media tokens of a clip: the query tokens of each frame."""
    return n_frames * int(config["num_query_tokens"])


def media_token(config: Mapping[str, Any]) -> int:
    """Return the id that stands for a query token.

    What it is does not matter to the numbers, since the query tokens take its place. Where a checkpoint names none
    that its embeddings have, it is that of the unknown token, which no text is made of.
    """
    n_embeddings = int(config["text_config"].get("vocab_size", 32000))
    names = ("video_token_index", "video_token_id", "image_token_index", "image_token_id")
    found = [int(config[name]) for name in names if config.get(name) is not None]
    return next((token for token in found if token < n_embeddings), UNKNOWN_TOKEN)


def prepare(clips: Sequence[ClipMedia], setup: Setup) -> MediaBatch:
    """Return the pixel values of clips, (n_clips, 4, 3, height, width)."""
    values = pixel_values(clips, setup.media.values, N_FRAMES)
    n_tokens = count_tokens(setup.config, values.shape[-2], values.shape[-1], N_FRAMES)
    return MediaBatch(tensors={"pixel_values": values}, expand=lambda text: text, n_tokens=n_tokens, shape=n_tokens)


def render(text: str | None) -> str:
    """Return the prompt behind the query tokens: the instruction as it is."""
    return text or ""


def encode(tokenizer: Any, text: str, setup: Setup) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the query tokens' ids, then those of the text, as the model's own processor joins them."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    n_media = count_tokens(setup.config, 0, 0, N_FRAMES)
    return [media_token(setup.config)] * n_media + encoded["input_ids"], [(0, 0)] * n_media + encoded["offset_mapping"]


@lru_cache(maxsize=4)
def _qformer_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder / QFORMER_TOKENIZER, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"The Q-Former's tokenizer {folder / QFORMER_TOKENIZER} cannot be loaded ({type(error).__name__}); copy "
            "the checkpoint again, with its sub-folders."
        ) from error


def forward(model: Any, ids: Any, text: str | None, tensors: Mapping[str, Any], setup: Setup, cache: Any, /) -> None:
    """Let the Q-Former read frames and instruction, then run the language model."""
    question = _qformer_tokenizer(setup.folder)(text or "", return_tensors="pt").to(ids.device)
    asked = {
        "qformer_input_ids": question["input_ids"].expand(len(ids), -1),
        "qformer_attention_mask": question["attention_mask"].expand(len(ids), -1),
    }
    seen = model.get_video_features(tensors["pixel_values"], **asked)
    model(
        pixel_values=None,
        input_ids=ids,
        **asked,
        mm_encoder_outputs={"video": seen},
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )


def load(setup: Setup, device: str, seed: int) -> Any:
    """Return the model of the class for videos, whichever of the two classes the checkpoint was written for."""
    from transformers import InstructBlipVideoConfig, InstructBlipVideoForConditionalGeneration

    from bids_mllm.features.models.loading import load_model, random_model

    token = media_token(setup.config)
    values = {**setup.config, "model_type": "instructblipvideo", "video_token_index": token}
    values = {key: value for key, value in values.items() if key not in ("image_token_index", "video_token_id")}
    config = InstructBlipVideoConfig.from_dict(values)
    spec = setup.spec
    options: dict[str, Any] = {"dtype": spec.dtype, "device": device}
    if spec.weights == "random":
        model_class = InstructBlipVideoForConditionalGeneration
        return random_model(model_class, setup.folder, seed=seed, config=config, **options)
    return load_model(InstructBlipVideoForConditionalGeneration, setup.folder, options={"config": config}, **options)


ARCHITECTURE = Architecture(
    name="instructblipvideo",
    model_types=("instructblipvideo", "instructblip"),
    model_class="InstructBlipVideoForConditionalGeneration",
    media_tokens=("video_token_id",),
    placeholders=("video",),
    parameters=("n_frames",),
    settle=settle_frames("InstructBlipVideoVideoProcessor", count_tokens, fixed=N_FRAMES),
    prepare=prepare,
    towers=("vision_model",),
    forward=forward,
    shares=False,
    render=render,
    encode=encode,
    load=load,
)
FAMILY = instructed_family(ARCHITECTURE)
