"""Figures on disk: the table of each, what else it needs, and its drawing as SVG and PNG."""

import gc
import gzip
import io
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from bids_mllm import __version__
from bids_mllm.exceptions import BidsMllmError, InputDataError
from bids_mllm.io.files import atomic_path, read_columns, read_json, read_tsv, write_columns, write_json, write_tsv
from bids_mllm.report import (  # noqa: F401 (each registers its drawers)
    bar_figures,
    coupling_figures,
    layer_figures,
    partition_figures,
)
from bids_mllm.report.content import Cell, Picture
from bids_mllm.report.figures import DRAWERS, ColumnRows, FigureData
from bids_mllm.report.style import CHART_STYLE, png_bytes, svg_bytes
from bids_mllm.workflows.brain_drawing import PREFIX, draw_brain

#: Tables with more rows are compressed.
PLAIN_ROWS = 20_000
#: A page shows figures whose SVG is larger, in bytes, as a compressed picture of so many pixels across.
LARGE_SVG = 150_000
PAGE_WIDTH = 1100
PAGE_QUALITY = 75
#: Of 0 to 6: this one takes a third of the time of the usual 4, for 5 % more bytes.
PAGE_EFFORT = 2
#: Of 0 to 9: the largest takes ten times as long for 7 % fewer bytes.
GZIP_EFFORT = 4
DPI = 150
EXTENSIONS = (".tsv.gz", ".tsv", ".svg", ".png", ".json")
FIELDS = ("Kind", "Title", "AltText", "Caption", "Columns", "Options")


def write_figures(folder: Path, figures: Sequence[FigureData], *, output_dir: Path) -> tuple[Picture, ...]:
    """Write figures as ``NAME.tsv`` (``.tsv.gz`` where long), ``.json``, ``.svg`` and ``.png``.

    Each is drawn from what was written, so that `redraw` gives the same drawing; where the table and the JSON are as
    they were, by the same version of the app, the drawings that are there stay.

    Parameters
    ----------
    folder
        Where the files go; made where it is missing.
    figures
        What is drawn.
    output_dir
        Folder of the outputs, in which maps that a figure names are found.

    Returns
    -------
    pictures : tuple of Picture
        For a page, in the same order.
    """
    pictures = []
    with _collected_by_hand():
        for data in figures:
            pictures.append(_written(folder, data, output_dir))
            gc.collect(0)
    return tuple(pictures)


@contextmanager
def _collected_by_hand() -> Iterator[None]:
    """Keep the garbage collector from running by itself, which takes a seventh of the time of drawing.

    A figure has so many parts that it would go through everything else in memory again and again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def redraw(path: str | Path, *, output_dir: str | Path | None = None) -> tuple[Path, Path]:
    """Draw a figure again from its table and its options, and write its SVG and PNG.

    Parameters
    ----------
    path
        One of the files of the figure, whichever.
    output_dir
        Folder of the outputs (default: the one in which the figure lies).

    Returns
    -------
    svg, png : Path

    Raises
    ------
    InputDataError
        When the table or the JSON of the figure is missing or damaged; names it.
    """
    data = read_figure(path)
    base = _base(Path(path))
    svg, png = _drawn(data, Path(output_dir or base.absolute().parent.parent.parent))
    paths = base.with_name(base.name + ".svg"), base.with_name(base.name + ".png")
    for target, content in zip(paths, (svg, png), strict=True):
        with atomic_path(target) as scratch:
            scratch.write_bytes(content)
    return paths


def read_figure(path: str | Path) -> FigureData:
    """Return the figure that was written under a name.

    Parameters
    ----------
    path
        One of the files of the figure.

    Raises
    ------
    InputDataError
        When its table or its JSON is missing or damaged; names it.
    """
    base = _base(Path(path))
    described = base.with_name(base.name + ".json")
    try:
        content = read_json(described)
        kind, title, alt, caption, columns, options = (content[field] for field in FIELDS)
        rows = _read_rows(base, columns, of_map=str(kind).startswith(PREFIX))
    except (BidsMllmError, KeyError, TypeError, ValueError) as error:
        raise InputDataError(
            f"The figure {base} cannot be read ({error}); write it anew by running the same level with --reports-only."
        ) from error
    return FigureData(kind, base.name, title, alt, caption, rows, options)


def remove_other_figures(folder: Path, *, kept: Set[str]) -> None:
    """Remove the figures of a folder that have other names than those kept; files that are no figure's stay.

    Parameters
    ----------
    folder
        As of `write_figures`.
    kept
        Names of figures.
    """
    for described in sorted(folder.glob("*.json")):
        if described.stem not in kept and "AltText" in read_json(described):
            for extension in EXTENSIONS:
                described.with_name(described.stem + extension).unlink(missing_ok=True)


def _base(path: Path) -> Path:
    """Path of a figure without the extension."""
    name = path.name
    for extension in EXTENSIONS:
        if name.endswith(extension):
            return path.with_name(name.removesuffix(extension))
    raise InputDataError(f"{path} is no file of a figure; give its .tsv, .tsv.gz, .json, .svg or .png.")


def _written(folder: Path, data: FigureData, output_dir: Path) -> Picture:
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / data.name
    before = _state(base)
    _write_rows(base, data)
    columns = _types_of(data.rows)
    values = (data.kind, data.title, data.alt, data.caption, columns, dict(data.options), __version__)
    write_json(base.with_name(base.name + ".json"), dict(zip((*FIELDS, "AppVersion"), values, strict=True)))
    svg, png = (base.with_name(base.name + extension) for extension in (".svg", ".png"))
    if _state(base) != before or not (svg.is_file() and png.is_file()):
        redraw(svg, output_dir=output_dir)
    shown = svg.read_bytes()
    return Picture(shown if len(shown) <= LARGE_SVG else _for_page(png.read_bytes()), data.alt, data.caption)


def _state(base: Path) -> tuple[bytes, ...]:
    """Return what the drawing is made from; drawing it again from the same takes time and changes nothing."""
    paths = [base.with_name(base.name + extension) for extension in (".json", ".tsv", ".tsv.gz")]
    return tuple(path.read_bytes() if path.is_file() else b"" for path in paths)


def _for_page(png: bytes) -> bytes:
    """Return a picture as WebP that is no wider than a page."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as drawn:
        shown = drawn.convert("RGB")
    if shown.width > PAGE_WIDTH:
        size = PAGE_WIDTH, round(shown.height * PAGE_WIDTH / shown.width)
        shown = shown.resize(size, Image.Resampling.LANCZOS)
    shown.save(buffer, "WEBP", quality=PAGE_QUALITY, method=PAGE_EFFORT)
    return buffer.getvalue()


