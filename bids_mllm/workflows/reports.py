"""Pages and methods text, made from the plan and from the outputs that are on disk."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from bids_mllm import __version__
from bids_mllm.config import Settings, settings_to_toml
from bids_mllm.discover.layout import generated_by
from bids_mllm.features.registry import load_family
from bids_mllm.fit.ridge import alpha_grid
from bids_mllm.interfaces.rows import make_rows
from bids_mllm.io.atlas_find import atlas_items
from bids_mllm.io.confounds import load_confounds
from bids_mllm.io.derivatives import sidecar_path
from bids_mllm.io.files import read_json, write_text
from bids_mllm.io.results import ModelResult, find_results
from bids_mllm.io.tables import read_feature_table
from bids_mllm.records import Fold, ModelSpec, ParticipantDesign
from bids_mllm.report.clock_charts import clock_blocks, clock_warnings
from bids_mllm.report.conditioning import conditioning_warnings
from bids_mllm.report.methods import MethodsFacts, ModelFacts, methods_text
from bids_mllm.report.pages import CrossValidation, ParticipantPage, ReportedError, render_participant, render_session
from bids_mllm.report.sessions import sessions_of, split_page
from bids_mllm.report.tables import ModelCard
from bids_mllm.workflows.atlases import atlas_words
from bids_mllm.workflows.checks import check_blocks, found_checks
from bids_mllm.workflows.clock import found_clock
from bids_mllm.workflows.comparisons import comparison_tables
from bids_mllm.workflows.facts import cv_words, library_versions, output_task
from bids_mllm.workflows.page_figures import explorer_blocks, figure_blocks, without_figures
from bids_mllm.workflows.page_files import page_path, remove_session_pages, session_page_path
from bids_mllm.workflows.pictures import best_maps, region_tables, score_table
from bids_mllm.workflows.plan import StudyPlan
from bids_mllm.workflows.readouts import read_out
from bids_mllm.workflows.resources import resources_table
from bids_mllm.workflows.run import Failure
from bids_mllm.workflows.statistics import ceiling_method, cv_options
from bids_mllm.workflows.viewer import viewer_block


def bibliography() -> str:
    """Return the packaged BibTeX."""
    return (files("bids_mllm") / "data" / "boilerplate.bib").read_text(encoding="utf-8")


def model_cards(plan: StudyPlan) -> tuple[ModelCard, ...]:
    """Return what a page says of every model and feature table."""
    cards = []
    for spec in plan.models:
        readout = read_out(plan, spec)
        planned = load_family(spec.family).plan(spec, readout)
        cards.append(
            ModelCard(
                spec=spec,
                n_layers=planned.n_layers,
                width=planned.width,
                n_frames=planned.request.n_frames,
                poolings=readout.poolings if spec.instructed else (),
                instructions=readout.instructions,
                n_demonstrations=len(readout.demonstrations),
            )
        )
    return (*cards, *_table_cards(plan))


def _table_cards(plan: StudyPlan) -> list[ModelCard]:
    cards = []
    for name, folder in plan.settings.feature_table.items():
        stim_file = next(file for table, file in plan.table_digests if table == name)
        columns = read_feature_table(folder, stim_file)["columns"]
        spec = ModelSpec(key=name, family="table", media="table", source=folder.name, kind="feature table")
        cards.append(ModelCard(spec=spec, n_layers=1, width=len(columns), extra={"Columns": ", ".join(columns)}))
    return cards


def methods_facts(plan: StudyPlan, designs: Sequence[ParticipantDesign]) -> MethodsFacts:
    """Gather what the methods text says from what was planned."""
    settings = plan.settings
    design = designs[0]
    low, high, number = settings.alphas
    _, columns = load_confounds(design.runs[0], settings.confounds)
    versions = library_versions()
    fmriprep = [str(entry["Version"]) for entry in generated_by(plan.fmriprep_dir) if "Version" in entry]
    return MethodsFacts(
        app_version=__version__,
        fmriprep_versions=tuple(fmriprep),
        participants=tuple(dict.fromkeys(d.participant for d in designs)),
        n_runs=len({(d.participant, run.label) for d in designs for run in d.runs}),
        space=", ".join(dict.fromkeys(d.place for d in designs)),
        units=tuple(dict.fromkeys(FORM_UNITS[run.form] for d in designs for run in d.runs)),
        repetition_times=tuple(sorted({run.repetition_time for d in designs for run in d.runs})),
        window_length=settings.window or design.runs[0].repetition_time,
        window_position=settings.window_position,
        delays=settings.delays,
        confounds_strategy=settings.confounds,
        confound_columns=columns,
        denoised_in=tuple(dict.fromkeys(run.derivative for d in designs for run in d.runs if run.denoised)),
        high_pass=settings.high_pass or None,
        models=tuple(_model_facts(card, settings) for card in model_cards(plan)),
        alphas=tuple(float(a) for a in alpha_grid(low, high, int(number))),
        himalaya_version=versions["himalaya"] if settings.solver == "himalaya" else None,
        cv_scheme=_sentence(cv_words(design, settings)),
        scores=("r", "r2"),
        features_filtered=bool(settings.high_pass),
        noise_ceiling=_ceiling_words(plan, design),
        statistics=_statistics_words(settings, n_models=len(plan.models) + len(settings.feature_table)),
        joint_fits=_joint_words(settings),
        regions=atlas_words([files for d in designs for files in plan.atlases.get((d.participant, d.place), ())]),
        library_versions=versions,
    )


def _sentence(words: str) -> str:
    """Return words as a sentence; abbreviations keep their capitals."""
    return f"{words[:1].upper()}{words[1:]}."


def _ceiling_words(plan: StudyPlan, design: ParticipantDesign) -> str:
    averaged = plan.settings.repeats == "average"
    means = ", brought to the mean of the viewings by the formula of Spearman and Brown" if averaged else ""
    words = {
        "repeats": "as the square root of the bias-corrected explainable variance of single viewings of the held-out "
        f"films that were seen more than once [@schoppe2016]{means}",
        "participants": "by predicting each participant from all subsets of the others with ridge regression "
        "[@schrimpf2021] and extrapolating to infinitely many, with the growth that a shared signal and independent "
        "noise imply",
        "participants-exponential": "by predicting each participant from all subsets of the others with ridge "
        "regression and extrapolating with a saturating exponential [@schrimpf2021]",
    }
    return words.get(ceiling_method(plan.settings, plan.designs, design) or "", "")


def _statistics_words(settings: Settings, *, n_models: int) -> str:
    moved = {
        "block": f"blocks of {settings.block_length} volumes of the predictions were permuted within runs",
        "circular": "the predictions of each run were shifted around by a random number of volumes",
    }
    rate = {"bh": "[@benjamini1995]", "by": "[@benjamini2001]"}[settings.fdr]
    words = (
        "Whether the nested choice of a model predicts a voxel was tested within each participant on the held-out "
        f"volumes: {moved[settings.permutation_method]} {settings.n_permutations} times, the same for all voxels, and "
        "the correlation of the rows of all runs, each z-scored by itself, was compared with the permuted ones, both "
        "studentised for autocorrelation [@romano2022permutation]. p-values are one-sided; they are given per voxel, "
        "against the maximum over voxels, and as false discovery rate over the voxels of all models of the participant "
        f"{rate}."
    )
    if n_models < 2:
        return words
    return (
        f"{words} Two models were compared within each participant on the same volumes by {settings.n_permutations} "
        "random sign flips of the parts that sets of frequencies of each run add to the difference of their "
        "correlations, two-sided, per voxel and for means over regions."
    )


def _joint_words(settings: Settings) -> str:
    sentences = []
    if settings.bands:
        names = ", ".join(f"`{name}`" for name in settings.bands)
        sentences.append(
            f"{names} were also fitted jointly by banded ridge [@himalaya], each model with the condition and layer "
            "that training prefers over the whole brain, each group of instructions with the features under all of "
            "them at the layer that it prefers; R2 was split by the product measure, and what only one band "
            "explains was taken from the joint fit without it."
        )
    if settings.partition:
        names = ", ".join(f"`{name}`" for name in settings.partition)
        sentences.append(
            f"Every pair of instructions of {names} was fitted jointly by banded ridge at the layer that training "
            "prefers, and unique and shared parts follow from the single and the joint scores, in R2 and, where there "
            "is a noise ceiling, in normalized correlations, which unlike R2 do not add up."
        )
    return " ".join(sentences)


#: What the places of a series are called.
FORM_UNITS = {"volume": "voxels", "surface": "vertices", "grayordinates": "grayordinates", "parcels": "parcels"}
#: Training-internal R2 above which a voxel counts as predicted.
PREDICTED = 0.02
#: Seconds that single frames may be off the film's clock without a warning.
MAX_RESIDUAL = 0.1
GROUP_WORDS = (
    "Maps were averaged over participants without Fisher's z. The best instruction and layer of the group are those "
    "with the highest training-internal R2 on average over participants. Models were compared over participants by "
    "exact Wilcoxon signed-rank and sign-flip tests of each participant's mean difference, two-sided; with few "
    "participants these cannot reach the usual levels, and the smallest attainable p is given. The prevalence of an "
    "effect in the population was estimated from the number of participants with p of at most 0.05 [@ince2021]. Places"
    " in which the mean is called significant are those in which the p of all participants, combined by Fisher's "
    "method [@fisher1932], have a false discovery rate of at most 0.05 over the places of the model; that is a "
    "statement about these participants. Whether any voxel of a region is predicted was tested in each participant by "
    "Simes' combination of the p of its voxels [@simes1986], with the false discovery rate over regions and models. "
    "Classes of models were compared by the means over their models, with the participant as the unit, and within "
    "participants with the run."
)


def _model_facts(card: ModelCard, settings: Settings) -> ModelFacts:
    return ModelFacts(
        key=card.spec.key,
        family=card.spec.family,
        media=card.spec.media,
        kind=card.spec.kind,
        n_layers=card.n_layers,
        width=card.width,
        source=card.spec.source if not Path(card.spec.source).is_absolute() else Path(card.spec.source).name,
        revision=card.spec.revision,
        dtype=card.spec.dtype,
        poolings=card.poolings,
        instructions=card.instructions,
        max_new_tokens=settings.max_new_tokens,
        n_frames=card.n_frames,
        random_weights=card.spec.weights == "random",
        n_demonstrations=card.n_demonstrations,
    )


def write_participant_report(
    plan: StudyPlan,
    design: ParticipantDesign,
    cards: tuple[ModelCard, ...],
    *,
    failures: tuple[Failure, ...],
) -> Path:
    """Write the page of one participant in one space from the plan and the outputs; returns its path.

    Its name is that of `page_path`. A participant with many sessions has a page for each beside it.
    """
    found = find_results(plan.settings.output_dir, [design.participant])
    results = [result for result in found if _planned(plan, design, result)]
    checks = found_checks(plan.settings.output_dir, [model.key for model in plan.models])
    rows = make_rows(design, delays=plan.settings.delays, cv=cv_options(plan.settings, design.participant))
    viewer = viewer_block(results)
    atlases = plan.atlases.get((design.participant, design.place), ())
    clock = found_clock(plan.settings.output_dir, design)
    page = ParticipantPage(
        participant=design.participant,
        app_version=__version__,
        created=now(),
        place=design.place,
        warnings=(
            *participant_warnings(plan, design, results, failed=bool(failures)),
            *(() if clock is None else clock_warnings(clock)),
            *conditioning_warnings(checks),
        ),
        errors=tuple(ReportedError(f"{f.node}: {f.sentence}", f.crash_file.name) for f in failures),
        summary=_summary(plan, design, results),
        runs=design.runs,
        windows=design.windows,
        dropped=design.dropped,
        clock=() if clock is None else clock_blocks(clock, units=FORM_UNITS[design.runs[0].form]),
        models=cards,
        checks=check_blocks(plan.settings.output_dir, checks),
        cross_validation=CrossValidation(
            rows.folds,
            list(rows.run_of_row),
            tuple(run.label for run in design.runs),
            _sentence(cv_words(design, plan.settings)) + _scored_words(rows.folds),
        ),
        scores=(score_table(results), *comparison_tables(results)) if results else (),
        viewer=() if viewer is None else (viewer,),
        maps=best_maps(without_figures(results)),
        figures=figure_blocks(results, participant=design.participant, atlases=atlases, views=plan.settings.map_views),
        roi_tables=region_tables(results),
        explorer=explorer_blocks(results),
        resources=(resources_table(plan.settings.output_dir, design.participant),),
        methods=methods_text(methods_facts(plan, [design])),
        bibliography=bibliography(),
        versions=library_versions(),
        settings=settings_cells(plan.settings),
    )
    first = next(other for other in plan.designs if other.participant == design.participant)
    path = page_path(plan.settings.output_dir, design.participant, design.place, first=design is first)
    _write_pages(path, page)
    return path


def _write_pages(path: Path, page: ParticipantPage) -> None:
    """Write a participant's page; with many sessions also one for each, and remove those of sessions that are gone."""
    paths = {session: session_page_path(path, session) for session in sessions_of(page)}
    main, pages = split_page(page, {session: own.name for session, own in paths.items()})
    for session, own in paths.items():
        write_text(own, render_session(pages[session], session, main=path.name))
    write_text(path, render_participant(main))
    remove_session_pages(path, kept=paths.values())


