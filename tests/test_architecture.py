"""The walls of the house, measured on the code itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "bids_mllm"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = (
    "torch",
    "transformers",
    "himalaya",
    "nipype",
    "bids",
    "nilearn",
    "nibabel",
    "librosa",
    "moten",
    "safetensors",
    "av",
)


def code_lines(node):
    """Lines of a function without its docstring."""
    docstring = ast.get_docstring(node, clean=False) or ""
    return node.end_lineno - node.lineno + 1 - len(docstring.splitlines())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 450
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert {node.name: code_lines(node) for node in functions if code_lines(node) > 60} == {}
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not [func for func in calls if isinstance(func, ast.Name) and func.id == "print"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.FunctionDef, ast.ClassDef)
    public = [node for node in tree.body if isinstance(node, documented) and not node.name.startswith("_")]
    assert [node.name for node in public if ast.get_docstring(node) is None] == []
    assert ast.get_docstring(tree) is not None


COMMANDS = ("run", "simulate", "models", "features")


@pytest.mark.parametrize("module", ["bids_mllm", "bids_mllm.records", *(f"bids_mllm.cli.{name}" for name in COMMANDS)])
def test_import_pulls_in_nothing_heavy(module):
    code = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_importing_has_no_effect_on_environment_or_disk(tmp_path):
    code = (
        "import os; before = dict(os.environ); import bids_mllm.cli.run, bids_mllm.workflows.plan, "
        "bids_mllm.workflows.participant, bids_mllm.io.store, bids_mllm.report.pages; "
        "changed = {k for k in os.environ if os.environ[k] != before.get(k)} - {'KMP_INIT_AT_FORK', "
        "'KMP_DUPLICATE_LIB_OK', 'QT_QPA_PLATFORM_PLUGIN_PATH', 'QT_QPA_FONTDIR', 'OPENCV_FFMPEG_READ_ATTEMPTS'}; "
        "print(*changed)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert found.stdout.split() == []
    assert list(tmp_path.iterdir()) == []


def test_transformers_only_in_features_models():
    users = [
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers")
        or (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "transformers" for a in node.names))
    ]
    assert users
    assert all(name.startswith("features/models/") for name in users)
