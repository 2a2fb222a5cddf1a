"""The training loop: steps, learning rates, schedule, modes."""

import math

import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from torch import nn
from transformers.trainer_pt_utils import get_parameter_names

from emoq_modules import (
    FocalLoss,
    MALLoss,
    PromptTemplate,
    SoftPromptDecoder,
    SupConLoss,
)
from emoq_modules.dataio.files import read_contents, write_contents
from emoq_modules.dataio.sampler import ClassGroupSampler
from emoq_modules.errors import CheckpointError, ConfigurationError
from emoq_modules.lobes.audio_encoder import FrozenEncoder
from emoq_modules.lobes.qformer import EmoQFormer
from emoq_modules.lobes.small_backbones import build_text_encoder
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


def test_only_matrices_decay(tmp_path, llm):
    source = build_text_encoder(tmp_path / "bert", ["Good morning!"])
    brain = stage_2(
        tmp_path, llm, opt_class=lambda g: torch.optim.AdamW(g, lr=0.1)
    )
    brain.modules["fusion"] = EmoQFormer(source, audio_dim=4, audio_layers=2)
    brain.batches_per_epoch = 1
    brain.init_optimizers()
    for parameter in brain.modules.parameters():
        # No weight is 0, and without a gradient only decay moves one.
        if parameter.requires_grad:
            nn.init.ones_(parameter)
            parameter.grad = torch.zeros_like(parameter)
    brain.optimizer.step()
    decayed = {name for name, w in weights(brain).items() if (w < 1).any()}
    # As transformers' Trainer chooses, and what it does not know.
    usual = get_parameter_names(
        brain.modules, [nn.LayerNorm], ["bias", "_norm"]
    )
    extra = {"fusion.queries", "decoder.projector.scale"}
    assert extra < set(usual) & weights(brain).keys()
    assert decayed == set(usual) & weights(brain).keys() - extra
    assert "fusion.text_embeddings.word.weight" in decayed


def test_a_checkpoint_of_other_groups_is_refused_in_one_line(tmp_path):
    brain = make_brain(tmp_path)
    fit(brain, make_dataset(6), [[0, 1, 2, 3, 4, 5]])
    (checkpoint,) = (tmp_path / "save").iterdir()
    # An earlier version had fewer, as biases were with the matrices.
    file = checkpoint / "optimizer.ckpt"
    state = torch.load(file)
    group = {**state["param_groups"][0], "params": list(range(6))}
    torch.save({**state, "param_groups": [group]}, file)
    sizes = read_contents(checkpoint)
    (checkpoint / "mal.ckpt").unlink()
    del sizes["mal.ckpt"]
    write_contents(checkpoint, sizes | {file.name: file.stat().st_size})
    again = make_brain(tmp_path)
    with pytest.raises(CheckpointError, match="earlier version") as error:
        fit(again, make_dataset(6), [[0, 1, 2, 3, 4, 5]])
    assert "\n" not in str(error.value)
    again.test_only = True
    fit(again, make_dataset(6), [[0, 1, 2, 3, 4, 5]])
    again.evaluate(make_dataset(3), test_loader_kwargs={"batch_size": 3})
    assert again.loaded_epoch == 1


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
    rates = [group["lr"] for group in brain.optimizer.param_groups]
    assert rates == [0.1, 0.1, 0.1, 0.1]  # of matrices and biases


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


class Lines(list):
    """In the place of a train logger: what it is given of training."""

    def log_stats(self, stats_meta, train_stats=None, **rest):
        self.append(train_stats)


def stage_1(folder, kind=Stage1Brain, queue_size=0, **changes):
    """With MAL, three epochs and a checkpoint after each batch."""
    brain = make_brain(
        folder,
        kind,
        mal=MALLoss(
            SupConLoss(1.0, queue_size=queue_size), FocalLoss(), balance=0.5
        ),
        train_logger=Lines(),
        number_of_epochs=3,
        **changes,
    )
    brain.ckpt_interval_steps = 1
    return brain


# Classes 0 1, 0 0 1, 2 2 1: of the rarest, sad, both have a positive.
PAIRS = [[0, 1], [3, 6, 4], [2, 5, 7]]


def test_line_of_an_epoch_tells_what_the_loss_is_made_of(tmp_path):
    brain = stage_1(tmp_path, learning_rates={"fusion": 0.0, "head": 0.0})
    dataset = make_dataset(8)
    fit(brain, dataset, PAIRS)
    scl, focal = [], []
    for batch in PAIRS:
        batch = PaddedBatch([dataset[index] for index in batch])
        embeddings, logits = brain.compute_forward(batch, sb.Stage.VALID)
        scl.append(SupConLoss(1.0)(embeddings, batch.label).item())
        focal.append(0.5 * FocalLoss()(logits, batch.label).item())
    expected = {
        "loss": (sum(scl) + sum(focal)) / 3,
        "SCL": sum(scl) / 3,
        "focal": sum(focal) / 3,
        "paired anchors": 50.0,
        "paired anchors of sad": 100.0,
    }
    lines = brain.hparams.train_logger
    assert lines == [pytest.approx(expected)] * 3
    assert scl[0] == 0 and min(scl[1:] + focal) > 0.1


class DyingBrain(Stage1Brain):
    """Ends within its second epoch."""

    def on_fit_batch_end(self, *args):
        if self.optimizer_step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize("size", [0, 5])
def test_resumed_epoch_has_the_queue_and_the_line_of_a_whole_one(
    tmp_path, size
):
    dataset = make_dataset(8)
    whole = stage_1(tmp_path / "whole", queue_size=size)
    fit(whole, dataset, PAIRS)
    stopped = stage_1(tmp_path / "stopped", DyingBrain, queue_size=size)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, dataset, PAIRS)
    resumed = stage_1(tmp_path / "stopped", queue_size=size)
    fit(resumed, dataset, PAIRS)
    assert_same(weights(resumed), weights(whole))
    lines = whole.hparams.train_logger
    assert len(lines[0]) == 5
    assert resumed.hparams.train_logger == lines[1:]


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
