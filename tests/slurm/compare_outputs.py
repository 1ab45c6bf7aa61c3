"""Compare two output folders of bids-mllm that came from different calls: the same files with the same content.

usage: compare_outputs.py EXPECTED FOUND; prints what differs and ends with status 1 where anything does.
Contents are compared as between a container and its host; logs, settings and methods texts, which say what one call
was asked for, are left out, those in reports too.
"""

import importlib.util
import re
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from itertools import repeat
from pathlib import Path

#: Of one call or one process: logs, crash files, claims and the time at which an entry was used last.
OF_ONE_CALL = re.compile(r"(^|/)(logs?|\.claims)/|/used$")


def _load_contents():
    path = Path(__file__).resolve().parents[1] / "containers" / "compare.py"
    loader = SourceFileLoader("contents", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("contents", loader))
    loader.exec_module(module)
    return module


contents = _load_contents()


def names(root: Path) -> set[str]:
    """Return the names of the files that every way of running leaves."""
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    return {name for name in found if not OF_ONE_CALL.search(name)}


def same_pages(expected: Path, found: Path, root: str) -> None:
    """The same report but for times, settings and the text on methods."""
    first, second = (list(map(contents.TIME.sub, repeat("<time>"), lines_of(path))) for path in (expected, found))
    if first != second:
        unlike = next((pair for pair in zip(first, second, strict=False) if pair[0] != pair[1]), ("", "more lines"))
        raise contents.DifferenceError(f"{unlike[0][:150]!r} and {unlike[1][:150]!r}")


def lines_of(page: Path) -> list[str]:
    """Return the lines of a report that do not say how it was called or what that took."""
    text = contents.RESOURCES.sub("", page.read_text("utf-8"))
    return [line for line in text.splitlines() if not re.match(r"<div><dt>|<p>Voxelwise ", line)]


def differences(expected: Path, found: Path) -> Iterator[str]:
    """Give a line for every file that is missing, too many or other."""
    first, second = names(expected), names(found)
    if not first:
        yield f"{expected} holds no files"
    yield from (f"missing: {name}" for name in sorted(first - second))
    yield from (f"too many: {name}" for name in sorted(second - first))
    for name in sorted(first & second):
        kind = contents.kind_of(expected / name)
        same = same_pages if kind == ".html" else contents.COMPARE.get(kind, contents.same_bytes)
        try:
            same(expected / name, found / name, "")
        except contents.DifferenceError as difference:
            yield f"differs: {name}: {difference}"


def main() -> int:
    """Compare the two folders of the command line."""
    expected, found = map(Path, sys.argv[1:])
    lines = list(differences(expected, found))
    sys.stdout.writelines(f"{line[:400]}\n" for line in lines[:20])
    sys.stdout.write(f"{len(names(expected))} files compared: {len(lines)} differ\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
