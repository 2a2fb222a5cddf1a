"""Where figures go: train_log.txt in any case, and curves over the epochs.

Neither TensorBoard nor Weights & Biases is among the packages that the tests
need: stubs in their places record what they are given. One test is of
TensorBoard itself, and is skipped where it is not installed.
"""

import sys
from types import SimpleNamespace

import pytest

import train
from emoq_modules.errors import ConfigurationError
from emoq_modules.training.describe import describe
from emoq_modules.training.loggers import RunLogger

TENSORBOARD = "torch.utils.tensorboard"
STAGE1 = "hparams/emoq_stage1.yaml"


class Writer:
    """In the place of TensorBoard's; keeps the scalars of each folder."""

    written = {}

    def __init__(self, folder):
        self.scalars = self.written.setdefault(folder, [])
        self.pending = []

    def add_scalar(self, tag, value, step):
        self.pending.append((tag, value, step))

    def flush(self):
        self.scalars += self.pending
        self.pending = []


@pytest.fixture
def tensorboard(monkeypatch):
    """What is written to TensorBoard, by folder."""
    monkeypatch.setattr(Writer, "written", {})
    stub = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, TENSORBOARD, stub)
    return Writer.written


class Wandb(SimpleNamespace):
    """In the place of the package; notes what is started and logged."""

    errors = SimpleNamespace(Error=type("Error", (Exception,), {}))

    def __init__(self):
        super().__init__(started=[], logged=[])

    def init(self, **settings):
        self.started.append(settings)
        return self

    def log(self, figures, step=None):
        self.logged.append((step, figures))


@pytest.fixture
def wandb(monkeypatch):
    """What is given to Weights & Biases."""
    stub = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return stub


def log_epoch(logger, epoch):
    logger.log_stats(
        {"epoch": epoch, "lr": 0.1},
        train_stats={"loss": 2.0 / epoch},
        valid_stats={"loss": 3.0 / epoch, "UA": 10.0 * epoch},
    )


def log_test(logger, epoch):
    logger.log_stats({"epoch loaded": epoch}, test_stats={"UA": 55.5})


def log_in_two_starts(folder, name):
    """Three epochs, stopped after two, and a test of the second."""
    first = RunLogger(folder, name)
    log_epoch(first, 1)
    log_epoch(first, 2)
    second = RunLogger(folder, name)
    log_epoch(second, 3)
    log_test(second, 2)


@pytest.mark.parametrize("name", [None, "tensorboard", "wandb"])
def test_train_log_is_written_in_any_case(tmp_path, name, tensorboard, wandb):
    log_in_two_starts(tmp_path, name)
    lines = (tmp_path / "train_log.txt").read_text().splitlines()
    assert [line.split(" - ")[0] for line in lines] == [
        *(f"epoch: {epoch}, lr: 1.00e-01" for epoch in (1, 2, 3)),
        "epoch loaded: 2",
    ]
    assert lines[-1].endswith("test UA: 55.50")


def test_nothing_else_is_asked_for_by_default(tmp_path, tensorboard, wandb):
    log_in_two_starts(tmp_path, None)
    assert not tensorboard and not wandb.started


def test_tensorboard_goes_on_where_the_run_does(tmp_path, tensorboard):
    log_in_two_starts(tmp_path, "tensorboard")
    (scalars,) = tensorboard.values()
    assert list(tensorboard) == [str(tmp_path / "tensorboard")]
    curves = {}
    for tag, value, step in scalars:
        curves.setdefault(tag, []).append((step, value))
    assert curves["UA/valid"] == [(1, 10.0), (2, 20.0), (3, 30.0)]
    assert curves["loss/train"] == [(1, 2.0), (2, 1.0), (3, 2.0 / 3)]
    assert curves["lr"] == [(1, 0.1), (2, 0.1), (3, 0.1)]
    assert curves["UA/test"] == [(2, 55.5)]


def test_tensorboard_reads_what_is_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    log_in_two_starts(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    curve = [(event.step, event.value) for event in events.Scalars("UA/valid")]
    assert curve == [(1, 10.0), (2, 20.0), (3, 30.0)]
    assert [event.step for event in events.Scalars("UA/test")] == [2]


def test_a_folder_is_one_run_of_wandb(tmp_path, wandb):
    folders = [tmp_path / name for name in ("stage1", "stage2")]
    for folder in folders:
        folder.mkdir()
        log_in_two_starts(folder, "wandb")
    first, again, other, _ = wandb.started
    assert first == again
    assert first["id"] != other["id"]
    assert first["project"] == "emoq"
    assert first["dir"] == str(folders[0])
    assert first["name"].endswith(f"{tmp_path.name}/stage1")
    assert (first["resume"], first["reinit"]) == ("allow", "finish_previous")
    assert [step for step, _ in wandb.logged[:4]] == [1, 2, 3, None]
    assert wandb.logged[1][1] == {
        "epoch": 2,
        "lr": 0.1,
        "train": {"loss": 1.0},
        "valid": {"loss": 1.5, "UA": 20.0},
    }


def test_the_project_of_wandb_can_be_chosen(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    RunLogger(tmp_path, "wandb")
    assert wandb.started[0]["project"] == "mine"


def test_why_wandb_does_not_start_is_said(tmp_path, wandb, monkeypatch):
    def refuse(**settings):
        raise wandb.errors.Error("api_key not configured")

    monkeypatch.setattr(wandb, "init", refuse, raising=False)
    with pytest.raises(ConfigurationError, match="api_key .*wandb login"):
        RunLogger(tmp_path, "wandb")


def test_an_unknown_logger_is_refused(tmp_path):
    with pytest.raises(
        ConfigurationError, match="'wandbb'; it can be tensorboard, wandb, or"
    ):
        RunLogger(tmp_path, "wandbb")


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", TENSORBOARD), ("wandb", "wandb")]
)
def test_what_is_not_installed_is_said_before_training(
    tmp_path, name, module, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not there
    assert train.run(tiny(tmp_path, "--logger", name)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"error: logger is {name}, which is not inst")
    assert f"pip install {name}, or" in message
    assert not list(tmp_path.rglob("train_log.txt"))
    assert not list(tmp_path.rglob("CKPT*"))


def test_a_run_may_go_on_with_another_logger(tmp_path, tensorboard):
    train.main(tiny(tmp_path))
    train.main(tiny(tmp_path, "--logger", "tensorboard"))
    (scalars,) = tensorboard.values()
    assert {"UA/test", "WA/test"} <= {tag for tag, _, _ in scalars}


def test_describing_a_run_does_not_log_it(wandb):
    describe(STAGE1, options="logger: wandb")
    assert not wandb.started


def tiny(results, *options):
    return [
        *(STAGE1, "--preset", "tests/tiny.yaml", "--number_of_epochs", "1"),
        *("--results_folder", str(results)),
        *options,
    ]
