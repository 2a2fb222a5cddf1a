"""Checkpoints: what they hold, what they refuse, what a kill leaves."""

import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from emoq_modules.dataio import files
from emoq_modules.errors import CheckpointError
from emoq_modules.lobes.weights import load_trainable, save_trainable
from emoq_modules.training.checkpoints import (
    History,
    RandomState,
    TrainableCheckpointer,
)
from tests.conftest import flip_a_byte


class Run:
    """A little of what a brain has: a model half frozen, and its optimizer."""

    def __init__(self, folder, width=3):
        torch.manual_seed(width)
        self.model = nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))
        self.model[0].requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [self.model[1].weight], "lr": 0.1},
                {"params": [self.model[1].bias], "lr": 0.2},
            ]
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: 1 / (1 + step)
        )
        self.history = History()
        self.checkpointer = TrainableCheckpointer(
            folder,
            {
                "model": self.model,
                "optimizer": self.optimizer,
                "schedule": self.schedule,
                "history": self.history,
            },
        )

    def step(self):
        self.model(torch.tensor([1.0, 2.0])).sum().backward()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.history.append({"step": len(self.history) + 1})

    def save(self):
        return self.checkpointer.save_checkpoint().path

    def weights(self):
        return {k: v.clone() for k, v in self.model.state_dict().items()}

    def has_moments(self):
        return bool(self.optimizer.state_dict()["state"])


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "save")


def resumed(run):
    """Another process that goes on with the run."""
    other = Run(run.checkpointer.checkpoints_dir)
    other.checkpointer.recover_if_possible()
    return other


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def truncate(path):
    path.write_bytes(path.read_bytes()[:20])


def test_only_trainable_weights_are_saved(run):
    folder = run.save()
    saved = load_file(folder / "model.ckpt")
    assert saved.keys() == {"1.weight", "1.bias"}


def test_a_resumed_run_goes_on_as_if_never_stopped(run):
    run.step()
    run.save()
    other = resumed(run)
    for one in (run, other):
        one.step()
        one.step()
    assert_same(other.weights(), run.weights())
    assert other.history == run.history == [{"step": i} for i in (1, 2, 3)]


def test_random_state_brings_every_generator_back(tmp_path):
    state = RandomState()
    np.random.standard_normal()  # leaves a second number waiting
    state.save(tmp_path / "random.ckpt")

    def draw():
        return (
            torch.rand(3).tolist(),
            np.random.standard_normal(3).tolist(),
            np.random.rand(3).tolist(),
            [random.gauss(0, 1), random.random()],
        )

    drawn = draw()
    assert draw() != drawn
    state.load(tmp_path / "random.ckpt", end_of_epoch=False)
    assert draw() == drawn


def test_nothing_is_unpickled(run, monkeypatch):
    run.checkpointer.add_recoverable("random_state", RandomState())
    run.step()
    run.save()
    run.save()  # which rewrites the first
    load, loaded = torch.load, []

    def watched(file, *args, weights_only=None, **kwargs):
        # None is torch's default, which is True.
        loaded.append((os.fspath(file), weights_only in (None, True)))
        return load(file, *args, weights_only=weights_only, **kwargs)

    monkeypatch.setattr(torch, "load", watched)
    run.save()
    run.checkpointer.recover_if_possible()
    assert len(loaded) >= 3
    assert all(is_safe for _, is_safe in loaded)
    assert not any(path.endswith("model.ckpt") for path, _ in loaded)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"weight": torch.zeros(2, 2)}, "1 of its weights .*bias is missing"),
        (
            {"weight": torch.zeros(2, 2), "bias": torch.zeros(3)},
            r"bias is \(3,\), not \(2,\)",
        ),
        (
            {
                "weight": torch.zeros(2, 2),
                "bias": torch.zeros(2),
                "scale": torch.zeros(1),
            },
            "scale is not known",
        ),
    ],
)
def test_weights_of_another_model_are_refused_whole(tmp_path, weights, says):
    save_file(weights, tmp_path / "weights.safetensors")
    layer = nn.Linear(2, 2)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    with pytest.raises(CheckpointError, match=says):
        load_trainable(layer, tmp_path / "weights.safetensors")
    assert_same(dict(layer.named_parameters()), before)


