"""Tiny checkpoints of the real encoder classes, laid out as the hub's are, and what their own classes give.

Each is saved by the class whose weights the hub has (most often a classifier), beside a processor file as the hub
has it; nothing here goes through the code under test.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import PreTrainedConfig

from bids_mllm.records import ClipMedia

SIDE = 32
SIZES: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "initializer_range": 0.2}
# What else sets a block's size and the image's, under its own name in each family.
VISION: dict[str, Any] = {**SIZES, "intermediate_size": 40, "image_size": SIDE}
CROPPED = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
Layers = list[torch.Tensor]


@dataclass(frozen=True)
class TinyEncoder:
    """A checkpoint and its oracle.

    Attributes
    ----------
    name
        What tests are called by.
    family
        Module and name of the family.
    saved, config
        The class whose weights are saved, and its configuration.
    file, processor
        The processor file as written, and the class that reads it.
    expected
        From the folder and the inputs of one clip, the pixel values (n_frames, 3, height, width) or a mapping of
        all: for each layer a row (width,), by the real class.
    n_frames
        Frames of a clip.
    parameters
        Of the record.
    sound
        The feature extractor's settings; empty for a model that does not hear.
    needs
        A package beside torch and transformers.
    """

    name: str
    family: str
    saved: str
    config: Callable[[], PreTrainedConfig]
    file: dict[str, Any]
    processor: str
    expected: Callable[[Path, Any], Layers]
    n_frames: int
    parameters: dict[str, Any] = field(default_factory=dict)
    sound: dict[str, Any] = field(default_factory=dict)
    needs: str = "torch"

    def save(self, folder: Path) -> Path:
        """Write the checkpoint."""
        torch.manual_seed(0)
        model = getattr(transformers, self.saved)(self.config())
        with torch.no_grad():
            # Norms and positions that start at one or zero would hide that they were left out.
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        self.write(folder, self.file)
        return folder

    def write(self, folder: Path, file: dict[str, Any]) -> None:
        """Write the processor file, that of a model that hears with the settings of its sound."""
        if self.sound:
            both = {"video_processor": file, "feature_extractor": self.sound}
            (folder / "processor_config.json").write_text(json.dumps(both))
        else:
            (folder / "preprocessor_config.json").write_text(json.dumps(file))

    def inputs(self, folder: Path, clip: ClipMedia) -> Any:
        """Return the inputs of one clip by the real processors: pixel values, or a mapping with the sound's."""
        processor = getattr(transformers, self.processor).from_pretrained(folder)
        video = self.processor.endswith("VideoProcessor")
        given = [list(clip.frames)] if video else list(clip.frames)
        made = processor(given, return_tensors="pt")
        if self.sound:
            hear = transformers.PeAudioFeatureExtractor(**self.sound)
            return {**made, **hear(clip.audio, return_tensors="pt", sampling_rate=clip.sampling_rate)}
        values = next(iter(made.values()))
        return values[0] if video else values


def run(
    model_name: str, folder: Path, pixels: torch.Tensor, *, part: str | None = None, **arguments: Any
) -> tuple[Any, Any]:
    """Return the real model, or a part of it, and its output with all hidden states."""
    model = getattr(transformers, model_name).from_pretrained(folder).eval()
    model = model if part is None else getattr(model, part)
    name = model.main_input_name
    with torch.no_grad():
        return model, model(**{name: pixels}, output_hidden_states=True, return_dict=True, **arguments)


def whole_clip(model_name: str, n_prefix: int, **arguments: Any) -> Callable[[Path, torch.Tensor], Layers]:
    """Of a model that sees a clip's frames together and gives its last state behind the final norm."""

    def expected(folder: Path, pixels: torch.Tensor) -> Layers:
        _, output = run(model_name, folder, pixels[None], **arguments)
        layers = [*output.hidden_states[:-1], output.last_hidden_state]
        return [layer[0, n_prefix:].mean(dim=0) for layer in layers]

    return expected


def tuned_videomae(folder: Path, pixels: torch.Tensor) -> Layers:
    """The last state is what the classifier is given: the norm of the mean."""
    model, output = run("VideoMAEForVideoClassification", folder, pixels[None])
    means = [layer[0].mean(dim=0) for layer in output.hidden_states]
    with torch.no_grad():
        last = model.fc_norm(means[-1])
        torch.testing.assert_close(model.classifier(last), output.logits[0])
    return [*means[:-1], last]


