"""The training loop: steps, learning rates, schedule, selection."""

import math
from types import SimpleNamespace

import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.epoch_loop import EpochCounterWithStopper
from speechbrain.utils.train_logger import FileTrainLogger
from torch import nn
from torch.nn import functional as F

from emoq_modules import PromptTemplate, SoftPromptDecoder
from emoq_modules.audio_encoder import FrozenEncoder
from emoq_modules.brain import EmoQBrain, Stage1Brain, Stage2Brain
from emoq_modules.checkpoints import (
    CheckpointError,
    History,
    TrainableCheckpointer,
)
from emoq_modules.configuration import ConfigurationError
from emoq_modules.sampler import ClassGroupSampler

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


def make_dataset(size, first_label=0):
    """Random frames of different lengths, the classes in turn."""
    generator = torch.Generator().manual_seed(size)
    rows = {
        f"u{index}": {
            "audio": torch.randn(2 + index % 3, DIM, generator=generator),
            "tokens": torch.tensor([0, 2]),
            "text": "Leave me alone.",
            "speaker": "Ross",
            "dialogue": f"d{index // 2}",
            "context": [],
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


def weights(brain):
    return {
        name: parameter.detach().clone()
        for name, parameter in brain.modules.named_parameters()
        if parameter.requires_grad
    }


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], **tolerance)


# --- Steps --------------------------------------------------------------------


def stage_2(folder, llm, **changes):
    """Words of one, two and more tokens: answers of different weight."""
    labels = ["angry", "happy", "flabbergasted"]
    torch.manual_seed(0)
    decoder = SoftPromptDecoder(
        llm,
        PromptTemplate("Which of {labels}?", "{text} <AUDIO>"),
        labels,
        embedding_dim=DIM,
        lora={"r": 2, "target_modules": "all-linear"},
    )
    return make_brain(
        folder,
        Stage2Brain,
        {"fusion": Fusion(), "decoder": decoder},
        labels=labels,
        speaker_in_prompt=True,
        **changes,
    )


def test_accumulated_batches_step_as_one_big_batch_would(tmp_path, llm):
    # Seven utterances: two batches, two batches of other sizes, and what is
    # left at the end of the epoch; the answers' token weights differ too.
    dataset = make_dataset(7)
    big = stage_2(tmp_path / "big", llm)
    fit(big, dataset, [[0, 1, 2], [3, 4, 5], [6]])
    small = stage_2(tmp_path / "small", llm, grad_accumulation_factor=2)
    fit(small, dataset, [[0, 1], [2], [3], [4, 5], [6]])
    assert big.optimizer_step == small.optimizer_step == 3
    assert_same(weights(small), weights(big), atol=1e-5, rtol=1e-4)


class Told(nn.Module):
    """In the place of the decoder: returns what it is told."""

    def forward(self, embeddings, texts, speakers, labels, **rest):
        return speakers, rest["contexts"]


@pytest.mark.parametrize(
    ("speaker_in_prompt", "told"),
    [
        (True, (["Joey"], [[("Ross", "Oh no."), ("Rachel", "What?")]])),
        (False, (None, [[(None, "Oh no."), (None, "What?")]])),
    ],
)
def test_speakers_are_told_with_the_utterance_and_before_it_or_nowhere(
    tmp_path, speaker_in_prompt, told
):
    brain = make_brain(
        tmp_path,
        Stage2Brain,
        {"decoder": Told()},
        speaker_in_prompt=speaker_in_prompt,
    )
    batch = SimpleNamespace(
        text=["Nothing."],
        speaker=["Joey"],
        context=[[("Ross", "Oh no."), ("Rachel", "What?")]],
        label=torch.tensor([0]),
    )
    assert brain.compute_forward(batch, sb.Stage.TRAIN) == told


def test_answers_of_different_length_have_different_weight(tmp_path, llm):
    # Or the test above could not tell tokens from utterances.
    decoder = stage_2(tmp_path, llm).modules["decoder"]
    words = [decoder.answer_weight(torch.tensor([label])) for label in range(3)]
    assert words[0] == words[1] == 5 + 1
    assert words[2] > 2 * words[0]


