"""Write the Boutiques descriptor of `bids-mllm` from its parser. usage: python docs/generate_boutiques.py"""

import argparse
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bids_mllm import __version__
from bids_mllm.cli.parser import GROUP_OPTIONS, build_parser
from bids_mllm.cli.presets import PrintPreset
from bids_mllm.config import LEVELS, STAGES
from bids_mllm.io.derivatives import CODE_URL

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs" / "reference" / "bids-mllm.boutiques.json"
IMAGE = f"bids-mllm:{__version__}"
#: They print something and exit, so that a platform that offers them would wait for results that never come.
EXITS = (argparse._HelpAction, argparse._VersionAction, PrintPreset)
#: Boutiques mounts what an input of type File names, and refuses it where it is not there. The app makes these folders,
#: and {participant} in the name of a split stands for a label, so that they cannot be of that type.
NOT_THERE_YET = frozenset({"output_dir", "work_dir", "features_dir", "bids_database_dir", "cv_file"})
#: The least number that the settings take, and whether it must be above that; argparse knows types alone.
BOUNDS: dict[str, tuple[float, bool]] = {
    "window": (0, True),
    "alphas": (0, True),
    "high_pass": (0, False),
    "delays": (0, False),
    "layers": (0, False),
    "max_new_tokens": (1, False),
    "equal_rank": (1, False),
    "block_length": (1, False),
    "nprocs": (1, False),
    "omp_nthreads": (1, False),
    "n_gpu_procs": (1, False),
    "n_folds": (2, False),
    "permutations": (19, False),
}
#: Stages may be given with commas too, so that argparse does not know them.
CHOICES = {"stages": STAGES}
LEAST_ENTRIES = {"bands": 2}
REQUIRES = {"train_task": ["test_task"]}
GROUPS = [
    {
        "id": "test_set",
        "name": "What is tested",
        "description": "A pattern of tasks, or the file of a split.",
        "members": ["test_task", "cv_file"],
        "mutually-exclusive": True,
    },
]
DESCRIPTION = (
    f"The image is in no registry: build it in a clone with docker build --tag {IMAGE} . or hand an Apptainer image to "
    "bosh exec launch with --imagepath. Inputs of type File, which may be folders, are mounted into the container by "
    "Boutiques. Results, the work folder, the feature store and the folders within NAME=PATH are not: give them "
    "relative to the folder in which you call bosh, or mount them with --volumes. A record of a call holds a checksum "
    "of every file of BIDS_DIR, which takes long: call bosh exec launch with --skip-data-collection."
)
#: What the image sets too; here it holds without a container.
VARIABLES = {
    "HF_HUB_OFFLINE": ("1", "no model is fetched, unless allow_download is given"),
    "TEMPLATEFLOW_AUTOUPDATE": ("0", "no template is fetched, unless allow_download is given"),
    "NO_ET": ("1", "no library asks the network for its newest version"),
    "PYTHONNOUSERSITE": ("1", "no package of the home folder is imported"),
    "MPLBACKEND": ("Agg", "figures need no screen"),
    "LANG": ("C.UTF-8", "texts are UTF-8"),
}
#: A dry run writes nothing, and each level its own reports: no file is there after every call.
OUTPUTS = (
    ("results", "Results", "BIDS derivative with maps, tables and reports", ""),
    ("description", "Description of the results", "what made them from what", "/dataset_description.json"),
    ("participant_reports", "Reports of participants", "one or more a participant", "/sub-*.html"),
    ("group_report", "Report of the group", "written at the group level", "/group.html"),
    ("methods", "Methods text", "written from what was run", "/logs/CITATION.md"),
)
STATUSES = {
    1: "a crash, or a report or a file that could not be written; results that were finished are there",
    2: "wrong usage",
    70: "the data do not allow what was asked",
    143: "ended by SIGTERM; the same call goes on where this one ended",
}


