"""Training with two ranks on the CPU, against one process."""

import json
import os
import subprocess
import sys
from contextlib import redirect_stdout

import pytest
import torch
from safetensors import safe_open

import train
from emoq_modules.evaluation.results import read_predictions
from emoq_modules.training.checkpoints import TrainableCheckpointer
from tests.conftest import ROOT
from tests.training.test_training import (
    RUN,
    STAGE2,
    arguments,
    newest_weights,
    stage_1_of,
)

PLAIN = ("--preset", "tests/without_dropout.yaml")
ON_CPU = ("--device", "cpu", "--distributed_backend", "gloo")
# Runs train.py; the second rank is killed after so many batches.
KILLED = """
import os, signal, sys
import emoq_modules.training.stages, train
batches = 0
def die(self, batch, outputs, loss, should_step):
    global batches
    batches += 1
    if batches == 9 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
emoq_modules.training.stages.Stage2Brain.on_fit_batch_end = die
sys.exit(train.run(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def train_together(start_ranks, tmp_path_factory):
    """Trains with two ranks, and gives what each of them prints."""

    def start(*options):
        folder = tmp_path_factory.mktemp("printed")

        def work():
            path = folder / os.environ["RANK"]
            with path.open("w") as printed, redirect_stdout(printed):
                train.main([*options, *ON_CPU])

        assert start_ranks(2, work, joined=False) == [0, 0]
        return [(folder / str(rank)).read_text() for rank in range(2)]

    return start


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with batches of 12."""
    results = tmp_path_factory.mktemp("alone")
    train.main(arguments(results, STAGE2, *PLAIN))
    return results


@pytest.fixture(scope="module")
def together(tmp_path_factory, train_together):
    """Two processes with batches of 6 each, and what they print."""
    results = tmp_path_factory.mktemp("together")
    options = arguments(results, STAGE2, *PLAIN, "--batch_size", "6")
    return results, train_together(*options)


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    # The bias of a key is the same for all that a softmax weighs against each
    # other: its gradient is rounding alone, which AdamW makes large.
    names = [name for name in found if not name.endswith("key.bias")]
    for name in names:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-3, atol=1e-4, msg=name
        )


@pytest.mark.parametrize("stage", [1, 2])
def test_two_processes_end_with_the_weights_of_one(alone, together, stage):
    results, _ = together
    expected = newest_weights(alone / RUN / f"stage{stage}")
    found = newest_weights(results / RUN / f"stage{stage}")
    assert_same_weights(found, expected)


@pytest.mark.parametrize("split", ["valid_predictions.csv", "predictions.csv"])
def test_two_processes_measure_each_utterance_once(alone, together, split):
    # The 9 of the test set are not to be divided by 2.
    results, _ = together
    found = read_predictions(results / RUN / "stage2" / split)
    expected = read_predictions(alone / RUN / "stage2" / split)
    assert found.ids == expected.ids
    assert len(found.ids) in (6, 9)
    torch.testing.assert_close(
        torch.stack(found.posteriors),
        torch.stack(expected.posteriors),
        rtol=0,
        atol=1e-3,
    )


def test_two_processes_report_once(together):
    results, (printed, nothing) = together
    n = json.loads((results / RUN / "stage2/results.json").read_text())["n"]
    assert n == 9
    assert printed.count("Confusion of stage 2") == 1
    assert not nothing


def test_two_processes_compute_each_files_frames_once(together):
    results, _ = together
    contents = {path.read_bytes() for path in results.glob("data/*.wav")}
    shards = [
        list(safe_open(path, framework="pt").keys())
        for path in results.glob("feature_store/*/shard-*.safetensors")
    ]
    # The corpus is small: each rank has written one shard at its end.
    assert len(shards) == 2
    assert sum(map(len, shards)) == len({*shards[0], *shards[1]})
    assert sum(map(len, shards)) == len(contents) > 30


def test_a_killed_rank_ends_the_run_which_then_ends_as_if_never_stopped(
    train_together, together, tmp_path
):
    # With dropout, of which each rank draws its own; 21 utterances, so that an
    # epoch is filled up.
    def command(name):
        first = stage_1_of(together[0])
        often = "--ckpt_interval_minutes", "0", "--ckpt_interval_steps", "2"
        small = "--batch_size", "2", "--number_of_epochs", "2"
        return arguments(tmp_path / name, STAGE2, *first, *small, *often)

    whole, stopped = command("whole"), command("stopped")
    train_together(*whole)
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--standalone", "--nproc_per_node=2", "--no-python"),
            *(sys.executable, "-c", KILLED, *stopped, *ON_CPU),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 1
    # torchrun's table of what has failed
    assert "Signal 9 (SIGKILL) received by PID" in finished.stderr
    expected, folder = (
        tmp_path / name / RUN / "stage2" for name in ("whole", "stopped")
    )
    newest = TrainableCheckpointer(folder / "save", {}).find_checkpoint()
    assert not newest.meta["end-of-epoch"]
    train_together(*stopped)

    weights = newest_weights(expected)
    for name, value in newest_weights(folder).items():
        assert torch.equal(value, weights[name]), name
    for name in ("predictions.csv", "train_log.txt"):
        assert (folder / name).read_text() == (expected / name).read_text()


def test_shared_out_llm_trains_and_loads_as_a_whole_one(
    train_together, together, tmp_path
):
    whole, _ = together
    options = arguments(
        tmp_path,
        STAGE2,
        *(*PLAIN, *stage_1_of(whole), "--batch_size", "6"),
        *("--gradient_checkpointing", "True"),
    )
    train_together(*options, "--shard_llm", "True")
    folder = tmp_path / RUN / "stage2"
    log = (folder / "log.txt").read_text()
    assert "this one keeps 9.47e-06 of 1.89e-05 GB" in log
    expected = newest_weights(whole / RUN / "stage2")
    assert_same_weights(newest_weights(folder), expected)

    predictions = read_predictions(folder)
    train.main(options)  # trained already: it is loaded, and tested
    torch.testing.assert_close(
        torch.stack(read_predictions(folder).posteriors),
        torch.stack(predictions.posteriors),
        rtol=0,
        atol=1e-5,
    )
