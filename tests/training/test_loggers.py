"""Where metrics go: train_log.txt in any case, and curves over the epochs.

Neither TensorBoard nor Weights & Biases is among the packages that the tests
need: stubs in their places record what they are given. One test is of
TensorBoard itself, and is skipped where it is not installed.
"""

import sys
from types import SimpleNamespace

import pytest
from hyperpyyaml import load_hyperpyyaml

import train
from emoq_modules.errors import ConfigurationError
from emoq_modules.training.configuration import change, merge_presets
from emoq_modules.training.describe import describe
from tests.conftest import load_keys

TENSORBOARD = "torch.utils.tensorboard"
STAGE1 = "hparams/emoq_stage1.yaml"
RUN = "meld7/emoq/fold1-seed1234/stage1"


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


@pytest.fixture
def wandb(monkeypatch):
    """What is given to Weights & Biases."""
    stub = SimpleNamespace(started=[], logged=[])

    def init(**options):
        stub.started.append(options)
        return stub

    stub.init = init
    stub.log = lambda metrics, step=None: stub.logged.append((step, metrics))
    monkeypatch.setitem(sys.modules, "wandb", stub)
    return stub


def preset(name):
    return [f"hparams/presets/{name}.yaml"] if name else []


def log_in_two_starts(results, name):
    """Three epochs, stopped after two, and a test of the second."""
    options = change("", data_folder="here", results_folder=str(results))
    hparams_yaml = merge_presets(STAGE1, preset(name), options)
    folder = results / RUN
    folder.mkdir(parents=True)
    for epochs in ((1, 2), (3,)):
        logger = load_keys(hparams_yaml, "train_logger")["train_logger"]
        for epoch in epochs:
            logger.log_stats(
                {"epoch": epoch, "lr": 0.1},
                train_stats={"loss": 2.0 / epoch},
                valid_stats={"loss": 3.0 / epoch, "UA": 10.0 * epoch},
            )
    logger.log_stats({"epoch loaded": 2}, test_stats={"UA": 55.5})
    return folder


@pytest.mark.parametrize("name", [None, "tensorboard", "wandb"])
def test_train_log_is_written_in_any_case(tmp_path, name, tensorboard, wandb):
    folder = log_in_two_starts(tmp_path, name)
    lines = (folder / "train_log.txt").read_text().splitlines()
    assert [line.split(" - ")[0] for line in lines] == [
        *(f"epoch: {epoch}, lr: 1.00e-01" for epoch in (1, 2, 3)),
        "epoch loaded: 2",
    ]
    assert lines[-1].endswith("test UA: 55.50")
    assert bool(tensorboard) == (name == "tensorboard")
    assert bool(wandb.started) == (name == "wandb")


def test_tensorboard_goes_on_where_the_run_does(tmp_path, tensorboard):
    folder = log_in_two_starts(tmp_path, "tensorboard")
    (scalars,) = tensorboard.values()
    assert list(tensorboard) == [str(folder / "tensorboard")]
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

    folder = log_in_two_starts(tmp_path, "tensorboard")
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    curve = [(event.step, event.value) for event in events.Scalars("UA/valid")]
    assert curve == [(1, 10.0), (2, 20.0), (3, 30.0)]
    assert [event.step for event in events.Scalars("UA/test")] == [2]


def test_wandb_looks_for_the_run_in_its_folder(tmp_path, wandb):
    folder = log_in_two_starts(tmp_path, "wandb")
    first, again = wandb.started
    assert first == again
    assert first == {
        "project": "emoq",
        "name": RUN,
        "dir": str(folder),
        "resume": "auto",
        "reinit": "finish_previous",
    }
    assert [step for step, _ in wandb.logged] == [1, 2, 3, None]
    assert wandb.logged[1][1] == {
        "epoch": 2,
        "lr": 0.1,
        "train": {"loss": 1.0},
        "valid": {"loss": 1.5, "UA": 20.0},
    }


@pytest.mark.parametrize(
    ("name", "module", "says"),
    [
        ("tensorboard", TENSORBOARD, "pip install tensorboard, or leave"),
        ("wandb", "wandb", "no such entity as wandb.init"),
    ],
)
def test_what_is_not_installed_is_said_before_training(
    tmp_path, name, module, says, monkeypatch, capsys
):
    def find_spec(name, *others):
        if name == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    finders = [SimpleNamespace(find_spec=find_spec), *sys.meta_path]
    monkeypatch.setattr(sys, "meta_path", finders)
    monkeypatch.delitem(sys.modules, module, raising=False)
    options = ("--preset", *preset(name))
    assert train.run(tiny(tmp_path, *options)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ") and says in message
    assert not list(tmp_path.rglob("CKPT*"))


def test_a_run_may_go_on_with_another_logger(tmp_path, tensorboard):
    train.main(tiny(tmp_path))
    train.main(tiny(tmp_path, "--preset", *preset("tensorboard")))
    (scalars,) = tensorboard.values()
    assert {"UA/test", "WA/test"} <= {tag for tag, _, _ in scalars}


def test_describing_a_run_does_not_log_it(wandb):
    describe(STAGE1, preset("wandb"))
    assert not wandb.started


def test_logger_of_version_0_1_writes_the_same_file(tmp_path):
    def make(logger):
        return load_hyperpyyaml(
            "train_logger: !new:emoq_modules.train_loggers.RunLogger\n"
            f"    output_folder: {tmp_path}\n    logger: {logger}\n"
        )["train_logger"]

    make("null").log_stats({"epoch": 1}, valid_stats={"UA": 50.0})
    assert (tmp_path / "train_log.txt").read_text() == (
        "epoch: 1 - valid UA: 50.00\n"
    )
    with pytest.raises(ConfigurationError, match="presets/wandb.yaml"):
        make("wandb")


def tiny(results, *options):
    return [
        *(STAGE1, "--preset", "tests/tiny.yaml", "--number_of_epochs", "1"),
        *("--results_folder", str(results)),
        *options,
    ]