def _scored_words(folds: Sequence[Fold]) -> str:
    """Say how many rows are scored where viewings are averaged."""
    if all(fold.viewings is None for fold in folds):
        return ""
    n_test, n_scored = sum(len(fold.test) for fold in folds), sum(fold.scored.shape[1] for fold in folds)
    return f" Viewings of a held-out film are averaged: {n_scored} moments are scored of {n_test} test rows."


def _planned(plan: StudyPlan, design: ParticipantDesign, result: ModelResult) -> bool:
    """Whether a result on disk is of this space, of the films held out and of the models asked for now."""
    models = {model.key for model in plan.models} | set(plan.settings.feature_table)
    same = (result.name.place, result.name.task) == (design.place, output_task(design))
    return same and result.model in models


def now() -> str:
    """Return the time to the minute, with its zone."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def settings_cells(settings: Settings) -> dict[str, str]:
    """Return the settings as text, those that are set."""
    cells = {}
    for line in settings_to_toml(settings).splitlines():
        name, equals, value = line.partition(" = ")
        if equals:
            cells[name] = value
    return cells


def _summary(plan: StudyPlan, design: ParticipantDesign, results: Sequence[ModelResult]) -> dict[str, Any]:
    volumes = sum(run.n_volumes for run in design.runs)
    used = sum(int(windows.valid.sum()) for windows in design.windows)
    summary: dict[str, Any] = {
        "Runs used": len(design.runs),
        "Runs left out": len(design.dropped),
        "Space": design.place,
        "Volumes with a complete window": f"{used} of {volumes}",
        "Stimuli": len({s.stim_file for run in design.runs for s in run.showings}),
    }
    if results:
        values, _ = results[0].map("r", "best")
        summary[f"{results[0].name.units.capitalize()} with a score"] = int(np.isfinite(values).sum())
    return summary


def participant_warnings(
    plan: StudyPlan, design: ParticipantDesign, results: Sequence[ModelResult], *, failed: bool
) -> tuple[str, ...]:
    """Return what a reader should know before looking at results."""
    warnings = []
    if failed and results:
        warnings.append("A step failed in this call: what is shown of it, if anything, is of an earlier call.")
    if design.dropped:
        taken = "1 run takes" if len(design.dropped) == 1 else f"{len(design.dropped)} runs take"
        warnings.append(f"{taken} no part; the reasons are listed below.")
    warnings += _atlas_warning(plan, design)
    if plan.settings.sloppy:
        warnings.append("Made with --sloppy: the low-level features are coarse; use for trying out only.")
    if plan.settings.window_position != "end":
        warnings.append("Windows do not end with their TR, so that features may hold frames shown after it.")
    warnings += alignment_warnings(design)
    for result in results:
        sidecar = result.sidecar()
        warnings += sidecar["Warnings"]
        warnings += _edge_warning(result, sidecar)
        warnings += _untested_warning(result)
    # What concerns all models, such as a damaged film, stands in the sidecar of each.
    return tuple(dict.fromkeys(warnings))


def alignment_warnings(design: ParticipantDesign) -> list[str]:
    """Warn of runs whose events and media disagree, or whose frames do not keep to the film's clock."""
    warnings = []
    for windows in design.windows:
        seconds = windows.report["unexplained_seconds"]
        if seconds > 1:
            warnings.append(
                f"{windows.run_label}: events and media disagree by {seconds:.2f} s about how long the film lasts."
            )
        residual = windows.report["frame_clock_residual_seconds"]
        if residual is not None and residual > MAX_RESIDUAL:
            warnings.append(
                f"{windows.run_label}: single frames were shown up to {residual:.2f} s off the straight line of the "
                "film's clock, so that playback stalled or the events are wrong there."
            )
    return warnings


