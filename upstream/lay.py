"""Lays the contribution into a clone of SpeechBrain, as four branches.

``python upstream/lay.py CHECKOUT`` makes, from its branch ``develop``, what
would be four pull requests, and runs SpeechBrain's own checks on each: its
hooks, consistency tests, the unit tests and doctests of what changes, and the
new rows of its recipe tests, with backbones of random weights. What is checked
out stays as it is. Where a branch has commits of others, they stay, and what
changed here since is one more commit on top of them.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from emoq_modules.lobes.small_backbones import build_llm, build_text_encoder

HERE = Path(__file__).parent
# The folders of each branch, a commit each, with its first line.
BRANCHES = {
    "emoq-1-iemocap": {
        "1-iemocap": "Correct genders and order in the preparation of IEMOCAP",
    },
    "emoq-2-core": {
        "2-core/clipping": "Clip the gradients of all parameter groups",
        "2-core/keys": "Keep a checkpoint's importance keys from piling up",
        "2-core/stopper": "Stop early on a constant maximum",
    },
    "emoq-3-lobes": {
        "3-lobes": "Add the EmoQ-Former, a soft-prompt decoder and their loss",
    },
    "emoq-4-recipe": {
        "4-recipe": "Add recipes of EmoQ for IEMOCAP and MELD",
    },
}
# Of SpeechBrain's .pre-commit-config.yaml.
HOOKS = "ruff==0.12.4", "yamllint==1.35.1", "codespell==2.3.0", "tomli"
HOOKS += ("pre-commit-hooks==2.5.0",)
# With one date: the commits are the same, whenever they are made.
IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (
        ("NAME", "EmoQ authors"),
        ("EMAIL", "emoq@users.noreply.github.com"),
        ("DATE", "2026-12-01T00:00:00+00:00"),
    )
}
UPDATE = "Follow EmoQ's changes"
SCRIPTS = [
    f"recipes/{corpus}/emotion_recognition/train_with_emoq.py"
    for corpus in ("IEMOCAP", "MELD")
]


class LayError(Exception):
    """The contribution cannot be laid; the message says why, in a line."""


def git(folder, *arguments, check=True):
    """Runs git in a folder and gives what it prints."""
    done = subprocess.run(
        ["git", *map(str, arguments)],
        cwd=folder,
        env=os.environ | IDENTITY,
        capture_output=True,
        text=True,
    )
    if check and done.returncode:
        raise LayError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def files_of(part):
    """Files of a part of the contribution, as they lie in SpeechBrain."""
    return sorted(
        path.relative_to(part)
        for path in part.rglob("*")
        if path.is_symlink() or path.is_file()
        if not {"__pycache__", ".ruff_cache"} & set(path.parts)
    )


def put(part, folder):
    """Puts a part's files into a folder, and applies its changes."""
    for name in files_of(part):
        if name.suffix == ".diff":
            git(folder, "apply", "--3way", "--index", part / name)
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        shutil.copy2(part / name, target, follow_symlinks=False)
        git(folder, "add", "--force", name)


def lay(checkout, source=HERE, branches=BRANCHES):
    """Makes or brings up to date all branches, and gives their tips."""
    if git(checkout, "rev-parse", "--is-inside-work-tree", check=False) == "":
        raise LayError(f"{checkout} is no clone of SpeechBrain.")
    if not git(checkout, "rev-parse", "--verify", "develop", check=False):
        raise LayError(f"{checkout} has no branch develop: fetch it first.")
    out = {
        line.removeprefix("branch refs/heads/")
        for line in git(checkout, "worktree", "list", "--porcelain").split("\n")
    }
    if taken := sorted(out & set(branches)):
        raise LayError(f"{taken[0]} is checked out: switch to develop first.")
    tips, last = {}, list(branches)[-1]
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch, "tree")
        git(checkout, "worktree", "add", "--detach", tree, "develop")
        try:
            for branch, parts in branches.items():
                git(tree, "checkout", "--detach", "--force", "develop")
                if branch == last:  # it stands on the others
                    for other in tips:
                        git(tree, "merge", "--no-ff", "--no-edit", other)
                for name, subject in parts.items():
                    put(source / name, tree)
                    git(tree, "commit", "--no-verify", "-m", subject)
                tips[branch] = _move(tree, branch)
        finally:
            git(checkout, "worktree", "remove", "--force", tree)
    return tips


def _move(tree, branch):
    """Has a branch hold what is laid, and all that others added to it."""
    laid, mark = git(tree, "rev-parse", "HEAD"), f"refs/emoq/{branch}"
    tip, before = (
        git(tree, "rev-parse", "--verify", ref, check=False)
        for ref in (f"refs/heads/{branch}", mark)
    )
    if tip and not before:  # it comes from another clone
        own = ["--author=EmoQ authors", "--invert-grep", f"--grep={UPDATE}"]
        before = git(tree, "log", "-1", "--format=%H", *own, f"develop..{tip}")
    if tip and tip != before:
        if not before:
            raise LayError(f"{branch} is not of this script: rename it.")
        git(tree, "checkout", "--detach", "--force", tip)
        patch = Path(tree.parent, "change.diff")
        git(tree, "diff", "--binary", f"--output={patch}", before, laid)
        try:
            git(tree, "merge", "--no-edit", "develop")
            if patch.stat().st_size:
                git(tree, "apply", "--3way", "--index", patch)
        except LayError as error:
            print(
                f"{branch}: others changed the same lines. It stays as it is; "
                f"by hand: git diff {before} {laid}\n{error}"
            )
            return tip
        if git(tree, "diff", "--cached", "--name-only"):
            git(tree, "commit", "--no-verify", "-m", UPDATE)
    tip = git(tree, "rev-parse", "HEAD")
    git(tree, "update-ref", mark, laid)
    git(tree, "update-ref", f"refs/heads/{branch}", tip)
    return tip


