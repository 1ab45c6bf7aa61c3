"""Which figures a page has: gathered from the outputs on disk, written beside them, and sorted into its sections."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bids_mllm.group.tables import MIN_COVERAGE
from bids_mllm.io.atlas import AtlasFiles
from bids_mllm.io.files import iter_tsv
from bids_mllm.io.results import ModelResult, table_paths
from bids_mllm.records import MAP_VIEWS
from bids_mllm.report.content import Block, Bullets, Heading, Paragraph, Picture
from bids_mllm.report.figures import FigureData
from bids_mllm.workflows.brain_drawing import PREFIX, views_of
from bids_mllm.workflows.brain_figures import brain_figures
from bids_mllm.workflows.chart_figures import chart_figures
from bids_mllm.workflows.figures import remove_other_figures, write_figures
from bids_mllm.workflows.viewer import explorer_block

#: In which section of a page figures of a kind stand.
SECTIONS = {
    "map-scores": "maps",
    "map-thresholded": "maps",
    "map-ceiling": "maps",
    "map-labels": "rois",
    "map-category": "best",
    "map-layer": "best",
    "map-contrast": "comparisons",
    "model-bars": "rois",
    "choice-bars": "best",
    "layer-curves": "layers",
    "layer-heat-map": "layers",
    "shared-heat-map": "partition",
    "venn": "partition",
    "coupling-scatter": "coupling",
}

#: Bytes of the pictures of a page; its other parts take a few megabytes.
PAGE_BYTES = 6_000_000
_KEYS = ("model", "condition", "layer", "roi", "kind")
_MEASURES = ("r", "r_normalized")


def figures_folder(output_dir: Path, participant: str | None) -> Path:
    """Return the folder of the figures of one participant, or of the group."""
    return output_dir / (f"sub-{participant}" if participant else "group") / "figures"


def figure_blocks(
    results: Sequence[ModelResult],
    *,
    participant: str | None = None,
    atlases: Sequence[AtlasFiles] = (),
    views: Sequence[str] = MAP_VIEWS,
) -> Mapping[str, tuple[Block, ...]]:
    """Write every figure that the outputs allow, and return what each section of the page shows of them.

    Parameters
    ----------
    results
        What participants finished, of one participant for its own page.
    participant
        Label of the one whose page it is; None for the page of the group.
    atlases
        Whose regions are shown.
    views
        Rows of panels of the brain maps: glass, slices, inflated, flat.

    Returns
    -------
    blocks : dict
        By the identifier of the section: a heading with the title of each figure, and its picture.
    """
    if not results:
        return {}
    output_dir = results[0].output_dir
    found = [
        *brain_figures(output_dir, results if participant else group_models(results), atlases=atlases, views=views),
        *chart_figures(results, participant=participant),
    ]
    folder = figures_folder(output_dir, participant)
    pictures = write_figures(folder, found, output_dir=output_dir)
    if participant is None:
        # Those of a participant may be of another call, with other models or in another space.
        remove_other_figures(folder, kept={data.name for data in found})
    on_page = _fitting(found, pictures)
    places = _places_by_entities(results, participant)
    shown: dict[str, list[Block]] = defaultdict(list)
    not_shown: dict[str, list[str]] = defaultdict(list)
    for data, picture in zip(found, pictures, strict=True):
        title = data.title + _place_words(data.name, places)
        if data.name in on_page:
            shown[section_of(data)] += [Heading(title), picture]
        else:
            not_shown[section_of(data)].append(f"{title}: {data.name}.png")
    for section, names in not_shown.items():
        where = folder.relative_to(output_dir)
        shown[section] += [
            Paragraph(f"The page would grow too large with these; they are in {where}:"),
            Bullets(tuple(names)),
        ]
    return {section: tuple(blocks) for section, blocks in shown.items()}


def _fitting(found: Sequence[FigureData], pictures: Sequence[Picture]) -> set[str]:
    """Return the names of the figures that a page has room for: charts, which are small, before brain maps."""
    left, names = PAGE_BYTES, set()
    for data, picture in sorted(zip(found, pictures, strict=True), key=lambda pair: pair[0].kind.startswith(PREFIX)):
        if len(picture.data) <= left:
            left -= len(picture.data)
            names.add(data.name)
    return names


def _places_by_entities(results: Sequence[ModelResult], participant: str | None) -> Mapping[frozenset[str], str]:
    """Return films and space in words by their entities in file names; none where all results have the same."""
    names = dict.fromkeys(result.name if participant else result.name.of_group() for result in results)
    if len(names) < 2:
        return {}
    return {
        _entities(name.path(Path(), suffix="", extension="").name): f" (films {name.task}, space {name.place})"
        for name in names
    }


def _entities(stem: str) -> frozenset[str]:
    return frozenset(stem.split("_")) - {""}


def _place_words(stem: str, places: Mapping[frozenset[str], str]) -> str:
    """Return the words of the place that shares most entities with the name of a figure, all of its own among them."""
    found = [entities for entities in places if entities <= _entities(stem)]
    return places[max(found, key=len)] if found else ""


def group_models(results: Sequence[ModelResult]) -> tuple[ModelResult, ...]:
    """Return the group maps that were written for these results."""
    keys = dict.fromkeys((result.name.of_group(), result.model) for result in results)
    found = [ModelResult(name, model, results[0].output_dir) for name, model in keys]
    return tuple(result for result in found if result.path("r", "best").is_file())


def without_figures(results: Sequence[ModelResult]) -> tuple[ModelResult, ...]:
    """Return those whose maps no figure can show: parcels, and places whose surfaces are not at hand."""
    return tuple(result for result in results if not views_of(result.name.space, result.map("r", "best")[1]))


def explorer_blocks(results: Sequence[ModelResult]) -> tuple[Block, ...]:
    """Return curves of regions over layers to choose from, one block an atlas, films and space.

    Parameters
    ----------
    results
        Of one or more participants, whose scores are averaged.
    """
    blocks: list[Block] = []
    for name in dict.fromkeys(result.name.of_group() for result in results):
        own = [result for result in results if result.name.of_group() == name]
        for atlas in dict.fromkeys(atlas for result in own for atlas in table_paths(result, "scores")):
            rows = _averaged([paths[atlas] for paths in (table_paths(one, "scores") for one in own) if atlas in paths])
            block = explorer_block(rows, caption=f"Scores of the regions of {atlas} by layer ({name.place}).")
            blocks += [] if block is None else [block]
    return tuple(blocks)


def _averaged(paths: Sequence[Path]) -> Iterator[dict[str, str]]:
    """Yield the rows of the layers of several tables, averaged over the participants who have the region."""
    sums: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0, 0.0] * len(_MEASURES))
    for path in paths:
        for row in iter_tsv(path):
            if row["layer"] == "best" or float(row["coverage"]) < MIN_COVERAGE:
                continue
            own = sums[tuple(row[key] for key in _KEYS)]
            for place, measure in enumerate(_MEASURES):
                if row.get(measure, "n/a") != "n/a":
                    own[2 * place] += float(row[measure])
                    own[2 * place + 1] += 1
    for key, own in sums.items():
        means = {
            measure: f"{own[2 * place] / own[2 * place + 1]:.6g}" if own[2 * place + 1] else "n/a"
            for place, measure in enumerate(_MEASURES)
        }
        yield {**dict(zip(_KEYS, key, strict=True)), **means}


def section_of(data: FigureData) -> str:
    """Return the identifier of the section in which a figure stands."""
    return SECTIONS[data.kind]
