"""The contribution to SpeechBrain, laid over a small clone of it."""

import ast
import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import to_speechbrain
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from upstream import table
from upstream.checkout import Checkout, Part, blob
from upstream.contribution import FILES
from upstream.flatten import FlattenError, flatten, meaning
from upstream.imports import MoveError, Names, inline, rewrite
from upstream.patch import patched

from emoq_modules import _PUBLIC
from emoq_modules.configuration import ConfigurationError, compose

ROOT = Path(__file__).parents[1]
BRANCHES = list(table.SERIES)
CORRECTION = table.PATCH["branch"]
YAMLS = [
    (corpus, name, stage)
    for corpus, recipe in table.RECIPES.items()
    for name in recipe["presets"]
    for stage in table.EXPERIMENTS
]
HEADER = (
    "Task,Dataset,Script_file,Hparam_file,Data_prep_file,Readme_file,"
    "Result_url,HF_repo,test_debug_flags,test_debug_checks,performance\n"
)
ROW = "Emotion_recognition,IEMOCAP,a.py,b.yaml,c.py,d.md,,,--e=1,,"
PYPROJECT = """\
[project]
name = "speechbrain"
[tool.ruff]
target-version = "py38"
line-length = 80
"""
# A fault of upstream's, in small, and the place of a copy of it.
FAULTY, COPY = "recipes/IEMOCAP/prepare.py", "recipes/IEMOCAP/a/prepare.py"
FAULT = "import os\n\nnames = os.listdir()\n"
CORRECTED = FAULT.replace("os.listdir()", "sorted(os.listdir())")
DIFF = f"""\
diff --git a/{FAULTY} b/{FAULTY}
index {blob(FAULT.encode())}..{blob(CORRECTED.encode())} 100644
--- a/{FAULTY}
+++ b/{FAULTY}
@@ -3 +3 @@ import os
-names = os.listdir()
+names = sorted(os.listdir())
"""


