"""Errors whose message is for the person: what was found, where, what to do.

A program prints the message of an ``EmoQError`` and ends; whatever else is
raised is a fault of the code, and keeps its traceback.
"""


class EmoQError(Exception):
    """Base class of all errors that a person can do something about."""


class AudioError(EmoQError, ValueError):
    """A file does not hold the audio it should; the message names it."""


class BackboneError(EmoQError, OSError):
    """A backbone, or its tokenizer, is not to be had or not whole."""


class BusyError(EmoQError, RuntimeError):
    """Another process is at a run."""


class CheckpointError(EmoQError, RuntimeError):
    """A checkpoint is missing, damaged or another model's.

    ``fault`` is the message without what can be done about it in training.
    """

    def __init__(self, fault, advice=""):
        super().__init__(f"{fault}{advice}")
        self.fault = fault


class ConfigurationError(EmoQError, ValueError):
    """An experiment, preset or option is wrong."""


class CorpusError(EmoQError, ValueError):
    """Something is wrong with the data."""


class ExportError(EmoQError, ValueError):
    """A trained system cannot be exported."""


class FeatureStoreError(EmoQError, OSError):
    """The feature store cannot give or take features."""


class HubError(EmoQError, OSError):
    """An upload to the Hugging Face hub did not succeed."""


class ResultsError(EmoQError, ValueError):
    """A run's results are missing, damaged or another run's."""


class SourceError(EmoQError, ValueError):
    """There is no trained system to load."""


class UnsafeYAMLError(EmoQError, ValueError):
    """A YAML names code that no trained EmoQ needs."""


class UploadError(EmoQError, ValueError):
    """A request to the web page cannot be answered."""
