"""The settings of a study under a name: TOML files that come with the app, or a user's own."""

import argparse
import sys
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from bids_mllm.config import read_settings_file
from bids_mllm.exceptions import UsageError


def preset_names() -> tuple[str, ...]:
    """Return the names of the presets that come with the app."""
    files = (file.name for file in _folder().iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml")))


def preset_text(name: str) -> str:
    """Return the TOML of a preset that comes with the app, comments included.

    Raises
    ------
    UsageError
        For an unknown name; lists the known.
    """
    if name not in preset_names():
        raise UsageError(f"There is no preset {name!r}; choose from {', '.join(preset_names())}.")
    return _folder().joinpath(f"{name}.toml").read_text("utf-8")


def read_preset(text: str) -> dict[str, Any]:
    """Read the settings of a preset.

    Parameters
    ----------
    text
        Name of one that comes with the app, or path of a TOML file.

    Raises
    ------
    UsageError
        When it is neither, or the file cannot be used.
    """
    if text in preset_names():
        with resources.as_file(_folder().joinpath(f"{text}.toml")) as path:
            return read_settings_file(path)
    if not _is_file(text):
        raise UsageError(
            f"--preset is {text!r}, which is neither a file nor a preset that comes with the app; choose from "
            f"{', '.join(preset_names())}, or give a TOML file."
        )
    return read_settings_file(Path(text).expanduser())


def preset_label(text: str) -> str:
    """Return what the outputs call a preset: its name, of a file the file's name."""
    return text if text in preset_names() else Path(text).name


def _folder() -> Traversable:
    return resources.files("bids_mllm").joinpath("data", "presets")


def _is_file(text: str) -> bool:
    return text.endswith(".toml") or Path(text).expanduser().is_file()


class PrintPreset(argparse.Action):
    """Write a preset to standard output and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any) -> None:
        """Called with the namespace, the name of the preset and the option's spelling."""
        sys.stdout.write(preset_text(str(arguments[1])))
        parser.exit()
