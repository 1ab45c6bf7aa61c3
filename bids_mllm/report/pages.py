"""The two pages, each one HTML file that needs nothing else to be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bids_mllm.records import DroppedRun, Fold, Run, TRWindows
from bids_mllm.report.citations import markdown_html
from bids_mllm.report.content import (
    Article,
    Block,
    Bullets,
    Cell,
    Facts,
    Heading,
    Links,
    Paragraph,
    Picture,
    Section,
    Table,
    cell_text,
)
from bids_mllm.report.design_charts import alignment_chart, cv_chart
from bids_mllm.report.scripts import page_scripts
from bids_mllm.report.tables import (
    ModelCard,
    alignment_table,
    cv_table,
    dropped_table,
    model_blocks,
    runs_table,
)


@dataclass(frozen=True)
class ReportedError:
    """A sentence about what failed, and the name of its crash file if one was written."""

    sentence: str
    crash_file: str | None = None


@dataclass(frozen=True)
class ModelPictures:
    """Pictures of one model: its maps or its layer curves and heat map."""

    model: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class CrossValidation:
    """The outer folds, the run of each stacked row (position in `run_labels`), and the scheme in words."""

    folds: tuple[Fold, ...]
    run_of_row: Sequence[int]
    run_labels: tuple[str, ...]
    words: str


NO_REGIONS = "No atlas serves this space, or none was given, so no region was averaged."
NO_VIEWER = "Maps of this space cannot be turned here: they are of parcels, or no surface of it is at hand."
NO_PARTITION = "No pairs of instructions were fitted; --partition MODEL at the participant level does it."
NO_COUPLING = "No model has several instructions whose features and brain scores could be set side by side."
NO_STUDY = "No model here is one of a published study whose figures are known."


@dataclass(frozen=True)
class SessionLink:
    """A session that has a page of its own: its label, the file's name, and its runs and volumes."""

    session: str
    file_name: str
    n_runs: int
    n_volumes: int
    n_used: int | None = None


@dataclass(frozen=True)
class ParticipantPage:
    """The content of one participant's page.

    `runs` and `windows` have one entry a run in the same order; `windows` is empty where the alignment was
    not done. `place` is the space as in file names. `methods` is Markdown that cites keys of `bibliography` (BibTeX).
    `sessions` have pages of their own; their runs are not among `runs`.
    """

    participant: str
    app_version: str
    created: str
    place: str = ""
    warnings: tuple[str, ...] = ()
    errors: tuple[ReportedError, ...] = ()
    summary: Mapping[str, Cell] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()
    windows: tuple[TRWindows, ...] = ()
    sessions: tuple[SessionLink, ...] = ()
    dropped: tuple[DroppedRun, ...] = ()
    clock: tuple[Block, ...] = ()
    models: tuple[ModelCard, ...] = ()
    checks: tuple[Block, ...] = ()
    cross_validation: CrossValidation | None = None
    scores: tuple[Table, ...] = ()
    maps: tuple[ModelPictures, ...] = ()
    roi_tables: tuple[Table, ...] = ()
    viewer: tuple[Block, ...] = ()
    explorer: tuple[Block, ...] = ()
    figures: Mapping[str, tuple[Block, ...]] = field(default_factory=dict)
    resources: tuple[Block, ...] = ()
    methods: str = ""
    bibliography: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Cell] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupPage:
    """The content of the group page.

    `maps` are means over participants where there are no `figures` of them, which are by the section in which they
    stand; `comparisons` are tables of model against model for each participant, `classes` of classes of models,
    `choices` of what most voxels prefer, `partition` of pairs of instructions.
    """

    participants: tuple[str, ...]
    app_version: str
    created: str
    warnings: tuple[str, ...] = ()
    errors: tuple[ReportedError, ...] = ()
    summary: Mapping[str, Cell] = field(default_factory=dict)
    participant_tables: tuple[Table, ...] = ()
    dropped: tuple[DroppedRun, ...] = ()
    models: tuple[ModelCard, ...] = ()
    checks: tuple[Block, ...] = ()
    maps: tuple[ModelPictures, ...] = ()
    best_maps: tuple[ModelPictures, ...] = ()
    roi_tables: tuple[Table, ...] = ()
    viewer: tuple[Block, ...] = ()
    explorer: tuple[Block, ...] = ()
    figures: Mapping[str, tuple[Block, ...]] = field(default_factory=dict)
    comparisons: tuple[Table, ...] = ()
    classes: tuple[Block, ...] = ()
    choices: tuple[Block, ...] = ()
    partition: tuple[Block, ...] = ()
    agreement: tuple[Block, ...] = ()
    resources: tuple[Block, ...] = ()
    methods: str = ""
    bibliography: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Cell] = field(default_factory=dict)


