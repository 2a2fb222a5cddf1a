"""The losses against the equations, written out as loops in float64."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy, normalize
from torch.nn.parallel import DistributedDataParallel

from emoq_modules.lobes.losses import (
    FocalLoss,
    MALLoss,
    SupConLoss,
    inverse_frequency_weights,
)
from emoq_modules.training.configuration import change, merge_presets
from emoq_modules.training.distributed import own_rank
from tests.conftest import load_keys

BATCHES = {
    "random": [0, 2, 1, 0, 1, 2, 0, 2],
    "a class with one member": [0, 0, 1, 0, 2, 2, 0, 2],
    "one class": [1, 1, 1, 1, 1, 1, 1, 1],
    "no positives": [0, 1, 2, 3],
    "a single utterance": [2],
}
every_batch = pytest.mark.parametrize("labels", BATCHES.values(), ids=BATCHES)


def scl_reference(embeddings, labels, temperature, anchors=None):
    """Eq. 4, over the anchors (of the first rows) that have a positive."""
    terms = []
    for i, e in enumerate(embeddings[:anchors]):
        others = [k for k in range(len(labels)) if k != i]
        positives = [j for j in others if labels[j] == labels[i]]
        if not positives:
            continue
        total = sum(math.exp(e @ embeddings[k] / temperature) for k in others)
        term = 0.0
        for j in positives:
            share = math.exp(e @ embeddings[j] / temperature) / total
            term -= math.log(share)
        terms.append(term / len(positives))
    return sum(terms) / len(terms) if terms else 0.0


def focal_reference(logits, labels, gamma, alpha):
    """Eq. 5."""
    total = 0.0
    for z, y in zip(logits, labels, strict=True):
        p = np.exp(z) / np.exp(z).sum()
        total -= alpha[y] * (1 - p[y]) ** gamma * math.log(p[y])
    return total / len(labels)


def random_embeddings(n, d=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, d, dtype=torch.float64, generator=generator)
    return normalize(x, dim=-1).to(dtype)


def random_logits(n, classes=4, scale=2.0):
    generator = torch.Generator().manual_seed(n + 1)
    return scale * torch.randn(
        n, classes, dtype=torch.float64, generator=generator
    )


@every_batch
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_supervised_contrastive_loss_is_equation_4(labels, temperature):
    embeddings = random_embeddings(len(labels))
    expected = scl_reference(embeddings.numpy(), labels, temperature)
    loss = SupConLoss(temperature)(embeddings, torch.tensor(labels))
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    single = SupConLoss(temperature)(embeddings.float(), torch.tensor(labels))
    assert single.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@every_batch
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_is_equation_5(labels, gamma):
    logits = random_logits(len(labels))
    alpha = [0.25, 1.0, 0.5, 0.125]
    expected = focal_reference(logits.numpy(), labels, gamma, alpha)
    loss = FocalLoss(gamma, alpha)(logits, torch.tensor(labels))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    single = FocalLoss(gamma, alpha)(logits.float(), torch.tensor(labels))
    assert single.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("queue_size", [0, 3, 5, 100])
def test_queue_adds_the_last_embeddings_as_positives_and_negatives(queue_size):
    scl = SupConLoss(0.5, queue_size=queue_size)
    embeddings = random_embeddings(12)
    labels = [0, 1, 2, 0, 0, 1, 1, 3, 2, 0, 1, 3]
    for first in range(0, 12, 4):
        batch = embeddings[first : first + 4].clone().requires_grad_()
        its_labels = labels[first : first + 4]
        kept = slice(max(first - queue_size, 0), first)
        loss = scl(batch, torch.tensor(its_labels))
        expected = scl_reference(
            torch.cat([batch, embeddings[kept]]).detach().numpy(),
            its_labels + labels[kept],
            temperature=0.5,
            anchors=4,
        )
        assert loss.item() == pytest.approx(expected, rel=1e-12)
        loss.backward()  # through nothing of the batches before
        with torch.no_grad():  # as in validation
            alone = scl(batch, torch.tensor(its_labels))
        assert alone == SupConLoss(0.5)(batch, torch.tensor(its_labels))


def test_mal_is_the_weighted_sum_of_both():
    labels = BATCHES["random"]
    batch = random_embeddings(8), random_logits(8), torch.tensor(labels)
    scl = scl_reference(batch[0].numpy(), labels, 0.07)
    focal = focal_reference(batch[1].numpy(), labels, 2.0, [1.0] * 4)
    for parts, expected in (
        ((SupConLoss(), FocalLoss(), 0.3), scl + 0.3 * focal),
        ((SupConLoss(), None), scl),
        ((None, FocalLoss()), focal),
    ):
        loss = MALLoss(*parts)(*batch)
        assert loss.item() == pytest.approx(expected, rel=1e-12)


# The rows of Table 5: whether there is SCL, gamma, and whether classes weigh
# by their inverse frequency.
ABLATIONS = {
    "loss_cross_entropy": (False, 0.0, False),
    "loss_scl": (True, 0.0, False),
    "loss_focal": (False, 2.0, True),
    None: (True, 2.0, True),
}


@pytest.mark.parametrize("preset", ABLATIONS)
def test_presets_leave_of_the_loss_what_table_5_names(preset):
    with_scl, gamma, weighted = ABLATIONS[preset]
    training = [0] * 8 + [1] * 2 + [2] * 4 + [3] * 16
    hparams_yaml = merge_presets(
        "hparams/emoq_stage1.yaml",
        [f"hparams/presets/{preset}.yaml"] if preset else [],
        change(
            "",
            data_folder="here",
            labels=["angry", "happy", "sad", "neutral"],
            training_labels=training,
            balance=0.7,
        ),
    )
    mal = load_keys(hparams_yaml, "class_weights", "num_classes", "mal")["mal"]

    labels = BATCHES["random"]
    embeddings, logits = random_embeddings(8), random_logits(8)
    alpha = [0.25, 1.0, 0.5, 0.125] if weighted else [1.0] * 4
    expected = 0.7 * focal_reference(logits.numpy(), labels, gamma, alpha)
    if with_scl:
        expected += scl_reference(embeddings.numpy(), labels, 0.07)
    loss = mal(embeddings, logits, torch.tensor(labels))
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@every_batch
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_gradients_match_finite_differences(labels, gamma):
    mal = MALLoss(SupConLoss(0.5), FocalLoss(gamma, [0.25, 1.0, 0.5, 0.125]))
    embeddings = random_embeddings(len(labels)).requires_grad_()
    logits = random_logits(len(labels)).requires_grad_()
    targets = torch.tensor(labels)
    assert torch.autograd.gradcheck(
        lambda e, z: mal(e, z, targets), (embeddings, logits)
    )


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [2], []])
def test_a_batch_without_positives_gives_zero_with_a_zero_gradient(labels):
    embeddings = random_embeddings(len(labels), dtype=torch.float32)
    embeddings.requires_grad_()
    targets = torch.tensor(labels, dtype=torch.long)
    loss = SupConLoss()(embeddings, targets)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


@every_batch
@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_is_finite_and_computed_in_float32(labels, autocast):
    embeddings = random_embeddings(len(labels), 64, dtype=torch.bfloat16)
    logits = random_logits(len(labels), scale=50).bfloat16()
    targets = torch.tensor(labels)
    mal = MALLoss(SupConLoss(), FocalLoss())
    # The only error allowed is that of the input's own rounding.
    expected = mal(embeddings.double(), logits.double(), targets)

    embeddings.requires_grad_(), logits.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = mal(embeddings, logits, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert embeddings.grad.isfinite().all() and logits.grad.isfinite().all()


def test_autocast_does_not_touch_float32_embeddings():
    embeddings = random_embeddings(8, 64, dtype=torch.float32)
    labels = torch.tensor(BATCHES["random"])
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = SupConLoss()(embeddings, labels)
    assert under_autocast == SupConLoss()(embeddings, labels)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_give_finite_loss_and_gradient(gamma, dtype):
    logits = torch.tensor(
        [[1e4, -1e4], [1e4, -1e4], [0.0, 0.0]], dtype=dtype, requires_grad=True
    )
    loss = FocalLoss(gamma)(logits, torch.tensor([0, 1, 1]))
    loss.backward()
    certain_and_wrong = logits[1, 0].item() - logits[1, 1].item()
    even = 0.5**gamma * math.log(2)
    expected = (certain_and_wrong + even) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert logits.grad.isfinite().all()


def test_identical_embeddings_give_a_finite_gradient():
    embeddings = normalize(torch.ones(4, 8), dim=-1).requires_grad_()
    loss = SupConLoss()(embeddings, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3), rel=1e-5)
    assert embeddings.grad.isfinite().all()


def test_gamma_zero_without_weights_is_cross_entropy():
    logits, labels = random_logits(8), torch.tensor(BATCHES["random"])
    focal = FocalLoss(gamma=0.0)(logits, labels)
    assert focal.item() == pytest.approx(cross_entropy(logits, labels).item())


def test_class_weights_may_come_late_follow_the_module_and_are_no_state():
    logits, labels = random_logits(8), torch.tensor(BATCHES["random"])
    weights = inverse_frequency_weights(labels, 4)
    late = FocalLoss()
    late.class_weights = weights
    assert late(logits, labels) == FocalLoss(2.0, weights)(logits, labels)
    assert late.double().class_weights.dtype == torch.float64
    assert FocalLoss(class_weights=weights).state_dict() == {}


@pytest.mark.parametrize(
    ("labels", "weights"),
    [
        ([0] * 8 + [1] * 2 + [2] * 4, [0.25, 1.0, 0.5]),
        # A class without members leaves the others alone.
        (torch.tensor([0] * 8 + [2] * 4), [0.5, 1.0, 1.0, 1.0]),
    ],
)
def test_inverse_frequency_weights_are_one_for_the_rarest_class(
    labels, weights
):
    found = inverse_frequency_weights(labels, len(weights))
    assert found.tolist() == weights
    mean_one = inverse_frequency_weights(labels, len(weights), "mean_one")
    torch.testing.assert_close(mean_one / mean_one.max(), found)
    assert mean_one[labels].mean() == pytest.approx(1)


# Of MELD's training split and, about so, of a fold of IEMOCAP.
COUNTS = [[4710, 1109, 683, 1743, 1205, 271, 268], [1324, 885, 879, 1309]]


@pytest.mark.parametrize("counts", COUNTS)
def test_class_weights_have_the_mean_or_sum_that_was_asked_for(counts):
    labels = np.repeat(np.arange(len(counts)), counts)

    def weights(scheme, **options):
        found = inverse_frequency_weights(
            labels, len(counts), scheme, **options
        )
        return found.numpy()

    balanced = compute_class_weight(
        "balanced", classes=np.arange(len(counts)), y=labels
    )
    np.testing.assert_allclose(weights("mean_one"), balanced, rtol=1e-6)
    assert weights("mean_one")[labels].mean() == pytest.approx(1, rel=1e-5)
    for scheme, total in (("max_one", balanced.max()), ("sum_one", None)):
        expected = balanced / (total or balanced.sum())
        np.testing.assert_allclose(weights(scheme), expected, rtol=1e-6)
    # Cui et al., Eq. 2 and Sec. 4, where the effective number is a sum.
    inverse = [1 / sum(0.999**k for k in range(count)) for count in counts]
    expected = len(counts) * np.array(inverse) / sum(inverse)
    found = weights("effective_number", beta=0.999)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (weights("effective_number", beta=0.0) == 1).all()


@pytest.mark.parametrize(
    "scheme", ["max_one", "mean_one", "sum_one", "effective_number"]
)
def test_experiment_names_how_classes_weigh(scheme):
    hparams_yaml = merge_presets(
        "hparams/emoq_stage1.yaml",
        [],
        change(
            "",
            data_folder="here",
            labels=["angry", "happy"],
            training_labels=[0, 0, 0, 1],
            class_weighting=scheme,
            class_weights_beta=0.5,
        ),
    )
    found = load_keys(hparams_yaml, "class_weights", "num_classes", "mal")
    expected = {
        "max_one": [1 / 3, 1],
        "mean_one": [2 / 3, 2],
        "sum_one": [1 / 4, 3 / 4],
        # Of three utterances there are 1 + 1/2 + 1/4.
        "effective_number": [8 / 11, 14 / 11],
    }[scheme]
    weights = found["mal"].focal.class_weights
    torch.testing.assert_close(weights, torch.tensor(expected))


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: SupConLoss(temperature=0), "temperature must be above 0"),
        (lambda: SupConLoss(queue_size=-1), "queue_size must be 0 or more"),
        (lambda: FocalLoss(gamma=-1), "gamma must be 0 or above"),
        (lambda: MALLoss(None, None), "both are None"),
        (
            lambda: FocalLoss()(torch.zeros(2, 3), torch.tensor([0, 3])),
            "labels run from 0 to 3, but the logits have 3 classes",
        ),
        (
            lambda: FocalLoss()(torch.zeros(1, 3), torch.tensor([-1])),
            "labels run from -1 to -1",
        ),
        (
            lambda: FocalLoss()(torch.zeros(2, 3), torch.tensor([[0], [1]])),
            r"labels have shape \(2, 1\), expected \(2,\)",
        ),
        (
            lambda: SupConLoss()(torch.zeros(2, 3), torch.tensor([0])),
            r"labels have shape \(1,\), expected \(2,\)",
        ),
        (
            lambda: FocalLoss(2.0, [1.0])(torch.zeros(1, 3), torch.tensor([0])),
            "one weight a class",
        ),
        (lambda: inverse_frequency_weights([], 3), "no labels"),
        (lambda: inverse_frequency_weights([0, 3], 3), r"outside \[0, 3\)"),
        (
            lambda: inverse_frequency_weights([0], 1, "max"),
            "is 'max'; it can be max_one, mean_one",
        ),
        (
            lambda: inverse_frequency_weights([0], 1, beta=1),
            "beta must be at least 0 and below 1",
        ),
    ],
)
def test_a_wrong_argument_is_refused(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()


# Across ranks. Batches differ in size, and every positive pair of classes 0
# and 1 has its members on different ranks.
INPUTS = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 2, 3, 0, 1, 2])
RANKS = [slice(0, 5), slice(5, 8)]


class Embedder(torch.nn.Linear):
    """A model small enough to compare every gradient."""

    def __init__(self):
        torch.manual_seed(1)
        super().__init__(6, 4)

    def forward(self, x):
        return normalize(super().forward(x), dim=-1)


@pytest.mark.parametrize("queue_size", [0, 6])
def test_gathering_over_ranks_equals_one_process_with_the_joint_batch(
    start_ranks, tmp_path, queue_size
):
    def second_batch(scl, model, inputs, labels):
        scl(model(inputs.roll(1, dims=1)), labels).backward()
        model.zero_grad()
        loss = scl(model(inputs), labels)
        loss.backward()
        return loss

    def work():
        rank = own_rank()
        inputs, labels = INPUTS[RANKS[rank]], LABELS[RANKS[rank]]
        model = DistributedDataParallel(Embedder())
        scl = SupConLoss(gather=True, queue_size=queue_size)
        loss = second_batch(scl, model, inputs, labels)
        if queue_size:
            with pytest.raises(ValueError, match="contrast_across_ranks"):
                SupConLoss(queue_size=queue_size)
        # As in validation: ranks need not call equally often.
        if rank == 0:
            with torch.no_grad():
                alone = SupConLoss(gather=True)(model(inputs), labels)
                assert alone == SupConLoss()(model(inputs), labels)
        gradients = [p.grad for p in model.parameters()]
        torch.save([loss.detach(), *gradients], tmp_path / f"rank{rank}.pt")

    assert start_ranks(2, work) == [0, 0]
    model = Embedder()
    scl = SupConLoss(queue_size=queue_size)
    loss = second_batch(scl, model, INPUTS, LABELS)
    expected = [loss.detach(), *(p.grad for p in model.parameters())]
    assert expected[1].abs().max() > 0.1
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, expected)


def test_gather_without_a_process_group_is_the_plain_loss():
    embeddings, labels = random_embeddings(8), torch.tensor(BATCHES["random"])
    gathering = SupConLoss(gather=True)(embeddings, labels)
    assert gathering == SupConLoss()(embeddings, labels)