def test_a_frozen_weight_is_neither_missed_nor_taken(tmp_path):
    layer = nn.Linear(2, 2)
    save_trainable(layer, tmp_path / "all.safetensors")
    layer.bias.requires_grad_(False)
    with pytest.raises(CheckpointError, match="bias is not known"):
        load_trainable(layer, tmp_path / "all.safetensors")


def test_checkpoint_of_another_model_is_refused_before_anything_is_loaded(run):
    run.step()
    run.save()
    other = Run(run.checkpointer.checkpoints_dir, width=4)
    before = other.weights()
    with pytest.raises(CheckpointError, match=r"another model.*\(1, 3\)"):
        other.checkpointer.recover_if_possible()
    assert_same(other.weights(), before)
    assert not other.has_moments() and not other.history


def test_checkpoint_that_lacks_a_part_is_refused(run):
    run.save()
    other = Run(run.checkpointer.checkpoints_dir)
    other.checkpointer.add_recoverable("head", nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match="it has no head"):
        other.checkpointer.recover_if_possible()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.ckpt", truncate),
        ("optimizer.ckpt", truncate),
        ("CKPT.yaml", truncate),
        ("contents.json", truncate),
        ("schedule.ckpt", Path.unlink),
        ("model.ckpt", flip_a_byte),
        ("optimizer.ckpt", lambda path: flip_a_byte(path, 500)),
        ("history.ckpt", lambda path: flip_a_byte(path, -3)),
        ("CKPT.yaml", lambda path: flip_a_byte(path, -3)),
    ],
)
def test_damaged_checkpoint_is_left_out_with_a_warning(
    run, caplog, name, damage
):
    run.step()
    run.save()
    at_first = run.weights()
    run.step()
    newest = run.save()
    damage(newest / name)
    other = resumed(run)
    assert_same(other.weights(), at_first)
    assert len(other.history) == 1
    assert f"{newest} is left out: {name}" in caplog.text


@pytest.mark.parametrize("damage", [truncate, flip_a_byte])
def test_damage_of_all_checkpoints_is_an_error_and_not_a_fresh_start(
    run, damage
):
    for _ in range(2):
        run.step()
        damage(run.save() / "model.ckpt")
    says = r"No checkpoint in .* is whole \(model\.ckpt .*\)\. Restore"
    with pytest.raises(CheckpointError, match=says):
        resumed(run)


def test_a_checkpoint_is_on_the_disk_before_its_list_is(run, disk):
    run.step()
    folder = run.save()
    listed, saved = folder / "contents.json", [*folder.glob("*.ckpt")]
    assert len(saved) == 4
    assert not disk.unsafe_at(listed, [*saved, folder.parent])
    assert folder in disk.synced


def test_a_checkpoint_of_an_earlier_version_is_resumed(run):
    run.step()
    folder = run.save()
    sizes = {p.name: p.stat().st_size for p in folder.iterdir()}
    del sizes["contents.json"]
    (folder / "contents.json").write_text(json.dumps(sizes))
    other = resumed(run)
    assert_same(other.weights(), run.weights())
    assert other.has_moments()