def render_participant(page: ParticipantPage) -> str:
    """Return the participant's page as one self-contained HTML document."""
    sections = (
        _warnings(page.warnings),
        _errors(page.errors),
        _inputs(page),
        Section("dropped", "Runs left out", "No run was left out.", _dropped(page.dropped)),
        Section("alignment", "Alignment with the stimuli", "No run was aligned.", _alignment(page)),
        Section("clock", "Clocks", "The clocks were not checked, which needs films or sounds.", page.clock),
        _models(page.models),
        Section("checks", "Do the instructions matter?", "No check of the features was found.", page.checks),
        Section("cv", "Cross-validation", "No cross-validation was made.",
                _cross_validation(page.cross_validation)),
        Section("scores", "Scores", "No table of scores was made.", page.scores),
        Section("viewer", "Maps to explore", NO_VIEWER, page.viewer),
        Section("maps", "Maps", "No map was made.",
                (*_pictures(page.maps), *_of(page.figures, "maps", "best", "comparisons"))),
        Section("rois", "Regions of interest", NO_REGIONS,
                (*_of(page.figures, "rois"), *page.roi_tables)),
        Section("layers", "Layers", "No layer curve was made.",
                (*page.explorer, *_of(page.figures, "layers"))),
        Section("partition", "Pairs of instructions", NO_PARTITION, _of(page.figures, "partition")),
        Section("coupling", "Instructions, features and brains", NO_COUPLING, _of(page.figures, "coupling")),
        Section("resources", "Resource use", "No use of resources was recorded.", page.resources),
        *_closing(page.methods, page.bibliography, versions=page.versions, settings=page.settings),
    )  # fmt: skip
    title = f"sub-{page.participant}, {page.place}" if page.place else f"sub-{page.participant}"
    return _rendered(title, sections, page.app_version, page.created, page.place)


def render_session(page: ParticipantPage, session: str, *, main: str) -> str:
    """Return the page of one session of a participant as one self-contained HTML document.

    Parameters
    ----------
    page
        Of the participant, with the runs and windows of this session alone.
    session
        Its label.
    main
        File name of the participant's page, to which a link leads back.
    """
    back = Section("participant", "Participant", "", (Links(((f"All of sub-{page.participant}", main),)),))
    sections = (
        back,
        _warnings(page.warnings),
        _inputs(page),
        Section("alignment", "Alignment with the stimuli", "No run was aligned.", _alignment(page)),
    )
    named = f"sub-{page.participant}, ses-{session}"
    title = f"{named}, {page.place}" if page.place else named
    return _rendered(title, sections, page.app_version, page.created, page.place)


def render_group(page: GroupPage) -> str:
    """Return the group page as one self-contained HTML document."""
    listed = Bullets(tuple(f"sub-{label}" for label in page.participants))
    summary: tuple[Block, ...] = (Facts(page.summary),) if page.summary else ()
    names: tuple[Block, ...] = (listed,) if page.participants else ()
    sections = (
        _warnings(page.warnings),
        _errors(page.errors),
        Section("participants", "Participants", "No participant has results.",
                (*summary, *names, *page.participant_tables)),
        Section("dropped", "Runs left out", "No run was left out.", _dropped(page.dropped)),
        _models(page.models),
        Section("checks", "Do the instructions matter?", "No check of the features was found.", page.checks),
        Section("agreement", "Agreement with the study", NO_STUDY, page.agreement),
        Section("viewer", "Maps to explore", NO_VIEWER, page.viewer),
        Section("maps", "Mean maps", "No mean map was made.", (*_pictures(page.maps), *_of(page.figures, "maps"))),
        Section("best", "Best instruction and layer", "No map of best instructions or layers was made.",
                (*_pictures(page.best_maps), *_of(page.figures, "best"), *page.choices)),
        Section("rois", "Regions of interest", NO_REGIONS, (*_of(page.figures, "rois"), *page.roi_tables)),
        Section("layers", "Layers", "No layer curve was made.", (*page.explorer, *_of(page.figures, "layers"))),
        Section("comparisons", "Model against model", "No two models were compared.",
                (*page.comparisons, *_of(page.figures, "comparisons"))),
        Section("classes", "Classes of models", "All models are of one class, so no two classes were compared.",
                page.classes),
        Section("partition", "Pairs of instructions", NO_PARTITION,
                (*_of(page.figures, "partition"), *page.partition)),
        Section("coupling", "Instructions, features and brains", NO_COUPLING, _of(page.figures, "coupling")),
        Section("resources", "Resource use", "No use of resources was recorded.", page.resources),
        *_closing(page.methods, page.bibliography, versions=page.versions, settings=page.settings),
    )  # fmt: skip
    return _rendered("Group", sections, page.app_version, page.created)


