"""A brain on small modules, for tests of the training loop."""

import math

import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.epoch_loop import EpochCounterWithStopper
from speechbrain.utils.train_logger import FileTrainLogger
from torch import nn
from torch.nn import functional as F

from emoq_modules.training.checkpoints import History, TrainableCheckpointer
from emoq_modules.training.stages import Stage1Brain

DIM = 6
LABELS = ["angry", "happy", "sad"]


class Fusion(nn.Module):
    """In the place of the EmoQ-Former: mean frames through a linear layer."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(DIM, DIM)
        self.outer = nn.Linear(DIM, DIM)

    def forward(self, audio, audio_lens, tokens, token_lens):
        counts = (audio_lens * audio.shape[1]).round().unsqueeze(1)
        return self.outer(self.inner(audio.sum(dim=1) / counts))


class Mal(nn.Module):
    """In the place of the loss: cross-entropy, infinite for class ``bad``."""

    def __init__(self, bad=None):
        super().__init__()
        self.bad = bad

    def forward(self, embeddings, logits, labels):
        scale = math.inf if self.bad in labels.tolist() else 1.0
        return scale * F.cross_entropy(logits, labels)


def make_dataset(size, first_label=0, prompt=()):
    """Random frames of different lengths, the classes in turn."""
    generator = torch.Generator().manual_seed(size)
    rows = {
        f"u{index}": {
            "audio": torch.randn(2 + index % 3, DIM, generator=generator),
            "tokens": torch.tensor([0, 2]),
            "dialogue": f"d{index // 2}",
            "prompt": prompt,
            "label": (first_label + index) % len(LABELS),
        }
        for index in range(size)
    }
    return DynamicItemDataset(rows, output_keys=["id", *rows["u0"]])


def make_brain(folder, kind=Stage1Brain, modules=None, **changes):
    """A brain on small modules; ``changes`` are of its hparams."""
    if modules is None:
        torch.manual_seed(0)
        modules = {"fusion": Fusion(), "head": nn.Linear(DIM, len(LABELS))}
    hparams = {
        "labels": LABELS,
        "modules": modules,
        "learning_rates": dict.fromkeys(modules, 0.1),
        "scheduler": "constant",
        "warmup_ratio": 0.0,
        "selection_metric": "UA",
        "patience": 100,
        "number_of_epochs": 1,
        "history": History(),
        "store_precision": "fp32",
        "augment_audio": None,
        "augment_frames": None,
        "train_logger": FileTrainLogger(str(folder / "train_log.txt")),
        "mal": Mal(),
        "max_grad_norm": 0.0,
        **changes,
    }
    hparams.update(modules)
    hparams["epoch_counter"] = EpochCounterWithStopper(
        hparams["number_of_epochs"], hparams["patience"], 0, "max"
    )
    recoverables = {
        **modules,
        "epoch_counter": hparams["epoch_counter"],
        "history": hparams["history"],
    }
    return kind(
        modules={k: m for k, m in modules.items() if m is not None},
        opt_class=changes.get("opt_class", torch.optim.SGD),
        hparams=hparams,
        run_opts={"device": "cpu", "noprogressbar": True},
        checkpointer=TrainableCheckpointer(
            folder / "save",
            {k: obj for k, obj in recoverables.items() if obj is not None},
        ),
    )


def fit(brain, dataset, batches, valid=None):
    """Trains on these batches (lists of indices) in this order."""
    brain.fit(
        brain.hparams.epoch_counter,
        dataset,
        valid or make_dataset(3),
        train_loader_kwargs={"batch_sampler": batches},
        valid_loader_kwargs={"batch_size": 4},
    )
