"""The reference of ``emoq_modules`` that ``make api`` builds."""

import inspect
import re
import shutil
import zlib
from contextlib import redirect_stderr
from io import StringIO

import pytest

import emoq_modules
from tests.corpus_folders import ROOT

pytest.importorskip("furo", reason="the extra `docs`")
from sphinx.cmd.build import build_main  # noqa: E402

SOURCES = sorted((ROOT / "emoq_modules").rglob("*.py"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What the build said, and the kind of each name that has an entry."""
    # The documents, where a build may write beside them.
    docs = tmp_path_factory.mktemp("reference") / "docs"
    ignored = shutil.ignore_patterns("_build", "generated")
    shutil.copytree(ROOT / "docs", docs, ignore=ignored)
    options = ["-W", "--keep-going", "-E", "-q"]  # as in the Makefile
    with redirect_stderr(StringIO()) as said:
        status = build_main([*options, str(docs / "api"), str(docs / "html")])
    inventory = (docs / "html" / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(inventory).decode().splitlines()
    rows = [line.split(" ")[:2] for line in lines if " py:" in line]
    return status, said.getvalue(), dict(rows)


def test_the_reference_builds_without_a_warning(reference):
    status, said, _ = reference
    assert status == 0, said


def test_every_public_name_has_an_entry(reference):
    *_, entries = reference
    for name in emoq_modules.__all__:
        assert entries.get(f"emoq_modules.{name}") == "py:class", name


def test_every_module_has_an_entry(reference):
    *_, entries = reference
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in SOURCES
        if path.stem != "__main__"
    }
    found = {name for name, kind in entries.items() if kind == "py:module"}
    assert found == {name.removesuffix(".__init__") for name in modules}


def test_no_private_name_has_an_entry(reference):
    *_, entries = reference
    assert not [name for name in entries if "._" in name]


def test_what_others_classes_bring_along_has_no_entry(reference):
    *_, entries = reference
    source = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    ours = set(re.findall(r"\b(?:def|class) (\w+)", source))
    members = {name for name, kind in entries.items() if kind != "py:module"}
    assert not [name for name in members if name.split(".")[-1] not in ours]
    assert "emoq_modules.HuggingFaceEncoder.forward" in members  # FrozenEncoder


def test_every_public_name_shows_an_example():
    for name in emoq_modules.__all__:
        assert ">>> " in inspect.getdoc(getattr(emoq_modules, name)), name