def descriptor() -> dict[str, Any]:
    """Return the descriptor, in version 0.5 of the schema of Boutiques."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    parser = build_parser()
    inputs = [_input(action) for action in parser._actions if not isinstance(action, EXITS)]
    return {
        "name": parser.prog,
        "tool-version": __version__,
        "description": f"{parser.description} {DESCRIPTION}",
        "author": ", ".join(author["name"] for author in project["authors"]),
        "url": CODE_URL,
        "command-line": " ".join([parser.prog, *(entry["value-key"] for entry in inputs)]),
        # With the default, /bin/sh, Boutiques starts a login shell, which forgets the image's PATH.
        "shell": "/bin/bash",
        "container-image": {"type": "docker", "image": IMAGE},
        "schema-version": "0.5",
        "environment-variables": [
            {"name": name, "value": value, "description": text} for name, (value, text) in VARIABLES.items()
        ],
        "groups": GROUPS,
        "inputs": inputs,
        "output-files": list(_outputs()),
        "error-codes": [{"code": code, "description": text} for code, text in STATUSES.items()],
        "suggested-resources": {"cpu-cores": 4, "ram": 16},
        "tags": {"domain": project["keywords"], "app": "BIDS-App"},
    }


def descriptor_text() -> str:
    """Return the file's content."""
    return json.dumps(descriptor(), indent=2, ensure_ascii=False) + "\n"


def _input(action: argparse.Action) -> dict[str, Any]:
    """Return the entry of an argument. No default is given: Boutiques would pass it on, over a settings file."""
    flag = _flag(action)
    key = (flag or action.dest).lstrip("-").replace("-", "_")
    entry: dict[str, Any] = {
        "id": key,
        "name": key.replace("_", " "),
        "description": action.help,
        "type": _type(action),
        "value-key": f"[{key.upper()}]",
        "optional": bool(flag),
    }
    if flag:
        entry["command-line-flag"] = flag
    if entry["type"] == "Number":
        entry |= {"integer": action.type is int} | _bound(key)
    if choices := action.choices or CHOICES.get(key):
        entry["value-choices"] = list(choices)
    if action.dest == "analysis_level":
        entry["value-disables"] = _disabled()
    return entry | _entries(action, key) | ({"requires-inputs": REQUIRES[key]} if key in REQUIRES else {})


def _flag(action: argparse.Action) -> str:
    """Return the first long spelling, nothing for a positional argument."""
    return next((name for name in action.option_strings if name.startswith("--")), "")


def _type(action: argparse.Action) -> str:
    # A flag that counts can be given once: Boutiques knows no repeated ones.
    if action.nargs == 0:
        return "Flag"
    if action.type in (int, float):
        return "Number"
    return "File" if action.type is Path and action.dest not in NOT_THERE_YET else "String"


def _bound(key: str) -> dict[str, Any]:
    if key not in BOUNDS:
        return {}
    least, above = BOUNDS[key]
    return {"minimum": least} | ({"exclusive-minimum": True} if above else {})


def _entries(action: argparse.Action, key: str) -> dict[str, Any]:
    """Say how many values an argument takes, nothing where it takes one."""
    if isinstance(action.nargs, int) and action.nargs > 0:
        return {"list": True, "min-list-entries": action.nargs, "max-list-entries": action.nargs}
    if action.nargs not in ("+", "*"):
        return {}
    least = LEAST_ENTRIES.get(key, 1 if action.nargs == "+" else 0)
    return {"list": True} | ({"min-list-entries": least} if least else {})


def _disabled() -> dict[str, list[str]]:
    """Return what has no effect at each level; the app refuses it there."""
    options = [action for action in build_parser()._actions if not isinstance(action, EXITS)]
    idle = [_flag(action)[2:].replace("-", "_") for action in options if action.dest not in GROUP_OPTIONS | {"notrack"}]
    return {level: idle if level == "group" else [] for level in LEVELS}


def _outputs() -> Iterator[dict[str, Any]]:
    for key, name, text, path in OUTPUTS:
        several = {"list": True} if "*" in path else {}
        yield {
            "id": key,
            "name": name,
            "description": text,
            "path-template": f"[OUTPUT_DIR]{path}",
            "optional": True,
            **several,
        }


if __name__ == "__main__":
    FILE.write_text(descriptor_text(), encoding="utf-8")
