"""Small files, written whole or not at all, and the names of outputs."""

import gzip
import io
import json
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from bids_mllm.exceptions import BidsMllmError, StoreError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, with its extension, that is renamed to it on success.

    After an error nothing is left under either name. A full disk becomes one sentence.
    """
    extension = path.name.partition(".")[2]
    scratch: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix=f".{extension}" if extension else "")
        scratch = Path(name)
        os.close(handle)
        yield scratch
        scratch.chmod(0o666 & ~_umask())
        scratch.replace(path)
    except OSError as error:
        # numpy says how much of an array was written where the disk is full, without the system's own words
        reason = error.strerror or f"most likely no space left on device: {error}"
        raise StoreError(
            f"{path} cannot be written ({reason}); free space or check permissions there, and "
            "run again: what was finished is kept."
        ) from error
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_text_if_changed(path: Path, text: str) -> None:
    """Write a text file atomically unless it holds this text already, so that its time stamp tells."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def write_json(path: Path, value: Mapping[str, Any] | list[Any]) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a file that is not JSON raises one sentence with its name."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BidsMllmError(f"{path} cannot be read as JSON ({error}); remove it and run again.") from error


def written_record(paths: Sequence[Path]) -> list[list[Any]]:
    """Return path, size and time of files, by which `still_written` knows them again."""
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def still_written(record: Path) -> bool:
    """Whether every file of a record that `written_record` made is there and as it was; True without a record."""
    if not record.is_file():
        return True
    for name, size, time in read_json(record):
        path = Path(name)
        if not path.is_file() or [path.stat().st_size, path.stat().st_mtime_ns] != [size, time]:
            return False
    return True


def write_tsv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write a BIDS table atomically, row by row; None and NaN become n/a, tabs and line breaks within a cell a space.

    Without `columns` they are those of the first row.
    """
    left = iter(rows)
    first = list(islice(left, 1))
    names = columns or [name for row in first for name in row]
    with atomic_path(path) as scratch, scratch.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("\t".join(names) + "\n")
        for row in chain(first, left):
            stream.write("\t".join(_cell(row.get(name)) for name in names) + "\n")


def _cell(value: Any) -> str:
    if isinstance(value, Real) and not isinstance(value, Integral):
        number = float(value)
        return "n/a" if number != number else f"{number:.6g}"
    return "n/a" if value is None else re.sub(r"[\t\r\n]+", " ", str(value))


def read_tsv(path: Path, keep: Callable[[dict[str, str]], bool] | None = None) -> list[dict[str, str]]:
    """Read the rows of a BIDS table that `keep` wants (all without it) as text; see `iter_tsv`."""
    return [row for row in iter_tsv(path) if keep is None or keep(row)]


def iter_tsv(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a BIDS table as text; one that is damaged raises one sentence with its name."""
    try:
        with path.open(encoding="utf-8", newline="\n") as stream:
            names = stream.readline().removesuffix("\n").split("\t")
            for line in stream:
                yield dict(zip(names, line.removesuffix("\n").split("\t"), strict=True))
    except (OSError, ValueError) as error:
        raise BidsMllmError(f"{path} cannot be read as a table ({error}); remove it and run again.") from error


def write_columns(path: Path, columns: Mapping[str, Any]) -> None:
    """Write a BIDS table of numbers from one array a column as `write_tsv` would write its rows, but faster."""
    import pandas as pd

    with atomic_path(path) as scratch:
        pd.DataFrame(dict(columns)).to_csv(
            scratch, sep="\t", index=False, na_rep="n/a", float_format="%.6g", lineterminator="\n"
        )


def read_columns(path: Path, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Read a BIDS table of numbers as one array a column; one that is damaged raises one sentence with its name.

    Parameters
    ----------
    path
        A table, compressed where its name ends in ``.gz``.
    kinds
        By column whether it holds whole numbers (int), or floats with NaN for n/a (float).
    """
    import pandas as pd

    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        if content.count(b"\t") != (len(kinds) - 1) * content.count(b"\n") or not content.endswith(b"\n"):
            raise ValueError("it is cut short, or has other columns")
        table = pd.read_csv(io.BytesIO(content), sep="\t", na_values=["n/a"], keep_default_na=False, dtype=dict(kinds))
        return {name: table[name].to_numpy() for name in kinds}
    except (OSError, EOFError, ValueError, KeyError, zlib.error) as error:
        raise BidsMllmError(f"{path} cannot be read as a table ({error}); remove it and run again.") from error


def write_array(path: Path, save: Callable[[Path], None]) -> None:
    """Write an array file atomically with `save`, which is given the path to write to."""
    with atomic_path(path) as scratch:
        save(scratch)