def _warnings(warnings: tuple[str, ...]) -> Section:
    blocks = (Bullets(warnings, "warning"),) if warnings else ()
    return Section("warnings", "Warnings", "There are no warnings.", blocks)


def _errors(errors: tuple[ReportedError, ...]) -> Section:
    sentences = tuple(
        error.sentence if error.crash_file is None else f"{error.sentence} (crash file: {error.crash_file})"
        for error in errors
    )
    blocks = (Bullets(sentences, "error"),) if errors else ()
    return Section("errors", "Errors", "No step failed.", blocks)


def _inputs(page: ParticipantPage) -> Section:
    blocks: list[Block] = []
    if page.summary:
        blocks.append(Facts(page.summary))
    if page.runs:
        blocks.append(runs_table(page.runs))
    if page.sessions:
        words = "The runs of each session, and their alignment with the stimuli, are on a page of their own:"
        blocks += [Paragraph(words), Links(tuple((f"ses-{one.session}", one.file_name) for one in page.sessions))]
    return Section("inputs", "Inputs", "No run was used.", tuple(blocks))


def _dropped(dropped: tuple[DroppedRun, ...]) -> tuple[Block, ...]:
    return (dropped_table(dropped),) if dropped else ()


def _alignment(page: ParticipantPage) -> tuple[Block, ...]:
    if page.sessions:
        blocks = _alignment(replace(page, sessions=()))
        rows = tuple((f"ses-{one.session}", one.n_runs, one.n_volumes, one.n_used) for one in page.sessions)
        columns = ("Session", "Runs", "Volumes", "Volumes with a complete window")
        return (Table("Sessions, whose pages show the alignment of each run.", columns, rows), *blocks)
    if not page.windows:
        return ()
    n_used = sum(int(windows.valid.sum()) for windows in page.windows)
    n_volumes = sum(len(windows.index) for windows in page.windows)
    alt = (
        f"For each of {len(page.runs)} runs, a bar of the volumes above a bar of the stimulus on the run's "
        f"clock; {n_volumes - n_used} of {n_volumes} volumes are masked out. "
        "The table below gives the numbers."
    )
    picture = Picture(alignment_chart(page.runs, page.windows), alt, "When volumes and stimuli were there.")
    return (picture, alignment_table(page.runs, page.windows))


def _models(models: tuple[ModelCard, ...]) -> Section:
    blocks = tuple(block for card in models for block in model_blocks(card))
    return Section("models", "Models", "No model was run.", blocks)


def _cross_validation(cv: CrossValidation | None) -> tuple[Block, ...]:
    if cv is None:
        return ()
    alt = (
        f"For each of {len(cv.folds)} outer folds, which rows of {len(cv.run_labels)} runs are used for "
        "training, for testing, or not at all. The table below gives the numbers."
    )
    chart = cv_chart(cv.folds, np.asarray(cv.run_of_row), cv.run_labels)
    picture = Picture(chart, alt, "Rows of each outer fold; runs side by side, as wide as they have rows.")
    return (Paragraph(cv.words), picture, cv_table(cv.folds))


def _of(figures: Mapping[str, tuple[Block, ...]], *sections: str) -> tuple[Block, ...]:
    return tuple(block for section in sections for block in figures.get(section, ()))


def _pictures(groups: tuple[ModelPictures, ...]) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for group in groups:
        blocks += [Heading(group.model), *group.pictures]
    return tuple(blocks)


def _closing(
    methods: str, bibliography: str, *, versions: Mapping[str, str], settings: Mapping[str, Cell]
) -> tuple[Section, ...]:
    """Return the sections that end both pages."""
    article = (Article(methods, bibliography),) if methods else ()
    return (
        Section("methods", "Methods", "No methods text was written.", article),
        Section("versions", "Versions", "No versions were recorded.", (Facts(versions),) if versions else ()),
        Section("settings", "Settings", "No settings were recorded.", (Facts(settings),) if settings else ()),
    )


def _article_html(article: Article) -> Markup:
    """Return the article as markup; the converter has escaped its text."""
    body = article.markdown.removeprefix("# Methods").lstrip()
    return Markup(markdown_html(body, article.bibliography, heading_shift=1))


def _rendered(title: str, sections: tuple[Section, ...], app_version: str, created: str, place: str = "") -> str:
    environment = Environment(
        loader=PackageLoader("bids_mllm.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell_text
    environment.filters["article"] = _article_html
    template = environment.get_template("page.html.j2")
    return template.render(
        title=title, sections=sections, app_version=app_version, created=created, place=place,
        scripts=page_scripts(sections),
    )  # fmt: skip
