"""What is checked of the series, of the correction, and of both together."""

import csv

from upstream import table
from upstream.checks import git
from upstream.contribution import ROOT, our_names
from upstream.reuse import examples, losses

# What upstream's recipe tests make, and what they leave.
_TINY = "tests/tmp/EmoQ"
_PYTEST = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider")


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
    _check_script(checks)
    checks.run(
        "series: tests leave nothing in the work tree",
        *("sh", "-c", 'git status --porcelain && test -z "$(git status -s)"'),
    )


def _check_script(checks):
    """What no row of a table asks of the recipes' script."""
    path = checks.folder / "tests/recipes/MELD.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    commands = []
    for stage, row in enumerate(rows[:2], 1):
        command = [
            *(row["Script_file"], row["Hparam_file"]),
            *row["test_debug_flags"].split(),
            *("--device=cpu", f"--output_folder={_TINY}/ranks{stage}"),
        ]
        checks.run(
            f"series: torchrun, {row['Hparam_file'].rpartition('/')[2]}",
            *("python", "-m", "torch.distributed.run"),
            *("--standalone", "--nproc_per_node=2"),
            *(*command, "--distributed_backend=gloo"),
        )
        commands.append(command)
    first, second = commands
    kept = [
        checks.folder / _TINY / name
        for name in ("of_stage1.safetensors", "ranks1/predictions.csv")
    ]

    def contents():
        return [file.read_bytes() for file in kept if file.exists()]

    before = contents()
    checks.run(
        "series: a few batches leave a whole run's results",
        *("python", *first, "--debug"),
        then=lambda: (
            None
            if len(before) == len(kept) and before == contents()
            else "The results of the run before are others now."
        ),
    )
    for name, command, key, value, message in (
        ("stage 2 without stage 1", second, "fusion_weights", "no", "stage 1"),
        ("no manifests", first, "manifest_folder", "no", "no manifest"),
    ):
        start = f"--{key}="
        other = [
            start + value if part.startswith(start) else part
            for part in command
        ]
        program = ("-c", _IS_REFUSED, message, *other)
        checks.run(f"series: {name} is refused", "python", *program)


_IS_REFUSED = """
import subprocess, sys
message, *command = sys.argv[1:]
done = subprocess.run(
    [sys.executable, *command], capture_output=True, text=True
)
last = done.stderr.strip().splitlines()[-1:]
print(*last)
sys.exit(not (done.returncode and message in "".join(last)))
"""


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
