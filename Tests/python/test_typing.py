"""The package is typed, names what it exports, and needs no newer Python than it says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import types
from pathlib import Path

import gradaccum as ga
import pytest

from support import ROOT, environment

PACKAGE = ROOT / "bindings" / "python"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "examples").rglob("*.py")])
OLDEST = re.search(r'requires-python = ">=3\.(\d+)"', (PACKAGE / "pyproject.toml").read_text())

def test_package_has_no_errors_of_strict_types(tmp_path):
    command = [sys.executable, "-m", "mypy", f"--cache-dir={tmp_path}", "-p", "gradaccum"]
    done = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True)  # with the settings of pyproject.toml
    assert done.returncode == 0, done.stdout + done.stderr
    assert (PACKAGE / "gradaccum" / "py.typed").exists()


def test_a_program_that_is_checked_strictly_may_use_all_that_is_exported(tmp_path):
    """Strict types refuse a name of a package that is not in its __all__."""
    program = "import gradaccum as ga\n" + "".join(f"print(ga.{name})\n" for name in ga.__all__)
    program += "wrong: str = ga.zeros((2,)).shape\n"
    (tmp_path / "program.py").write_text(program, encoding="ascii")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path}", "program.py"],
        cwd=tmp_path,
        env=environment(MYPYPATH=str(PACKAGE)),
        capture_output=True,
        text=True,
    )
    errors = [line for line in done.stdout.splitlines() if " error: " in line]
    assert len(errors) == 1 and "tuple[int, ...]" in errors[0], done.stdout


def test_all_names_everything_public():
    public = {
        name
        for name, value in vars(ga).items()
        if not name.startswith("_") and (not isinstance(value, types.ModuleType) or name == "schedules")
    }
    assert set(ga.__all__) == public | {"__version__"}
    assert sorted(ga.__all__) == ga.__all__


# ====== The oldest Python ======


def test_sources_need_no_newer_python_than_the_package_says():
    assert OLDEST is not None and OLDEST[1] == "9"
    vermin = Path(sys.executable).parent / "vermin"
    command = [vermin, f"-t=3.{OLDEST[1]}-", "--no-tips", "--violations", *SOURCES]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for source in SOURCES:
        ast.parse(source.read_text(encoding="utf-8"), feature_version=(3, int(OLDEST[1])))


def run_time_unions(source: str) -> list[int]:
    """The lines where `X | Y` of types is computed as the program runs, which Python 3.9 has not."""
    tree = ast.parse(source)
    annotations: set[ast.AST] = set()
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if getattr(node, field, None) is not None:
                annotations.update(ast.walk(getattr(node, field)))
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.BitOr)
        and node not in annotations
        and (is_type(node.left) or is_type(node.right))
    ]


def is_type(node: ast.expr) -> bool:
    if isinstance(node, ast.Subscript):
        return is_type(node.value)
    if isinstance(node, ast.Constant):
        return node.value is None
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name in ("int", "float", "str", "bytes", "bool", "dict", "list", "tuple", "set", "ndarray") or bool(
        re.fullmatch(r"[A-Z]\w*[a-z]\w*", name)
    )


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_unions_of_types_are_in_annotations_alone(source):
    text = source.read_text(encoding="utf-8")
    assert run_time_unions(text) == []
    assert "from __future__ import annotations" in text or "|" not in text


def test_unions_that_would_run_are_found():
    assert run_time_unions("def f(x: int | None) -> str | None: ...\ny: int | str = 1 | 2\n") == []
    found = run_time_unions("A = int | str\nB = Callable[[np.ndarray | None], int]\nisinstance(1, Tensor | X)\n")
    assert sorted(found) == [1, 2, 3]
