"""Training with torchrun: two processes on the CPU against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import train
from emoq_modules.evaluation.results import read_predictions
from emoq_modules.training.checkpoints import TrainableCheckpointer
from tests.training.test_training import (
    KILLED,
    RUN,
    STAGE2,
    arguments,
    newest_weights,
)

ROOT = Path(__file__).parents[2]
PLAIN = ("--preset", "tests/without_dropout.yaml")


def torchrun(*arguments, script=None):
    """Two processes of ``train.py``, or of a script."""
    program = ["train.py"]
    if script is not None:
        program = ["--no-python", sys.executable, "-c", script]
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--standalone", "--nproc_per_node=2", *program, *arguments),
            *("--device", "cpu", "--distributed_backend", "gloo"),
        ],
        cwd=ROOT,
        # Should a rank abort, the other tells where it was.
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONFAULTHANDLER": "1",
        },
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with batches of 12."""
    results = tmp_path_factory.mktemp("alone")
    train.main(arguments(results, STAGE2, *PLAIN))
    return results


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Two processes with batches of 6 each, and what they print."""
    results = tmp_path_factory.mktemp("together")
    finished = torchrun(
        *arguments(results, STAGE2, *PLAIN, "--batch_size", "6")
    )
    assert finished.returncode == 0, finished.stderr
    return results, finished.stdout


@pytest.fixture
def results_with_stage_1(tmp_path, together):
    """A results folder whose stage 1 is done."""

    def make(name):
        run = tmp_path / name / RUN
        run.mkdir(parents=True)
        (run / "stage1").symlink_to(together[0] / RUN / "stage1")
        return tmp_path / name

    return make


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
    results, printed = together
    n = json.loads((results / RUN / "stage2/results.json").read_text())["n"]
    assert n == 9
    assert printed.count("Confusion of stage 2") == 1


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
    results_with_stage_1,
):
    # With dropout, of which each rank draws its own; 21 utterances, so that an
    # epoch is filled up.
    def command(name):
        return arguments(
            results_with_stage_1(name),
            STAGE2,
            *("--batch_size", "2", "--number_of_epochs", "2"),
            *("--ckpt_interval_minutes", "0", "--ckpt_interval_steps", "2"),
        )

    whole = command("whole")
    finished = torchrun(*whole)
    assert finished.returncode == 0, finished.stderr

    stopped = command("stopped")
    script = KILLED.format(brain="Stage2Brain", after=9)
    finished = torchrun(*stopped, script=script)
    assert finished.returncode == 1
    # torchrun's table of what has failed
    assert "Signal 9 (SIGKILL) received by PID" in finished.stderr
    folder = Path(stopped[4], RUN, "stage2")
    newest = TrainableCheckpointer(folder / "save", {}).find_checkpoint()
    assert not newest.meta["end-of-epoch"]
    finished = torchrun(*stopped)
    assert finished.returncode == 0, finished.stderr

    expected = newest_weights(Path(whole[4], RUN, "stage2"))
    for name, value in newest_weights(folder).items():
        assert torch.equal(value, expected[name]), name
    for name in ("predictions.csv", "train_log.txt"):
        other = Path(whole[4], RUN, "stage2", name)
        assert (folder / name).read_text() == other.read_text()


def test_shared_out_llm_trains_and_loads_as_a_whole_one(
    together, results_with_stage_1
):
    whole, _ = together
    shared = results_with_stage_1("shared")
    options = arguments(
        shared,
        STAGE2,
        *(*PLAIN, "--batch_size", "6", "--gradient_checkpointing", "True"),
    )
    finished = torchrun(*options, "--shard_llm", "True")
    assert finished.returncode == 0, finished.stderr
    printed = finished.stdout + finished.stderr
    assert "this one keeps 9.47e-06 of 1.89e-05 GB" in printed
    folder = shared / RUN / "stage2"
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
