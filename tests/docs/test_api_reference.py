"""The reference of ``emoq_modules`` that ``make api`` builds."""

import inspect
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import emoq_modules

pytest.importorskip("furo", reason="the extra `docs`")

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "emoq_modules").rglob("*.py"))


def copy_docs(folder):
    """The documents, where a build may write beside them."""
    ignored = shutil.ignore_patterns("_build", "generated")
    return Path(shutil.copytree(ROOT / "docs", folder / "docs", ignore=ignored))


def build(docs):
    """Builds as ``make api`` does."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "-W", "--keep-going", "-E", "-q"),
            *(docs / "api", docs / "html"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What the build said, and the kind of each name that has an entry."""
    docs = copy_docs(tmp_path_factory.mktemp("reference"))
    done = build(docs)
    inventory = (docs / "html" / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(inventory).decode().splitlines()
    rows = [line.split(" ")[:2] for line in lines if " py:" in line]
    return done, dict(rows)


def test_the_reference_builds_without_a_warning(reference):
    done, _ = reference
    assert done.returncode == 0, done.stderr


def test_every_public_name_has_an_entry(reference):
    _, entries = reference
    for name in emoq_modules.__all__:
        assert entries.get(f"emoq_modules.{name}") == "py:class", name


def test_every_module_has_an_entry(reference):
    _, entries = reference
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in SOURCES
        if path.stem != "__main__"
    }
    found = {name for name, kind in entries.items() if kind == "py:module"}
    assert found == {name.removesuffix(".__init__") for name in modules}


def test_no_private_name_has_an_entry(reference):
    _, entries = reference
    assert not [name for name in entries if "._" in name]


def test_what_others_classes_bring_along_has_no_entry(reference):
    _, entries = reference
    source = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    ours = set(re.findall(r"\b(?:def|class) (\w+)", source))
    members = {name for name, kind in entries.items() if kind != "py:module"}
    assert not [name for name in members if name.split(".")[-1] not in ours]
    assert "emoq_modules.HuggingFaceEncoder.forward" in members  # FrozenEncoder


def test_every_public_name_shows_an_example():
    for name in emoq_modules.__all__:
        assert ">>> " in inspect.getdoc(getattr(emoq_modules, name)), name
