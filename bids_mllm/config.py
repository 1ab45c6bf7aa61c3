"""Settings of one call: a frozen value, made from TOML and the command line, handed down to whoever needs it."""

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from bids_mllm.discover.spaces import parse_space
from bids_mllm.exceptions import UsageError
from bids_mllm.io.atlas_find import KNOWN, is_atlas_name
from bids_mllm.records import MAP_VIEWS, Pooling, WindowPosition

GIB = 1024.0
#: Stands for the label of a participant in the path of ``--cv-file``.
PARTICIPANT = "{participant}"
LEVELS = ("participant", "group")
#: Parts of the participant level, in their order.
STAGES = ("features", "fit")
POOLINGS = ("generated", "last", "instruction", "media")
NULL_INSTRUCTIONS = ("empty", "scrambled", "unrelated")
CONFOUNDS = ("simple", "motion", "compcor", "none")
POSITIONS = ("end", "center", "start")
REPEATS = ("each", "average")
CV_SCHEMES = ("auto", "run", "film", "kfold")
SOLVERS = ("exact", "himalaya")
CEILINGS = ("auto", "repeats", "participants", "participants-exponential", "none")
PERMUTATIONS = ("block", "circular")
FDR = ("bh", "by")
NO_VIEWS = "none"
DEVICES = r"auto|cpu|cuda(:[0-9]+)?"


@dataclass(frozen=True)
class Settings:
    """Everything that the user can set. Paths are absolute; empty tuples and None mean no restriction."""

    bids_dir: Path
    output_dir: Path
    analysis_level: str
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    task_id: tuple[str, ...] = ()
    run_id: tuple[int, ...] = ()
    bids_filter_file: Path | None = None
    bids_database_dir: Path | None = None
    skip_bids_validation: bool = False
    derivatives: Mapping[str, Path] = field(default_factory=dict)
    space: tuple[str, ...] = ("MNI152NLin2009cAsym",)
    stimuli_dir: Path | None = None
    stimulus_map: Path | None = None
    window: float | None = None
    window_position: WindowPosition = "end"
    models: tuple[str, ...] = ("motionenergy", "melspectrogram")
    model_revision: str | None = None
    family: str | None = None
    trust_remote_code: bool = False
    allow_download: bool = False
    instructions: tuple[str, ...] = ()
    instructions_file: Path | None = None
    null_instructions: tuple[str, ...] = ()
    demonstrations: Path | None = None
    poolings: tuple[Pooling, ...] = ("generated", "media")
    max_new_tokens: int = 8
    layers: tuple[int, ...] = ()
    feature_table: Mapping[str, Path] = field(default_factory=dict)
    features_dir: Path | None = None
    confounds: str = "simple"
    high_pass: float = 0.0078125
    delays: tuple[int, ...] = (1, 2, 3, 4, 5)
    alphas: tuple[float, float, int] = (1e-1, 1e9, 11)
    solver: str = "exact"
    equal_rank: int | None = None
    preset: str = ""
    test_task: tuple[str, ...] = ()
    train_task: tuple[str, ...] = ()
    repeats: str = "each"
    cv: str = "auto"
    cv_file: Path | None = None
    n_folds: int = 5
    bands: tuple[str, ...] = ()
    partition: tuple[str, ...] = ()
    noise_ceiling: str = "auto"
    n_permutations: int = 5000
    permutation_method: str = "block"
    block_length: int = 10
    fdr: str = "bh"
    atlas: tuple[str, ...] = ()
    atlas_dir: Path | None = None
    rois: Path | None = None
    work_dir: Path = Path("work")
    nprocs: int = 1
    omp_nthreads: int = 1
    mem_mb: float = 4 * GIB
    device: str = "auto"
    n_gpu_procs: int | None = None
    use_plugin: Path | None = None
    random_seed: int = 0
    sloppy: bool = False
    stop_on_first_crash: bool = False
    clean_workdir: bool = False
    resource_monitor: bool = False
    stages: tuple[str, ...] = STAGES
    map_views: tuple[str, ...] = MAP_VIEWS
    reports_only: bool = False
    boilerplate_only: bool = False
    md_only_boilerplate: bool = False
    dry_run: bool = False
    verbose: int = 0

    @property
    def store_dir(self) -> Path:
        """Folder of the feature store: ``--features-dir``, else ``sourcedata/features`` of the output."""
        return self.features_dir or self.output_dir / "sourcedata" / "features"

    @property
    def graph_dir(self) -> Path:
        """Folder of the graph of this call in ``--work-dir``: calls of one participant each may share the latter."""
        one = self.analysis_level == "participant" and len(self.participant_label) == 1
        return self.work_dir / f"sub-{self.participant_label[0]}" if one else self.work_dir

    @property
    def stimuli_root(self) -> Path:
        """Folder of the stimuli: ``--stimuli-dir``, else ``stimuli`` of the raw data set."""
        return self.stimuli_dir or self.bids_dir / "stimuli"


