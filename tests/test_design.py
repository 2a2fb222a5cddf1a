"""The code is laid out as docs/design.md says."""

import ast
import graphlib
import re

import pytest

from tests.corpus_folders import ROOT

PACKAGE = "emoq_modules"
MODULES = {path.stem: path for path in sorted((ROOT / PACKAGE).glob("*.py"))}


def read_layers():
    """The layer of each module, counted from above."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = text.partition("\n| layer | ")[2].partition("\n\n")[0]
    return {
        module: layer
        for layer, row in enumerate(table.splitlines()[2:])
        for module in re.findall(r"`(\w+)\.py`", row)
    }


LAYERS = read_layers()


def imported(path):
    """Our modules that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            package, _, module = node.module.partition(".")
            if package == PACKAGE:
                names = [module] if module else [a.name for a in node.names]
                yield from (name for name in names if name in MODULES)


def test_every_module_has_a_layer_and_every_layer_its_modules():
    without = {"__init__", "__main__"}
    assert set(LAYERS) == set(MODULES) - without


@pytest.mark.parametrize("module", sorted(LAYERS))
def test_imports_run_downwards(module):
    for other in imported(MODULES[module]):
        assert LAYERS[other] >= LAYERS[module], other


def test_no_modules_import_each_other():
    graph = {module: set(imported(MODULES[module])) for module in LAYERS}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError
