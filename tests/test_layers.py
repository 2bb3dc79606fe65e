"""The layers of the repository: which package may import which (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

from tests.processes import REPOSITORY

# What each package may import of the repository besides itself.
ALLOWED = {
    "cbam": set(),
    "models": {"cbam"},
    "engine": set(),
    "engine.data": {"engine"},
    "engine.analysis": {"engine", "engine.data"},
    "engine.tasks": {"engine", "engine.data", "engine.analysis"},
    "engine.training": {"engine", "engine.data", "engine.analysis", "engine.tasks"},
    "engine.comparison": {"engine", "engine.data", "engine.analysis", "engine.tasks"},
}


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
    for file in (REPOSITORY / package.replace(".", "/")).glob("*.py"):
        assert not breaches(package, file.read_text(encoding="utf-8")), file


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("engine", "from engine.data import loader"),
        ("engine.tasks", "from engine.training.trainer import Trainer"),
        ("engine.training", "def f():\n    import engine.comparison.report"),
        ("engine.data", "from models import build"),
        ("models", "from engine.errors import UserError"),
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