def _atlas_warning(plan: StudyPlan, design: ParticipantDesign) -> list[str]:
    """Name the atlases asked for that do not serve this participant in this place."""
    served = {files.name for files in plan.atlases[design.participant, design.place]}
    absent = [item.name for item in atlas_items(plan.settings.atlas) if item.name not in served]
    if not absent or design.runs[0].form == "parcels":
        return []
    return [f"{', '.join(absent)}: no file of this atlas serves {design.place}; the log says which would."]


def _untested_warning(result: ModelResult) -> list[str]:
    """Say why there are no p-values where there are none."""
    path = sidecar_path(result.path("p", "best"))
    if not path.is_file():
        return [f"{result.model} is not tested against chance: its maps are of an earlier version."]
    test = read_json(path)["Test"]
    return [] if test["Method"] else [f"{result.model} is not tested against chance: {test['Reason']}"]


def _edge_warning(result: ModelResult, sidecar: Mapping[str, Any]) -> list[str]:
    """Warn where many voxels that are predicted sit on an edge of the grid; others are pushed to its top by noise."""
    edge = np.stack([np.atleast_2d(result.map("alphaedge", c)[0]) for c in sidecar["Conditions"]])
    scores = np.stack([np.atleast_2d(result.map("cvr2", c)[0]) for c in sidecar["Conditions"]])
    good = np.isfinite(scores) & (scores > PREDICTED)
    if not good.any():
        return []
    share = float(edge[good].mean())
    if share <= 0.1:
        return []
    return [
        f"{result.model}: {share:.0%} of the fits with a training-internal R2 above {PREDICTED:g} chose an alpha on "
        "the edge of the grid; widen --alphas."
    ]
