"""The layers of the repository: which package may import which (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

from tests.processes import REPOSITORY

# What each package may import of the repository besides itself.
ALLOWED = {
    "cbam": set(),
    "models": {"cbam", "models.attention"},
    "models.attention": {"cbam", "models"},
    "engine": set(),
    "engine.config": {"engine"},
    "engine.processes": {"engine", "engine.config"},
    "engine.cli": {"engine", "engine.config", "engine.processes"},
    "engine.runs": {"engine", "engine.config", "engine.processes"},
    "engine.data": {"engine", "engine.config", "engine.processes", "engine.runs"},
    "engine.analysis": {"engine", "engine.config", "engine.processes", "engine.runs", "engine.data"},
}
ALLOWED["engine.tasks"] = {*ALLOWED["engine.analysis"], "engine.analysis"}
ALLOWED["engine.training"] = ALLOWED["engine.comparison"] = {*ALLOWED["engine.tasks"], "engine.tasks"}
# Every room may import the base of engine/, except the command line, which only entry points import.
BASE_FILES = {"__init__", "cli", "errors", "logging"}


def imported(source: str) -> set[str]:
    """Return the modules that a file imports, wherever in it."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def package_of(module: str) -> str | None:
    """Return the package of ALLOWED that a module belongs to, None for one from elsewhere."""
    parts = module.split(".")
    return next((".".join(parts[:n]) for n in (2, 1) if ".".join(parts[:n]) in ALLOWED), None)


def breaches(package: str, source: str) -> set[str]:
    return {m for m in imported(source) if package_of(m) not in {None, package, *ALLOWED[package]}}


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package: str) -> None:
    path = REPOSITORY / package.replace(".", "/")
    files = [path.with_suffix(".py")] if path.with_suffix(".py").is_file() else [*path.glob("*.py")]
    for file in (file for file in files if package != "engine" or file.stem != "cli"):
        assert not breaches(package, file.read_text(encoding="utf-8")), file


def test_the_base_of_engine_stays_small() -> None:
    assert {file.stem for file in (REPOSITORY / "engine").glob("*.py")} == BASE_FILES


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("engine", "from engine.data import loader"),
        ("engine.config", "from engine.runs.directory import RunDirectory"),
        ("engine.data", "from engine import cli"),
        ("engine.tasks", "from engine.training.trainer import Trainer"),
        ("engine.training", "def f():\n    import engine.comparison.report"),
        ("engine.data", "from models import build"),
        ("models", "from engine.errors import UserError"),
        ("models.attention", "from engine.config import attention"),
        ("cbam", "import models"),
    ],
)
def test_a_wrong_import_is_found(package: str, source: str) -> None:
    assert breaches(package, source)


def test_no_module_imports_itself_through_others() -> None:
    files = {path(file): file for name in ("cbam", "models", "engine") for file in (REPOSITORY / name).rglob("*.py")}
    imports = {name: {m for m in map(known(files), imported(file.read_text())) if m} for name, file in files.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for other in imports[module] - {module}:
                visit(other, (*trail, module))
            done.add(module)

    for module in imports:
        visit(module, ())


def path(file: Path) -> str:
    return ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def known(files: dict[str, Path]):  # type: ignore[no-untyped-def]
    """Return a function from an imported name to the file's module that defines it, packages themselves left out."""

    def find(name: str) -> str | None:
        candidates = (name, name.rpartition(".")[0])
        return next((n for n in candidates if n in files and files[n].stem != "__init__"), None)

    return find
