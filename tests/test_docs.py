"""The docs say what the code does: options, outputs, models, instructions, links, commands and examples."""

import argparse
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

from bids_mllm import __version__
from bids_mllm.features.extraction import extract_clips
from bids_mllm.features.extractor import ReadOut
from bids_mllm.features.instructions import load_instructions
from bids_mllm.features.registry import load_family, load_registry
from bids_mllm.features.table import table_windows
from bids_mllm.interfaces.features import table_from_content
from bids_mllm.io.derivatives import CODE_URL, MapName, outputs
from bids_mllm.io.tables import read_feature_table
from bids_mllm.records import Clip, ClipMedia, Condition, ModelSpec

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def reference(name: str) -> str:
    return (DOCS / "reference" / f"{name}.md").read_text("utf-8")


def fenced(text: str, language: str) -> list[str]:
    """Return the content of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def table_rows(text: str) -> list[list[str]]:
    """Return the cells of every row of every Markdown table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def first_cells(text: str) -> str:
    """Return the first cells of all table rows as one text."""
    return "\n".join(row[0] for row in table_rows(text))


def section(text: str, title: str) -> str:
    """Return what stands under a heading, up to the next one of its level or above."""
    match = re.search(rf"^(#+) {re.escape(title)}$", text, flags=re.MULTILINE)
    assert match, f"no section {title}"
    rest = text[match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", rest, flags=re.MULTILINE)
    return rest[: end.start()] if end else rest


def generator(name: str = "generate_cli") -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CLI = generator()
PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = CLI.builders()
#: Scripts that call a command, with the arguments that they put first.
CALLERS = {
    "prefetch-models": ("bids-mllm-models", "prefetch"),
    "prefetch-templates": ("bids-mllm-templates", "prefetch"),
}


def documented_commands() -> Iterator[tuple[str, str]]:
    """Give (page, command) of every call of a command, or of a script in bin/ that has options, in a block of bash."""
    for page in PAGES:
        for block in fenced(page.read_text("utf-8"), "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                name = line.split(maxsplit=1)[0].removeprefix("bin/") if line.strip() else ""
                if name in PARSERS or name in CALLERS:
                    yield str(page.relative_to(ROOT)), line.removeprefix("bin/")


def check_command(line: str) -> None:
    """Parse a command as it is parsed when it is called; argparse ends what it does not take."""
    name, *arguments = shlex.split(line, comments=True)
    app: list[str] = []
    if name == "slurm-array" and "--" in arguments:
        cut = arguments.index("--")
        arguments, app = arguments[:cut], arguments[cut + 1 :]
    elif name == "bids-mllm-docker":
        words = CLI.load_script(ROOT / "bin" / name).split(arguments)
        arguments = [*words.positional, *words.own]
        app = [word for given in words.app for word in (given.name, *given.values)]
    elif name in CALLERS:
        name, *first = CALLERS[name]
        arguments = [*first, *arguments]
    PARSERS[name]().parse_args(arguments)
    PARSERS["bids-mllm"]().parse_args(["raw", "out", "participant", *app])


def anchor(title: str) -> str:
    """Return the anchor that a heading gets on the forge."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_the_cli_page_is_not_stale() -> None:
    assert reference("cli") == CLI.cli_page(), "run python docs/generate_cli.py"


def test_the_page_of_functions_is_not_stale() -> None:
    assert reference("api") == generator("generate_api").api_page(), "run python docs/generate_api.py"


@pytest.mark.parametrize("room", ["fit", "score", "group"])
def test_every_public_name_has_a_docstring_with_shapes_or_says_what_it_is(room: str) -> None:
    module = importlib.import_module(f"bids_mllm.{room}")
    assert len(set(module.__all__)) == len(module.__all__) > 5
    for name in module.__all__:
        text = getattr(module, name).__doc__
        assert text
        explained = "Returns" in text or "(n" in text.splitlines()[0]
        assert explained or "Parameters" not in text or not inspect.isfunction(getattr(module, name)), name


def test_the_page_on_arrays_runs_as_it_stands() -> None:
    space: dict[str, object] = {}
    exec(fenced((DOCS / "howto" / "arrays.md").read_text("utf-8"), "python")[0], space)
    found = np.asarray(space["found"])
    assert not found.any()  # the last space is noise


@pytest.mark.parametrize("build", PARSERS.values(), ids=PARSERS)
def test_every_option_is_on_the_cli_page(build: Callable[[], argparse.ArgumentParser]) -> None:
    command = build()
    own = section(reference("cli"), command.prog)
    for action in command._actions:
        text = CLI.help_text(action)
        assert not text or f": {text}" in own
        for spelling in action.option_strings or [CLI.positional(action)]:
            hyphened = spelling if "_" not in spelling.strip("-") else f"--{spelling[2:].replace('_', '-')}"
            wanted = hyphened if action.option_strings else spelling
            assert re.search(rf"`{re.escape(wanted)}[ `]", own), f"{spelling} is not documented"


def test_the_cli_page_has_no_option_that_does_not_exist() -> None:
    actions = [action for command in CLI.commands() for action in command._actions]
    known = {name for action in actions for name in action.option_strings}
    for page in PAGES:
        for option in re.findall(r"`(--[a-z][a-z-]*)", page.read_text("utf-8")):
            assert option in known, f"{page.name} names {option}"


def test_every_output_is_documented() -> None:
    declared, page = outputs(), reference("outputs")
    assert set(declared) == {"maps", "tables", "descriptions"}
    maps = first_cells(section(page, "Maps"))
    assert all(f"`{stat}`" in maps for stat in declared["maps"])
    for name, table in declared["tables"].items():
        columns = first_cells(section(page, name))
        assert all(f"`{column}`" in columns for column in [*table["Columns"], *table.get("GroupColumns", {})])
    labels = first_cells(section(page, "Conditions"))
    assert all(f"`{label}`" in labels for label in declared["descriptions"])


def test_every_column_of_the_checks_is_documented() -> None:
    from bids_mllm.interfaces import conditioning

    rows = {tuple(row[:2]) for row in table_rows(section(reference("outputs"), "Checks of features"))}
    for columns in (conditioning.PAIR_COLUMNS, conditioning.MATRIX_COLUMNS, conditioning.COUPLING_COLUMNS):
        assert {(f"`{name}`", text.rstrip(".")) for name, text in columns.items()} <= rows


def test_no_map_is_documented_that_does_not_exist() -> None:
    rows = table_rows(section(reference("outputs"), "Maps"))[2:]
    assert {name for row in rows for name in re.findall("`(.*?)`", row[0])} == set(outputs()["maps"])


def test_file_names_are_those_that_are_written() -> None:
    patterns = fenced(section(reference("outputs"), "File names"), "text")[0].splitlines()
    written = [re.sub(r"[\[\]]", "", pattern) for pattern in patterns]
    one = MapName("<label>", "<films>", "<space>", "<res>")
    group = MapName(None, "<films>", "<space>", "<res>")
    out = Path("out")
    made = [
        one.path(out, model="<model>", stat="<stat>", desc="<desc>"),
        group.path(out, model="<model>", stat="<stat>", desc="<desc>"),
        one.path(out, stat="noiseceiling"),
        one.path(out, extension=".tsv", model="<model>", stat="<table>", atlas="<atlas>"),
        one.path(out, extension=".tsv", model="<model>", stat="partition"),
        one.path(out, extension=".tsv", stat="modelcomparison"),
        one.path(out, extension=".tsv", stat="clocklag"),
        group.path(out, extension=".tsv", stat="scores", atlas="<atlas>"),
        group.path(out, extension=".tsv", stat="<table>"),
        one.path(out, suffix="mask", desc="encoding"),
        one.path(out, suffix="split", extension=".json", desc="cv"),
    ]
    assert written == [path.relative_to(out).as_posix() for path in made]


def test_every_model_is_documented_with_its_record() -> None:
    rows = {row[0].strip("`"): row for row in table_rows(section(reference("models"), "Records"))[2:]}
    registry = load_registry()
    assert set(registry) == set(rows)
    for key, spec in registry.items():
        cells = [cell.strip("`") for cell in rows[key]]
        dtype = spec.dtype if spec.source else ""
        assert cells == [
            key, spec.family, spec.kind, spec.media, spec.source, spec.revision or "", spec.licence, dtype,
        ]  # fmt: skip
        parameters = section(reference("models"), spec.family)
        assert all(f"`{name}`" in parameters for name in spec.parameters)


def test_every_instruction_is_documented_word_for_word() -> None:
    rows = [row for row in table_rows(reference("instructions")) if row[0].startswith("`")]
    both = [*load_instructions(), *load_instructions(media="audio")]
    assert rows == [[f"`{i.key}`", i.name, i.group, i.text] for i in both]


def test_the_example_of_an_instructions_file_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(fenced(reference("instructions"), "toml")[0], "utf-8")
    assert [instruction.key for instruction in load_instructions(path)] == ["CUT"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, fragment = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.is_file(), f"{page.name} links to {target}"
        assert path.is_relative_to(ROOT)
        if fragment:
            titles = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), flags=re.MULTILINE)
            assert fragment in map(anchor, titles), f"{page.name} links to {target}"


def test_every_page_is_linked_from_the_readme_or_a_neighbour() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    }
    orphans = [page.name for page in PAGES if page not in linked and page.name != "README.md"]
    assert orphans == []


def test_documented_commands_parse() -> None:
    commands = list(documented_commands())
    assert sum(page == "README.md" for page, _ in commands) >= 3
    for _, line in commands:
        check_command(line)


@pytest.mark.parametrize(
    "line",
    [
        "bids-mllm raw out participant --nonsense",
        "slurm-array raw out --nonsense",
        "slurm-array raw out -- --nonsense",
        "bids-mllm-docker raw out",
        "bids-mllm-docker raw out participant --nonsense",
        "prefetch-models --to there",
        "prefetch-templates --nonsense",
    ],
)
def test_commands_that_would_not_parse_are_found(line: str) -> None:
    with pytest.raises(SystemExit):
        check_command(line)


def test_every_command_is_on_the_cli_page() -> None:
    installed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert {*installed, "bids-mllm-docker", "slurm-array"} <= set(PARSERS)
    titles = re.findall(r"^## (.+)$", reference("cli"), flags=re.MULTILINE)
    assert set(PARSERS) <= set(titles)


def test_scripts_that_are_named_are_there_and_those_that_are_there_are_named() -> None:
    there = {path.name for path in (ROOT / "bin").iterdir() if path.stat().st_mode & 0o111 and path.is_file()}
    readme = scripts_of(ROOT / "README.md")
    assert {"demo", "test"} <= readme <= there
    assert {name for page in PAGES for name in scripts_of(page)} == there


def scripts_of(page: Path) -> set[str]:
    """Return the scripts in bin/ of the repository that a page names; a leading _ is that of a part of others."""
    return set(re.findall(r"(?<![\w/.-])bin/([a-z][\w-]*)", page.read_text("utf-8")))


def test_exit_statuses_of_the_readme_are_those_of_the_errors() -> None:
    from bids_mllm import exceptions

    statuses = {error.exit_status for error in vars(exceptions).values() if hasattr(error, "exit_status")}
    readme = (ROOT / "README.md").read_text("utf-8")
    sentence = readme[readme.index("Exit status:") :].partition("\n\n")[0]
    assert {int(number) for number in re.findall(r"\b(\d+) ", sentence)} == statuses | {0}


def test_the_word_rate_example_is_right(tmp_path: Path) -> None:
    text = (DOCS / "howto" / "feature_tables.md").read_text("utf-8")
    (tmp_path / "film.tsv").write_text(fenced(text, "tsv")[0], "utf-8")
    (tmp_path / "features.json").write_text(fenced(text, "json")[0], "utf-8")
    rows = [row for row in table_rows(text) if row[0][0].isdigit()]
    edges = [[float(edge) for edge in re.findall(r"[\d.]+", row[0])] for row in rows]
    table = table_from_content(read_feature_table(tmp_path, "film.mkv"), "film.mkv")
    values = table_windows(table, np.array([e[0] for e in edges]), np.array([e[1] for e in edges]))
    np.testing.assert_allclose(values[:, 0], [float(row[1]) for row in rows], atol=1e-9)


def test_the_stimulus_map_example_can_be_read(tmp_path: Path) -> None:
    from bids_mllm.discover.stimulus_map import read_stimulus_map

    path = tmp_path / "map.tsv"
    path.write_text(fenced((DOCS / "howto" / "own_data.md").read_text("utf-8"), "tsv")[0], "utf-8")
    rows = read_stimulus_map(path)
    assert [(row.task, row.run, row.showing.media_onset) for row in rows] == [
        ("movie", 1, 0.0),
        ("movie", 2, 600.0),
    ]


def test_the_example_of_a_family_works(monkeypatch: pytest.MonkeyPatch) -> None:
    code = fenced((DOCS / "howto" / "add_a_family.md").read_text("utf-8"), "python")[0]
    module = ModuleType("documented_family")
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    family = load_family("documented_family:FAMILY")
    spec = ModelSpec("brightness", "brightness", "video", parameters={"n_frames": 2})
    read_out = ReadOut(1.0, ("stimulus",), ())
    plan = family.plan(spec, read_out)
    frames = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    frames[:, :16, 16:] = 40
    frames[0, 16:, :16] = 10
    media = [ClipMedia(Clip("a.mkv", 0, 0.0, 1.0), frames=frames)]
    features = extract_clips(family.load(spec, read_out, "cpu"), plan, media, model=spec.key)
    np.testing.assert_array_equal(features[Condition("stimulus")], [[[0, 40, 5, 0]]])
    json.dumps(dict(plan.identity))


def test_the_layer_example_reads_the_layer_it_names(tmp_path: Path) -> None:
    import nibabel as nib

    module = ModuleType("documented_reader")
    exec(fenced(reference("outputs"), "python")[0], module.__dict__)
    volumes = np.stack([np.full((2, 2, 2), value, dtype=np.float32) for value in (4, 12)], axis=-1)
    path = tmp_path / "x_stat-r_desc-media_statmap.nii.gz"
    nib.Nifti1Image(volumes, np.eye(4)).to_filename(path)
    path.with_name("x_stat-r_desc-media_statmap.json").write_text(json.dumps({"Layers": [4, 12]}), "utf-8")
    layer = module.__dict__["read_layer"](path, 12)
    np.testing.assert_array_equal(np.asarray(layer.dataobj), np.full((2, 2, 2), 12))


def test_the_citation_file_is_complete() -> None:
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(content)
    assert content["cff-version"] == "1.2.0"
    assert content["type"] == "software"
    assert str(content["version"]) == __version__
    assert content["license"] == "Apache-2.0"
    assert content["repository-code"] == CODE_URL
    assert all("name" in author or "family-names" in author for author in content["authors"])


def test_the_changelog_names_the_version() -> None:
    titles = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)
    assert titles[0] == __version__


def test_the_readme_names_the_version_whose_state_it_tells() -> None:
    assert f"## State of version {__version__}" in (ROOT / "README.md").read_text("utf-8")


def test_pre_commit_hooks_need_no_network() -> None:
    content = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    hooks = [hook for repo in content["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in content["repos"]} == {"local"}
    assert {hook["language"] for hook in hooks} == {"system"}
    assert {hook["id"] for hook in hooks} == {"ruff", "ruff-format", "codespell", "mypy"}
