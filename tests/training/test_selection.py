"""Which epoch is tested, and when training stops."""

import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from torch import nn
from torch.nn import functional as F

from emoq_modules.errors import CheckpointError
from emoq_modules.training.brain import EmoQBrain
from tests.conftest import flip_a_byte
from tests.small_brain import fit, make_brain, make_dataset


class ScriptedBrain(EmoQBrain):
    """After each epoch it is as good as the script says.

    Its one weight holds the number of the epoch it was saved in. So many of
    four utterances are right, and the loss is such.
    """

    script = {}

    def on_stage_start(self, stage, epoch=None):
        super().on_stage_start(stage, epoch)
        if stage == sb.Stage.TRAIN:
            with torch.no_grad():
                self.modules["fusion"].weight.fill_(epoch)

    def compute_forward(self, batch, stage):
        return self.modules["fusion"].weight

    def compute_objectives(self, weight, batch, stage):
        if stage == sb.Stage.TRAIN:
            return 0 * weight.sum()
        right, loss = self.script[round(weight.item())]
        wrong = torch.arange(len(batch.id)) >= right
        posteriors = F.one_hot((batch.label + wrong) % 2, 2).float()
        self.stats.append(batch.id, posteriors, batch.label)
        return torch.tensor(float(loss))


FOUR = DynamicItemDataset(
    {f"u{i}": {"label": label} for i, label in enumerate([0, 0, 1, 1])},
    output_keys=["id", "label"],
)


def run_script(folder, script, **changes):
    """Fits and evaluates; returns the brain."""
    brain = make_brain(
        folder,
        ScriptedBrain,
        {"fusion": nn.Linear(1, 1, bias=False)},
        labels=["no", "yes"],
        number_of_epochs=len(script),
        learning_rates={"fusion": 0.0},
        **changes,
    )
    brain.script = dict(enumerate(script, start=1))
    fit(brain, FOUR, [[0, 1, 2, 3]], valid=FOUR)
    brain.evaluate(FOUR, test_loader_kwargs={"batch_size": 4})
    return brain


@pytest.mark.parametrize(
    ("metric", "script", "best", "UA"),
    [
        ("UA", [(2, 1), (4, 1), (1, 1), (3, 1)], 2, 100),
        ("loss", [(4, 0.9), (1, 0.2), (2, 0.5)], 2, 25),
        ("last", [(4, 0.1), (1, 0.2), (2, 0.5)], 3, 50),
    ],
)
def test_the_epoch_that_was_asked_for_is_evaluated(
    tmp_path, metric, script, best, UA
):
    brain = run_script(tmp_path, script, selection_metric=metric)
    assert brain.loaded_epoch == brain.modules["fusion"].weight.item() == best
    assert brain.stats.summarize("UA") == UA
    assert len(brain.hparams.history) == len(script)


def test_another_set_is_measured_with_the_same_weights(tmp_path, monkeypatch):
    brain = run_script(tmp_path, [(2, 1), (3, 1), (1, 1)])
    with monkeypatch.context() as patches:
        patches.setattr(
            "emoq_modules.training.brain.load_trainable", None
        )  # unused
        brain.evaluate(
            FOUR, split="valid", test_loader_kwargs={"batch_size": 4}
        )
    assert brain.stats.summarize("UA") == 75
    log = (tmp_path / "train_log.txt").read_text().splitlines()
    assert log[-2].startswith("epoch loaded: 2 - test loss: 1")
    assert log[-1].startswith("epoch loaded: 2 - valid loss: 1")


def test_weights_that_training_changed_are_loaded_again(tmp_path):
    brain = run_script(tmp_path, [(3, 1), (1, 1)])
    brain.script[3] = (2, 1)
    brain.hparams.epoch_counter.limit = 3
    fit(brain, FOUR, [[0, 1, 2, 3]], valid=FOUR)
    assert brain.modules["fusion"].weight.item() == 3
    brain.evaluate(FOUR, test_loader_kwargs={"batch_size": 4})
    assert brain.modules["fusion"].weight.item() == 1


@pytest.mark.parametrize(
    ("metric", "script", "UA"),
    [
        # Only as good as the best is no better.
        ("UA", [(2, 1), (3, 1), (3, 1), (3, 1), (4, 1)], 75),
        ("loss", [(2, 0.5), (2, 0.4), (2, 0.6), (2, 0.4), (2, 0.1)], 50),
    ],
)
def test_training_stops_when_patience_ends(tmp_path, metric, script, UA):
    changes = {"patience": 2, "selection_metric": metric}
    brain = run_script(tmp_path, script, **changes)
    assert len(brain.hparams.history) == 4
    assert brain.stats.summarize("UA") == UA


def test_a_run_that_was_stopped_early_stays_stopped(tmp_path):
    script = [(3, 1), (1, 1), (1, 1), (4, 1)]
    run_script(tmp_path, script, patience=2)
    again = run_script(tmp_path, script, patience=2)
    assert len(again.hparams.history) == 3
    assert again.loaded_epoch == 1


def test_a_resumed_run_remembers_how_long_it_has_waited(tmp_path):
    script = [(3, 1), (1, 1), (1, 1), (4, 1)]
    run_script(tmp_path, script[:2], patience=2)
    resumed = run_script(tmp_path, script, patience=2)
    assert len(resumed.hparams.history) == 3


def test_another_epoch_never_stands_in_for_a_damaged_best_one(tmp_path):
    script = [(4, 1), (1, 1)]
    run_script(tmp_path, script)
    best, _ = sorted((tmp_path / "save").iterdir())
    flip_a_byte(best / "fusion.ckpt")
    with pytest.raises(CheckpointError, match="Epoch 1 was the best.*Restore"):
        run_script(tmp_path, script)


def test_evaluation_without_a_checkpoint_says_to_train_first(tmp_path):
    brain = make_brain(tmp_path)
    with pytest.raises(CheckpointError, match="train first"):
        brain.evaluate(make_dataset(3))
