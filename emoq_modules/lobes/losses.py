"""Multi-objective affective learning (MAL), the objective of stage 1.

Supervised contrastive loss (Eq. 4) draws the embeddings of one emotion
together; focal loss (Eq. 5) trains the classifier on top and keeps frequent,
easy classes from drowning the rare ones; MAL (Eq. 6) is their weighted sum.

Source: Y. Yang and M.-W. Mak, https://arxiv.org/abs/2509.15775, Sec. 2.4. SCL
is from https://arxiv.org/abs/2004.11362, its memory of past embeddings from
https://arxiv.org/abs/1912.06798, the focal loss from
https://arxiv.org/abs/1708.02002.
"""

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather


class SupConLoss(torch.nn.Module):
    r"""Supervised contrastive loss (Equation 4; Khosla et al., 2020).

    .. math::
        \mathcal{L} = -\frac{1}{N} \sum_i \frac{1}{|P(i)|} \sum_{j \in P(i)}
        \log \frac{\exp(e_i \cdot e_j / \tau)}
        {\sum_{k \neq i} \exp(e_i \cdot e_k / \tau)}

    :math:`P(i)` are the other members of the batch with the label of
    :math:`i`. An anchor for which it is empty has no term, and :math:`N`
    counts the anchors that have one: small batches of unbalanced data are full
    of anchors without a positive, and they say nothing about the embedding. A
    batch without any gives 0 with a gradient of 0. ``anchors`` holds the last
    batch's labels, (N,), and whether each has a positive, (N,).

    Arguments
    ---------
    temperature : float
        :math:`\tau`, the smaller the more the nearest negatives count.
    gather : bool
        Whether to contrast against the batches of all ranks in distributed
        training, which may differ in size. Each rank then returns the loss of
        the joint batch, and parameter gradients averaged over ranks, as
        ``DistributedDataParallel`` does, are those of one process with it.
        Without a gradient (validation, where ranks need not have equally many
        batches) and without a process group each batch stays alone.
    queue_size : int
        How many of the last embeddings to contrast a batch with too, detached:
        as positives and negatives, not as anchors (cross-batch memory; Wang et
        al., 2020). Not in validation. Ranks have the same ones, of the joint
        batches: on several it needs ``gather``.

    Raises
    ------
    ValueError
        If the temperature is not positive, ``queue_size`` is negative or needs
        ``gather``, or there is not one label for each embedding.

    Example
    -------
    >>> embeddings = torch.nn.functional.normalize(torch.eye(4, 8), dim=-1)
    >>> SupConLoss(temperature=1.0)(embeddings, torch.tensor([0, 0, 1, 1]))
    tensor(1.0986)
    """

    def __init__(self, temperature=0.07, gather=False, queue_size=0):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        if queue_size < 0:
            raise ValueError(f"queue_size must be 0 or more, not {queue_size}")
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if queue_size and ranks > 1 and not gather:
            raise ValueError(
                f"a queue_size of {queue_size} on {ranks} ranks needs their "
                "batches to be gathered (contrast_across_ranks)"
            )
        self.temperature = temperature
        self.gather = gather
        self.queue_size = queue_size
        self.queue = None
        self.anchors = None

    def get_extra_state(self):
        """Gives the queue, whose size is not known before, to ``state_dict``.

        Returns
        -------
        tuple | None
            Embeddings, (K, d), and labels, (K,), the last one last.
        """
        return self.queue

    def set_extra_state(self, state):
        """Takes the queue of a ``state_dict``.

        Arguments
        ---------
        state : tuple | None
            What ``get_extra_state`` gave.
        """
        self.queue = state

    def forward(self, embeddings, labels):
        """Contrasts every embedding with all others, those of the queue too.

        Arguments
        ---------
        embeddings : torch.Tensor
            Embeddings of unit L2 norm, (N, d). Half precision is computed in
            float32.
        labels : torch.Tensor
            Class indices, (N,).

        Returns
        -------
        torch.Tensor
            The loss, a scalar of at least float32.
        """
        _check_one_label_each(embeddings, labels)
        embeddings = _at_least_float32(embeddings)
        if self.gather and torch.is_grad_enabled() and dist.is_initialized():
            embeddings = _gather_batches(embeddings)
            labels = _gather_batches(labels)

        keys, key_labels = embeddings, labels
        if self.queue_size and torch.is_grad_enabled():
            if self.queue is not None:
                past, past_labels = self.queue
                keys = torch.cat([embeddings, past.to(embeddings)])
                key_labels = torch.cat([labels, past_labels.to(labels)])
            self.queue = tuple(
                x.detach().roll(-len(labels), 0)[-self.queue_size :]
                for x in (keys, key_labels)
            )

        # Autocast would take the product back to half precision, whose steps
        # of 2^-8 at a similarity of 1 are steps of 0.06 once divided by 0.07.
        with torch.autocast(embeddings.device.type, enabled=False):
            similarity = embeddings @ keys.T / self.temperature  # (N, N + K)

        itself = torch.eye(
            *similarity.shape, dtype=torch.bool, device=labels.device
        )
        positive = (labels[:, None] == key_labels[None, :]) & ~itself
        others = similarity.masked_fill(itself, -torch.inf)
        log_prob = similarity - others.logsumexp(dim=1, keepdim=True)

        # Filled, not multiplied by 0: in a batch of one log_prob is infinite.
        num_positives = positive.sum(dim=1)
        self.anchors = labels, num_positives > 0
        anchor_loss = -log_prob.masked_fill(~positive, 0.0).sum(dim=1)
        anchor_loss = anchor_loss / num_positives.clamp(min=1)
        return anchor_loss.sum() / (num_positives > 0).sum().clamp(min=1)