@pytest.fixture(scope="module", autouse=True)
def small_correction(tmp_path_factory):
    """The correction of that fault, in the place of the true one."""
    diff = tmp_path_factory.mktemp("diff") / "small.patch"
    diff.write_text(DIFF)
    links = {COPY: "../prepare.py"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(table.PATCH, "diff", diff)
        patch.setitem(table.PATCH, "links", links)
        yield


def git(folder, *arguments):
    """What a git command prints."""
    return subprocess.run(
        ["git", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def commit(folder):
    """Commits everything."""
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "Change something")


def write(folder, path, text=""):
    """Writes a file, in a folder that may not be there yet."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)


def state(folder):
    """All that a command could change: refs, HEAD and files."""
    return (
        git(folder, "show-ref"),
        git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        git(folder, "status", "--porcelain", "--ignored"),
        git(folder, "ls-files", "-s"),
    )


@pytest.fixture
def clone(tmp_path):
    """What the command looks at of SpeechBrain, in a git repository."""
    folder = tmp_path / "speechbrain"
    for path in table.NEEDED:
        write(folder, path)
    write(folder, "speechbrain/version.txt", "1.1.0\n")
    write(folder, "pyproject.toml", PYPROJECT)
    write(folder, FAULTY, FAULT)
    write(folder, COPY, FAULT)
    # Without a newline at the end, as upstream's is.
    write(folder, "tests/recipes/IEMOCAP.csv", HEADER + ROW)
    for name, size in (("train", 8), ("dev", 2)):
        rows = {
            f"snt{index}": {
                "wav": f"{{data_root}}/snt{index}.wav",
                "duration": "2.5",
                "words": "ONE TWO",
                "spk_id": "spk1",
            }
            for index in range(size)
        }
        path = f"tests/samples/annotation/ASR_{name}.json"
        write(folder, path, json.dumps(rows))
    git(folder, "init", "-q", "-b", "develop")
    git(folder, "config", "user.name", "Somebody")
    git(folder, "config", "user.email", "somebody@example.org")
    commit(folder)
    return folder


@pytest.fixture(scope="module")
def laid(tmp_path_factory):
    """A clone with the contribution."""
    folder = clone.__wrapped__(tmp_path_factory.mktemp("clone"))
    assert to_speechbrain.main([str(folder)]) == 0
    return folder


# --- The checkout -------------------------------------------------------------


def test_the_series_has_a_branch_and_a_commit_for_each_part(laid):
    assert git(laid, "rev-parse", "--abbrev-ref", "HEAD") == BRANCHES[-1]
    for before, branch in zip(["develop", *BRANCHES], BRANCHES, strict=False):
        assert git(laid, "rev-list", "--count", f"{before}..{branch}") == "1"
    files = {
        branch: git(laid, "show", "--name-only", "--format=", branch).split()
        for branch in BRANCHES
    }
    first, second, _, last = files.values()
    assert "speechbrain/nnet/loss/mal_loss.py" in first
    assert not any("integrations" in path for path in first)
    assert all(path.startswith("speechbrain/integrations/") for path in second)
    assert {path.split("/")[0] for path in last} == {"recipes", "tests"}
    assert git(laid, "status", "--porcelain") == ""


def test_a_second_time_changes_nothing(laid, capsys):
    before = state(laid)
    assert to_speechbrain.main([str(laid)]) == 0
    assert "nothing has changed" in capsys.readouterr().out
    assert state(laid) == before


def test_the_same_contribution_has_the_same_commits_again(laid, capsys):
    before = git(laid, "rev-parse", *BRANCHES)
    git(laid, "checkout", "-q", "develop")
    git(laid, "branch", "-D", *BRANCHES)
    assert to_speechbrain.main([str(laid)]) == 0
    assert git(laid, "rev-parse", *BRANCHES) == before


def test_what_has_changed_here_is_laid_anew(clone):
    for content in (b"1", b"2"):
        parts = [Part("a", "A", {"a.py": ("100644", content)})]
        parts += [Part("b", "B", {"b/c.py": ("100755", content)}, "a")]
        assert Checkout(clone, ["a", "b"]).lay(parts)
        assert not Checkout(clone, ["a", "b"]).lay(parts)
        assert (clone / "b/c.py").read_bytes() == content
        assert git(clone, "status", "--porcelain") == ""
        assert git(clone, "log", "--format=%s", "develop..HEAD") == "B\nA"


def test_upstreams_progress_is_what_the_series_is_laid_on_next(clone):
    parts = [Part("a", "A", {"a.py": ("100644", b"1")})]
    Checkout(clone, ["a"]).lay(parts)
    git(clone, "checkout", "-q", "develop")
    write(clone, "news.txt")
    commit(clone)
    assert Checkout(clone, ["a"]).lay(parts)
    assert git(clone, "rev-parse", "a~") == git(clone, "rev-parse", "develop")


def test_the_correction_lies_on_develop_by_itself(laid):
    assert git(laid, "rev-parse", f"{CORRECTION}~") == git(
        laid, "rev-parse", "develop"
    )
    assert git(laid, "show", f"{CORRECTION}:{FAULTY}") == CORRECTED.strip()
    # Where upstream has the file twice there is a link to the one.
    entry = git(laid, "ls-tree", CORRECTION, COPY)
    assert entry.startswith("120000")
    assert git(laid, "show", f"{CORRECTION}:{COPY}") == "../prepare.py"
    changed = git(laid, "diff", "--name-only", "develop", CORRECTION).split()
    assert set(changed) == {FAULTY, COPY, *table.PATCH["tests"].values()}
    assert git(laid, "show", f"HEAD:{FAULTY}") == FAULT.strip()


def test_correction_and_series_can_be_merged_in_any_order(laid):
    git(laid, "merge-tree", "--write-tree", CORRECTION, BRANCHES[-1])


def test_a_diff_that_names_no_blobs_is_refused(clone, tmp_path):
    diff = tmp_path / "short.patch"
    diff.write_text(DIFF.replace(blob(FAULT.encode()), "1234567"))
    with pytest.raises(MoveError, match="is not what git diff"):
        patched(Checkout(clone, []), diff)


def not_speechbrain(folder):
    """Another project."""
    git(folder, "rm", "-q", "speechbrain/version.txt")
    commit(folder)


def old(folder):
    """A version before the minimum."""
    write(folder, "speechbrain/version.txt", "1.0.3\n")
    commit(folder)


def dirty(folder):
    """A change that is not committed."""
    write(folder, "pyproject.toml", PYPROJECT + "# mine\n")


def untracked(folder):
    """A file that git does not know."""
    write(folder, "notes.txt")


def moved(folder):
    """A file of upstream's that lies elsewhere now."""
    git(folder, "mv", "conftest.py", "tests/conftest.py")
    commit(folder)


def taken(folder):
    """A file of upstream's where one of ours is to be."""
    write(folder, "speechbrain/nnet/loss/mal_loss.py", "# theirs\n")
    commit(folder)


def corrected(folder):
    """Upstream has seen to what the correction is about."""
    write(folder, FAULTY, CORRECTED)
    commit(folder)


def elsewhere(folder):
    """Another branch, with a commit of its own."""
    git(folder, "checkout", "-qb", "mine")
    write(folder, "notes.txt")
    commit(folder)


def without_develop(folder):
    """A clone of another branch."""
    git(folder, "branch", "-m", "main")


def continued(folder):
    """Somebody's own commit on a branch of the series."""
    git(folder, "checkout", "-qb", BRANCHES[-1])
    write(folder, "notes.txt")
    commit(folder)
    git(folder, "checkout", "-q", "develop")


def other_columns(folder):
    """A table of recipe tests of another form."""
    text = HEADER.replace("test_debug_flags", "flags") + ROW
    write(folder, "tests/recipes/IEMOCAP.csv", text)
    commit(folder)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (not_speechbrain, "is not a checkout of speechbrain/speechbrain"),
        (old, "is SpeechBrain 1.0.3; the contribution needs 1.1.0"),
        (dirty, "has 1 changes that are not committed"),
        (untracked, "notes.txt"),
        (moved, "has no conftest.py: upstream has moved it"),
        (taken, "mal_loss.py is upstream's already"),
        (corrected, f"{FAULTY} is not the file that small.patch was made from"),
        (elsewhere, "is neither branch develop nor"),
        (without_develop, "has no branch develop"),
        (continued, "holds commits that this command did not make"),
        (other_columns, "has no column test_debug_flags"),
    ],
)
def test_a_checkout_that_will_not_do_is_refused_untouched(
    clone, spoil, says, capsys
):
    spoil(clone)
    before = state(clone)
    assert to_speechbrain.main([str(clone)]) == 2
    assert says in capsys.readouterr().err
    assert state(clone) == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{corpus: iemocap4}", "cannot be merged as text"),
        ("corpus: x\nnonsense: 1\n", "is no key of this experiment"),
        ("corpus: x\nstage1: {lr: 0.1}\n", "cannot be merged as text"),
        ("corpus: [", "is no YAML"),
        ("corpus: x\naudio_encoder: !new:emoq_modules.Stage1Brain\n", "place"),
    ],
)
def test_a_preset_that_cannot_be_flattened_is_refused(
    clone, tmp_path, text, says, monkeypatch, capsys
):
    write(tmp_path, "preset.yaml", text)
    recipe = {**table.RECIPES["IEMOCAP"]}
    recipe["presets"] = {"iemocap4": tmp_path / "preset.yaml"}
    monkeypatch.setattr(table, "RECIPES", {"IEMOCAP": recipe})
    before = state(clone)
    assert to_speechbrain.main([str(clone)]) == 2
    assert says in capsys.readouterr().err
    assert state(clone) == before


