"""Train loggers: what SpeechBrain's do not do by themselves."""

from speechbrain.utils.train_logger import (
    FileTrainLogger,
    TensorboardLogger,
    TrainLogger,
)

from emoq_modules.errors import ConfigurationError


class TrainLoggers(TrainLogger):
    """Several loggers, which all log the same.

    A recipe has one logger, and SpeechBrain's for TensorBoard and for Weights &
    Biases leave out ``train_log.txt``, and the console's line of each epoch.

    Arguments
    ---------
    *loggers : tuple of speechbrain.utils.train_logger.TrainLogger
        Any of SpeechBrain's.

    Example
    -------
    >>> path = getfixture("tmp_path") / "train_log.txt"
    >>> logger = TrainLoggers(FileTrainLogger(path))
    >>> logger.log_stats({"epoch": 1}, train_stats={"loss": 1.25})
    >>> path.read_text()
    'epoch: 1 - train loss: 1.25\\n'
    """

    def __init__(self, *loggers):
        self.loggers = loggers

    def log_stats(self, stats_meta, **stats):
        """Logs an epoch, or a test.

        Arguments
        ---------
        stats_meta : dict
            ``epoch`` or, of a test, ``epoch loaded``, and other values.
        **stats : dict
            ``train_stats``, ``valid_stats`` and ``test_stats``, as far as
            there are any: metrics by their names.
        """
        for logger in self.loggers:
            logger.log_stats(stats_meta, **stats)


class EpochTensorboardLogger(TensorboardLogger):
    """SpeechBrain's logger for TensorBoard, over epochs.

    SpeechBrain's draws over the calls since the start, so that the curves of a
    run that was stopped begin anew at 0, over those there are. A test is drawn
    at the epoch whose weights it tests.

    Arguments
    ---------
    save_dir : str
        Where TensorBoard's files go; a ``ConfigurationError`` if it is not
        installed.
    """

    def __init__(self, save_dir):
        try:
            super().__init__(save_dir)
        except ImportError as error:
            raise ConfigurationError(
                f"TensorBoard is not installed ({error}): run pip install "
                "tensorboard, or leave its preset out."
            ) from error

    def log_stats(self, stats_meta, **stats):
        """Draws what ``TrainLoggers.log_stats`` takes."""
        epoch = stats_meta.get("epoch", stats_meta.get("epoch loaded"))
        before = epoch - 1  # from which SpeechBrain counts on
        self.global_step = {"meta": before} | {
            split: dict.fromkeys(stats.get(f"{split}_stats", ()), before)
            for split in ("train", "valid", "test")
        }
        super().log_stats(stats_meta, **stats)
        if self.writer is not None:
            self.writer.flush()  # nothing does when a run is killed


class RunLogger(FileTrainLogger):
    """What YAMLs of version 0.1 name: a run's ``train_log.txt``.

    Raises a ``ConfigurationError`` if another logger is asked for.
    """

    def __init__(self, output_folder, logger=None):
        if logger is not None:
            raise ConfigurationError(
                f"logger is {logger!r}, of an earlier version: set it to null, "
                f"and add --preset hparams/presets/{logger}.yaml."
            )
        super().__init__(f"{output_folder}/train_log.txt")
