"""Arguments of `bids-mllm`: parsed, validated and turned into Settings. Imports nothing heavy."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bids_mllm import __version__
from bids_mllm.cli.model_options import add_features_options
from bids_mllm.cli.presets import preset_label, read_preset
from bids_mllm.cli.spelling import Parser
from bids_mllm.cli.workflow_options import add_output_options, add_settings_options, add_workflow_options
from bids_mllm.config import (
    CEILINGS,
    CONFOUNDS,
    CV_SCHEMES,
    DEVICES,
    FDR,
    LEVELS,
    PERMUTATIONS,
    POSITIONS,
    REPEATS,
    SOLVERS,
    STAGES,
    Settings,
    check_settings,
    parse_memory,
    read_settings_file,
)
from bids_mllm.exceptions import UsageError
from bids_mllm.io.allocation import available_cpus, available_memory_mb
from bids_mllm.io.atlas_find import is_atlas_name


def build_parser() -> argparse.ArgumentParser:
    """Return the parser. Every option defaults to absent, so that a settings file can fill it."""
    parser = Parser(
        prog="bids-mllm",
        description="Which multimodal language model, which instruction and which layer predicts which part of "
        "each brain: a BIDS-App for people watching films.",
        epilog="Exit status: 0 done; 1 a crash; 2 wrong usage; 70 the data do not allow what was asked; 143 ended by "
        "SIGTERM.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("bids_dir", type=Path, help="root of the raw BIDS data set")
    parser.add_argument("output_dir", type=Path, help="folder for the results, a BIDS derivative")
    parser.add_argument(
        "analysis_level",
        choices=LEVELS,
        help="participant: features, fits and scores; group: what participants wrote, put together",
    )
    parser.add_argument("--version", action="version", version=f"bids-mllm {__version__}")
    for add in (
        add_discover_options,
        add_align_options,
        add_features_options,
        add_fit_options,
        add_validation_options,
        add_statistics_options,
        add_workflow_options,
        add_settings_options,
        add_output_options,
    ):
        add(parser)
    return parser


def add_discover_options(parser: Parser) -> None:
    """Which data take part."""
    group = parser.add_argument_group("data")
    add = parser.add_option
    add(
        group,
        "--participant-label",
        nargs="+",
        metavar="LABEL",
        help="participants, with or without sub- (default: all)",
    )
    add(
        group,
        "--session-label",
        "--session-id",
        nargs="+",
        metavar="LABEL",
        dest="session_label",
        help="sessions, with or without ses- (default: all)",
    )
    add(group, "-t", "--task-id", nargs="+", metavar="LABEL", dest="task_id", help="tasks (default: all)")
    add(group, "--run-id", nargs="+", metavar="N", help="runs; 1 and 01 are the same run (default: all)")
    add(
        group,
        "--bids-filter-file",
        type=Path,
        metavar="FILE",
        help='JSON {query: {entity: value}} for the queries bold, mask and confounds; null = absent, "*" = any',
    )
    add(
        group,
        "--bids-database-dir",
        type=Path,
        metavar="DIR",
        help="PyBIDS index, made when missing and reused",
    )
    add(
        group,
        "-d",
        "--derivatives",
        nargs="+",
        metavar="NAME=PATH",
        help="derivatives that are searched, such as fmriprep=PATH xcpd=PATH (default: the one of fMRIPrep under "
        "BIDS_DIR/derivatives)",
    )
    add(
        group,
        "--space",
        nargs="+",
        metavar="SPACE",
        help="spaces in fMRIPrep's syntax, such as MNI152NLin6Asym:res-2, T1w, fsLR:den-91k, fsaverage6 or fsnative; "
        "with :seg-LABEL or :atlas-LABEL series of parcels (default MNI152NLin2009cAsym)",
    )
    add(group, "--skip-bids-validation", action="store_true", help="do not check dataset_description.json")


def add_align_options(parser: Parser) -> None:
    """When what was shown."""
    group = parser.add_argument_group("stimuli and their clock")
    add = parser.add_option
    add(
        group,
        "--stimuli-dir",
        type=Path,
        metavar="DIR",
        help="folder of the stimuli (default BIDS_DIR/stimuli)",
    )
    add(
        group,
        "--stimulus-map",
        type=Path,
        metavar="FILE",
        help="TSV (task, session, run, stim_file, run_onset, media_onset, duration, and participant where needed) that "
        "overrides the events",
    )
    add(group, "--window", type=float, metavar="SECONDS", help="length of a clip (default: the TR)")
    add(
        group,
        "--window-position",
        choices=POSITIONS,
        help="end: a clip ends with its TR (default); center: their middles coincide; start: it starts with it",
    )


def add_fit_options(parser: Parser) -> None:
    """Cleaning, fitting and scoring."""
    group = parser.add_argument_group("encoding")
    add = parser.add_option
    add(group, "--confounds", choices=CONFOUNDS, help="strategy of nilearn's load_confounds (default simple), or none")
    add(group, "--high-pass", type=float, metavar="HZ", help="cosine high-pass, 0 = none (default 0.0078125)")
    add(group, "--delays", nargs="+", type=int, metavar="TR", help="delays in TRs (default 1 2 3 4 5)")
    add(
        group,
        "--alphas",
        nargs=3,
        type=float,
        metavar=("LOWEST", "HIGHEST", "NUMBER"),
        help="logarithmic grid of penalties (default 0.1 1e9 11)",
    )
    add(
        group,
        "--solver",
        choices=SOLVERS,
        help="exact: block identities and Cholesky factors (default); himalaya: its KernelRidgeCV",
    )
    add(
        group,
        "--equal-rank",
        type=int,
        metavar="N",
        help="score every model also on its first N principal components, fitted in training",
    )
    add(
        group,
        "--bands",
        nargs="+",
        metavar="NAME",
        help="models or feature tables to fit jointly by banded ridge, each at its best condition and layer; "
        "MODEL:GROUP stands for all instructions of a group at the best layer, such as MODEL:language",
    )
    add(
        group,
        "--partition",
        nargs="+",
        metavar="MODEL",
        help="models of which every pair of instructions is parted into unique and shared variance",
    )


def add_validation_options(parser: Parser) -> None:
    """What is held out."""
    group = parser.add_argument_group("cross-validation")
    add = parser.add_option
    add(
        group,
        "--test-task",
        nargs="+",
        metavar="PATTERN",
        help="tasks to test on, such as 'life*', the others train (default: leave one stimulus out in turn)",
    )
    add(
        group,
        "--train-task",
        nargs="+",
        metavar="PATTERN",
        help="tasks to train on beside --test-task, such as 'bourne*' 'wolf*'; runs of no pattern take no part",
    )
    add(
        group,
        "--repeats",
        choices=REPEATS,
        help="each: every held-out viewing of a film is scored (default); average: the mean of a participant's "
        "viewings is, paired on the film's clock; the fit sees single viewings",
    )
    add(
        group,
        "--cv",
        choices=CV_SCHEMES,
        help="what is held out in turn: auto and run, the runs of one stimulus; film, those of one film; kfold, "
        "--n-folds sets of runs; runs of one stimulus stay together (default auto)",
    )
    add(
        group,
        "--cv-file",
        type=Path,
        metavar="FILE",
        help="JSON of a split, as every participant's *_split.json; {participant} in its path stands for the label",
    )
    add(
        group,
        "--n-folds",
        type=int,
        metavar="N",
        help="sets of --cv kfold, and contiguous parts where there is one run or film only (default 5)",
    )


def add_statistics_options(parser: Parser) -> None:
    """Ceilings, tests and regions."""
    group = parser.add_argument_group("statistics")
    add = parser.add_option
    add(
        group,
        "--noise-ceiling",
        choices=CEILINGS,
        help="repeats: from the viewings of held-out films; participants: by predicting a participant from the others "
        "of this call; participants-exponential: the same with the curve of arXiv 2506.08277; auto: repeats where "
        "there are any (default)",
    )
    add(
        group,
        "--permutations",
        type=int,
        metavar="N",
        dest="n_permutations",
        help="permutations and sign flips (default 5000)",
    )
    add(
        group,
        "--permutation-method",
        choices=PERMUTATIONS,
        help="block: blocks of held-out volumes are permuted within runs (default); circular: runs are shifted",
    )
    add(group, "--block-length", type=int, metavar="TR", help="volumes of a block (default 10)")
    add(
        group,
        "--fdr",
        choices=FDR,
        help="false discovery rate after Benjamini and Hochberg (bh, default) or Benjamini and Yekutieli (by)",
    )
    add(
        group,
        "--atlas",
        nargs="+",
        metavar="NAME|FILE",
        help="atlases for ROI tables: Glasser, Schaefer400, Schaefer1000x17, ..., or label files in the space of the "
        "maps, such as a NIfTI image with a TSV (index, name[, hierarchy]), .label.gii or .annot of both hemispheres, "
        "or .dlabel.nii",
    )
    add(
        group,
        "--atlas-dir",
        type=Path,
        metavar="DIR",
        help="folder that is searched for the files of an atlas named with --atlas, before packages and TemplateFlow",
    )
    add(
        group,
        "--rois",
        type=Path,
        metavar="FILE",
        help="TOML with groups of regions of your own ([groups.NAME] areas, source), beside those of the app",
    )


def parse_settings(argv: Sequence[str] | None = None) -> Settings:
    """Parse a command line into checked Settings.

    Raises
    ------
    UsageError
        When a value cannot be used; argparse itself exits with status 2 for what it rejects.
    """
    given = vars(build_parser().parse_args(argv))
    given.pop("notrack", None)
    _check_group_options(given)
    config_file, preset = given.pop("config_file", None), given.pop("preset", None)
    values = read_preset(preset) if preset else {}
    values |= read_settings_file(config_file) if config_file else {}
    values |= _converted(given)
    if preset:
        values["preset"] = preset_label(preset)
    if values.get("feature_table"):
        values.setdefault("models", ())
    values.setdefault("work_dir", Path("work"))
    values.setdefault("mem_mb", available_memory_mb())
    values.setdefault("nprocs", available_cpus())
    values.setdefault("omp_nthreads", 1)
    absolute = {key: _absolute(value) for key, value in values.items()}
    absolute["atlas"] = tuple(map(_atlas, values.get("atlas", ())))
    settings = Settings(**absolute)
    check_settings(settings)
    return settings


#: Options that have an effect at the group level.
GROUP_OPTIONS = frozenset(
    {
        "bids_dir", "output_dir", "analysis_level", "participant_label", "work_dir", "nprocs", "omp_nthreads", "mem",
        "use_plugin", "config_file", "stop_on_first_crash", "clean_workdir", "resource_monitor", "dry_run",
        "reports_only", "map_views", "allow_download", "verbose",
    }
)  # fmt: skip


def _check_group_options(given: dict[str, Any]) -> None:
    """Refuse what the group level would ignore: it summarises what the participant level wrote."""
    idle = sorted(set(given) - GROUP_OPTIONS)
    if given["analysis_level"] == "group" and idle:
        names = ", ".join("--" + name.replace("_", "-") for name in idle)
        raise UsageError(
            f"{names} has no effect at the group level, which summarises what the participant level wrote; leave it "
            "out."
        )


def _converted(given: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    prefixes = {"participant_label": "sub-", "session_label": "ses-", "task_id": "task-"}
    for key, prefix in prefixes.items():
        if key in values:
            values[key] = tuple(label.removeprefix(prefix) for label in values[key])
    if "stages" in values:
        values["stages"] = _stages(values["stages"])
    if "layers" in values:
        values["layers"] = tuple(sorted(set(values["layers"])))
    if "run_id" in values:
        values["run_id"] = tuple(_run_number(label) for label in values["run_id"])
    if "derivatives" in values:
        values["derivatives"] = _named_paths(values["derivatives"], "--derivatives", bare=True)
    if "feature_table" in values:
        values["feature_table"] = _named_paths(values["feature_table"], "--feature-table", bare=False)
    if "mem" in values:
        values["mem_mb"] = parse_memory(values.pop("mem"))
    if "alphas" in values:
        low, high, number = values["alphas"]
        values["alphas"] = (low, high, _whole_number(number))
    if "device" in values:
        values["device"] = _device(values["device"])
    return values


def _stages(given: Sequence[str]) -> tuple[str, ...]:
    """Return the stages, which may be given with commas, in their order, each once; unknown ones stay to be told."""
    named = [name for text in given for name in text.split(",") if name]
    unknown = [name for name in dict.fromkeys(named) if name not in STAGES]
    return (*(stage for stage in STAGES if stage in named), *unknown)


def _run_number(label: str) -> int:
    digits = label.removeprefix("run-")
    if not digits.isdecimal():
        raise UsageError(f"--run-id is {label!r}, but must be a number, such as 1.")
    return int(digits)


def _whole_number(number: float) -> int:
    if not number.is_integer():
        raise UsageError(f"--alphas asks for {number:g} penalties, but NUMBER must be a whole number, such as 11.")
    return int(number)


def _named_paths(items: Sequence[str], option: str, *, bare: bool) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for item in items:
        name, equals, path = item.partition("=")
        if not equals:
            if not bare:
                raise UsageError(f"{option} is {item!r}, but must be NAME=DIR, such as words=/data/words.")
            name, path = Path(item).resolve().name, item
        if name in named:
            raise UsageError(f"{option} names {name} twice; give each a name of its own.")
        named[name] = Path(path)
    return named


def _device(text: str) -> str:
    if re.fullmatch(DEVICES, text):
        return text
    raise UsageError(f"--device is {text!r}, but must be auto, cpu, cuda or cuda:N.")


def _atlas(text: str) -> str:
    """Return the name of an atlas as it is, and the path of a file as an absolute one."""
    path = Path(text)
    return text if is_atlas_name(text) and not path.is_file() else str(_absolute(path))


def _absolute(value: Any) -> Any:
    if isinstance(value, Path):
        try:
            return Path(os.path.abspath(value.expanduser()))  # noqa: PTH100  links stay as the user wrote them
        except RuntimeError:
            raise UsageError(f"{value} begins with ~, but there is no home folder; give the path in full.") from None
    if isinstance(value, dict):
        return {key: _absolute(item) for key, item in value.items()}
    return tuple(_absolute(item) for item in value) if isinstance(value, tuple) else value
