"""Rows about the stages: epochs, steps, their memory, and prediction."""

import copy
from functools import partial

import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from torch.utils.data import DataLoader

from benchmarks.machine import (
    GIB,
    count_operations,
    kept_for_backward,
    peak_above,
    waiting_share,
)
from benchmarks.reference import PlainStage2
from benchmarks.reference_audio import PlainEncoder
from benchmarks.rows import at_most, compare, share, smaller
from emoq_modules.lobes.pipeline import decode

_PREDICTED = 32  # utterances in a batch
# Steps that are timed together, at most: starting workers counts little.
_STEPS = {"cpu": 2, "cuda": 16}
# The store keeps frames in half precision, which the reference does not.
_TOLERANCES = {"fp32": 0.001, "bf16": 0.05}


def stage1_rows(stage, repetitions):
    """Measures epochs of stage 1, without the validation after them."""
    plain = copy.deepcopy(stage.hparams["modules"])
    plain["encoder"] = PlainEncoder(stage.encoder)
    ours = partial(stage.train_epoch, stage.brain(), stage.stored)
    yield compare(
        "stage-1 epoch: from the store / encoder in the step",
        ours,
        partial(stage.train_epoch, stage.brain(plain), stage.recorded),
        repetitions,
        goal=10.0,
    )
    on_gpu = torch.device(stage.device).type == "cuda"
    yield at_most(
        "stage-1 epoch: share of it that waits for data",
        100 * waiting_share(ours),
        "%",
        limit=5.0 if on_gpu else None,
    )


def stage2_rows(stage, repetitions, ceiling):
    """Measures steps and predictions of stage 2.

    The ceiling is of the device: operations a second at best.
    """
    modules = stage.hparams["modules"]
    # Each side trains weights of its own, which are the same at first; those
    # that are frozen are there once.
    copied = copy.deepcopy(modules, _frozen(modules))
    plain = PlainStage2(PlainEncoder(stage.encoder), **copied)
    on_frames = PlainStage2(None, **copied)
    _check_same(stage, plain)
    brain = stage.brain()
    yield from _steps(stage, brain, plain, on_frames, repetitions, ceiling)
    yield from _predictions(stage, plain, on_frames, repetitions)


def _frozen(modules):
    return {
        id(parameter): parameter
        for module in modules.values()
        for parameter in module.parameters()
        if not parameter.requires_grad
    }


