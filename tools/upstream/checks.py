"""Checks are commands in a clone: how they run, and upstream's hooks."""

import os
import re
import subprocess
import sysconfig
import time
import venv

from ruamel.yaml import YAML


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
