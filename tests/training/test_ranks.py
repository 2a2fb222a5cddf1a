"""Ranks together measure what one process does, and end together."""

import time

import pytest
import torch
import torch.distributed as dist

from emoq_modules.evaluation.metrics import EmotionStats
from emoq_modules.training.distributed import (
    join,
    own_rank,
    rank_batches,
)
from tests.small_brain import LABELS


def evaluate(batches):
    """What a brain keeps of these batches of a set."""
    stats, embeddings, evaluated = EmotionStats(LABELS), [], []
    for batch in batches:
        indices = torch.tensor(batch)
        evaluated.append((len(stats.ids), float(indices.sum())))
        stats.append(
            [f"u{index}" for index in batch],
            torch.sin(indices[:, None] + torch.arange(3.0)),
            indices % 3,
            [f"d{index // 4}" for index in batch],
        )
        embeddings += torch.cos(indices[:, None] * torch.arange(4.0)).unbind()
    return stats, embeddings, evaluated


@pytest.mark.parametrize(
    ("ranks", "size", "batch_size"),
    [
        (2, 9, 2),  # five batches, the last of one utterance
        (3, 8, 2),  # four batches
        (3, 2, 2),  # one batch
    ],
)
def test_each_utterance_counts_once_and_in_order(
    start_ranks, tmp_path, ranks, size, batch_size
):
    def work():
        stats, embeddings, losses = join(
            *evaluate(rank_batches(size, batch_size))
        )
        torch.save(
            [vars(stats), embeddings, losses], tmp_path / f"{own_rank()}.pt"
        )

    assert start_ranks(ranks, work) == [0] * ranks
    stats, embeddings, evaluated = evaluate(rank_batches(size, batch_size))
    assert len(stats.ids) == size
    for rank in range(ranks):
        found, its_embeddings, losses = torch.load(tmp_path / f"{rank}.pt")
        for key in ("labels", "ids", "dialogues", "targets", "predictions"):
            assert found[key] == vars(stats)[key]
        torch.testing.assert_close(found["posteriors"], stats.posteriors)
        torch.testing.assert_close(its_embeddings, embeddings)
        assert losses == [loss for _, loss in evaluated]


def test_ranks_evaluate_equally_many_batches(start_ranks, tmp_path):
    def work():
        counts = [len(rank_batches(size, 2)) for size in range(1, 20)]
        (tmp_path / str(own_rank())).write_text(str(counts))

    assert start_ranks(3, work) == [0] * 3
    assert len({(tmp_path / str(rank)).read_text() for rank in range(3)}) == 1


def test_ranks_give_one_up_from_which_nothing_comes(
    start_ranks, monkeypatch, capfd
):
    monkeypatch.setenv("EMOQ_TIMEOUT_S", "1")

    def work():
        if own_rank() == 1:
            time.sleep(600)
        dist.barrier()

    started = time.monotonic()
    assert start_ranks(2, work) == [1, None]
    assert time.monotonic() - started < 20
    assert "Timed out waiting 1000ms" in capfd.readouterr().err
