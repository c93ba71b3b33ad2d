"""The folders of `django_grpc` import each other one way."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import django_grpc

ROOT = Path(django_grpc.__file__).parent

#: Modules that are there for the names that django-grpc gave them.
NAMES_OF_BEFORE = {ROOT / "signals" / "wrapper.py"}


def imported(file: Path) -> Iterator[str]:
    """Yield the rooms that a file imports anything of: a folder, or a module beside the folders."""
    package = ".".join(("django_grpc", *file.relative_to(ROOT).parent.parts))
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [it.name for it in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{module}.{it.name}" for it in node.names]
        else:
            continue
        yield from (it.split(".")[1] for it in names if it.startswith("django_grpc."))


def test_no_folder_imports_one_that_imports_it():
    imports: dict[str, set[str]] = {}
    for file in sorted(ROOT.rglob("*.py")):
        room = file.relative_to(ROOT).with_suffix("").parts[0]
        if file not in NAMES_OF_BEFORE:
            imports.setdefault(room, set()).update(it for it in imported(file) if it != room)

    assert {"engine", "building", "management", "processes"} <= imports.keys()
    done: set[str] = set()
    while left := imports.keys() - done:
        lowest = {it for it in left if imports[it] & left == set()}
        assert lowest, f"these import each other: {sorted(left)}"
        done |= lowest
