"""Upstream's checks of the contribution, each a command in a clone."""

import csv
import os
import re
import subprocess
import sysconfig
import time
import venv

from ruamel.yaml import YAML

from upstream import table
from upstream.contribution import ROOT, our_names
from upstream.reuse import examples, losses

# What upstream's recipe tests make, and what they leave.
_TINY = "tests/tmp/EmoQ"
_PYTEST = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider")


class Checks:
    """Runs commands in a folder, and remembers what came of each.

    Arguments
    ---------
    folder : Path
        Where they run.
    programs : Path
        An environment's folder of programs, which come before all others.
    results : list
        Name, success and seconds of each are put here.
    """

    def __init__(self, folder, programs, results):
        self.folder, self.programs, self.results = folder, programs, results

    def run(self, name, *command, then=None):
        """Runs a program; prints what it printed if it fails.

        Arguments
        ---------
        name : str
            What the check is called.
        *command : tuple
            The program and its arguments.
        then : callable | None
            Called after a program that succeeds; gives what is wrong all the
            same, or None.
        """
        print(f"--- {name}", flush=True)
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": ""}
        started = time.perf_counter()
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        seconds = time.perf_counter() - started
        wrong = done.stdout[-6000:] if done.returncode else None
        if wrong is None and then is not None:
            wrong = then()
        self.results.append((name, wrong is None, seconds))
        last = "\n".join(done.stdout.strip().splitlines()[-1:])
        print(last if wrong is None else wrong, flush=True)


