"""The training loop: steps, learning rates, schedule, modes."""

import math

import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from torch import nn

from emoq_modules import PromptTemplate, SoftPromptDecoder
from emoq_modules.dataio.sampler import ClassGroupSampler
from emoq_modules.errors import ConfigurationError
from emoq_modules.lobes.audio_encoder import FrozenEncoder
from emoq_modules.training.stages import Stage1Brain, Stage2Brain
from tests.small_brain import (
    DIM,
    LABELS,
    Fusion,
    Mal,
    fit,
    make_brain,
    make_dataset,
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


def stage_2(folder, llm, **changes):
    """Words of one, two and more tokens: answers of different weight."""
    labels = ["angry", "happy", "flabbergasted"]
    torch.manual_seed(0)
    decoder = SoftPromptDecoder(
        llm,
        PromptTemplate("Which of {labels}?", "{text}\n<AUDIO>"),
        labels,
        embedding_dim=DIM,
        lora={"r": 2, "target_modules": "all-linear"},
    )
    return make_brain(
        folder,
        Stage2Brain,
        {"fusion": Fusion(), "decoder": decoder},
        labels=labels,
        **changes,
    )


def test_accumulated_batches_step_as_one_big_batch_would(tmp_path, llm):
    # Seven utterances: two batches, two batches of other sizes, and what is
    # left at the end of the epoch; the answers' token weights differ too.
    big = stage_2(tmp_path / "big", llm)
    decoder = big.hparams.decoder
    answers = [decoder.answer_weight(torch.tensor([k])) for k in range(3)]
    assert answers[0] == answers[1] == 5 + 1 < answers[2] / 2
    prompt = decoder.prompt.encode("Leave me alone.")
    dataset = make_dataset(7, prompt=prompt)
    valid = make_dataset(3, prompt=prompt)
    fit(big, dataset, [[0, 1, 2], [3, 4, 5], [6]], valid)
    small = stage_2(tmp_path / "small", llm, grad_accumulation_factor=2)
    fit(small, dataset, [[0, 1], [2], [3], [4, 5], [6]], valid)
    assert big.optimizer_step == small.optimizer_step == 3
    assert_same(weights(small), weights(big), atol=1e-5, rtol=1e-4)


def test_logits_of_the_classifier_are_exact_in_half_precision_too(tmp_path):
    brain = make_brain(tmp_path)
    batch = PaddedBatch([make_dataset(3)[index] for index in range(3)])
    with torch.autocast("cpu", torch.bfloat16):
        embeddings, logits = brain.compute_forward(batch, sb.Stage.VALID)
    head = brain.modules["head"].double()
    assert embeddings.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    exact = head(embeddings.double()).float()
    torch.testing.assert_close(logits, exact, atol=1e-6, rtol=1e-6)


def test_frames_are_left_out_in_training_alone(tmp_path):
    brain = make_brain(tmp_path)
    brain.hparams.audio_dropout = 1.0
    batch = PaddedBatch([make_dataset(3)[index] for index in range(3)])
    heard = brain.pipeline_options(sb.Stage.TRAIN, batch)["heard"]
    assert heard.tolist() == [False] * 3
    assert "heard" not in brain.pipeline_options(sb.Stage.VALID, batch)


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


BOTH = {"fusion": 0.1, "head": 0.1}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("scheduler", "no", r"scheduler is 'no'; it can be linear"),
        ("selection_metric", "no", r"it can be last, loss, WA, UA, WF1"),
        (
            "learning_rates",
            {"fusion": 0.1},
            r"no part that head\.weight belongs to; it has fus",
        ),
        (
            "learning_rates",
            {"fusion": 0.1, "hea": 0.1},
            r"no part that head\.weight belongs to",
        ),
        (
            "learning_rates",
            {**BOTH, "decoder": 0.1},
            r"a rate for decoder, which is no part of fusion, head",
        ),
        (
            "learning_rates",
            {**BOTH, "fusion.iner": 0.1},
            r"a rate for fusion\.iner, which is no part",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_training(tmp_path, key, value, says):
    brain = make_brain(tmp_path, **{key: value})
    with pytest.raises(ConfigurationError, match=says):
        fit(brain, make_dataset(3), [[0, 1, 2]])
    assert brain.optimizer_step == 0


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


class StoppedBrain(RecordingBrain):
    """Is stopped before a batch, with a checkpoint after every fourth."""

    stopped_before = math.inf
    heard = ()

    def fit_batch(self, batch):
        if len(self.heard) == self.stopped_before:
            raise KeyboardInterrupt
        self.heard = [*self.heard, batch.id]
        return super().fit_batch(batch)


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("done", [8, 12])  # an epoch; and half of the next
@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1)])
def test_a_run_goes_on_where_it_was_with_batches_of_another_size(
    tmp_path, caplog, before, now, done, accumulated
):
    # As another number of ranks has it: the same order, dealt out otherwise.
    def brain(each):
        brain = make_brain(
            tmp_path,
            StoppedBrain,
            scheduler="linear",
            number_of_epochs=3,
            grad_accumulation_factor=accumulated,
        )
        brain.ckpt_interval_steps = 4 // each
        batches = [[*range(k, k + each)] for k in range(0, 8, each)]
        return brain, batches

    dataset = make_dataset(8)
    first, batches = brain(before)
    first.stopped_before = done // before
    with pytest.raises(KeyboardInterrupt):
        fit(first, dataset, batches)
    resumed, batches = brain(now)
    fit(resumed, dataset, batches)

    utterances = [f"u{k}" for k in (*range(8), *range(8), *range(8))]
    assert sum(first.heard + resumed.heard, []) == utterances
    # Linear from 0.1 to 0 over 24 utterances, as each step has found it.
    steps = range(done, 24, now * accumulated)
    assert resumed.rates == pytest.approx([0.1 * (1 - k / 24) for k in steps])
    assert f"had {8 // before} batches and now has {8 // now}" in caplog.text


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