class UnfinishedBrain(Stage1Brain):
    """Notes what each step weighs, and leaves the first epoch early."""

    weighed = ()

    def optimizers_step(self):
        self.weighed = [*self.weighed, self.accumulated_weight]
        super().optimizers_step()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        self.debug = False
        super().on_stage_end(stage, stage_loss, epoch)


def test_what_an_epoch_left_unfinished_has_no_part_in_the_next(tmp_path):
    # Debugging ends an epoch after two batches, here before a step of three.
    brain = make_brain(
        tmp_path,
        UnfinishedBrain,
        grad_accumulation_factor=3,
        number_of_epochs=2,
    )
    brain.debug = True
    fit(brain, make_dataset(8), [[0, 1], [2, 3], [4, 5], [6, 7]])
    assert brain.weighed == [6, 2]


def test_gradient_is_clipped_over_all_groups_together(tmp_path):
    dataset, batches = make_dataset(6), [[0, 1, 2, 3, 4, 5]]
    free = make_brain(tmp_path / "free")
    start = weights(free)
    fit(free, dataset, batches)
    rate, limit = 0.1, 0.01
    gradients = {
        name: (start[name] - value) / rate
        for name, value in weights(free).items()
    }
    for gradient in gradients.values():
        gradient.grad = gradient.clone()
    norm = torch.nn.utils.clip_grad_norm_(gradients.values(), limit)
    assert norm > 10 * limit

    clipped = make_brain(
        tmp_path / "clipped",
        max_grad_norm=limit,
        learning_rates={"fusion": rate, "head": 2 * rate},
    )
    fit(clipped, dataset, batches)
    for name, value in weights(clipped).items():
        factor = 2 if name.startswith("head") else 1
        torch.testing.assert_close(
            start[name] - value,
            factor * rate * gradients[name].grad,
            atol=1e-6,
            rtol=1e-3,
        )


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_a_limit_that_is_none_does_not_touch_the_gradient(tmp_path, limit):
    dataset, batches = make_dataset(6), [[0, 1, 2], [3, 4, 5]]
    free = make_brain(tmp_path / "free", max_grad_norm=1e9)
    fit(free, dataset, batches)
    brain = make_brain(tmp_path / "none", max_grad_norm=limit)
    fit(brain, dataset, batches)
    assert_same(weights(brain), weights(free))


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_changes_no_weight(
    tmp_path, max_grad_norm
):
    dataset = make_dataset(6)  # class 2 is in the second batch alone
    brain = make_brain(
        tmp_path / "bad", mal=Mal(bad=2), max_grad_norm=max_grad_norm
    )
    fit(brain, dataset, [[0, 1], [2, 5], [3, 4]])
    without = make_brain(tmp_path / "without", max_grad_norm=max_grad_norm)
    fit(without, dataset, [[0, 1], [3, 4]])
    assert_same(weights(brain), weights(without))


# --- Learning rates -----------------------------------------------------------


def test_each_part_has_its_own_learning_rate(tmp_path):
    brain = make_brain(
        tmp_path,
        learning_rates={"fusion": 0.0, "fusion.outer": 0.1, "head": 0.2},
    )
    start = weights(brain)
    fit(brain, make_dataset(6), [[0, 1, 2, 3, 4, 5]])
    rates = {
        id(parameter): group["lr"]
        for group in brain.optimizer.param_groups
        for parameter in group["params"]
    }
    expected = {"fusion.inner": 0.0, "fusion.outer": 0.1, "head": 0.2}
    for name, parameter in brain.modules.named_parameters():
        part = name.rpartition(".")[0]
        assert rates[id(parameter)] == expected[part]
        assert torch.equal(parameter, start[name]) == (expected[part] == 0)


@pytest.mark.parametrize(
    ("rates", "says"),
    [
        ({"fusion": 0.1}, r"no part that head\.weight belongs to; it has fus"),
        ({"fusion": 0.1, "hea": 0.1}, r"no part that head\.weight belongs to"),
        (
            {"fusion": 0.1, "head": 0.1, "decoder": 0.1},
            r"a rate for decoder, which is no part of fusion, head",
        ),
        (
            {"fusion": 0.1, "head": 0.1, "fusion.iner": 0.1},
            r"a rate for fusion\.iner, which is no part",
        ),
    ],
)
def test_learning_rates_and_parts_must_match(tmp_path, rates, says):
    brain = make_brain(tmp_path, learning_rates=rates)
    with pytest.raises(ConfigurationError, match=says):
        fit(brain, make_dataset(3), [[0, 1, 2]])


