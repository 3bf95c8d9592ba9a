"""Rules for the source tree: module sizes, mirrored tests, docstrings. (import-linter checks imports.)"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [
    path
    for path in sorted((ROOT / "relay").rglob("*.py"))
    if "pb" not in path.relative_to(ROOT / "relay").parts and "migrations" not in path.parts
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_is_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 600


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.name != "__init__.py"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_every_module_has_its_test(path: Path) -> None:
    relative = path.relative_to(ROOT / "relay")
    assert (ROOT / "tests" / relative.parent / f"test_{relative.name}").exists()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_and_public_class_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def test_init_files_contain_no_logic() -> None:
    for path in SOURCES:
        if path.name == "__init__.py":
            assert len(path.read_text().splitlines()) <= 10, path