def test_embeddings_of_the_set_measured_last_stay_in_its_order(tmp_path):
    brain, dataset = make_brain(tmp_path), make_dataset(5)
    fit(brain, dataset, [[0, 1], [2, 3, 4]], valid=make_dataset(3))
    for size, split in ((3, "valid"), (5, "test")):
        brain.evaluate(
            make_dataset(size),
            split=split,
            test_loader_kwargs={"batch_size": 2},
        )
    assert brain.stats.ids == [f"u{index}" for index in range(5)]
    with torch.no_grad():
        expected = [
            brain.modules["fusion"](
                dataset[index]["audio"][None], torch.ones(1), None, None
            )[0]
            for index in range(5)
        ]
    torch.testing.assert_close(brain.tested_embeddings, expected)


def test_of_several_embeddings_of_an_utterance_the_mean_is_kept(tmp_path):
    brain = make_brain(tmp_path)
    brain.on_stage_start(sb.Stage.TEST)
    several, lens = torch.randn(2, 4, DIM), torch.tensor([0.5, 1.0])
    brain.keep_tested((several, lens), sb.Stage.TEST)
    first, second = brain.tested_embeddings
    torch.testing.assert_close(first, several[0, :2].mean(dim=0))
    torch.testing.assert_close(second, several[1].mean(dim=0))


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
    dataset = make_dataset(6)
    for row in dataset.data.values():
        row["audio"] = row["audio"][:, 0]  # in the place of a waveform
    encoder = WatchingEncoder()
    brain = make_brain(tmp_path)
    brain.modules["encoder"] = encoder
    before = encoder.layer.weight.clone()
    fit(brain, dataset, [[0, 1, 2], [3, 4, 5]], valid=dataset)
    assert len(encoder.seen) >= 4
    assert all(seen == ({False}, False) for seen in encoder.seen)
    assert torch.equal(encoder.layer.weight, before)
    assert encoder.layer.weight.grad is None


def test_no_checkpoint_is_made_between_two_steps(tmp_path):
    brain = make_brain(tmp_path, grad_accumulation_factor=2)
    brain.ckpt_interval_steps = 1
    saved = []
    brain._save_intra_epoch_ckpt = lambda: saved.append(brain.step)
    fit(brain, make_dataset(5), [[0], [1], [2], [3], [4]])
    assert saved == [2, 4, 5]
