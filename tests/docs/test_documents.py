"""What the documents name is there, and they agree with each other."""

import re

import pytest
from ruamel.yaml import YAML

import emoq_modules
from tests.corpus_folders import ROOT

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "recipes").glob("*/README.md")),
]
OURS = "benchmarks|docs|emoq_modules|hparams|recipes|tests"
# What a run writes, data, what is installed, and a path in SpeechBrain.
ELSEWHERE = (
    "results/",
    "/data/",
    "MELD/",
    "IEMOCAP/",
    ".venv/",
    "speechbrain/",
    "docs/api/_build/",
    "data/demo/",
    "wav/",
    "flac/",
)
# Of SpeechBrain's repository, what reuse.md changes: its place, and its files.
RECIPES = ROOT / "tests" / "small_recipe"
RECIPE = RECIPES / "recipes" / "IEMOCAP" / "emotion_recognition"

each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


def read(path):
    return path.read_text(encoding="utf-8")


def exists(path, document):
    """Whether a path is there, from the root or from where it is read."""
    places = [ROOT, document.parent]
    if document.name == "design.md":
        places += [ROOT / "emoq_modules"]
    if document.name == "reuse.md":
        places += [RECIPES, RECIPE]
    return any((place / path).exists() for place in places)


def prose(document):
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```", "", read(document), flags=re.S | re.M)


def anchors(document):
    """What a link into a document can name, as GitHub makes it."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", prose(document), re.M)
    }


def test_readme_is_read_in_three_minutes():
    text = read(ROOT / "README.md")
    assert len(text) <= 9000
    # What has not run stands in the first screen, before the picture.
    first_screen = text.partition("![")[0]
    assert len(first_screen.splitlines()) <= 20
    assert "**What has not**: IEMOCAP, MELD's sound" in first_screen


@each_document
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", read(document)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_document
def test_paths_in_backticks_are_there(document):
    for path in re.findall(r"`([^`\s]+/[^`\s]+)`", prose(document)):
        if "<" in path or path.startswith(ELSEWHERE):
            continue
        assert exists(path, document), path


@pytest.mark.parametrize(
    "document",
    [*DOCUMENTS, *(ROOT / "docs").glob("*.svg")],
    ids=lambda p: p.name,
)
def test_modules_that_are_named_are_there(document):
    folders = [ROOT / folder for folder in OURS.split("|")]
    there = [*ROOT.glob("*.py"), *(p for f in folders for p in f.rglob("*.py"))]
    text = read(document)
    made = re.findall(r"^```python\n# (\w+\.py)$", text, re.M)
    named = set(re.findall(r"(?<![\w…/])\w+\.py\b", text))
    assert named <= {path.name for path in there} | set(made)


@each_document
def test_files_in_commands_and_code_are_there(document):
    text = read(document)
    # A block that begins with a path is that file; so is one to be made.
    made = re.findall(r"^```\w+\n# (\S+)$", text, re.M)
    paths = re.findall(rf"(?<![\w/<>.-])(?:{OURS})/[\w/.-]+\.\w+", text)
    for path in set(paths) - set(made):
        if path.startswith(ELSEWHERE):
            continue
        assert exists(path, document), path
    for module in re.findall(r"-m\s+(benchmarks\.\w+)", text):
        assert exists(f"{module.replace('.', '/')}.py", document), module


@each_document
def test_targets_of_make_are_there(document):
    targets = set(re.findall(r"^([\w-]+):", read(ROOT / "Makefile"), re.M))
    code = re.findall(r"^```.*?^```|`[^`]+`", read(document), re.S | re.M)
    for span in code:
        for target in re.findall(r"^`?make\s+([\w-]+)", span, re.M):
            assert target in targets, target


# --- How to cite it -----------------------------------------------------------


@pytest.fixture(scope="module")
def citation():
    return YAML(typ="safe").load(ROOT / "CITATION.cff")


def test_citation_has_what_its_format_requires(citation):
    # https://github.com/citation-file-format, version 1.2.0.
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["type"] == "software"
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors"} <= paper.keys()
    for author in [*citation["authors"], *paper["authors"]]:
        assert author.keys() in ({"name"}, {"given-names", "family-names"})
    assert re.fullmatch(r"10\.\d{4,9}/\S+", paper["doi"])
    assert paper["year"] > 2000 and 1 <= paper["month"] <= 12


def test_version_and_license_are_the_same_everywhere(citation):
    setup = read(ROOT / "setup.py")
    for text in (str(citation["version"]), emoq_modules.__version__):
        assert f'version="{text}"' in setup
        assert f"\n## {text} - " in read(ROOT / "CHANGELOG.md")
    assert f'license="{citation["license"]}"' in setup


def test_readme_cites_the_same_paper(citation):
    paper = citation["preferred-citation"]
    _, entry = read(ROOT / "README.md").split("@article{")
    entry = re.sub(r"[{}]", "", entry)
    fields = dict(re.findall(r"(\w+)\s*= ([^=]+),\n", entry))
    assert " ".join(fields["title"].split()) == paper["title"]
    authors = [
        f"{author['family-names']}, {author['given-names']}"
        for author in paper["authors"]
    ]
    assert fields["author"] == " and ".join(authors)
    assert fields["year"] == str(paper["year"])
    assert (fields["doi"], fields["url"]) == (paper["doi"], paper["url"])
    arxiv = paper["url"].rpartition("/")[2]
    assert paper["doi"].endswith(f"arXiv.{arxiv}")
    assert fields["journal"] == paper["journal"]
