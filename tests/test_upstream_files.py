"""The files of the contribution are what upstream wants of them."""

import ast
import csv
import io
import sys
from pathlib import Path

import pytest
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from upstream import table
from upstream.contribution import FILES
from upstream.flatten import meaning
from upstream_clone import BRANCHES, HEADER, ROW, git

from emoq_modules import _PUBLIC
from emoq_modules.configuration import compose

YAMLS = [
    (corpus, name, stage)
    for corpus, recipe in table.RECIPES.items()
    for name in recipe["presets"]
    for stage in table.EXPERIMENTS
]


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
