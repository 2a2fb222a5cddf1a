"""Rows about stage 1: an epoch, and how long it waits for data."""

import copy
from functools import partial

import torch

from benchmarks.machine import waiting_share
from benchmarks.reference_audio import PlainEncoder
from benchmarks.rows import at_most, compare


def stage1_rows(stage, repetitions):
    """Measures epochs of stage 1, without the validation after them.

    Arguments
    ---------
    stage : Stage
        Stage 1.
    repetitions : int
        As of ``compare``.

    Yields
    ------
    Row
    """
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
