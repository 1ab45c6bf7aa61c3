"""What is settled about a model before its weights are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_mllm.features.models.frames import FrameSettings
from bids_mllm.features.models.prompts import Order


@dataclass(frozen=True)
class Setup:
    """What a record and its checkpoint's small files say, before any weight is loaded."""

    folder: Path
    config: Mapping[str, Any]
    frames: FrameSettings
    n_frames: int
    order: Order
    dtype: str
