"""The rules of docs/architecture.md: imports point upwards, files are short, all is annotated."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "refusal_cliff"
MAX_LINES = 450
FunctionDef = ast.FunctionDef | ast.AsyncFunctionDef


def module_name(path: Path) -> str:
    """Name inside the package: ``organisms.recipe``; the package itself is the empty string."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def is_code(path: Path) -> bool:
    """Whether a file is more than the docstring of a package."""
    return len(ast.parse(path.read_text()).body) > 1


MODULES = [name for name, path in SOURCES.items() if name and is_code(path)]


def read_rows() -> dict[str, int]:
    """Row number of each name in the table of layers."""
    rows = re.findall(r"^\| (`[^|]+`) \|", (ROOT / "docs/architecture.md").read_text(), re.M)
    return {name: i for i, row in enumerate(rows) for name in re.findall(r"`([\w.]+)`", row)}


ROWS = read_rows()


def row_of(module: str) -> int | None:
    """Row of the module, or of the nearest package around it that has one."""
    while module and module not in ROWS:
        module = module.rpartition(".")[0]
    return ROWS.get(module)


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Modules of the package that are imported anywhere in the file, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (inside(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (imported(node.module, alias.name) for alias in node.names)


def inside(name: str) -> str:
    """Name inside the package; empty for the package itself and for other packages."""
    return name.removeprefix("refusal_cliff.") if name.startswith("refusal_cliff.") else ""


def imported(module: str, name: str) -> str:
    """What ``from module import name`` imports: a submodule if there is one."""
    whole = inside(f"{module}.{name}")
    return whole if whole in SOURCES else inside(module)


def functions_of(path: Path) -> Iterator[FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, FunctionDef):
            yield node


def is_annotated(function: FunctionDef) -> bool:
    spec = function.args
    positional = [*spec.posonlyargs, *spec.args]
    if positional and positional[0].arg in ("self", "cls"):
        positional = positional[1:]
    arguments = [*positional, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]
    return function.returns is not None and all(argument.annotation for argument in arguments)


def test_the_table_was_read() -> None:
    assert ROWS["errors"] == 0
    assert ROWS["__main__"] == max(ROWS.values())


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_upwards(module: str) -> None:
    own = row_of(module)
    assert own is not None, f"give {module} a row in docs/architecture.md"
    for target in filter(None, imports_of(ast.parse(SOURCES[module].read_text()))):
        row = row_of(target)
        assert row is not None, f"give {target} a row in docs/architecture.md"
        assert row <= own, f"{module} imports {target}, which is below it in docs/architecture.md"


def test_files_are_short() -> None:
    files = [*SOURCES.values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in files}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


@pytest.mark.parametrize("module", SOURCES)
def test_functions_are_annotated(module: str) -> None:
    bare = [f.name for f in functions_of(SOURCES[module]) if not is_annotated(f)]
    assert bare == []