def single_images(model_name: str) -> Callable[[Path, torch.Tensor], Layers]:
    """Of a model that sees images one by one."""

    def expected(folder: Path, pixels: torch.Tensor) -> Layers:
        frames = [run(model_name, folder, frame[None])[1] for frame in pixels]
        layers = [[*frame.hidden_states[:-1], frame.last_hidden_state] for frame in frames]
        n_layers = len(layers[0])
        return [
            torch.stack([layers[i][layer][0, 1:].mean(dim=0) for i in range(len(frames))]).mean(dim=0)
            for layer in range(n_layers)
        ]

    return expected


def vision_tower(model_name: str, *, together: bool) -> Callable[[Path, torch.Tensor], Layers]:
    """Of CLIP's and X-CLIP's towers, whose final norm the model itself puts on the class token alone."""

    def expected(folder: Path, pixels: torch.Tensor) -> Layers:
        rows = [pixels] if together else [frame[None] for frame in pixels]
        layers: list[Layers] = []
        for row in rows:
            model, output = run(model_name, folder, row, part="vision_model" if model_name == "XCLIPModel" else None)
            with torch.no_grad():
                last = model.post_layernorm(output.last_hidden_state)
                torch.testing.assert_close(last[:, 0], output.pooler_output)
            layers.append([layer[:, 1:].mean(dim=(0, 1)) for layer in [*output.hidden_states[:-1], last]])
        return [torch.stack(values).mean(dim=0) for values in zip(*layers, strict=True)]

    return expected


def sound_and_film(folder: Path, inputs: dict[str, torch.Tensor]) -> Layers:
    """Of PE-AV: the joint encoder inside the whole model, whose weights are put in by hand."""
    config = transformers.PeAudioVideoConfig.from_pretrained(folder)
    model = transformers.PeAudioVideoModel(config).eval()
    _, unexpected = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert not unexpected
    with torch.no_grad():
        output = model.audio_video_encoder(**inputs, output_hidden_states=True)
    return [*[layer[0, 1:].mean(dim=0) for layer in output.hidden_states[:-1]], output.last_hidden_state[0].mean(dim=0)]


def peav_config() -> PreTrainedConfig:
    tower = {**SIZES, "intermediate_size": 24, "head_dim": 12}
    arguments = {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 28, "ref_feat_shape": [2, 2]}
    vision = {"model_type": "timm_wrapper", "architecture": "vit_pe_core_large_patch14_336", "model_args": arguments}
    codec = {"model_type": "dac", "encoder_hidden_size": 4, "downsampling_ratios": [2, 8], "codebook_dim": 6}
    text = {**SIZES, "model_type": "modernbert", "intermediate_size": 8, "vocab_size": 9}
    tokens = ("pad", "bos", "eos", "cls", "sep")
    return transformers.PeAudioVideoConfig(
        text_config={**text, **{f"{name}_token_id": 1 for name in tokens}},
        audio_video_config={
            **tower,
            "audio_config": {**tower, "dac_config": {**codec, "hop_length": 16}},
            "video_config": {**tower, "vision_config": {**vision, "num_classes": 12}},
        },
    )


def videomae_config(*, tuned: bool) -> PreTrainedConfig:
    extra = {} if tuned else {"decoder_hidden_size": 8, "decoder_intermediate_size": 8, "decoder_num_hidden_layers": 1}
    return transformers.VideoMAEConfig(
        **VISION, **extra, decoder_num_attention_heads=2, num_frames=4, patch_size=16, use_mean_pooling=tuned
    )


def two_towers(name: str, **vision: Any) -> PreTrainedConfig:
    text = {**SIZES, "intermediate_size": 8, "vocab_size": 9, "projection_dim": 8, "bos_token_id": 1, "eos_token_id": 2}
    config_class = getattr(transformers, name)
    return config_class(text_config=text, vision_config={**VISION, "patch_size": 8, **vision}, projection_dim=8)


