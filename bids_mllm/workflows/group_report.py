"""The group page, made from the outputs on disk."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bids_mllm import __version__
from bids_mllm.config import Settings
from bids_mllm.group.tables import coverage_warnings, roi_summary
from bids_mllm.io.derivatives import MapName
from bids_mllm.io.files import read_tsv, write_text
from bids_mllm.io.results import ModelResult
from bids_mllm.records import NATIVE_SPACES, ModelSpec
from bids_mllm.report.conditioning import conditioning_warnings
from bids_mllm.report.content import Table
from bids_mllm.report.pages import GroupPage, ModelPictures, ReportedError, render_group
from bids_mllm.report.tables import ModelCard
from bids_mllm.workflows.agreement import agreement_blocks
from bids_mllm.workflows.checks import check_blocks, found_checks
from bids_mllm.workflows.comparisons import number_cell, within_participants
from bids_mllm.workflows.facts import library_versions
from bids_mllm.workflows.figure_tables import atlas_tables, number_of
from bids_mllm.workflows.group import differing_places, missing_participants
from bids_mllm.workflows.group_shown import choice_tables, class_tables, partition_blocks
from bids_mllm.workflows.page_figures import explorer_blocks, figure_blocks, group_models, without_figures
from bids_mllm.workflows.pictures import best_maps, score_table
from bids_mllm.workflows.reports import GROUP_WORDS, bibliography, now, settings_cells
from bids_mllm.workflows.resources import resources_table
from bids_mllm.workflows.run import Failure
from bids_mllm.workflows.viewer import viewer_block

SCORE_COLUMNS = ("r", "r2", "cv_r2", "r_normalized")


def write_group_report(
    settings: Settings,
    results: Sequence[ModelResult],
    *,
    failures: tuple[Failure, ...],
    left_out: tuple[str, ...] = (),
) -> Path:
    """Write ``group.html`` and the figures from the group maps and tables; returns the path of the page."""
    of_group = group_models(results)
    checks = found_checks(settings.output_dir, list(dict.fromkeys(result.model for result in results)))
    pictures = best_maps(without_figures(of_group), who="the group")
    roi_tables, uncovered = _rois(settings.output_dir, results)
    viewer = viewer_block(of_group)
    page = GroupPage(
        participants=tuple(dict.fromkeys(str(r.name.participant) for r in results)),
        app_version=__version__,
        created=now(),
        warnings=(*_warnings(settings, results), *uncovered, *conditioning_warnings(checks)),
        errors=(
            *(ReportedError(sentence) for sentence in left_out),
            *(ReportedError(f"{f.node}: {f.sentence}", f.crash_file.name) for f in failures),
        ),
        summary=_summary(results),
        participant_tables=_participant_tables(results),
        models=_cards(results),
        checks=check_blocks(settings.output_dir, checks),
        agreement=agreement_blocks(settings, results),
        viewer=() if viewer is None else (viewer,),
        maps=tuple(ModelPictures(p.model, p.pictures[:1]) for p in pictures),
        best_maps=tuple(ModelPictures(p.model, p.pictures[1:]) for p in pictures if len(p.pictures) > 1),
        figures=figure_blocks(results, views=settings.map_views),
        choices=choice_tables(results),
        roi_tables=roi_tables,
        explorer=explorer_blocks(results),
        comparisons=_comparisons(settings.output_dir, results),
        classes=class_tables(results),
        partition=partition_blocks(results),
        resources=(resources_table(settings.output_dir),),
        methods=_methods(settings.output_dir),
        bibliography=bibliography(),
        versions=library_versions(),
        settings=settings_cells(settings),
    )
    path = settings.output_dir / "group.html"
    write_text(path, render_group(page))
    return path


def _warnings(settings: Settings, results: Sequence[ModelResult]) -> tuple[str, ...]:
    warnings = [*missing_participants(settings), *_other_participants(results)]
    versions = {str(result.sidecar()["AppVersion"]) for result in results}
    if len(versions) > 1:
        warnings.append(
            f"The participants' results come from several versions of the app: {', '.join(sorted(versions))}."
        )
    if any(result.sidecar()["Sloppy"] for result in results):
        warnings.append("Made with --sloppy: the low-level features are coarse; use for trying out only.")
    models = {result.model for result in results}
    for participant in dict.fromkeys(result.name.participant for result in results):
        own = {result.model for result in results if result.name.participant == participant}
        if own != models:
            warnings.append(f"sub-{participant} has no results of {', '.join(sorted(models - own))}.")
    warnings += [*_split_warning(results), *differing_places(results), *_native_warning(results)]
    n = len({result.name.participant for result in results})
    warnings.append(
        f"{n} participants: a test over them cannot reach a two-sided p below {min(1.0, 2.0 ** (1 - n)):.3g}. The "
        "tests within participants stand on their own; prevalence says how far they carry."
    )
    return tuple(warnings)


def _other_participants(results: Sequence[ModelResult]) -> list[str]:
    """Warn of group maps that were made of other participants than those whose results there are now."""
    differing: dict[tuple[tuple[str, ...], tuple[str, ...]], list[ModelResult]] = defaultdict(list)
    for of_group in group_models(results):
        in_maps = {str(label) for label in of_group.sidecar().get("Participants", ())}
        now_there = {
            str(result.name.participant)
            for result in results
            if (result.name.of_group(), result.model) == (of_group.name, of_group.model)
        }
        if in_maps and in_maps != now_there:
            differing[tuple(sorted(now_there - in_maps)), tuple(sorted(in_maps - now_there))].append(of_group)
    warnings = []
    for (new, gone), maps in differing.items():
        said = [f"{_labels(new)} not in them"] if new else []
        said += [f"{_labels(gone)} in them, but no longer among the results used"] if gone else []
        headings = ", ".join(one.heading(group_models(results)) for one in maps)
        warnings.append(
            f"The group maps of {headings} were made of other participants than this page: {'; '.join(said)}. Run the "
            "group level without --reports-only to make them again."
        )
    return warnings


def _labels(participants: Sequence[str]) -> str:
    named = ", ".join(f"sub-{label}" for label in participants)
    return f"{named} {'is' if len(participants) == 1 else 'are'}"


def _split_warning(results: Sequence[ModelResult]) -> list[str]:
    """Warn where participants were not held out on the same films, so that each set has maps of its own."""
    by_task: dict[str, set[str]] = defaultdict(set)
    for result in results:
        by_task[result.name.task].add(str(result.name.participant))
    if len(by_task) < 2:
        return []
    sets = "; ".join(f"{task}: {', '.join(sorted(labels))}" for task, labels in by_task.items())
    return [f"Participants were not held out on the same films, so each set has maps and tables of its own ({sets})."]


def _native_warning(results: Sequence[ModelResult]) -> list[str]:
    """Say in which spaces there are no maps of the group, since places of participants do not correspond."""
    native = dict.fromkeys(result.name.place for result in results if result.name.space in NATIVE_SPACES)
    if not native:
        return []
    return [f"In {', '.join(native)} places of participants do not correspond: there are tables, but no group maps."]


def _summary(results: Sequence[ModelResult]) -> dict[str, Any]:
    sidecar = results[0].sidecar()
    return {
        "Participants": len({r.name.participant for r in results}),
        "Models": ", ".join(dict.fromkeys(r.model for r in results)),
        "Held-out films": ", ".join(dict.fromkeys(r.name.task for r in results)),
        "Spaces": ", ".join(dict.fromkeys(r.name.place for r in results)),
        "Cross-validation": sidecar["CrossValidation"],
    }


def _participant_tables(results: Sequence[ModelResult]) -> tuple[Table, ...]:
    tables = []
    for participant in dict.fromkeys(r.name.participant for r in results):
        own = score_table([r for r in results if r.name.participant == participant])
        tables.append(Table(f"sub-{participant}: {own.caption}", own.columns, own.rows))
    return tuple(tables)


def _cards(results: Sequence[ModelResult]) -> tuple[ModelCard, ...]:
    cards = {}
    for result in results:
        model: Mapping[str, Any] = result.sidecar()["Model"]
        spec = ModelSpec(
            key=result.model,
            family=model["Family"],
            media=model.get("Media", "table"),
            source=model["Source"],
            revision=model.get("Revision"),
            kind=model["Kind"],
            licence=model.get("Licence", ""),
            dtype=model.get("DType", "float32"),
            weights=model.get("Weights", "pretrained"),
        )
        cards[result.model] = ModelCard(
            spec=spec,
            n_layers=len(result.sidecar()["Layers"]),
            width=model.get("Width", 0),
            poolings=tuple(model.get("Poolings", ())),
        )
    return tuple(cards.values())


def _rois(output_dir: Path, results: Sequence[ModelResult]) -> tuple[tuple[Table, ...], tuple[str, ...]]:
    """Return a table of each atlas, and warnings of participants whose masks miss regions."""
    tables, warnings = [], []
    for name in dict.fromkeys(result.name.of_group() for result in results):
        for atlas, content in atlas_tables(name, output_dir, "scores"):
            rows = [_numbers(row) for row in content if row["layer"] == row["condition"] == "best"]
            warnings += [f"{atlas}, {name.place}: {sentence}" for sentence in coverage_warnings(rows)]
            many = len({result.name.of_group() for result in results}) > 1
            heading = f"{atlas} (films {name.task}, space {name.place})" if many else atlas
            tables += [_mean_table(roi_summary(rows), heading), _own_table(rows, heading)]
    return tuple(tables), tuple(dict.fromkeys(warnings))


def _numbers(row: Mapping[str, str]) -> dict[str, Any]:
    numbers = {name: float("nan") if row[name] == "n/a" else float(row[name]) for name in SCORE_COLUMNS}
    return {**row, **numbers}


def _mean_table(best: Sequence[Mapping[str, Any]], atlas: str) -> Table:
    """Means over participants, groups and sets of areas before areas."""
    cells = tuple(
        (
            row["roi"], row["model"], row["r"], row["r_sem"], row["r_normalized"], row["r2"], row["n_participants"],
            row["lowest_coverage"],
        )
        for row in sorted(best, key=lambda row: row["kind"] == "area")
    )  # fmt: skip
    columns = (
        "ROI", "Model", "Mean r", "SEM over participants", "Mean r / ceiling", "Mean R2", "Participants",
        "Lowest coverage",
    )  # fmt: skip
    return Table(
        f"ROIs of {atlas}, mean over participants; condition and layer chosen inside training.", columns, cells
    )


def _own_table(rows: Sequence[Mapping[str, Any]], atlas: str) -> Table:
    """Every participant in the groups and sets of areas, with the tests of the regions."""
    tested = ("noise_ceiling", "p", "q")
    cells = tuple(
        (
            row["roi"], row["model"], f"sub-{row['participant']}", row["r"], row["r_normalized"], row["r2"],
            *(number_of(row.get(name, "n/a")) for name in tested), _count(row.get("n_voxels", "n/a")),
            float(row["coverage"]),
        )
        for row in rows
        if row["kind"] != "area"
    )  # fmt: skip
    columns = (
        "ROI", "Model", "Participant", "r", "r / ceiling", "R2", "Ceiling", "p", "q", "Places", "Coverage",
    )  # fmt: skip
    caption = (
        f"ROIs of {atlas} in each participant; p is Simes' combination of the permutation p of the region's voxels, q "
        "its false discovery rate over regions and models of the participant."
    )
    return Table(caption, columns, cells)


def _count(text: str) -> int | None:
    return None if text == "n/a" else int(float(text))


def _comparisons(output_dir: Path, results: Sequence[ModelResult]) -> tuple[Table, ...]:
    tables = []
    for name in dict.fromkeys(result.name.of_group() for result in results):
        tables += [*within_participants(output_dir, name), *_over(output_dir, name)]
    return tuple(tables)


def _over(output_dir: Path, name: MapName) -> list[Table]:
    """Model against model over participants."""
    path = name.path(output_dir, extension=".tsv", stat="grouptest")
    rows = [row for row in (read_tsv(path) if path.is_file() else []) if row["roi"] == "all"]
    if not rows:
        return []
    cells = tuple(
        (
            row["model_a"], row["model_b"], number_cell(row["mean_difference"]), int(row["n_participants"]),
            number_cell(row["p_wilcoxon"]), number_cell(row["p_sign_flip"]), number_cell(row["smallest_p"]),
        )
        for row in rows
    )  # fmt: skip
    columns = ("Model A", "Model B", "Mean r of A less B", "Participants", "p Wilcoxon", "p sign flip", "Smallest p")
    caption = f"Model against model over participants ({name.place}); the unit of the tests is the participant."
    return [Table(caption, columns, cells)]


def _methods(output_dir: Path) -> str:
    """Return the methods text of the participant level with what the group level adds."""
    path = output_dir / "logs" / "CITATION.md"
    return f"{path.read_text(encoding='utf-8').rstrip()}\n\n{GROUP_WORDS}\n" if path.is_file() else GROUP_WORDS
