"""What others build on says what each argument is, and what is returned."""

import ast
import re
from itertools import pairwise

import pytest

from tests.corpus_folders import ROOT

# All of the lobes; of the others what YAMLs, documents and the scripts that
# prepare a corpus name.
FILES = {
    f"lobes/{file.name}": None
    for file in sorted((ROOT / "emoq_modules/lobes").glob("*.py"))
} | {
    "dataio/audio.py": "read_audio audio_duration",
    "dataio/datasets.py": "training_labels",
    "dataio/feature_store.py": "FeatureStore",
    "dataio/manifest.py": (
        "Turn Utterance digest_of_file is_prepared name_few write_manifests"
    ),
    "dataio/prepare.py": None,
    "dataio/recordings.py": "Recording",
    "dataio/sampler.py": None,
}
PROPERTIES = {"property", "cached_property", "setter"}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def public(body, prefix=""):
    """Names and nodes of what is public in a module or public class."""
    for node in body:
        if not isinstance(node, (*FUNCTION, ast.ClassDef)):
            continue
        decorators = {
            name.split("(")[0].split(".")[-1]
            for name in map(ast.unparse, node.decorator_list)
        }
        if node.name.startswith("_"):
            continue
        if not decorators & PROPERTIES:
            yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from public(node.body, f"{prefix}{node.name}.")


def arguments(node):
    """The arguments as they are to be documented: ``x``, ``*args``."""
    if isinstance(node, ast.ClassDef):
        made = [n for n in node.body if getattr(n, "name", "") == "__init__"]
        return arguments(made[0]) if made else fields(node)
    args = node.args
    names = [a.arg for a in (*args.posonlyargs, *args.args)]
    names += [f"*{args.vararg.arg}"] if args.vararg else []
    names += [a.arg for a in args.kwonlyargs]
    names += [f"**{args.kwarg.arg}"] if args.kwarg else []
    return [name for name in names if name not in ("self", "cls")]


def fields(node):
    """The arguments of a data class or named tuple."""
    made_of = map(ast.unparse, (*node.decorator_list, *node.bases))
    if not any(re.match("dataclass|NamedTuple", name) for name in made_of):
        return []
    return [n.target.id for n in node.body if isinstance(n, ast.AnnAssign)]


def gives(node):
    """Whether a function itself returns or yields a value."""
    todo = list(node.body)
    while todo:
        part = todo.pop()
        if isinstance(part, (*FUNCTION, ast.ClassDef, ast.Lambda)):
            continue
        if isinstance(part, ast.YieldFrom):
            return True
        if isinstance(part, ast.Return | ast.Yield) and part.value is not None:
            if ast.unparse(part.value) != "None":
                return True
        todo += ast.iter_child_nodes(part)
    return False


def sections(node):
    """The sections of a docstring by their titles."""
    parts = re.split(r"^(\w+)\n-+\n", ast.get_docstring(node) or "", flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def entries(section):
    """The lines that begin an entry, and whether a description follows."""
    return {
        line: below.startswith("    ")
        for line, below in pairwise([*section.splitlines(), ""])
        if line.strip() and not line.startswith(" ")
    }


def faults(node):
    """What a docstring lacks, or has too much."""
    found = sections(node)
    described = entries(found.get("Arguments", ""))
    names = [line.split(" : ")[0] for line in described]
    wanted = arguments(node)
    if not ast.get_docstring(node):
        yield "no docstring"
    if names != wanted:
        yield f"Arguments names {names}, the arguments are {wanted}"
    if isinstance(node, FUNCTION) and gives(node):
        given = entries(found.get("Returns") or found.get("Yields") or "")
        if not given:
            yield "no Returns or Yields"
        described |= given
    for line, is_described in described.items():
        if not is_described:
            yield f"no description of '{line}'"
        if line in names:
            yield f"no type of '{line}'"


@pytest.mark.parametrize("file", FILES)
def test_docstrings_name_all_arguments_and_what_is_returned(file):
    path = ROOT / "emoq_modules" / file
    named = FILES[file] and FILES[file].split()
    nodes = {
        name: node
        for name, node in public(ast.parse(path.read_text("utf-8")).body)
        if named is None or name.partition(".")[0] in named
    }
    assert nodes.keys() >= set(named or ())
    wrong = [
        f"{name}: {fault}"
        for name, node in nodes.items()
        for fault in faults(node)
    ]
    assert not wrong, "\n".join([file, *wrong])


def test_what_is_missing_is_named():
    source = '''
class Pool:
    """Pools.

    Arguments
    ---------
    heads : int
        Number of heads.
    size
        Size of a head.
    """

    def __init__(self, heads, size, *rest):
        self.heads = heads

    def forward(self, x):
        """Pools."""
        return x

    def frames(self):
        """Gives frames.

        Yields
        ------
        torch.Tensor
        """
        yield from self.heads

    def check(self):
        """Has nothing to return."""
        return None
'''
    named = {
        name: [*faults(node)] for name, node in public(ast.parse(source).body)
    }
    assert named == {
        "Pool": [
            "Arguments names ['heads', 'size'], the arguments are "
            "['heads', 'size', '*rest']",
            "no type of 'size'",
        ],
        "Pool.forward": [
            "Arguments names [], the arguments are ['x']",
            "no Returns or Yields",
        ],
        "Pool.frames": ["no description of 'torch.Tensor'"],
        "Pool.check": [],
    }
