"""The methods text, written from what was really run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from bids_mllm.records import Instruction, Media, Pooling
from bids_mllm.validation import check_in_allowed

_HUB_CITATIONS = ("transformers", "pytorch")
#: Bibliography keys of the models behind each family of the hub; others are cited as models of the hub alone.
_HUB_FAMILIES: Mapping[str, str] = {
    "qwen25vl": "qwen25vl",
    "llavaonevision": "llavaonevision",
    "llavanextvideo": "llavanextvideo",
    "videollava": "videollava",
    "instructblipvideo": "instructblip",
    "qwen2audio": "qwen2audio",
    "qwen25omni": "qwen25omni",
    "kimiaudio": "kimiaudio",
    "internvl": "internvl3",
    "peav": "perceptionencoder",
    "clip": "clip",
    "xclip": "xclip",
    "videomae": "videomae",
    "vivit": "vivit",
    "timesformer": "timesformer",
    "vjepa2": "vjepa2",
    "vit": "vit",
    "dinov2": "dinov2",
    "audiospectrogram": "ast",
    "wav2vec2": "wav2vec2",
    "hubert": "hubert",
    "wavlm": "wavlm",
    "whisper": "whisper",
    "clap": "clap",
}
#: Bibliography keys of the models and programs behind each family.
FAMILY_CITATIONS: Mapping[str, tuple[str, ...]] = {
    "motionenergy": ("nishimoto2011", "pymoten"),
    "melspectrogram": ("librosa",),
    "table": (),
    **{family: (key, *_HUB_CITATIONS) for family, key in _HUB_FAMILIES.items()},
}
_POOLING_WORDS: Mapping[Pooling, str] = {
    "generated": "the mean over the generated tokens",
    "last": "the last token of the instruction and its template",
    "instruction": "the mean over the tokens of the instruction",
    "media": "the mean over the tokens of the film or sound",
    "stimulus": "the features of the stimulus itself",
}
_MEDIA_WORDS: Mapping[Media, str] = {
    "video": "video",
    "audio": "audio",
    "both": "video and audio",
    "table": "a table of features",
}
_POSITION_WORDS = {
    "end": "ended with the TR of the volume, so that no later frame entered",
    "center": "had its middle at the middle of the TR of the volume, so that a window longer than the TR "
    "holds frames shown after it",
    "start": "started with the TR of the volume, so that a window longer than the TR holds frames shown after it",
}
_SCORE_WORDS = {
    "r": "Pearson's correlation *r* between measured and predicted responses",
    "r2": "the coefficient of determination *R*²",
}
_MARKDOWN_SPECIAL = r"\`*_[]<>#|$"


@dataclass(frozen=True)
class ModelFacts:
    """What was read out of one model.

    `n_layers` counts the embedding where the model has one, `width` the features of each layer.
    """

    key: str
    family: str
    media: Media
    kind: str
    n_layers: int
    width: int
    source: str = ""
    revision: str | None = None
    dtype: str = ""
    poolings: tuple[Pooling, ...] = ()
    instructions: tuple[Instruction, ...] = ()
    max_new_tokens: int = 0
    n_frames: int = 0
    random_weights: bool = False
    n_demonstrations: int = 0

    @property
    def low_level(self) -> bool:
        """Whether the model is a baseline without learned weights."""
        return self.kind == "low-level"


@dataclass(frozen=True)
class MethodsFacts:
    """What was run, for one participant or for all.

    Attributes
    ----------
    fmriprep_versions, repetition_times
        Each value that occurs; seconds.
    window_length
        Seconds; `window_position` is ``end``, ``center`` or ``start``.
    delays
        In TRs.
    confounds_strategy, confound_columns
        Name of the strategy and the columns that were regressed out; no columns = nothing regressed.
    high_pass
        Hz of the cosine drifts; None = none. `features_filtered` says whether the features lost them too.
    alphas
        The grid.
    himalaya_version
        Version of the solver's package; None = the ridge of this app.
    cv_scheme
        The outer and the inner splits, in words, starting with a capital and ending with a full stop.
    scores
        ``r`` and ``r2``.
    noise_ceiling
        How it was estimated, as the rest of a sentence about it; empty = none.
    statistics
        How scores were tested within participants, in sentences that may cite; empty = not at all.
    joint_fits
        What was fitted jointly, in sentences that may cite; empty = nothing.
    regions
        Over which regions scores were averaged, and on what terms, in plain sentences; empty = over none.
    units
        What the places are: voxels, vertices, grayordinates, parcels.
    denoised_in
        Derivatives in which confounds were removed before.
    group_statistics
        What was done over participants, in sentences; empty = nothing.
    library_versions
        Package to version.
    """

    app_version: str
    fmriprep_versions: tuple[str, ...]
    participants: tuple[str, ...]
    n_runs: int
    space: str
    repetition_times: tuple[float, ...]
    window_length: float
    window_position: Literal["end", "center", "start"]
    delays: tuple[int, ...]
    confounds_strategy: str
    confound_columns: tuple[str, ...]
    high_pass: float | None
    models: tuple[ModelFacts, ...]
    alphas: tuple[float, ...]
    himalaya_version: str | None
    cv_scheme: str
    scores: tuple[Literal["r", "r2"], ...] = ("r",)
    features_filtered: bool = False
    noise_ceiling: str = ""
    statistics: str = ""
    joint_fits: str = ""
    regions: str = ""
    units: tuple[str, ...] = ("voxels",)
    denoised_in: tuple[str, ...] = ()
    group_statistics: str = ""
    library_versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def low_level_baseline(self) -> bool:
        """Whether a model without learned weights was fitted beside the others."""
        return any(model.low_level for model in self.models)


def methods_text(facts: MethodsFacts) -> str:
    """Return the methods as Markdown with citation keys such as ``[@himalaya]``.

    Parameters
    ----------
    facts
        What was run; nothing else is mentioned.

    Returns
    -------
    str
        A heading and paragraphs; lists use hyphens.
    """
    parts = [
        "# Methods",
        "*This text was written by bids-mllm from what it ran; it may be copied into a manuscript.*",
        _data(facts),
        "## Preparation of the responses",
        _responses(facts),
        "## Stimulus features",
        _timing(facts),
        *(_model(model) for model in facts.models),
        _caveats(facts),
        "## Encoding models",
        _ridge(facts),
        _validation(facts),
        facts.joint_fits,
        "## Scores",
        _scores(facts),
        _escaped(facts.regions),
    ]
    if facts.statistics:
        parts += ["## Statistics", facts.statistics]
    if facts.group_statistics:
        parts += ["## Group", _escaped(facts.group_statistics)]
    parts += ["## Software", _software(facts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _data(facts: MethodsFacts) -> str:
    participants = _joined([f"sub-{_escaped(label)}" for label in facts.participants])
    preprocessed = ""
    if facts.fmriprep_versions:
        word = "version" if len(facts.fmriprep_versions) == 1 else "versions"
        versions = _joined([_escaped(v) for v in facts.fmriprep_versions])
        preprocessed = f" They had been preprocessed with fMRIPrep {word} {versions} [@fmriprep]."
    tr = _joined([f"{t:g} s" for t in facts.repetition_times])
    return (
        f"Voxelwise encoding models were fitted with bids-mllm {_escaped(facts.app_version)}, a BIDS App "
        f"[@bids; @bidsapps], to {_count(facts.n_runs, 'functional run')} of "
        f"{_count(len(facts.participants), 'participant')} ({participants}), found with PyBIDS [@pybids]."
        f"{preprocessed} The responses were taken in the space {_escaped(facts.space)}; the repetition time "
        f"(TR) was {tr}.{_units(facts.units)}"
    )


def _units(units: Sequence[str]) -> str:
    """Say for what voxels stand, where the places are others."""
    others = [unit for unit in units if unit != "voxels"]
    return f" What is said of voxels here holds for {_joined(others)}." if others else ""


def _responses(facts: MethodsFacts) -> str:
    drifts = f"cosine drifts below {facts.high_pass:g} Hz" if facts.high_pass is not None else ""
    confounds = ""
    if facts.confound_columns:
        columns = ", ".join(f"`{_code(column)}`" for column in facts.confound_columns)
        confounds = f"the confounds of the strategy `{_code(facts.confounds_strategy)}` ({columns})"
    if drifts and confounds:
        regressed = f"In each run {confounds} were regressed out together with {drifts}, in one regression,"
    elif drifts or confounds:
        regressed = f"In each run {confounds or drifts} were regressed out"
    else:
        regressed = "No confounds and no drifts were regressed out"
    before = ""
    if facts.denoised_in:
        before = (
            f"From the series of {_joined([_escaped(one) for one in facts.denoised_in])} confounds had been removed. "
        )
    same = " The same drifts were removed from the features." if drifts and facts.features_filtered else ""
    return (
        f"{before}{regressed} before the runs were divided into training and test data.{same} Features and responses "
        "were then z-scored within each run, in training and in test runs alike, so that a test run's own "
        "mean and variance are used and no fold is centred again. Voxels without finite, varying values "
        "were set aside and are NaN in the maps."
    )


def _timing(facts: MethodsFacts) -> str:
    delays = _joined([str(delay) for delay in facts.delays])
    position = check_in_allowed(facts.window_position, _POSITION_WORDS, "window_position")
    return (
        f"Each volume was paired by the clock with a window of {facts.window_length:g} s of the stimulus, "
        f"which {_POSITION_WORDS[position]}. Volumes whose window was not wholly inside one playback were "
        "masked out. To follow the haemodynamic response, the features were delayed by "
        f"{delays} {'TR' if facts.delays == (1,) else 'TRs'} (a finite impulse response); delays were built "
        "within each run, so that nothing passed from the end of one run into the next."
    )


def _model(model: ModelFacts) -> str:
    keys = FAMILY_CITATIONS.get(model.family, _HUB_CITATIONS if model.source else ())
    cited = f" [{'; '.join('@' + key for key in keys)}]" if keys else ""
    origin = f", `{_code(model.source)}`" if model.source else ""
    origin += f" at revision `{_code(model.revision)}`" if model.revision else ""
    frames = f" Each window was given as {model.n_frames} frames." if model.n_frames else ""
    dtype = f", computed in {_escaped(model.dtype)}" if model.dtype and model.source else ""
    shape = f"{_count(model.n_layers, 'layer')} of {_count(model.width, 'feature')}"
    control = " As a control its weights were drawn at random, as before training." if model.random_weights else ""
    shown = ""
    if model.n_demonstrations:
        shown = (
            f" {_count(model.n_demonstrations, 'demonstration')} with instruction and answer stood before each clip."
        )
    text = (
        f"**{_escaped(model.key)}**{origin}{cited}: {_escaped(model.kind)} model reading "
        f"{_MEDIA_WORDS[model.media]}; {shape}{dtype}.{control}{frames}{shown}{_poolings(model)}"
    )
    if not model.instructions:
        return text
    items = [
        f"- {_escaped(i.name)} ({_escaped(i.key)}): {_escaped(i.text) or '(no instruction)'}"
        for i in model.instructions
    ]
    return f"{text} The instructions were:\n\n" + "\n".join(items)


def _poolings(model: ModelFacts) -> str:
    """Return how the hidden states became features, or nothing for a model that has no tokens."""
    poolings = [pooling for pooling in model.poolings if pooling != "stimulus"]
    if not poolings:
        return ""
    words = _joined([_POOLING_WORDS[pooling] for pooling in poolings])
    text = f" At every layer the hidden states were read out as {words}."
    if "generated" in poolings and model.max_new_tokens:
        limit = _count(model.max_new_tokens, "token")
        text += f" At most {limit} were generated, each the most probable one."
    if "media" in poolings and model.instructions:
        text += (
            " Where the film or sound precedes the instruction, its tokens cannot depend on the instruction "
            "in a causal model, and this read-out is the same for all of them."
        )
    return text


def _caveats(facts: MethodsFacts) -> str:
    sentences = []
    if any(not model.low_level and model.source for model in facts.models):
        sentences.append(
            "The films or sounds, or texts about them, may have been among the data on which the "
            "pretrained models were trained; the scores do not rule out that a model remembers them."
        )
    if any(model.instructions for model in facts.models):
        sentences.append(
            "Reading a model out under several instructions follows the design of an earlier study "
            "[@oota2025]; a part of the features that an instruction adds as a constant disappears in "
            "the z-scoring."
        )
    if not facts.low_level_baseline:
        sentences.append(
            "No low-level baseline (such as motion energy or a mel spectrogram) was fitted, so the scores "
            "may partly reflect low-level properties of the stimulus."
        )
    else:
        names = _joined([_escaped(model.key) for model in facts.models if model.low_level])
        were = "were" if sum(model.low_level for model in facts.models) > 1 else "was"
        sentences.append(f"As a low-level baseline, {names} {were} fitted and scored in the same way.")
    return " ".join(sentences)


def _ridge(facts: MethodsFacts) -> str:
    low, high = min(facts.alphas), max(facts.alphas)
    solver = (
        f"the solver of himalaya {_escaped(facts.himalaya_version)} [@himalaya]"
        if facts.himalaya_version
        else "the exact ridge solver of bids-mllm, which leaves blocks of rows out without refitting"
    )
    grid = f"{_count(len(facts.alphas), 'value')} from {low:.3g} to {high:.3g}"
    if len(facts.alphas) > 1 and np.allclose(np.diff(np.log(sorted(facts.alphas)), n=2), 0.0, atol=1e-6):
        grid += ", evenly spaced on a logarithmic scale"
    return (
        f"For each layer and read-out of each model, a ridge regression from the delayed features to each "
        f"voxel was fitted with {solver}. The penalty alpha was chosen for each voxel separately, inside the "
        f"training data of each outer fold, among {grid}."
    )


def _validation(facts: MethodsFacts) -> str:
    return (
        f"{_escaped(facts.cv_scheme)} The best layer and the best instruction of a voxel were chosen, in the "
        "same way as alpha, by the cross-validated fit inside the training data of each outer fold; the "
        "score given for the best one comes from the held-out data alone."
    )


def _scores(facts: MethodsFacts) -> str:
    words = [_SCORE_WORDS[check_in_allowed(score, _SCORE_WORDS, "score")] for score in facts.scores]
    return (
        f"Each model was scored on held-out data by {_joined(words)}, in each voxel and outer fold, and the "
        "scores were averaged over outer folds without Fisher's transformation. "
        + (
            f"A noise ceiling was estimated {facts.noise_ceiling}; where it is at least 0.05, correlations are also "
            "given divided by it, not squared and not clipped."
            if facts.noise_ceiling
            else "They were not divided by a noise ceiling."
        )
    )


def _software(facts: MethodsFacts) -> str:
    versions = _joined([f"{_escaped(n)} {_escaped(v)}" for n, v in sorted(facts.library_versions.items())])
    used = f" Versions: {versions}." if versions else ""
    return (
        "The steps were run as a nipype workflow [@nipype]; images were read and written with NiBabel "
        f"[@nibabel] and drawn with Nilearn [@nilearn].{used}"
    )


def _count(number: int, noun: str) -> str:
    """Return e.g. ``1 run`` or ``2 runs``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _joined(words: Sequence[str]) -> str:
    """Return ``a``, ``a and b`` or ``a, b and c``."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _escaped(text: str) -> str:
    """Return text on one line with the characters that Markdown reads as marks escaped."""
    line = " ".join(text.split())
    return "".join(f"\\{c}" if c in _MARKDOWN_SPECIAL else c for c in line)


def _code(text: str) -> str:
    """Return text for a Markdown code span: one line without backticks and without citation marks."""
    return " ".join(text.replace("`", "'").replace("[@", "[ @").split())
