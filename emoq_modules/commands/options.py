"""What the programs have in common: options, and errors for the person.

torch and the models' libraries are imported where they are used, since help
and completion need not wait for them.
"""

import argparse
import logging
import sys
import warnings

from emoq_modules.errors import ConfigurationError, EmoQError


def add_command(commands, name, function, summary, description, epilog):
    """Adds a command, of which ``function`` does what its options ask for."""
    command = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(function=function)
    return command


def add_model_options(command, several=False):
    """Adds the options that ``load_recognizer`` reads."""
    command.add_argument(
        "--model",
        required=True,
        action="append" if several else "store",
        metavar="FOLDER",
        help="the folder 'recognizer' of a run of stage 2, what emoq export "
        "has made, or the name of that on the Hugging Face hub"
        + "; repeatable"
        * several,
    )
    command.add_argument(
        "--trust_source",
        action="store_true",
        help="load a model whose YAML names code that EmoQ does not know, for "
        "instance your own",
    )
    command.add_argument(
        "--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one"
    )


def add_recognition_options(command):
    """Adds how many are recognized together, and what transcribes them.

    ``load_recognizer`` reads the latter.
    """
    command.add_argument(
        "--batch_size",
        type=int,
        default=8,
        metavar="N",
        help="recordings that are recognized together (8)",
    )
    command.add_argument(
        "--asr",
        metavar="MODEL",
        help="transcribes recordings without a text: a speech recognition "
        "model of transformers, a folder or a name on the hub",
    )
    command.add_argument(
        "--asr_language",
        metavar="L",
        help="the language that the model of --asr, a Whisper, is to expect: "
        "de, german; found out by itself for each recording if not given",
    )


def load_recognizer(own, model=None):
    """Loads a trained system for a program, without bars and warnings.

    It is ``model`` where there are several. ConfigurationError if the device is
    not to be had, or options of the speech recognition do not go together.
    """
    asr = {key: getattr(own, key, None) for key in ("asr", "asr_language")}
    if asr["asr_language"] and not asr["asr"]:
        raise ConfigurationError("--asr_language is for --asr: give both.")
    from transformers.utils import logging as transformers_logging

    from emoq_modules.inference.recognizer import EmotionRecognizer

    transformers_logging.disable_progress_bar()  # logs take lines
    # Between libraries; whoever runs a program can do nothing about them.
    transformers_logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)
    run_opts = {}
    if own.device is not None:
        check_device(own.device)
        run_opts["device"] = own.device
    return EmotionRecognizer.from_hparams(
        model or own.model,
        trust_source=own.trust_source,
        run_opts=run_opts,
        **asr,
    )


def check_device(device):
    """Refuses a device that is not there, or is none."""
    import torch

    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(
            f"--device {device} is not to be had: {reason}"
        ) from error


def exit_status(main, arguments, goes_on=False):
    """Calls a program, and prints an error for the person as a message.

    ``goes_on`` says whether the same command would, where it was stopped.
    Returns what ``main`` returns, 0 for None, 2 after an error message, or 130
    where the person stopped it.
    """
    # Where it is installed it says, whenever peft is imported, that it found no
    # kernel for 4 bits on a CPU.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        return main(arguments) or 0
    except KeyboardInterrupt:
        how = ": the same command goes on from here" * goes_on
        print(f"\nstopped{how}", file=sys.stderr)
        return 130
    except (EmoQError, OSError) as error:
        # A data loader's worker puts its traceback before the error's words.
        message = str(error).split(f"{type(error).__name__}: ")[-1].strip()
        print(f"error: {message}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = " ".join(str(error).split())
        print(
            f"error: {reason} For want of memory, perhaps: set --num_workers "
            "to fewer, or 0.",
            file=sys.stderr,
        )
        return 2
