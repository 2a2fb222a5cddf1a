"""What the programs have in common: options, and errors for the person."""

import logging
import sys
import warnings

import torch
from transformers.utils import logging as transformers_logging

from emoq_modules.errors import (
    AudioError,
    CheckpointError,
    ConfigurationError,
    CorpusError,
    ExportError,
    ResultsError,
    SourceError,
    UnsafeYAMLError,
)
from emoq_modules.inference.recognizer import EmotionRecognizer

_FOR_THE_PERSON = (
    AudioError,
    CheckpointError,
    ConfigurationError,
    CorpusError,
    ExportError,
    OSError,
    ResultsError,
    SourceError,
    UnsafeYAMLError,
)


def load_recognizer(own, **options):
    """Loads a trained system for a program: without bars and warnings.

    Arguments
    ---------
    own : argparse.Namespace
        With the options of ``add_model_options``.
    **options : dict
        As of ``EmotionRecognizer.from_hparams``.

    Returns
    -------
    EmotionRecognizer

    Raises
    ------
    ConfigurationError
        If the device is not to be had.
    """
    transformers_logging.disable_progress_bar()  # logs take lines
    # Between libraries; whoever runs a program can do nothing about them.
    warnings.simplefilter("ignore", FutureWarning)
    run_opts = {}
    if own.device is not None:
        try:
            torch.zeros(1, device=own.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigurationError(
                f"--device {own.device} is not to be had: {reason}"
            ) from error
        run_opts["device"] = own.device
    return EmotionRecognizer.from_hparams(
        own.model, trust_source=own.trust_source, run_opts=run_opts, **options
    )


def exit_status(main, arguments):
    """Calls ``main``, and prints an error for the person as a message.

    Returns
    -------
    int
        What ``main`` returns, 0 for None, 2 after an error message, or 130
        where the person stopped it.
    """
    # Where it is installed it says, whenever peft is imported, that it found no
    # kernel for 4 bits on a CPU.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        return main(arguments) or 0
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on from here", file=sys.stderr)
        return 130
    except _FOR_THE_PERSON as error:
        # A data loader's worker puts its traceback before the error's words.
        message = str(error).split(f"{type(error).__name__}: ")[-1].strip()
        print(f"error: {message}", file=sys.stderr)
        return 2
