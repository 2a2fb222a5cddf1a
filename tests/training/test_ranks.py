"""What ends the ranks of a run together, without torchrun's agents.

That is how it is with one rank on each node: the agent of the other node sees
nothing of a death.
"""

import os
import signal
import socket
import time

import pytest
import torch.distributed as dist

from emoq_modules.training.ranks import own_rank, world_size

_FOREVER_S = 600


@pytest.mark.parametrize("dying", [0, 1])
def test_a_killed_rank_ends_the_others_and_is_named_once(
    start_ranks, capfd, dying
):
    def work():
        if own_rank() == dying:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(_FOREVER_S)

    codes = start_ranks(3, work)
    assert codes.pop(dying) == -signal.SIGKILL
    assert codes == [1, 1]
    printed = capfd.readouterr().err
    assert printed.count("error:") == 1
    assert f"error: rank {dying} (process " in printed
    assert f"on {socket.gethostname()}) has ended" in printed


def test_a_rank_that_fails_ends_the_others(start_ranks, capfd):
    def work():
        if own_rank() == 1:
            raise ValueError("no such emotion")
        time.sleep(_FOREVER_S)

    assert start_ranks(2, work) == [1, 1]
    printed = capfd.readouterr().err
    assert "no such emotion" in printed
    assert "error: rank 1 (process " in printed


def test_a_collective_that_breaks_ends_with_the_message_alone(
    start_ranks, capfd
):
    def work():
        dist.barrier()
        if own_rank() == 0:
            # What gloo says, before there is word of the death.
            raise RuntimeError("Connection closed by peer")
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    assert start_ranks(2, work) == [1, -signal.SIGKILL]
    printed = capfd.readouterr().err
    assert "error: rank 1 (process " in printed
    assert "Traceback" not in printed


def test_a_worker_that_outlives_its_rank_does_not_hide_the_death(
    start_ranks, tmp_path
):
    def work():
        if own_rank() == 1:
            worker = os.fork()
            if worker == 0:
                time.sleep(_FOREVER_S)
            (tmp_path / "worker").write_text(str(worker))
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(_FOREVER_S)

    try:
        assert start_ranks(2, work) == [1, -signal.SIGKILL]
    finally:
        os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)


def test_the_message_comes_before_the_end_that_torchrun_brings(
    start_ranks, capfd
):
    def work():
        pids = [None] * 2
        dist.all_gather_object(pids, os.getpid())
        if own_rank() == 1:
            # As if the agent had seen the death before rank 0 does.
            os.kill(pids[0], signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(_FOREVER_S)

    assert start_ranks(2, work) == [1, -signal.SIGKILL]
    assert "error: rank 1 (process " in capfd.readouterr().err


def test_ranks_that_are_done_need_not_be_done_together(start_ranks, capfd):
    def work():
        time.sleep(own_rank() * 0.3)

    assert start_ranks(3, work) == [0, 0, 0]
    assert capfd.readouterr().err == ""


def test_a_process_by_itself_is_rank_0_of_1():
    assert (own_rank(), world_size()) == (0, 1)
