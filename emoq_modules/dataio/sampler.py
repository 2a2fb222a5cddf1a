"""A sampler that keeps a few utterances of the same class side by side."""

import torch

_PART = 10_000


class ClassGroupSampler(torch.utils.data.Sampler):
    """Shuffles utterances, and keeps a few of the same class side by side.

    In a batch of 8 most utterances of a rare class have no other of their
    class to be drawn to by ``SupConLoss``. Here they come in groups, of which
    a batch takes several; still every utterance comes once an epoch, so that
    classes are as frequent as before. An order depends on the seed and the
    epoch alone.

    With several ranks ``sb.Brain`` deals the order out one by one, so that the
    members of a group go to different ranks: they meet where the batches of all
    ranks are contrasted, by ``SupConLoss(gather=True)``. With one it tells the
    sampler the epoch only where that is its ``train_sampler``, as a Brain can
    set it in ``make_dataloader``; else each epoch has the same order.

    Arguments
    ---------
    labels : list of int
        The class of each utterance.
    group_size : int
        Utterances in a group, a divisor of the batch size; what a class has
        over makes a smaller group.
    seed : int
        Seed of the order.

    Raises
    ------
    ValueError
        If the group size is below 1.

    Example
    -------
    >>> sampler = ClassGroupSampler([0, 1, 0, 1, 0, 0], group_size=2, seed=1)
    >>> sampler.set_epoch(1)
    >>> list(sampler)
    [0, 2, 4, 5, 3, 1]
    """

    def __init__(self, labels, group_size, seed):
        if group_size < 1:
            raise ValueError(f"group_size must be 1 or more, not {group_size}")
        self.labels = torch.as_tensor(labels)
        self.group_size = group_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch):
        """Chooses the order of an epoch.

        Arguments
        ---------
        epoch : int
            The epoch, which is added to the seed.
        """
        self.epoch = epoch

    def __len__(self):
        return len(self.labels)

    def __iter__(self):
        # In parts: Python's numbers take more memory than a tensor's.
        for part in self._order().split(_PART):
            yield from part.tolist()

    def _order(self):
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        shuffled = torch.randperm(len(self.labels), generator=generator)
        # The utterances class by class, and the number of each one's group.
        order, group, groups = [], [], 0
        for label in self.labels.unique():
            members = shuffled[self.labels[shuffled] == label]
            order.append(members)
            group.append(groups + torch.arange(len(members)) // self.group_size)
            groups = int(group[-1][-1]) + 1
        place = torch.randperm(groups, generator=generator).argsort()
        by_place = place[torch.cat(group)].argsort(stable=True)
        return torch.cat(order)[by_place]