def test_a_part_that_is_left_out_or_frozen_may_have_a_learning_rate(tmp_path):
    modules = {
        "fusion": Fusion(),
        "head": nn.Linear(DIM, len(LABELS)),
        "spare": None,
    }
    modules["fusion"].inner.requires_grad_(False)
    rates = {"fusion.inner": 1, "fusion": 0.1, "head": 0.1, "spare": 0.1}
    brain = make_brain(tmp_path, modules=modules, learning_rates=rates)
    fit(brain, make_dataset(3), [[0, 1, 2]])
    assert len(brain.optimizer.param_groups) == 2


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("scheduler", r"scheduler is 'no'; it can be linear"),
        ("selection_metric", r"is 'no'; it can be last, loss, WA, UA, WF1"),
    ],
)
def test_what_can_be_chosen_is_said_before_training(tmp_path, key, says):
    brain = make_brain(tmp_path, **{key: "no"})
    with pytest.raises(ConfigurationError, match=says):
        fit(brain, make_dataset(3), [[0, 1, 2]])
    assert brain.optimizer_step == 0


class RecordingBrain(Stage1Brain):
    """Notes the learning rate of every step."""

    rates = ()

    def optimizers_step(self):
        self.rates = [*self.rates, self.optimizer.param_groups[0]["lr"]]
        super().optimizers_step()


def test_learning_rate_warms_up_and_goes_down_over_the_steps(tmp_path):
    # Five batches and three at a time are two steps; four epochs have eight.
    brain = make_brain(
        tmp_path,
        RecordingBrain,
        scheduler="linear",
        warmup_ratio=0.5,
        number_of_epochs=4,
        grad_accumulation_factor=3,
    )
    fit(brain, make_dataset(5), [[0], [1], [2], [3], [4]])
    quarters = [0, 1, 2, 3, 4, 3, 2, 1]
    assert brain.rates == pytest.approx([0.1 * q / 4 for q in quarters])


def test_a_sampler_is_told_the_epoch(tmp_path):
    sampler = ClassGroupSampler([0, 1, 2, 0], group_size=1, seed=0)
    brain = make_brain(tmp_path, number_of_epochs=2)
    orders = []
    brain.on_fit_batch_end = lambda batch, *rest: orders.append(batch.id)
    brain.fit(
        brain.hparams.epoch_counter,
        make_dataset(4),
        make_dataset(3),
        train_loader_kwargs={"batch_size": 4, "sampler": sampler},
    )
    expected = []
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        expected.append([f"u{index}" for index in sampler])
    assert orders == expected
    assert orders[0] != orders[1]


# --- Modes and checkpoints ----------------------------------------------------


class WatchingEncoder(FrozenEncoder):
    """Notes in which mode it works; of each sample it makes a frame."""

    def __init__(self):
        super().__init__(DIM, {"class": "WatchingEncoder"})
        self.layer = nn.Linear(1, DIM).requires_grad_(False)
        self.dropout = nn.Dropout(0.5)
        self.seen = []

    def encode(self, wavs, samples):
        modes = {module.training for module in self.modules()}
        self.seen.append((modes, torch.is_grad_enabled()))
        frames = self.dropout(self.layer(wavs.unsqueeze(2)))
        return [f[:count] for f, count in zip(frames, samples, strict=True)]


def test_frozen_encoder_stays_in_eval_mode_and_without_gradient(tmp_path):
    rows = {
        f"u{i}": {
            "audio": torch.randn(5 + i),
            "tokens": torch.tensor([0, 2]),
            "dialogue": "d",
            "label": i % 3,
        }
        for i in range(6)
    }
    dataset = DynamicItemDataset(rows, output_keys=["id", *rows["u0"]])
    encoder = WatchingEncoder()
    brain = make_brain(tmp_path)
    brain.modules["encoder"] = encoder
    before = encoder.layer.weight.clone()
    fit(brain, dataset, [[0, 1, 2], [3, 4, 5]], valid=dataset)
    assert len(encoder.seen) >= 4
    assert all(seen == ({False}, False) for seen in encoder.seen)
    assert torch.equal(encoder.layer.weight, before)
    assert encoder.layer.weight.grad is None