def test_weights_that_cannot_be_read_say_what_to_do(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_trainable(nn.Linear(2, 2), path)
    truncate(path)
    with pytest.raises(CheckpointError, match="cannot be read.*or delete it"):
        load_trainable(nn.Linear(2, 2), path)


def test_weights_that_are_no_numbers_are_named(tmp_path):
    path, layer = tmp_path / "weights.safetensors", nn.Linear(2, 2)
    with torch.no_grad():
        layer.bias[1] = torch.nan
    save_trainable(layer, path)
    with pytest.raises(CheckpointError, match="no finite numbers, in bias"):
        load_trainable(nn.Linear(2, 2), path)


def test_what_a_kill_left_unfinished_is_ignored_and_removed(run):
    run.step()
    run.save()
    run.step()
    (run.save() / "contents.json").unlink()
    folder = run.checkpointer.checkpoints_dir
    (folder / "CKPT+just-begun").mkdir()
    other = resumed(run)
    assert len(other.history) == 1
    assert len(list(folder.iterdir())) == 3
    other.step()
    other.save()
    assert len(list(folder.iterdir())) == 2
    assert len(resumed(other).history) == 2


def test_full_disk_leaves_the_checkpoint_before(run, monkeypatch):
    run.step()
    whole = run.save()
    run.step()

    def save(state, path):
        path.write_bytes(b"some of it")
        raise RuntimeError("file write failed")

    with monkeypatch.context() as patches:
        patches.setattr(torch, "save", save)
        with pytest.raises(CheckpointError, match="failed.* make room"):
            run.save()
    assert list(run.checkpointer.checkpoints_dir.iterdir()) == [whole]
    assert len(resumed(run).history) == 1


def test_only_the_newest_checkpoint_keeps_the_optimizers_moments(run, caplog):
    run.step()
    first = run.save()
    full = (first / "optimizer.ckpt").stat().st_size
    run.step()
    second = run.save()
    assert (second / "optimizer.ckpt").stat().st_size == full
    assert (first / "optimizer.ckpt").stat().st_size < full
    assert torch.load(first / "optimizer.ckpt")["state"] == {}
    assert load_file(first / "model.ckpt").keys() == {"1.weight", "1.bias"}
    assert resumed(run).has_moments()
    assert "anew" not in caplog.text


def test_a_run_that_falls_back_starts_its_optimizer_anew(run, caplog):
    run.step()
    run.save()
    at_first, rates = run.weights(), run.schedule.get_last_lr()
    run.step()
    truncate(run.save() / "model.ckpt")
    other = resumed(run)
    assert_same(other.weights(), at_first)
    assert not other.has_moments()
    # Not those of the very first step.
    assert [g["lr"] for g in other.optimizer.param_groups] == rates
    assert rates == [0.05, 0.1]
    assert "the optimizer starts anew" in caplog.text
    other.step()
    assert other.has_moments()


def test_a_clock_set_back_does_not_make_the_newest_checkpoint_an_old_one(
    run, monkeypatch
):
    run.step()
    first = run.save()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 7200)
    for saved in (2, 3):
        run.step()
        run.checkpointer.save_and_keep_only(importance_keys=[])
        (newest,) = run.checkpointer.checkpoints_dir.iterdir()
        assert newest != first
        assert len(resumed(run).history) == saved


def test_a_clock_set_right_again_has_the_time_of_a_checkpoint_again(
    run, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 1000.0)
        run.save()
    before = time.time()
    run.save()
    newest = run.checkpointer.find_checkpoint()
    assert before <= newest.meta["unixtime"] <= time.time()


@pytest.mark.parametrize("name", ["write_atomically", "torch.save"])
def test_a_kill_while_an_earlier_checkpoint_shrinks_harms_nothing(
    run, monkeypatch, name
):
    run.step()
    first = run.save()
    at_first = run.weights()
    run.step()

    class Killed(BaseException):
        """In the place of a signal."""

    # The kill comes when the first checkpoint is about to be written to.
    write, save = files.write_atomically, torch.save

    def write_or_die(path, content):
        if path.parent == first and name == "write_atomically":
            raise Killed
        write(path, content)

    def save_or_die(state, path):
        if path.parent == first and name == "torch.save":
            path.write_bytes(b"some of it")
            raise Killed
        save(state, path)

    with monkeypatch.context() as patches:
        patches.setattr(files, "write_atomically", write_or_die)
        patches.setattr(torch, "save", save_or_die)
        with pytest.raises(Killed):
            run.save()

    other = resumed(run)
    assert_same(other.weights(), run.weights())
    assert other.has_moments()
    (newest,) = set(run.checkpointer.checkpoints_dir.iterdir()) - {first}
    truncate(newest / "model.ckpt")
    other = resumed(run)
    assert_same(other.weights(), at_first)
    # The next save does what was left undone.
    other.step()
    other.save()
    assert torch.load(first / "optimizer.ckpt")["state"] == {}
    assert "optimizer.ckpt" not in json.loads(
        (first / "contents.json").read_text()
    )
