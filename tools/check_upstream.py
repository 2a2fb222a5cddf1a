#!/usr/bin/env python3
"""Lays EmoQ over a clone of speechbrain/speechbrain and runs upstream's checks.

    python tools/check_upstream.py CHECKOUT

The checks run on clones of CHECKOUT, in an environment that sees SpeechBrain
as it is there and nothing of our package; linters have the versions that
upstream's pre-commit hooks name. It ends with what was run, what failed, and
what is left for a person to do.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import to_speechbrain
from upstream import checks, suites, table
from upstream.checks import git

BY_HAND = (
    "Result links: train each YAML on its corpus, fill the tables of the "
    "READMEs in, upload the folders, and put the links there and into "
    "tests/recipes/*.csv (Result_url, performance).",
    "Released weights: upload the trained models to Hugging Face with a card, "
    "and put their names into the READMEs and tests/recipes/*.csv (HF_repo); "
    "tests/consistency/test_HF_repo.py then runs their examples.",
    "Faults of SpeechBrain's core that the recipes work around, each worth a "
    "change of its own: EpochCounterWithStopper never stops at a constant "
    "score to be maximised, and forgets its best one on recovery; "
    "save_and_keep_only appends to a default argument; clipping sees the first "
    "parameter group alone; Pretrainer takes a path that is not there for a "
    "name on the hub.",
    "The table of tasks in upstream's README, and recipes/IEMOCAP/README.md, "
    "which do not name the new recipes.",
    "The results of the recipes that the correction touches: their README's "
    "figures are of splits from before it.",
    "The YAMLs with the backbones they name: tests/.run-load-yaml-tests.sh "
    "downloads HuBERT, RoBERTa and Qwen2.5, and needs a prepared corpus.",
    "The recipe tests on a GPU: tests/.run-recipe-tests.sh, and torchrun.",
    "The test-run record and coverage in "
    "speechbrain/integrations/huggingface/README.md.",
    "Python 3.8 and 3.9: pyproject.toml allows them, the correction and the "
    "first branch keep to what they have, the others need 3.10, as "
    "transformers 5 does.",
    "Addresses in the new READMEs: tests/.run-url-checks.sh.",
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
    results = []
    with TemporaryDirectory() as scratch:
        _check(Path(own.checkout).resolve(), Path(scratch), results)
    print("\nUpstream's checks that were run")
    print(checks.summary(results))
    print("\nWhat a maintainer still has to do by hand")
    for line in BY_HAND:
        print(f"  - {line}")
    return 0 if all(passed for _, passed, _ in results) else 1


def _check(checkout, scratch, results):
    *_, last = table.SERIES
    correction = table.PATCH["branch"]
    develop = git(checkout, "merge-base", correction, last).strip()
    clones = {branch: scratch / branch for branch in (last, correction)}
    for branch, clone in clones.items():
        git(checkout, "clone", "-q", "--no-hardlinks", "-b", branch, ".", clone)
    lint, test = checks.environments(scratch, clones[last])
    for branch, name in ((correction, "correction"), (last, "series")):
        clone = clones[branch]
        changed = git(clone, "diff", "--name-only", develop).splitlines()
        checks.check_hooks(checks.Checks(clone, lint, results), changed, name)
        here = checks.Checks(clone, test, results)
        if branch == last:
            suites.check_series(here, changed)
        else:
            suites.check_correction(here, develop)
    merged = checks.Checks(clones[correction], test, results)
    suites.check_reuse(merged, f"origin/{last}")


if __name__ == "__main__":
    sys.exit(main())