def _write_rows(base: Path, data: FigureData) -> None:
    plain, compressed = base.with_name(base.name + ".tsv"), base.with_name(base.name + ".tsv.gz")
    if len(data.rows) <= PLAIN_ROWS:
        _write_table(plain, data.rows)
        compressed.unlink(missing_ok=True)
        return
    with atomic_path(compressed) as scratch:
        table = scratch.with_name(scratch.name.removesuffix(".gz"))
        try:
            _write_table(table, data.rows)
            with scratch.open("wb") as file, gzip.GzipFile("", "wb", GZIP_EFFORT, fileobj=file, mtime=0) as stream:
                stream.write(table.read_bytes())
        finally:
            table.unlink(missing_ok=True)
    plain.unlink(missing_ok=True)


def _write_table(path: Path, rows: Sequence[Mapping[str, Cell]]) -> None:
    if isinstance(rows, ColumnRows):
        write_columns(path, rows.columns)
    else:
        write_tsv(path, rows)


def _read_rows(base: Path, columns: Mapping[str, str], *, of_map: bool) -> Sequence[Mapping[str, Cell]]:
    plain, compressed = base.with_name(base.name + ".tsv"), base.with_name(base.name + ".tsv.gz")
    if of_map:
        kinds = {name: int if kind == "integer" else float for name, kind in columns.items()}
        return ColumnRows(read_columns(compressed if compressed.is_file() else plain, kinds))
    if not compressed.is_file():
        texts = read_tsv(plain)
    else:
        try:
            header, *lines = gzip.decompress(compressed.read_bytes()).decode("utf-8").removesuffix("\n").split("\n")
        except (OSError, EOFError) as error:
            raise InputDataError(f"{compressed} is damaged ({error}).") from error
        names = header.split("\t")
        texts = [dict(zip(names, line.split("\t"), strict=True)) for line in lines]
    return tuple({name: _value(row[name], kind) for name, kind in columns.items()} for row in texts)


def _types_of(rows: Sequence[Mapping[str, Cell]]) -> dict[str, str]:
    if isinstance(rows, ColumnRows):
        return {name: "integer" if values.dtype.kind == "i" else "number" for name, values in rows.columns.items()}
    return {name: _type_of([row[name] for row in rows]) for name in (rows[0] if rows else {})}


def _type_of(values: Sequence[Any]) -> str:
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, Integral) for value in present):
        return "integer"
    return "number" if all(isinstance(value, Real) for value in present) else "text"


def _value(text: str, kind: str) -> Cell:
    if text == "n/a":
        return None
    return text if kind == "text" else int(text) if kind == "integer" else float(text)


def _drawn(data: FigureData, output_dir: Path) -> tuple[bytes, bytes]:
    """Return a figure as SVG and PNG, whose bytes depend on nothing but its data."""
    with rc_context(dict(CHART_STYLE)):
        figure = draw(data, output_dir)
        return svg_bytes(figure), png_bytes(figure, dpi=DPI)


def draw(data: FigureData, output_dir: str | Path) -> Figure:
    """Draw a figure.

    Parameters
    ----------
    data
        As `read_figure` gives it.
    output_dir
        Folder of the outputs, in which maps that the figure names are found.

    Returns
    -------
    figure : matplotlib.figure.Figure

    Raises
    ------
    InputDataError
        When nothing draws figures of this kind.
    """
    if data.kind.startswith(PREFIX):
        return draw_brain(data, Path(output_dir))
    if data.kind not in DRAWERS:
        raise InputDataError(
            f"The figure {data.name} is of the kind {data.kind!r}, which this version cannot draw; it draws "
            f"{', '.join(sorted(DRAWERS))}."
        )
    return DRAWERS[data.kind](data)
