#!/usr/bin/env python3
"""Lays EmoQ over a clone of speechbrain/speechbrain and runs upstream's checks.

    python tools/check_upstream.py CHECKOUT

The checks run on a clone of CHECKOUT, in an environment that sees SpeechBrain
as it is there and nothing of our package; linters have the versions that
upstream's pre-commit hooks name. It ends with what was run, what failed, and
what is left for a person to do.
"""

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

import to_speechbrain
from ruamel.yaml import YAML
from upstream import table

BY_HAND = (
    "Result links: train each YAML on its corpus, fill the tables of the "
    "READMEs in, upload the folders, and put the links there and into "
    "tests/recipes/*.csv (Result_url, performance).",
    "Released weights: upload the trained models to Hugging Face with a card, "
    "and put their names into the READMEs and tests/recipes/*.csv (HF_repo); "
    "tests/consistency/test_HF_repo.py then runs their examples.",
    "The YAMLs with the backbones they name: tests/.run-load-yaml-tests.sh "
    "downloads HuBERT, RoBERTa and Qwen2.5, and needs a prepared corpus.",
    "The recipe tests on a GPU: tests/.run-recipe-tests.sh, and torchrun.",
    "The test-run record and coverage in "
    "speechbrain/integrations/huggingface/README.md.",
    "Python 3.8 and 3.9: pyproject.toml allows them, the first branch keeps to "
    "what they have, the others need 3.10, as transformers 5 does.",
    "Addresses in the new READMEs: tests/.run-url-checks.sh.",
)


class Checks:
    """Runs commands in a folder, and remembers what came of each.

    Arguments
    ---------
    folder : Path
        The clone.
    """

    def __init__(self, folder):
        self.folder, self.binaries = folder, None
        self.results = []

    def among(self, binaries):
        """These checks, from now on with the programs of an environment."""
        self.binaries = binaries
        return self

    def run(self, name, *command):
        """Runs a program of the environment; prints its output if it fails."""
        print(f"--- {name}", flush=True)
        path = f"{self.binaries}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": ""}
        started = time.perf_counter()
        done = subprocess.run(
            [self.binaries / command[0], *map(str, command[1:])],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        seconds = time.perf_counter() - started
        self.results.append((name, done.returncode == 0, seconds))
        if done.returncode:
            print(done.stdout[-6000:], flush=True)
        else:
            print("\n".join(done.stdout.strip().splitlines()[-1:]), flush=True)

    def summary(self):
        """What was run, a line each."""
        return "\n".join(
            f"  {'passed' if passed else 'FAILED'}  {seconds:>5.0f} s  {name}"
            for name, passed, seconds in self.results
        )


def main(arguments=None):
    """Lays the contribution and checks it.

    Returns
    -------
    int
        Exit status: 0, 1 if a check failed, or 2 after an error message.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkout", metavar="CHECKOUT")
    own = parser.parse_args(arguments)
    status = to_speechbrain.main([own.checkout])
    if status:
        return status
    with TemporaryDirectory() as scratch:
        clone = Path(scratch) / "speechbrain"
        _git(own.checkout, "clone", "--quiet", "--no-hardlinks", ".", clone)
        develop = "refs/remotes/origin/develop"
        _git(
            clone,
            "fetch",
            "--quiet",
            Path(own.checkout).resolve(),
            f"+{_develop(own.checkout)}:{develop}",
        )
        changed = _git(clone, "diff", "--name-only", develop, "HEAD")
        checks = Checks(clone)
        lint, test = _environments(Path(scratch), clone)
        _lint(checks.among(lint), changed.splitlines(), clone)
        _test(checks.among(test), changed.splitlines())
    print("\nUpstream's checks that were run")
    print(checks.summary())
    print("\nWhat a maintainer still has to do by hand")
    for line in BY_HAND:
        print(f"  - {line}")
    return 0 if all(passed for _, passed, _ in checks.results) else 1


def _develop(checkout):
    local = "refs/heads/develop"
    done = subprocess.run(
        ["git", "-C", checkout, "show-ref", "--quiet", local], check=False
    )
    return "refs/remotes/origin/develop" if done.returncode else local


def _git(folder, *arguments):
    return subprocess.run(
        ["git", "-C", str(folder), *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def _environments(folder, clone):
    """Where the linters are, and where the clone's SpeechBrain is imported.

    They are two, as a hook may ask for other versions than SpeechBrain takes.
    """
    tests = clone.joinpath("lint-requirements.txt").read_text("utf-8")
    lint = _environment(folder / "lint", _linters(clone))
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


def _linters(clone):
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


def _lint(checks, changed, clone):
    """The hooks of .pre-commit-config.yaml, on what the series changes."""
    files = [path for path in changed if not (clone / path).is_symlink()]
    python = [path for path in files if _is_python(clone / path)]
    hooks = YAML().load((clone / ".pre-commit-config.yaml").read_text("utf-8"))
    arguments = {
        hook["id"]: hook.get("args", [])
        for repo in hooks["repos"]
        for hook in repo["hooks"]
    }
    required = [p for p in files if p.endswith("requirements.txt")]
    for hook, program, on in (
        ("trailing-whitespace", "trailing-whitespace-fixer", files),
        ("end-of-file-fixer", "end-of-file-fixer", python),
        ("requirements-txt-fixer", "requirements-txt-fixer", required),
        ("mixed-line-ending", "mixed-line-ending", python),
        ("check-added-large-files", "check-added-large-files", files),
        ("yamllint", "yamllint", [p for p in files if p.endswith(".yaml")]),
        ("codespell", "codespell", files),
    ):
        own = [argument.replace("'", "") for argument in arguments[hook]]
        checks.run(f"hook {hook}", program, *own, *on)
    # A hook that mends is one that fails, and so is ruff's.
    checks.run("hook ruff", "ruff", "check", *python)
    checks.run("hook ruff-format", "ruff", "format", "--check", *python)


def _is_python(path):
    if path.suffix == ".py":
        return True
    return not path.suffix and path.read_bytes().startswith(
        b"#!/usr/bin/env py"
    )


def _test(checks, changed):
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
    python = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider")
    checks.run(
        "tests/consistency, with the YAML against script check",
        *python,
        "tests/consistency",
    )
    core = [m for m in modules if "/integrations/" not in m]
    checks.run("doctests, core", *python, "--doctest-modules", *core)
    checks.run(
        "doctests, integrations",
        *python,
        "--doctest-modules",
        *(m for m in modules if m not in core),
    )
    core = [t for t in tests if "/integrations/" not in t]
    checks.run("unit tests, core", *python, *core)
    checks.run(
        "unit tests, integrations",
        *python,
        *(t for t in tests if t not in core),
    )
    for corpus in table.RECIPES:
        checks.run(
            f"recipe_tests.py, rows of {corpus}",
            "python",
            "-c",
            _RECIPE_TESTS.format(
                corpus=corpus, script=f"recipes/{corpus}/EmoQ/train.py"
            ),
        )


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
for log in sorted(Path("tests/tmp").glob("{corpus}_row_*/stderr.txt")):
    if not log.with_name(".passed").exists():
        print(log, *log.read_text().splitlines()[-15:], sep="\\n")
sys.exit(not passed)
"""


if __name__ == "__main__":
    sys.exit(main())