# --- Files --------------------------------------------------------------------


def laid_files(laid, suffix=""):
    """The files of the contribution, without links."""
    paths = git(laid, "diff", "--name-only", "develop", BRANCHES[-1])
    files = [laid / path for path in paths.split() if path.endswith(suffix)]
    return [file for file in files if not file.is_symlink()]


def test_nothing_of_our_package_is_named(laid):
    files = laid_files(laid)
    assert len(files) > 40
    assert not [f for f in files if "emoq_modules" in f.read_text()]


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_part_imports_what_it_or_those_before_it_bring(laid, branch):
    there = git(laid, "ls-tree", "-r", "--name-only", branch).split()
    changed = git(laid, "show", "--name-only", "--format=", branch).split()
    places = {**table.LOSSES, **table.MODULES, **table.TRAINING}
    ours = {f"{theirs.replace('.', '/')}.py" for theirs in places.values()}
    for path in changed:
        if not path.endswith(".py") or (laid / path).is_symlink():
            continue
        for node in ast.walk(ast.parse((laid / path).read_text())):
            if not isinstance(node, ast.ImportFrom):
                continue
            file = f"{node.module.replace('.', '/')}.py"
            assert file not in ours or file in there, (path, node.module)
            if file in ours:
                names = names_in(laid / file)
                assert not {a.name for a in node.names} - names