class FocalLoss(torch.nn.Module):
    r"""Focal loss for classification (Equation 5; Lin et al., 2020).

    .. math::
        \mathcal{L} = -\frac{1}{N} \sum_i \alpha_{y_i}
        (1 - p_{i, y_i})^\gamma \log p_{i, y_i}

    With ``gamma=0`` and no class weights it is plain cross-entropy.

    Arguments
    ---------
    gamma : float
        :math:`\gamma`, how much less examples count that are right already.
    class_weights : list or torch.Tensor
        :math:`\alpha`, one weight a class, (C,), such as
        :func:`~emoq_modules.lobes.losses.inverse_frequency_weights` gives; None
        weighs all classes 1. The attribute of that name can also be set
        later, when the training split is known. The weights follow ``.to()``
        and, failing that, the logits' device; they are in no checkpoint.

    Raises
    ------
    ValueError
        If ``gamma`` is negative, there is not one label for each row, a label
        is out of range, or there is not one weight for each class.

    Example
    -------
    >>> logits, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    >>> FocalLoss(gamma=2.0, class_weights=[1.0, 0.5])(logits, labels)
    tensor(0.0018)
    """

    def __init__(self, gamma=2.0, class_weights=None):
        super().__init__()
        if not gamma >= 0:
            raise ValueError(f"gamma must be 0 or above, not {gamma}")
        self.gamma = gamma
        if class_weights is not None:
            class_weights = torch.as_tensor(class_weights)
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits, labels):
        """Computes the loss of a batch.

        Arguments
        ---------
        logits : torch.Tensor
            Unnormalized log-probabilities, (N, C). Half precision is computed
            in float32.
        labels : torch.Tensor
            Class indices in [0, C), (N,).

        Returns
        -------
        torch.Tensor
            The loss, a scalar of at least float32.
        """
        _check_one_label_each(logits, labels)
        num_classes = logits.size(-1)
        weights = self.class_weights
        if weights is not None and weights.shape != (num_classes,):
            raise ValueError(
                f"class_weights has shape {tuple(weights.shape)}, but the "
                f"logits have {num_classes} classes: give one weight a class"
            )
        if ((labels < 0) | (labels >= num_classes)).any():
            raise ValueError(
                f"labels run from {labels.min()} to {labels.max()}, but the "
                f"logits have {num_classes} classes, 0 to {num_classes - 1}"
            )
        log_probs = _at_least_float32(logits).log_softmax(dim=-1)
        log_p = log_probs.gather(1, labels[:, None]).squeeze(1)  # (N,)

        # expm1 keeps 1 - p exact near p = 1. It is held off 0, where the
        # derivative of its power is infinite for gamma below 1.
        miss = (-log_p.expm1()).clamp(min=torch.finfo(log_p.dtype).tiny)
        losses = -(miss**self.gamma) * log_p
        if self.class_weights is not None:
            losses = self.class_weights.to(losses)[labels] * losses
        return losses.sum() / max(len(losses), 1)


