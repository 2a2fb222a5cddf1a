"""Imports run downwards, floor by floor."""

import ast

import pytest

from tests.corpus_folders import ROOT

# From below; errors.py lies under all of them.
FLOORS = "lobes", "dataio", "evaluation", "inference", "training", "commands"
MODULES = sorted((ROOT / "emoq_modules").glob("*/*.py"))


def floors_below(path):
    """The floors that a module imports from, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if "emoq_modules" in a.name)
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "floors are seen in absolute imports alone"
            package, _, rest = f"{node.module}.".partition(".")
            if package == "emoq_modules":
                floor = rest.partition(".")[0]
                yield from [floor] if floor else [a.name for a in node.names]


def test_there_are_floors_with_modules():
    assert {path.parent.name for path in MODULES} == set(FLOORS)


@pytest.mark.parametrize(
    "path", MODULES, ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_imports_run_downwards(path):
    own = FLOORS.index(path.parent.name)
    for floor in floors_below(path):
        if floor in FLOORS:
            assert FLOORS.index(floor) <= own, floor
        else:  # what lies under all floors
            assert floor in ("errors", "present_names", "__version__"), floor