MEANS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
ENCODERS = [
    TinyEncoder(
        "videomae-tuned", "videomae", "VideoMAEForVideoClassification", lambda: videomae_config(tuned=True),
        {"image_processor_type": "VideoMAEImageProcessor", "resample": 2, **CROPPED, **MEANS},
        "VideoMAEVideoProcessor", tuned_videomae, 4,
    ),
    TinyEncoder(
        "videomae-pretrained", "videomae", "VideoMAEForPreTraining", lambda: videomae_config(tuned=False),
        {"feature_extractor_type": "VideoMAEFeatureExtractor", "size": SIDE, "crop_size": SIDE, **MEANS},
        "VideoMAEVideoProcessor", whole_clip("VideoMAEModel", 0), 4,
    ),
    TinyEncoder(
        "vivit", "vivit", "VivitForVideoClassification",
        lambda: transformers.VivitConfig(**VISION, num_frames=4, tubelet_size=[2, 16, 16]),
        {"image_processor_type": "VivitImageProcessor", "offset": True, "rescale_factor": 1 / 127.5, **CROPPED},
        "VivitVideoProcessor", whole_clip("VivitModel", 1), 4,
    ),
    TinyEncoder(
        "timesformer", "timesformer", "TimesformerForVideoClassification",
        lambda: transformers.TimesformerConfig(**VISION, num_frames=3, patch_size=16),
        {"image_processor_type": "VideoMAEImageProcessor", **CROPPED, **MEANS},
        "TimesformerVideoProcessor", whole_clip("TimesformerModel", 1), 3,
    ),
    TinyEncoder(
        "vjepa2", "vjepa2", "VJEPA2Model",
        lambda: transformers.VJEPA2Config(
            **SIZES, crop_size=SIDE, image_size=SIDE, frames_per_clip=4, patch_size=16, mlp_ratio=2,
            pred_hidden_size=24, pred_num_hidden_layers=1, pred_num_attention_heads=2,
        ),
        {"video_processor_type": "VJEPA2VideoProcessor", "crop_size": SIDE, **MEANS},
        "VJEPA2VideoProcessor", whole_clip("VJEPA2Model", 0, skip_predictor=True), 4,
    ),
    TinyEncoder(
        "vjepa2-six-frames", "vjepa2", "VJEPA2Model",
        lambda: transformers.VJEPA2Config(
            **SIZES, crop_size=SIDE, image_size=SIDE, frames_per_clip=4, patch_size=16, mlp_ratio=2,
            pred_hidden_size=24, pred_num_hidden_layers=1, pred_num_attention_heads=2,
        ),
        {"crop_size": {"height": SIDE, "width": SIDE}}, "VJEPA2VideoProcessor",
        whole_clip("VJEPA2Model", 0, skip_predictor=True), 6, {"n_frames": 6},
    ),
    TinyEncoder(
        "vit", "vit", "ViTForImageClassification", lambda: transformers.ViTConfig(**VISION, patch_size=8),
        {"image_processor_type": "ViTImageProcessor", "size": SIDE}, "ViTImageProcessor",
        single_images("ViTModel"), 4,
    ),
    TinyEncoder(
        "dinov2", "dinov2", "Dinov2Model",
        lambda: transformers.Dinov2Config(**SIZES, image_size=70, patch_size=14, mlp_ratio=2),
        {"size": {"shortest_edge": 48}, "crop_size": {"height": 42, "width": 42}, "resample": 3, **MEANS},
        "BitImageProcessor", single_images("Dinov2Model"), 2, {"n_frames": 2},
    ),
    TinyEncoder(
        "clip", "clip", "CLIPModel", lambda: two_towers("CLIPConfig"),
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": SIDE, "crop_size": SIDE, "resample": 3},
        "CLIPImageProcessor", vision_tower("CLIPVisionModel", together=False), 4,
    ),
    TinyEncoder(
        "clip-vision-alone", "clip", "CLIPVisionModel",
        lambda: transformers.CLIPVisionConfig(**VISION, patch_size=8),
        {"image_processor_type": "CLIPImageProcessor", **CROPPED},
        "CLIPImageProcessor", vision_tower("CLIPVisionModel", together=False), 4,
    ),
    TinyEncoder(
        "xclip", "xclip", "XCLIPModel",
        lambda: two_towers(
            "XCLIPConfig", num_frames=3, mit_hidden_size=8, mit_intermediate_size=8, mit_num_attention_heads=2
        ),
        {"feature_extractor_type": "VideoMAEFeatureExtractor", "size": SIDE, "crop_size": SIDE, **MEANS},
        "VideoMAEVideoProcessor", vision_tower("XCLIPModel", together=True), 3,
    ),
    TinyEncoder(
        "peav", "peav", "PeAudioVideoModel", peav_config,
        {
            "video_processor_type": "PeVideoVideoProcessor", "size": {"height": 28, "width": 28}, "do_resize": True,
            "do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        },
        "PeVideoVideoProcessor", sound_and_film, 3, {"n_frames": 3},
        {"sampling_rate": 160, "hop_length": 16, "feature_size": 1}, needs="timm",
    ),
]  # fmt: skip