class MALLoss(torch.nn.Module):
    """Multi-objective affective learning: SCL + balance * focal (Equation 6).

    ``terms`` holds both summands of the last loss, by the names ``SCL`` and
    ``focal``.

    Arguments
    ---------
    scl : SupConLoss | None
        The loss on embeddings; None trains without it.
    focal : FocalLoss | None
        Likewise on logits, where not both are None. Plain cross-entropy, the
        baseline without MAL, is ``MALLoss(None, FocalLoss(gamma=0))``.
    balance : float
        The factor of the focal term, lambda in the paper.

    Example
    -------
    >>> mal = MALLoss(SupConLoss(), FocalLoss(), balance=1.0)
    >>> embeddings = torch.nn.functional.normalize(torch.ones(3, 8), dim=-1)
    >>> mal(embeddings, torch.zeros(3, 2), torch.tensor([0, 0, 1]))
    tensor(0.8664)
    """

    def __init__(self, scl, focal, balance=1.0):
        super().__init__()
        if scl is None and focal is None:
            raise ValueError("MALLoss needs scl, focal or both; both are None")
        self.scl = scl
        self.focal = focal
        self.balance = balance
        self.terms = {}

    def forward(self, embeddings, logits, labels):
        """Computes the loss of a batch.

        Arguments
        ---------
        embeddings : torch.Tensor
            Embeddings of unit L2 norm, (N, d).
        logits : torch.Tensor
            The classifier's output for them, (N, C).
        labels : torch.Tensor
            Class indices in [0, C), (N,).

        Returns
        -------
        torch.Tensor
            The loss, a scalar.
        """
        terms = {}
        if self.scl is not None:
            terms["SCL"] = self.scl(embeddings, labels)
        if self.focal is not None:
            terms["focal"] = self.balance * self.focal(logits, labels)
        self.terms = {name: term.detach() for name, term in terms.items()}
        return sum(terms.values())


def inverse_frequency_weights(
    labels, num_classes, scheme="max_one", beta=0.999
):
    r"""Class weights for :class:`FocalLoss`, from the training split.

    Weights are inversely proportional to the number of members :math:`n_c` or,
    of the last scheme, to their effective number, :math:`(1 - \beta^{n_c}) /
    (1 - \beta)` (Cui et al., https://arxiv.org/abs/1901.05555), such that

    - ``max_one``: the rarest class weighs 1;
    - ``mean_one``: the mean over training utterances, each with the weight of
      its class, is 1, as scikit-learn's ``"balanced"`` has it;
    - ``sum_one``: the sum over classes is 1;
    - ``effective_number``: the sum over classes is C;
    - ``all_one``: there is none that weighs more.

    A class without members has the weight of the rarest: it must not flatten
    the others, which its infinite inverse would, and an example of it that
    turns up in validation counts.

    Arguments
    ---------
    labels : list or torch.Tensor
        Class index of every training utterance, (N,); a ``ValueError`` if there
        are none, or one is out of range.
    num_classes : int
        C, the number of classes.
    scheme : str
        One of those above; a ``ValueError`` if it is another.
    beta : float
        :math:`\beta` of ``effective_number``, in [0, 1): 0 gives all classes
        the same weight, near 1 they are those of the inverse frequency.

    Returns
    -------
    torch.Tensor
        Weights above 0, (C,), float32.

    Example
    -------
    >>> labels = [0, 0, 0, 0, 1, 1, 2]
    >>> inverse_frequency_weights(labels, num_classes=4)
    tensor([0.2500, 0.5000, 1.0000, 1.0000])
    >>> inverse_frequency_weights(labels, num_classes=3, scheme="mean_one")
    tensor([0.5833, 1.1667, 2.3333])
    """
    labels = torch.as_tensor(labels, dtype=torch.long)
    if not len(labels):
        raise ValueError("no labels to weigh classes by: an empty split?")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, outside "
            f"[0, {num_classes}) for num_classes={num_classes}"
        )
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be at least 0 and below 1, not {beta}")
    counts = labels.bincount(minlength=num_classes).double()
    sizes = counts.clamp(min=counts[counts > 0].min())
    if scheme == "effective_number":
        sizes = (1 - beta**sizes) / (1 - beta)
    weights = 1 / sizes
    totals = {
        "max_one": weights.max(),
        "mean_one": (counts * weights).sum() / len(labels),
        "sum_one": weights.sum(),
        "effective_number": weights.mean(),
        "all_one": weights,
    }
    if scheme not in totals:
        raise ValueError(
            f"scheme of class weights is {scheme!r}; it can be "
            f"{', '.join(totals)}"
        )
    return (weights / totals[scheme]).float()


def _check_one_label_each(x, labels):
    # Labels of another shape, such as (N, 1), would broadcast to nonsense.
    if labels.shape != x.shape[:1]:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, expected "
            f"({len(x)},), one class index for each row of the input"
        )


def _at_least_float32(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _gather_batches(x):
    """Joins the batches of all ranks, (N_rank, ...) to (N, ...).

    The backward pass gives each rank the gradients that all ranks' losses
    have in its rows. Collectives need equal shapes, so shorter batches travel
    padded.
    """
    size = torch.tensor([len(x)], device=x.device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    longest = int(max(sizes))
    padding = x.new_zeros(longest - len(x), *x.shape[1:])
    batches = all_gather(torch.cat([x, padding]))
    return torch.cat(
        [batch[: int(n)] for batch, n in zip(batches, sizes, strict=True)]
    )