def test_the_first_part_needs_nothing_that_speechbrain_does_not(laid):
    known = {
        "numpy",
        "pytest",
        "speechbrain",
        "torch",
        *sys.stdlib_module_names,
    }
    paths = git(laid, "show", "--name-only", "--format=", BRANCHES[0]).split()
    for path in paths:
        for node in ast.walk(ast.parse((laid / path).read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {node.module.split(".")[0]}
            else:
                continue
            assert names <= known, path


def names_in(file):
    """What a module defines or imports at its top level."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        else:
            names.add(getattr(node, "name", None))
    return names


def test_only_the_recipes_need_python_later_than_3_8(laid):
    for file in laid_files(laid, ".py"):
        ast.parse(file.read_text(), feature_version=(3, 8))
    for name in table.PATCH["tests"]:
        ast.parse((FILES / name).read_text(), feature_version=(3, 8))
    for module in table.LOSSES.values():
        text = (laid / f"{module.replace('.', '/')}.py").read_text()
        assert "strict=" not in text


@pytest.mark.parametrize(("corpus", "name", "stage"), YAMLS)
def test_a_yaml_means_what_experiment_and_preset_mean(
    laid, corpus, name, stage
):
    preset = table.RECIPES[corpus]["presets"][name]
    composed = compose(table.EXPERIMENTS[stage], [preset], "data_folder: here")
    for ours, theirs in (
        (table.RECIPES[corpus]["prepare"], prepare_of(corpus)),
        *public_places(),
    ):
        composed = composed.replace(f":{ours}.", f":{theirs}.")
        composed = composed.replace(f":{ours}\n", f":{theirs}\n")
        composed = composed.replace(f":{ours} ", f":{theirs} ")
    file = laid / f"recipes/{corpus}/EmoQ/hparams/{name}_stage{stage}.yaml"
    merged = resolve_references(file.read_text(), "data_folder: here")
    expected = YAML().load(composed)
    del expected["brain"]
    found = YAML().load(merged)
    assert list(found) == list(expected)
    assert meaning(found) == meaning(expected)


def prepare_of(corpus):
    """The prepare script's name upstream."""
    return table.PREPARE[table.RECIPES[corpus]["prepare"]]


def public_places():
    """Ours and theirs, of all names that an experiment may have in a tag."""
    places = {**table.LOSSES, **table.MODULES, **table.TRAINING}
    for name, module in _PUBLIC.items():
        if f"emoq_modules.{module}" in places:
            there = places[f"emoq_modules.{module}"]
            yield f"emoq_modules.{name}", f"{there}.{name}"
    yield from places.items()


@pytest.mark.parametrize(("corpus", "name", "stage"), YAMLS)
def test_comments_are_kept(laid, corpus, name, stage):
    preset = Path(table.RECIPES[corpus]["presets"][name]).read_text()
    experiment = Path(table.EXPERIMENTS[stage]).read_text()
    file = laid / f"recipes/{corpus}/EmoQ/hparams/{name}_stage{stage}.yaml"
    lines = file.read_text().splitlines()
    replaced = {line.partition(":")[0] for line in preset.splitlines()}
    # The other paragraphs of the experiment's header tell of presets.
    gone = {
        line
        for line in experiment.partition("\n\n")[2].splitlines()
        if "#" in line
        and line not in lines
        and line.partition(":")[0] not in replaced
        and "!" not in line  # its tag has another name
    }
    # IEMOCAP's presets bring a comment of their own.
    assert gone <= {
        "# What {data_root} in the manifests stands for: here the audio of "
        "the clips."
    }
    assert preset.splitlines()[0] in lines
    assert experiment.splitlines()[0] == lines[0]


def test_every_yaml_has_a_row_whose_flags_are_its_keys(laid):
    for corpus in table.RECIPES:
        text = (laid / f"tests/recipes/{corpus}.csv").read_text()
        rows = [
            row
            for row in csv.DictReader(io.StringIO(text))
            if "EmoQ" in row["Script_file"]
        ]
        yamls = {str(f.relative_to(laid)) for f in laid_files(laid, ".yaml")}
        assert {row["Hparam_file"] for row in rows} == {
            path for path in yamls if f"/{corpus}/" in path
        }
        for row in rows:
            keys = YAML().load((laid / row["Hparam_file"]).read_text())
            flags = row["test_debug_flags"].split()
            assert not {flag[2:].split("=")[0] for flag in flags} - set(keys)
            assert "file_exists=[" in row["test_debug_checks"]
            assert "performance_check=[" in row["test_debug_checks"]
            for field in ("Script_file", "Data_prep_file", "Readme_file"):
                assert (laid / row[field]).exists()
            setup = row["Hparam_file"].partition("/EmoQ/")[2][:-5]
            script = f"recipes_{corpus}_EmoQ_train/{setup.replace('/', '_')}"
            maker = laid / "tests/recipes/setup" / script
            assert maker.stat().st_mode & 0o100


def test_upstreams_rows_stay(laid):
    text = (laid / "tests/recipes/IEMOCAP.csv").read_text()
    assert text.startswith(HEADER + ROW + "\n")


def test_the_prepare_script_is_linked_from_the_recipe(laid):
    for corpus in table.RECIPES:
        link = laid / f"recipes/{corpus}/EmoQ/{prepare_of(corpus)}.py"
        assert link.is_symlink() and link.is_file()


# --- Source and YAML ----------------------------------------------------------

NAMES = Names(
    {
        "emoq_modules.losses": "speechbrain.nnet.loss.mal_loss",
        "emoq_modules.offline": "speechbrain.emoq.small_backbones",
    },
    {"MALLoss": "losses"},
    {"ConfigurationError": "ValueError"},
)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "from emoq_modules import MALLoss, offline",
            "from speechbrain.nnet.loss.mal_loss import MALLoss\n"
            "from speechbrain.emoq import small_backbones as offline",
        ),
        (
            "é = 'ü'; from emoq_modules.losses import (\n    A as B,\n)",
            "é = 'ü'; from speechbrain.nnet.loss.mal_loss import A as B",
        ),
        (
            "from emoq_modules.configuration import ConfigurationError\n"
            "raise ConfigurationError('no emoq_modules.losses.A')",
            "\nraise ValueError('no speechbrain.nnet.loss.mal_loss.A')",
        ),
        (
            "def f():\n    '''\n    >>> from emoq_modules import MALLoss\n'''",
            "def f():\n    '''\n    >>> from speechbrain.nnet.loss.mal_loss "
            "import MALLoss\n'''",
        ),
        ("my_emoq_modules = emoq = 1", "my_emoq_modules = emoq = 1"),
        (
            "def test_a_b_c():\n    pass",
            'def test_a_b_c():\n    """A b c."""\n    pass',
        ),
    ],
)
def test_names_are_rewritten_where_they_stand(source, expected):
    assert rewrite(source, NAMES) == expected


