"""The folder of a run: one run at a time, by one process."""

import os
import signal
import socket
import time

import pytest

import train
from emoq_modules.errors import BusyError
from emoq_modules.training import stages
from emoq_modules.training.run_folder import claimed
from tests.conftest import fork
from tests.corpus_folders import snapshot
from tests.training.test_training import RUN, STAGE1, arguments


def hold(options, reached, batch=0):
    """Trains up to a batch, says so, and stays there; exits as train.py."""
    seen = []

    def stay(self, *outcome):
        seen.append(outcome)
        if len(seen) > batch:
            reached.touch()
            time.sleep(600)

    stages.EmoQBrain.on_fit_batch_end = stay
    os._exit(train.run(options))


@pytest.fixture
def start_and_hold(tmp_path):
    """Starts processes that train as far as they get; kills them at last."""
    processes = []

    def start(*options, batch=0):
        reached = tmp_path / f"reached-{len(processes)}"
        command = arguments(tmp_path, STAGE1, *options)
        processes.append(fork(hold, command, reached, batch))
        deadline = time.monotonic() + 120
        while not reached.exists() and processes[-1].is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.join()


def test_the_second_process_at_a_run_is_told_who_is_there_and_changes_nothing(
    tmp_path, start_and_hold, capfd
):
    first = start_and_hold()
    before = snapshot(tmp_path / RUN)
    for options in ((), ("--lr", "0.5")):
        second = start_and_hold(*options)
        second.join(10)
        assert second.exitcode == 2
        error = capfd.readouterr().err.splitlines()[-1]
        assert f"error: Process {first.pid} on {socket.gethostname()}" in error
        assert "is at the run in" in error and str(tmp_path / RUN) in error
    assert snapshot(tmp_path / RUN) == before
    assert first.is_alive()


def test_after_a_kill_the_next_start_goes_on_at_once(tmp_path, start_and_hold):
    # Two workers outlive it for seconds, and have what it had open.
    often = "--ckpt_interval_minutes", "0", "--ckpt_interval_steps", "1"
    first = start_and_hold("--num_workers", "2", *often, batch=1)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    train.main(arguments(tmp_path, STAGE1, "--num_workers", "2", *often))
    assert (tmp_path / RUN / "stage1/results.json").exists()


def test_one_of_two_that_start_together_has_the_run(tmp_path):
    def claim(number):
        try:
            with claimed(tmp_path / "run"):
                (tmp_path / f"{number}.has").touch()
                while len(list(tmp_path.glob("*.*"))) < 5:
                    time.sleep(0.01)
        except BusyError:
            (tmp_path / f"{number}.told").touch()

    processes = [fork(claim, number) for number in range(5)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(list(tmp_path.glob("*.has"))) == 1


def test_all_ranks_are_told_that_another_process_is_there(
    tmp_path, start_ranks
):
    folder = tmp_path / "run"

    def work():
        with pytest.raises(BusyError, match=f"Process {parent} on "):
            with claimed(folder):
                pass

    parent = os.getpid()
    with claimed(folder):
        assert start_ranks(2, work) == [0, 0]
    with claimed(folder):
        pass
