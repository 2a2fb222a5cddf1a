"""Logs each epoch's figures: train_log.txt, TensorBoard, Weights & Biases.

SpeechBrain's loggers, told what a run that is stopped and started again needs.
"""

import os
import uuid
from pathlib import Path

from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.train_logger import (
    FileTrainLogger,
    TensorboardLogger,
    TrainLogger,
    WandBLogger,
)

from emoq_modules.dataio.files import write_atomically
from emoq_modules.errors import ConfigurationError


class RunLogger(TrainLogger):
    """Logs to ``train_log.txt``, and to TensorBoard or Weights & Biases.

    A run that is started again appends to what it has logged.

    Arguments
    ---------
    output_folder : str
        The run's folder, where ``train_log.txt`` goes.
    logger : str | None
        ``tensorboard`` also writes into the folder's ``tensorboard``, and
        ``wandb`` to the project ``emoq`` of Weights & Biases, or that of the
        environment variable ``WANDB_PROJECT``.

    Raises
    ------
    ConfigurationError
        If there is no such logger, its package is not installed, or Weights &
        Biases does not start.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> logger = RunLogger(folder)
    >>> logger.log_stats({"epoch": 1}, train_stats={"loss": 1.25})
    >>> (folder / "train_log.txt").read_text()
    'epoch: 1 - train loss: 1.25\\n'
    """

    def __init__(self, output_folder, logger=None):
        folder = Path(output_folder)
        self.loggers = [FileTrainLogger(str(folder / "train_log.txt"))]
        if logger is None:
            return
        if logger not in _OTHERS:
            raise ConfigurationError(
                f"logger is {logger!r}; it can be {', '.join(_OTHERS)}, or "
                "null for train_log.txt alone."
            )
        try:
            self.loggers.append(_OTHERS[logger](folder))
        except ImportError as error:
            raise ConfigurationError(
                f"logger is {logger}, which is not installed ({error}): run "
                f"pip install {logger}, or set logger to null."
            ) from error

    def log_stats(self, stats_meta, **stats):
        """Logs an epoch, or the test.

        Arguments
        ---------
        stats_meta : dict
            ``epoch`` or, of a test, ``epoch loaded``, and other figures.
        **stats : dict
            ``train_stats``, ``valid_stats`` and ``test_stats``, as far as
            there are any: figures by their names.
        """
        for logger in self.loggers:
            logger.log_stats(stats_meta, **stats)


class _Tensorboard(TensorboardLogger):
    """Draws over epochs.

    SpeechBrain's draws over the calls since the start, so that the curves of a
    run that is started again would begin anew.
    """

    def __init__(self, folder):
        super().__init__(str(folder / "tensorboard"))

    def log_stats(self, stats_meta, **stats):
        """Draws at the epoch that the figures are of.

        Arguments
        ---------
        stats_meta : dict
            As ``RunLogger.log_stats`` takes it.
        **stats : dict
            Likewise.
        """
        # A test is drawn at the epoch whose weights it tests.
        epoch = stats_meta.get("epoch", stats_meta.get("epoch loaded"))
        before = epoch - 1  # from which SpeechBrain counts on
        self.global_step = {"meta": before} | {
            dataset: dict.fromkeys(stats.get(f"{dataset}_stats", ()), before)
            for dataset in ("train", "valid", "test")
        }
        super().log_stats(stats_meta, **stats)
        if self.writer is not None:
            self.writer.flush()  # nothing does when a run is killed


def _wandb(folder):
    """SpeechBrain's logger, for a run of Weights & Biases of this folder."""
    import wandb

    run = None
    # SpeechBrain would call this too, and hide why it failed.
    if if_main_process():
        try:
            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "emoq"),
                # Corpus, variant, fold and stage.
                name="/".join(folder.absolute().parts[-4:]),
                id=_wandb_id(folder),
                resume="allow",
                # Folds and stages follow each other in one process.
                reinit="finish_previous",
                dir=str(folder),
            )
        except wandb.errors.Error as error:
            raise ConfigurationError(
                f"Weights & Biases does not start ({error}). Run wandb login, "
                "set WANDB_MODE=offline, or set logger to null."
            ) from error
    return WandBLogger(lambda: run)


def _wandb_id(folder):
    """A name that stays with the folder, and is no other folder's."""
    file = folder / "wandb" / "run_id.txt"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, uuid.uuid4().hex.encode())
    return file.read_text()


_OTHERS = {"tensorboard": _Tensorboard, "wandb": _wandb}