def _steps(stage, brain, plain, on_frames, repetitions, ceiling):
    size = stage.hparams["train_loader"]["batch_size"]
    kind = torch.device(stage.device).type
    stored, recorded = (
        dataset.filtered_sorted(select_n=_STEPS[kind] * size)
        for dataset in (stage.stored, stage.recorded)
    )
    steps = -(-len(stored) // size)
    name = f"stage-2 step, batch {size}"
    ours = partial(stage.train_epoch, brain, stored)
    theirs = partial(_train_plainly, stage, plain, recorded)
    if kind == "cuda":
        # Before either side has an optimizer's state.
        for whose, function, limit in (
            ("ours", ours, 6.0),
            ("the reference's", theirs, None),
        ):
            yield at_most(
                f"{name}: memory beside the weights, {whose}",
                peak_above(function) / GIB,
                "GiB",
                limit,
            )
    row = compare(
        f"{name}: from the store / encoder in the step",
        ours,
        theirs,
        repetitions,
        goal=3.0,
        parts=steps,
    )
    yield row
    yield compare(
        f"{name}: frames given to both",
        ours,
        partial(_train_plainly, stage, on_frames, stored),
        repetitions,
        parts=steps,
    )
    batches = [
        PaddedBatch([stored[i] for i in range(start, end)]).to(stage.device)
        for start in range(0, len(stored), size)
        for end in [min(start + size, len(stored))]
    ]
    kept = [
        _kept(step, batches[0], stage, module) / 1e6
        for step, module in ((_our_loss(brain), brain), (_loss, on_frames))
    ]
    yield smaller(
        f"{name}: kept for the backward pass, ours / the reference",
        *kept,
        "MB",
    )
    operations = count_operations(
        partial(_go_back, _our_loss(brain), batches, stage)
    )
    brain.modules.zero_grad(set_to_none=True)
    yield share(
        f"{name}: operations / those of a matrix product",
        operations / steps / row.ours / 1e12,
        ceiling / 1e12,
        "TFLOP/s",
        goal=0.5 if kind == "cuda" else None,
    )


def _our_loss(brain):
    def loss(_, batch):
        return brain.compute_forward(batch, sb.Stage.TRAIN)[0]

    return loss


def _loss(system, batch):
    return system(*_inputs(batch), batch.label)


def _kept(loss, batch, stage, system):
    module = system.modules if isinstance(system, sb.Brain) else system
    module.train()
    with stage.autocast(), kept_for_backward({"all": module}) as kept:
        loss(system, batch)
        return kept()


def _go_back(loss, batches, stage):
    for batch in batches:
        with stage.autocast():
            value = loss(None, batch)
        value.backward()


def _predictions(stage, plain, on_frames, repetitions):
    """From the files or the store to posteriors."""
    size = min(_PREDICTED, len(stage.stored))
    modules = stage.hparams["modules"]
    # As a recognizer has it, whose weights no longer change.
    modules["decoder"].cache_prefix = True

    def given(function, dataset, *arguments):
        return lambda: function(stage, *arguments, _batch(stage, dataset))

    ours = given(_posteriors, stage.stored, modules)
    name = f"prediction, batch {size}"
    yield compare(
        f"{name}: from the store / encoder in the step and generate",
        ours,
        given(_generate, stage.recorded, plain),
        repetitions,
        goal=10.0,
    )
    yield compare(
        f"{name}: frames given to both",
        ours,
        given(_generate, stage.stored, on_frames),
        repetitions,
    )
    yield compare(
        f"{name}: encoder in both",
        given(
            _posteriors, stage.recorded, modules | {"encoder": stage.encoder}
        ),
        given(_generate, stage.recorded, plain),
        repetitions,
    )


def _train_plainly(stage, system, dataset):
    """An epoch of the plain loop, in the order of the file."""
    parameters = [p for p in system.parameters() if p.requires_grad]
    optimizer = stage.hparams["opt_class"](parameters, lr=stage.hparams["lr"])
    system.train()
    loader = dict(stage.hparams["train_loader"])
    for batch in DataLoader(
        dataset,
        loader["batch_size"],
        num_workers=loader["num_workers"],
        collate_fn=PaddedBatch,
    ):
        batch = batch.to(stage.device)
        with stage.autocast():
            loss = _loss(system, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(
            parameters, stage.hparams["max_grad_norm"]
        )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _batch(stage, dataset):
    size = min(_PREDICTED, len(dataset))
    batch = PaddedBatch([dataset[index] for index in range(size)])
    return batch.to(stage.device)


def _inputs(batch):
    return batch.audio, batch.tokens, batch.prompt


@torch.no_grad()
def _posteriors(stage, modules, batch):
    for module in modules.values():
        module.eval()
    with stage.autocast():
        precision = stage.hparams["store_precision"]
        return decode(modules, batch, store_precision=precision)[-1]


def _generate(stage, system, batch):
    with stage.autocast():
        return system.eval().predict(*_inputs(batch))[0]


def _check_same(stage, plain):
    """Both sides have to compute the same, or the ratio means nothing."""
    torch.testing.assert_close(
        _posteriors(
            stage, stage.hparams["modules"], _batch(stage, stage.stored)
        ),
        _generate(stage, plain, _batch(stage, stage.recorded)),
        atol=_TOLERANCES[stage.hparams["precision"]],
        rtol=0,
    )