def checks(tree, tools, others):
    """SpeechBrain's checks of a branch: name, command, PYTHONPATH of each.

    What a branch has of others was checked with these.
    """
    changed = [
        set(git(tree, "diff", "--name-only", "--diff-filter=d", base).split())
        for base in ("develop", *others)
    ]
    present = sorted(
        name
        for name in set.intersection(*changed)
        if not (tree / name).is_symlink()
    )

    def some(ending, start=""):
        return [
            x for x in present if x.endswith(ending) and x.startswith(start)
        ]

    hooks = {
        "trailing-whitespace-fixer": present,
        "end-of-file-fixer": some(".py"),
        "mixed-line-ending --fix=no": some(".py"),
        "check-added-large-files --maxkb=1024": present,
        "ruff check": some(".py"),
        "ruff format --check": some(".py"),
        "yamllint": some(".yaml"),
        "codespell --ignore-words=.dict-speechbrain.txt": present,
    }
    for hook, files in hooks.items():
        if files:
            program, *options = hook.split()
            yield hook, [tools / "bin" / program, *options, *files], tools
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    files = [
        f"tests/consistency/test_{name}.py"
        for name in ("docstrings", "recipe", "yaml")
    ]
    yield "consistency", [*pytest, *files], tree
    tests = some(".py", "tests/unittests") + some(".py", "speechbrain")
    if tests:
        command = [*pytest, "--doctest-modules", *tests]
        yield "unit tests and doctests", command, tree
    if some(".csv", "tests/recipes"):
        # Folders by the names of the hub's models are found before these.
        hubert = HubertConfig(num_hidden_layers=1, conv_dim=[16] * 7)
        folder = tree / "facebook/hubert-base-ls960"
        HubertModel(hubert).save_pretrained(folder)
        Wav2Vec2FeatureExtractor().save_pretrained(folder)
        words = ["angry", "happy", "joy", "neutral", "sadness"]
        sizes = {"hidden_size": 768, "num_hidden_layers": 1}
        build_text_encoder(tree / "FacebookAI/roberta-base", words, **sizes)
        build_llm(tree / "HuggingFaceTB/SmolLM2-135M-Instruct", words, words)
        python = tools / "bin/python"  # as the rows call it
        run = f'PYTHONPATH={tree}:$PYTHONPATH exec {sys.executable} "$@"'
        python.write_text(f"#!/bin/sh\n{run}\n")
        python.chmod(0o755)
        test = (
            "import sys; from tests.utils.recipe_tests import run_recipe_tests;"
            f"sys.exit(not run_recipe_tests(filters_fields=['Script_file'], "
            f"filters=[{SCRIPTS}], run_opts='--device=cpu',"
            "output_folder='tests/tmp'))"
        )
        yield "recipe tests", [python, "-c", test], tree


def main(arguments=None):
    """Lays the branches and checks them; 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkout", type=Path, help="a clone of SpeechBrain")
    parser.add_argument("--only_lay", action="store_true", help="no checks")
    options = parser.parse_args(arguments)
    checkout, failed = options.checkout.resolve(), []
    tips = lay(checkout)
    with tempfile.TemporaryDirectory() as scratch:
        tools, tree = Path(scratch, "tools"), Path(scratch, "tree")
        if not options.only_lay:
            pip = [sys.executable, "-m", "pip", "install", "--quiet"]
            subprocess.run([*pip, "--target", tools, *HOOKS], check=True)
        for branch, tip in tips.items():
            print(f"\n{branch} {tip[:9]}")
            print(git(checkout, "diff", "--stat", "develop", tip))
            if options.only_lay:
                continue
            git(checkout, "worktree", "add", "--detach", tree, tip)
            others = list(tips)[:-1] if branch == list(tips)[-1] else []
            try:
                failed += [
                    f"{branch}: {name}"
                    for name, *how in checks(tree, tools, others)
                    if not _passes(name, *how, tree, tools)
                ]
            finally:
                git(checkout, "worktree", "remove", "--force", tree)
    print("\nBy hand: push each, and open its request by upstream/README.md.")
    if failed:
        print("\n".join(["failed:", *failed]))
    return 1 if failed else 0


def _passes(name, command, path, tree, tools, tries=4):
    started = time.perf_counter()
    done = subprocess.run(
        list(map(str, command)),
        cwd=tree,
        env=os.environ
        | {
            "PATH": f"{tools / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(path),
            "HF_HUB_OFFLINE": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.perf_counter() - started
    result = "failed" if done.returncode else "ok"
    print(f"  {result:6} {seconds:5.1f} s  {name}", flush=True)
    if done.returncode:
        print(done.stdout[-4000:])
        # A test of several processes aborts now and then, on develop too.
        if tries > 1 and "SIGABRT" in done.stdout:
            return _passes(name, command, path, tree, tools, tries - 1)
    return not done.returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LayError as problem:
        sys.exit(f"error: {problem}")
