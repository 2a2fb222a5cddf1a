"""The order of training: by class in small groups, each utterance once."""

from collections import Counter

import pytest
import torch

from emoq_modules.dataio.sampler import ClassGroupSampler

# As unbalanced as MELD: the rarest class is a fiftieth of all.
LABELS = [0] * 96 + [1] * 34 + [2] * 26 + [3] * 4


def batches(sampler, size=8):
    order = list(sampler)
    return [order[start : start + size] for start in range(0, len(order), size)]


def alone(batch):
    """Utterances without another of their class in the batch."""
    counts = Counter(LABELS[index] for index in batch)
    return sum(1 for count in counts.values() if count == 1)


def test_in_pairs_no_utterance_is_alone_of_its_class_in_a_batch():
    plain = ClassGroupSampler(LABELS, 1, seed=0)
    paired = ClassGroupSampler(LABELS, 2, seed=0)
    assert sum(map(alone, batches(plain))) > 10
    assert sum(map(alone, batches(paired))) == 0


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = ClassGroupSampler(LABELS, 2, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 1) == order(1, 1)
    assert order(1, 1) != order(1, 2)
    assert order(1, 1) != order(3, 1)


def test_a_group_of_none_is_refused():
    with pytest.raises(ValueError, match="group_size must be 1 or more, not 0"):
        ClassGroupSampler(LABELS, 0, seed=0)


@pytest.mark.parametrize("group_size", [1, 2, 3, 8])
def test_an_order_is_that_of_groups_drawn_one_by_one(group_size):
    labels = torch.tensor(LABELS)
    generator = torch.Generator().manual_seed(7 + 2)
    shuffled = torch.randperm(len(labels), generator=generator)
    groups = [
        group
        for label in labels.unique()
        for group in shuffled[labels[shuffled] == label].split(group_size)
    ]
    drawn = torch.randperm(len(groups), generator=generator)
    expected = torch.cat([groups[index] for index in drawn]).tolist()
    sampler = ClassGroupSampler(LABELS, group_size, seed=7)
    sampler.set_epoch(2)
    assert list(sampler) == expected
    assert sorted(expected) == list(range(len(LABELS)))  # each comes once
    assert len(sampler) == len(LABELS)