def git(folder, *arguments):
    """What a git command prints, in a folder."""
    return subprocess.run(
        ["git", "-C", str(folder), *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def summary(results):
    """What was run, a line each."""
    return "\n".join(
        f"  {'passed' if passed else 'FAILED'}  {seconds:>5.0f} s  {name}"
        for name, passed, seconds in results
    )


def environments(folder, clone):
    """Where the linters are, and where a clone's SpeechBrain is imported.

    They are two, as a hook may ask for other versions than SpeechBrain takes.
    What a command's own folder has comes first.

    Arguments
    ---------
    folder : Path
        Where to make them.
    clone : Path
        A clone of SpeechBrain.

    Returns
    -------
    tuple of Path
        Their folders of programs.
    """
    tests = clone.joinpath("lint-requirements.txt").read_text("utf-8")
    lint = _environment(folder / "lint", linters(clone))
    test = _environment(
        folder / "test", re.findall(r"^pytest==.*$", tests, re.MULTILINE)
    )
    # Of ours what is installed, behind the clone. An editable install is not
    # among it, so that nothing of our package can be imported by mistake.
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    places = next((folder / "test").glob("lib/python*/site-packages"))
    (places / "checkout.pth").write_text(
        "\n".join([str(clone), *sorted(ours)]) + "\n", encoding="utf-8"
    )
    return lint, test


def _environment(folder, packages):
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--disable-pip-version-check", *packages], check=True)
    return folder / "bin"


def linters(clone):
    """Requirements of the hooks, in the versions that upstream names."""
    hooks = YAML().load((clone / ".pre-commit-config.yaml").read_text("utf-8"))
    packages = {
        "pre-commit-hooks": "pre-commit-hooks",
        "ruff-pre-commit": "ruff",
        "yamllint": "yamllint",
        "codespell": "codespell[toml]",
    }
    return [
        f"{packages[name]}=={repo['rev'].removeprefix('v')}"
        for repo in hooks["repos"]
        if (name := repo["repo"].rpartition("/")[2]) in packages
    ]


def check_hooks(checks, changed, of):
    """The hooks of .pre-commit-config.yaml.

    Arguments
    ---------
    checks : Checks
        In the clone, with the linters.
    changed : list of str
        What the branches change.
    of : str
        What to call these in the summary.
    """
    clone = checks.folder
    files = [path for path in changed if not (clone / path).is_symlink()]
    python = [path for path in files if _is_python(clone / path)]
    hooks = YAML().load((clone / ".pre-commit-config.yaml").read_text("utf-8"))
    arguments = {
        hook["id"]: hook.get("args", [])
        for repo in hooks["repos"]
        for hook in repo["hooks"]
    }
    required = [p for p in files if p.endswith("requirements.txt")]
    yamls = [p for p in files if p.endswith(".yaml")]
    for hook, program, on in (
        ("trailing-whitespace", "trailing-whitespace-fixer", files),
        ("end-of-file-fixer", "end-of-file-fixer", python),
        ("requirements-txt-fixer", "requirements-txt-fixer", required),
        ("mixed-line-ending", "mixed-line-ending", python),
        ("check-added-large-files", "check-added-large-files", files),
        ("yamllint", "yamllint", yamls),
        ("codespell", "codespell", files),
    ):
        if on:
            own = [argument.replace("'", "") for argument in arguments[hook]]
            checks.run(f"{of}: hook {hook}", program, *own, *on)
    # A hook that mends is one that fails, and so is ruff's.
    checks.run(f"{of}: hook ruff", "ruff", "check", *python)
    checks.run(f"{of}: hook ruff-format", "ruff", "format", "--check", *python)


def _is_python(path):
    if path.suffix == ".py":
        return True
    return not path.suffix and path.read_bytes().startswith(
        b"#!/usr/bin/env py"
    )


def check_series(checks, changed):
    """Consistency, doctests, unit tests and recipe tests of the series."""
    python = [path for path in changed if path.endswith(".py")]
    modules = [
        path
        for path in python
        if path.startswith("speechbrain/") and "/tests/" not in path
    ]
    tests = [
        path
        for path in python
        if path.startswith("tests/unittests/")
        or path.startswith("speechbrain/integrations/tests/test_")
    ]
    _check_consistency(checks, "series")
    for name, paths in (
        ("doctests", ["--doctest-modules", *modules]),
        ("unit tests", tests),
    ):
        core = [path for path in paths if "/integrations/" not in path]
        rest = [path for path in paths if path not in core]
        option = [path for path in core if path.startswith("--")]
        checks.run(f"series: {name}, core", *_PYTEST, *core)
        checks.run(f"series: {name}, integrations", *_PYTEST, *option, *rest)
    for corpus in table.RECIPES:
        _check_recipe(
            checks,
            f"series: recipe_tests.py, rows of {corpus}",
            f"{corpus}/EmoQ",
        )
    _check_ranks(checks)
    checks.run(
        "series: tests leave nothing in the work tree",
        *("sh", "-c", 'git status --porcelain && test -z "$(git status -s)"'),
    )


def _check_ranks(checks):
    """Both stages of a YAML, in two processes."""
    path = checks.folder / "tests/recipes/MELD.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for stage, row in enumerate(rows[:2], 1):
        checks.run(
            f"series: torchrun, {row['Hparam_file'].rpartition('/')[2]}",
            *("python", "-m", "torch.distributed.run"),
            *("--standalone", "--nproc_per_node=2"),
            *(row["Script_file"], row["Hparam_file"]),
            *row["test_debug_flags"].split(),
            *("--device=cpu", "--distributed_backend=gloo"),
            f"--output_folder={_TINY}/ranks{stage}",
        )


def _check_consistency(checks, of):
    checks.run(
        f"{of}: tests/consistency, with the YAML against script check",
        *_PYTEST,
        "tests/consistency",
    )


def _check_recipe(checks, name, recipe):
    script = f"recipes/{recipe}/train.py"
    checks.run(name, "python", "-c", _RECIPE_TESTS.format(script=script))


_RECIPE_TESTS = """
import sys
from pathlib import Path
from tests.utils.recipe_tests import run_recipe_tests
passed = run_recipe_tests(
    filters_fields=["Script_file"],
    filters=[["{script}"]],
    do_checks=True,
    run_opts="--device=cpu",
)
for log in sorted(Path("tests/tmp").glob("*_row_*/stderr.txt")):
    if not log.with_name(".passed").exists():
        print(log, *log.read_text().splitlines()[-15:], sep="\\n")
sys.exit(not passed)
"""


def check_correction(checks, develop):
    """Consistency, tests and recipe of the correction.

    Each of its tests has to fail without it.

    Arguments
    ---------
    checks : Checks
        In a clone that has the correction checked out.
    develop : str
        The commit that it lies on.
    """
    tests = list(table.PATCH["tests"].values())
    _check_consistency(checks, "correction")
    checks.run("correction: its tests", *_PYTEST, *tests)
    _check_recipe(
        checks,
        "correction: recipe_tests.py, row of ECAPA-TDNN",
        "IEMOCAP/emotion_recognition",
    )
    git(checks.folder, "checkout", develop, "--", "recipes")
    checks.run(
        "correction: each of its tests fails without it",
        *("python", "-c", EACH_FAILS, *tests),
    )
    git(checks.folder, "reset", "--hard")


EACH_FAILS = """
import sys, pytest
class Plugin:
    outcomes = []
    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            self.outcomes.append(report.outcome)
options = ["-q", "--tb=no", "-p", "no:cacheprovider"]
pytest.main([*options, *sys.argv[1:]], plugins=[Plugin()])
sys.exit(set(Plugin.outcomes) != {"failed"})
"""


def check_reuse(checks, series):
    """The recipes of docs/reuse.md, on upstream's own, with upstream's names.

    Arguments
    ---------
    checks : Checks
        In a clone that has the correction checked out.
    series : str
        The last branch of the series, which is merged into it.
    """
    # The merge is never to be seen: anybody's it may be.
    somebody = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    checks.run(
        "correction and series merge",
        *("git", *somebody, "merge", "--no-edit", series),
    )
    maker = "tests/recipes/setup/recipes_IEMOCAP_EmoQ_train"
    checks.run(
        "reuse: tiny models", "python", f"{maker}/hparams_iemocap4_stage1"
    )
    llama = _TINY_LLAMA.format(emoq=table.EMOQ, folder=f"{_TINY}/llama")
    checks.run("reuse: a tiny Llama", "python", "-c", llama)
    samples = "tests/samples/annotation/ASR"
    shared = {
        "data_folder": "tests/samples/ASR",
        "train_annotation": f"{samples}_train.json",
        "valid_annotation": f"{samples}_dev.json",
        "test_annotation": f"{samples}_dev.json",
        "skip_prep": True,
        "number_of_epochs": 8,
        "batch_size": 4,
    }
    ecapa = {"lr": 0.001, "step_size": 4}
    own = [
        {**ecapa, "text_encoder": f"{_TINY}/roberta"},
        {"lr": 0.01, "wav2vec2_hub": f"{_TINY}/hubert", "encoder_dim": 16},
        {
            **ecapa,
            "llm": f"{_TINY}/llama",
            "labels": "[anger, happiness, neutrality, sadness]",
        },
    ]
    document = (ROOT / "docs/reuse.md").read_text(encoding="utf-8")
    names = our_names()
    for number, (example, options) in enumerate(
        zip(examples(document), own, strict=True)
    ):
        example = example.renamed(names)
        example.apply(checks.folder)
        output = f"{_TINY}/reuse{number}"
        flags = {**shared, **options, "output_folder": output}
        folder = "recipes/IEMOCAP/emotion_recognition"
        log = checks.folder / output / "train_log.txt"
        checks.run(
            f"reuse: {example.title}",
            "python",
            f"{folder}/{example.script}",
            f"{folder}/{example.yaml}",
            *(f"--{name}={value}" for name, value in flags.items()),
            "--device=cpu",
            then=lambda log=log: _what_is_not_learned(log),
        )
        git(checks.folder, "checkout", "--", folder)


def _what_is_not_learned(log):
    found = losses(log.read_text(encoding="utf-8"))
    if len(found) > 1 and found[-1] < found[0]:
        return None
    return f"The training loss does not fall: {found}."


_TINY_LLAMA = """
from {emoq}.small_backbones import build_llm
words = ["furious", "delighted", "calm", "gloomy"]
build_llm(
    "{folder}", words, words, model_type="llama", hidden_size=16,
    num_attention_heads=2, num_key_value_heads=1, intermediate_size=32,
    initializer_range=0.4,
)
"""