#: Settings that say what to do in this call, not how; a settings file never brings them back.
ONE_CALL = frozenset({"stages", "allow_download", "reports_only", "boilerplate_only", "dry_run", "verbose"})


def settings_to_toml(settings: Settings) -> str:
    """Write settings as TOML; `read_settings_file` reads it back."""
    import tomli_w

    values = {name: _plain(value) for name, value in asdict(settings).items() if value is not None}
    return tomli_w.dumps({name: value for name, value in values.items() if name not in ONE_CALL})


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def read_settings_file(path: Path) -> dict[str, Any]:
    """Read settings that a former run wrote, with the types of `Settings`.

    Raises
    ------
    UsageError
        When the file cannot be read or names a setting that does not exist; lists all that are unknown.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"The settings file {path} cannot be read ({error}); expected TOML.") from error
    known = {f.name for f in fields(Settings)}
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise UsageError(
            f"The settings file {path} has unknown settings {', '.join(unknown)}; known are {', '.join(sorted(known))}."
        )
    faults = [fault for name, value in content.items() if (fault := _type_fault(name, value))]
    if faults:
        raise UsageError(f"The settings file {path}: {' '.join(faults)}")
    return {name: _typed(name, value) for name, value in content.items() if name not in ONE_CALL}


_PATHS = {
    "bids_dir", "output_dir", "bids_filter_file", "bids_database_dir", "stimuli_dir", "stimulus_map",
    "instructions_file", "demonstrations", "features_dir", "work_dir", "use_plugin", "cv_file",
    "atlas_dir", "rois",
}  # fmt: skip


_KINDS: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("a text", (str,)),
    Path: ("a path", (str,)),
}


def _type_fault(name: str, value: Any) -> str | None:
    """Say what is wrong with the type of a value of a settings file, None when it is right."""
    annotation: Any = next(f.type for f in fields(Settings) if f.name == name)
    if getattr(annotation, "__origin__", None) is tuple:
        kinds = [kind for kind in get_args(annotation) if kind is not ...]
        n_items = None if ... in get_args(annotation) else len(kinds)
        if not isinstance(value, list) or n_items not in (None, len(value)):
            return f"{name} is {value!r}, but must be a list{f' of {n_items}' if n_items else ''}."
        pairs = [(item, kinds[place if n_items else 0]) for place, item in enumerate(value)]
    elif getattr(annotation, "__origin__", None) is Mapping:
        if not isinstance(value, dict):
            return f"{name} is {value!r}, but must be a table of NAME = PATH."
        pairs = [(item, Path) for item in value.values()]
    else:
        pairs = [(value, annotation)]
    wrong = [(item, _kind(kind)) for item, kind in pairs if not _is(item, _kind(kind))]
    return f"{name} holds {wrong[0][0]!r}, but must be {_KINDS[wrong[0][1]][0]}." if wrong else None


def _kind(annotation: Any) -> type:
    """Return the plain type of an annotation: of ``float | None`` float, of a Literal str."""
    plain = [kind for kind in (annotation, *get_args(annotation)) if kind in _KINDS]
    return plain[0] if plain else str


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, _KINDS[kind][1]) and (kind is bool or not isinstance(value, bool))


def _typed(name: str, value: Any) -> Any:
    if name in _PATHS:
        return Path(value)
    if name in ("derivatives", "feature_table"):
        return {key: Path(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def parse_memory(text: str) -> float:
    """Return MiB from a number with a suffix K, M, G or T; MiB without one."""
    factors = {"K": 1 / GIB, "M": 1.0, "G": GIB, "T": GIB**2}
    digits = text.strip().upper().removesuffix("B").removesuffix("I")
    suffix = digits[-1:] if digits[-1:] in factors else "M"
    try:
        value = float(digits.removesuffix(suffix)) * factors[suffix]
    except ValueError:
        raise UsageError(f"--mem is {text!r}, but must be a number with K, M, G or T, such as 16G.") from None
    if not 0 < value < math.inf:
        raise UsageError(f"--mem is {text!r}, but must be above 0.")
    return value


def check_settings(settings: Settings) -> None:
    """Check what needs no look into the data; report every fault in one `UsageError`."""
    faults = [*_path_faults(settings), *_value_faults(settings)]
    if faults:
        raise UsageError(" ".join(faults))


def _path_faults(s: Settings) -> list[str]:
    faults = []
    if not s.bids_dir.is_dir():
        faults.append(f"The BIDS folder {s.bids_dir} does not exist; give the root of a BIDS data set.")
    bids_dir, output_dir, work_dir = (path.resolve() for path in (s.bids_dir, s.output_dir, s.work_dir))
    if output_dir == bids_dir:
        faults.append(
            f"The output folder {s.output_dir} is the BIDS folder itself; choose another, such as "
            f"{s.bids_dir / 'derivatives' / 'bids-mllm'}."
        )
    if work_dir == bids_dir or bids_dir in work_dir.parents:
        faults.append(f"The work folder {s.work_dir} lies inside the BIDS folder; choose another with --work-dir.")
    files = {
        "--bids-filter-file": s.bids_filter_file,
        "--stimulus-map": s.stimulus_map,
        "--instructions-file": s.instructions_file,
        "--demonstrations": s.demonstrations,
        "--use-plugin": s.use_plugin,
        "--rois": s.rois,
    }
    if s.cv_file is not None and PARTICIPANT not in str(s.cv_file):
        files["--cv-file"] = s.cv_file
    faults += [f"{name}: there is no file {path}." for name, path in files.items() if path and not path.is_file()]
    lost = [item for item in s.atlas if not is_atlas_name(item) and not Path(item).is_file()]
    faults += [f"--atlas: there is no file {item}, and no atlas is known under that name; {KNOWN}" for item in lost]
    folders = {f"--feature-table {name}": path for name, path in s.feature_table.items()}
    folders |= {"--stimuli-dir": s.stimuli_dir} if s.stimuli_dir else {}
    folders |= {"--atlas-dir": s.atlas_dir} if s.atlas_dir else {}
    faults += [f"{name}: there is no folder {path}." for name, path in folders.items() if not path.is_dir()]
    return faults


def _value_faults(s: Settings) -> list[str]:
    checks = {
        f"--window is {s.window}, but must be above 0 seconds.": s.window is not None and not 0 < s.window < math.inf,
        f"--delays are {s.delays}, but must be unique whole TRs from 0 up.": not s.delays
        or min(s.delays) < 0
        or len(set(s.delays)) != len(s.delays),
        f"--high-pass is {s.high_pass}, but must be 0 (none) or above, in Hz.": not 0 <= s.high_pass < math.inf,
        f"--alphas are {s.alphas}, but must be LOWEST HIGHEST NUMBER with 0 < LOWEST < HIGHEST and NUMBER from 2.": (
            not 0 < s.alphas[0] < s.alphas[1] < math.inf or s.alphas[2] < 2
        ),
        f"--n-folds is {s.n_folds}, but must be 2 or more.": s.n_folds < 2,
        "--test-task and --cv-file both say what is tested; give one of them.": bool(s.test_task)
        and s.cv_file is not None,
        "--train-task says which of the other runs train, and so needs --test-task; give both.": bool(s.train_task)
        and not s.test_task,
        f"--equal-rank is {s.equal_rank}, but must be 1 or more.": s.equal_rank is not None and s.equal_rank < 1,
        f"--permutations is {s.n_permutations}, but must be 19 or more, since 19 are needed for a p of 0.05.": (
            s.n_permutations < 19
        ),
        f"--block-length is {s.block_length}, but must be 1 TR or more.": s.block_length < 1,
        f"--bands names {', '.join(s.bands)}, but must name two or more different ones.": bool(s.bands)
        and (len(s.bands) < 2 or len(set(s.bands)) != len(s.bands)),
        f"--max-new-tokens is {s.max_new_tokens}, but must be 1 or more.": s.max_new_tokens < 1,
        f"--nprocs is {s.nprocs}, but must be 1 or more.": s.nprocs < 1,
        f"--omp-nthreads is {s.omp_nthreads}, but must be 1 or more.": s.omp_nthreads < 1,
        f"--n-gpu-procs is {s.n_gpu_procs}, but must be 1 or more.": s.n_gpu_procs is not None and s.n_gpu_procs < 1,
        "--models and --feature-table are both empty; ask for at least one.": not s.models and not s.feature_table,
        f"--feature-table names must be letters and digits, not bands, and differ from --models; got "
        f"{', '.join(s.feature_table)}.": any(not re.fullmatch("[0-9a-zA-Z]+", name) for name in s.feature_table)
        or "bands" in s.feature_table
        or bool(set(s.feature_table) & {m.partition("=")[0].removesuffix("+random") for m in s.models}),
        "--space must name at least one space.": not s.space,
        f"--map-views are {', '.join(s.map_views)}, but must be one view or more, or none alone.": not s.map_views
        or (NO_VIEWS in s.map_views and len(s.map_views) > 1),
        "--stages names no stage; give features, fit or both.": not s.stages,
        f"--layers are {s.layers}, but must be from 0 up (0 = embedding).": any(layer < 0 for layer in s.layers),
        f"--device is {s.device!r}, but must be auto, cpu, cuda or cuda:N.": not re.fullmatch(DEVICES, s.device),
        f"--mem is {s.mem_mb} MB, but must be above 0.": not 0 < s.mem_mb < math.inf,
    }
    choices = {
        "The analysis level": ((s.analysis_level,), LEVELS),
        "--stages": (s.stages, STAGES),
        "--window-position": ((s.window_position,), POSITIONS),
        "--poolings": (s.poolings, POOLINGS),
        "--null-instructions": (s.null_instructions, NULL_INSTRUCTIONS),
        "--confounds": ((s.confounds,), CONFOUNDS),
        "--cv": ((s.cv,), CV_SCHEMES),
        "--repeats": ((s.repeats,), REPEATS),
        "--solver": ((s.solver,), SOLVERS),
        "--noise-ceiling": ((s.noise_ceiling,), CEILINGS),
        "--permutation-method": ((s.permutation_method,), PERMUTATIONS),
        "--fdr": ((s.fdr,), FDR),
        "--map-views": (s.map_views, (*MAP_VIEWS, NO_VIEWS)),
    }
    for name, (given, allowed) in choices.items():
        unknown = ", ".join(value for value in given if value not in allowed)
        checks[f"{name} is {unknown}, but must be of {', '.join(allowed)}."] = bool(unknown)
    return [*(sentence for sentence, wrong in checks.items() if wrong), *_space_faults(s.space)]


def _space_faults(spaces: Sequence[str]) -> list[str]:
    faults = []
    for space in spaces:
        try:
            parse_space(space)
        except UsageError as error:
            faults.append(str(error))
    return faults