@pytest.mark.parametrize(
    "source",
    [
        "from emoq_modules.serve import App",
        "from emoq_modules import Nothing",
        "import emoq_modules.losses",
        "x = 'emoq_modules.serve.App'",
    ],
)
def test_a_name_without_a_place_is_refused(source):
    with pytest.raises(MoveError):
        rewrite(source, NAMES)


def test_what_is_left_out_takes_its_comment_and_imports_along():
    source = (
        "from emoq_modules.serve import App\n\n\n# Of f.\nA = 1\n\n\n"
        "@mark\ndef f():\n    App()\n\n\nB = 2\n"
    )
    left = rewrite(source, NAMES, left_out={"A", "f"})
    assert left.split() == ["B", "=", "2"]
    with pytest.raises(MoveError, match="g, which is to be left out"):
        rewrite(source, NAMES, left_out={"g"})


def test_a_module_is_inlined_where_it_was_imported():
    script = "import sys\nfrom m import f\n\nlog = 1\nprint(f(), log)\n"
    module = '"""Doc."""\nimport os\n\nlog = 1\n\n\ndef f():\n    return os\n'
    scope = {"print": lambda *values: scope.update(printed=values)}
    exec(inline(script, module, "m"), scope)
    assert scope["printed"][0].__name__ == "os"


def test_a_section_of_the_stage_is_merged_and_the_others_is_not(tmp_path):
    write(tmp_path, "e.yaml", "# E.\nstage: 1\n\n# Of a.\na: 1\nb: !ref <a>\n")
    write(
        tmp_path,
        "p.yaml",
        "# P.\nb: 3\nstage1:\n    # New.\n    a:\n        c: 4\nstage2:\n"
        "    a: 5\n",
    )
    # An experiment has a data_folder.
    with pytest.raises(ConfigurationError):
        flatten(tmp_path / "e.yaml", [tmp_path / "p.yaml"], "run", NAMES)
    with (tmp_path / "e.yaml").open("a") as file:
        file.write("data_folder: !PLACEHOLDER\n")
    text = flatten(tmp_path / "e.yaml", [tmp_path / "p.yaml"], "run", NAMES)
    assert text == (
        "# E.\n#\n# P.\n#\n#   run\n\nstage: 1\n\n# New.\na:\n    c: 4\n"
        "b: 3\ndata_folder: !PLACEHOLDER\n"
    )
    write(tmp_path, "p.yaml", "# P.\nstage1: {a: 3}\n")
    with pytest.raises(FlattenError):
        flatten(tmp_path / "e.yaml", [tmp_path / "p.yaml"], "run", NAMES)