def test_frames_on_the_fly_are_rounded_as_in_the_store(tmp_path):
    brain = make_brain(tmp_path, store_precision="bf16")
    brain.modules["encoder"] = WatchingEncoder()
    batch = sb.dataio.batch.PaddedBatch([{"audio": torch.randn(9)}])
    frames, _ = brain.audio_frames(batch, sb.Stage.VALID)
    assert torch.equal(frames, frames.bfloat16().float())


def test_each_waveform_is_augmented_by_itself_and_in_training_alone(tmp_path):
    heard = []

    def halve(wav):
        heard.append(wav)
        return wav[:, : wav.shape[1] // 2]

    brain = make_brain(tmp_path, augment_audio=halve)
    brain.modules["encoder"] = WatchingEncoder()
    wavs = [torch.randn(9), torch.randn(4), torch.randn(6)]
    batch = sb.dataio.batch.PaddedBatch([{"audio": wav} for wav in wavs])
    frames, lens = brain.audio_frames(batch, sb.Stage.TRAIN)
    assert all(
        torch.equal(found[0], wav)
        for found, wav in zip(heard, wavs, strict=True)
    )
    assert frames.shape[:2] == (3, 4)
    assert (lens * 4).tolist() == [4, 2, 3]

    frames, _ = brain.audio_frames(batch, sb.Stage.VALID)
    assert frames.shape[1] == 9 and len(heard) == 3


def test_no_checkpoint_is_made_between_two_steps(tmp_path):
    brain = make_brain(tmp_path, grad_accumulation_factor=2)
    brain.ckpt_interval_steps = 1
    saved = []
    brain._save_intra_epoch_ckpt = lambda: saved.append(brain.step)
    fit(brain, make_dataset(5), [[0], [1], [2], [3], [4]])
    assert saved == [2, 4, 5]


class ScriptedBrain(EmoQBrain):
    """After each epoch it is as good as the script says.

    Its one weight holds the number of the epoch it was saved in. Of four
    utterances so many are right, and the loss is such.
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


def test_the_best_epoch_is_evaluated_and_not_the_last(tmp_path):
    brain = run_script(tmp_path, [(2, 1), (4, 1), (1, 1), (3, 1)])
    assert brain.loaded_epoch == 2
    assert brain.modules["fusion"].weight.item() == 2
    assert brain.stats.summarize("UA") == 100
    assert len(brain.hparams.history) == 4


def test_another_set_is_measured_with_the_same_weights(tmp_path, monkeypatch):
    brain = run_script(tmp_path, [(2, 1), (3, 1), (1, 1)])
    with monkeypatch.context() as patches:
        patches.setattr("emoq_modules.brain.load_trainable", None)  # unused
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


def test_selection_by_loss_takes_the_smallest(tmp_path):
    script = [(4, 0.9), (1, 0.2), (2, 0.5)]
    brain = run_script(tmp_path, script, selection_metric="loss")
    assert brain.loaded_epoch == 2


def test_training_stops_when_patience_ends(tmp_path):
    # Only as good as the best is no better.
    script = [(2, 1), (3, 1), (3, 1), (3, 1), (4, 1)]
    brain = run_script(tmp_path, script, patience=2)
    assert len(brain.hparams.history) == 4
    assert brain.stats.summarize("UA") == 75


def test_patience_with_the_loss_counts_from_the_smallest(tmp_path):
    script = [(2, 0.5), (2, 0.4), (2, 0.6), (2, 0.4), (2, 0.1)]
    brain = run_script(tmp_path, script, patience=2, selection_metric="loss")
    assert len(brain.hparams.history) == 4


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


def test_evaluation_without_a_checkpoint_says_to_train_first(tmp_path):
    brain = make_brain(tmp_path)
    with pytest.raises(CheckpointError, match="train first"):
        brain.evaluate(make_dataset(3))


def test_last_epoch_is_tested_where_that_is_asked_for(tmp_path):
    script = [(4, 0.1), (1, 0.2), (2, 0.5)]
    brain = run_script(tmp_path, script, selection_metric="last")
    assert brain.loaded_epoch == 3
