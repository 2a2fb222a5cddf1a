"""Training with torchrun: two processes on the CPU against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from tests.test_training import RUN, STAGE2, newest_weights

ROOT = Path(__file__).parents[1]


def arguments(results, *options):
    return [
        *(STAGE2, "--preset", "tests/tiny.yaml"),
        *("--preset", "tests/without_dropout.yaml"),
        *("--results_folder", str(results), *options),
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One process with batches of 24, and two with 12 each."""
    alone = tmp_path_factory.mktemp("alone")
    train.main(arguments(alone))
    together = tmp_path_factory.mktemp("together")
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--standalone", "--nproc_per_node=2", "train.py"),
            *arguments(together, "--batch_size", "12"),
            *("--device", "cpu", "--distributed_backend", "gloo"),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr
    return alone, together, finished.stdout


@pytest.mark.parametrize("stage", [1, 2])
def test_two_processes_end_with_the_weights_of_one(runs, stage):
    alone, together, _ = runs
    expected = newest_weights(alone / RUN / f"stage{stage}")
    found = newest_weights(together / RUN / f"stage{stage}")
    assert found.keys() == expected.keys()
    # The bias of a key is the same for all that a softmax weighs against each
    # other: its gradient is rounding alone, which AdamW makes large.
    names = [name for name in found if not name.endswith("key.bias")]
    for name in names:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-3, atol=1e-4, msg=name
        )


def test_two_processes_test_each_utterance_once_and_report_it_once(runs):
    _, together, printed = runs
    results = json.loads(
        (together / RUN / "stage2" / "results.json").read_text()
    )
    assert results["n"] == 9
    assert printed.count("Confusion of stage 2") == 1
