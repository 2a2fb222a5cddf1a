#!/usr/bin/env python3
"""Trains and evaluates EmoQ.

    python train.py hparams/emoq_stage2.yaml --data_folder /data/MELD.Raw

Any top-level key of the experiment's YAML is an option (--num_queries 64), and
so are SpeechBrain's run options (--device cuda:0, --debug, ...). The same
command goes on where a run was stopped.
"""

import argparse
import signal
import sys

if __name__ == "__main__":
    # Importing takes seconds, in which an interrupt just ends it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch.distributed as dist
from speechbrain.utils.distributed import if_main_process
from transformers.utils import logging as transformers_logging

from emoq_modules.commands.options import check_device, exit_status
from emoq_modules.training.configuration import plan_runs, read_options
from emoq_modules.training.describe import describe
from emoq_modules.training.distributed import init_ranks
from emoq_modules.training.experiment import run_folds
from emoq_modules.training.preview import log_once, preview


def main(arguments=None):
    """Parses the command line, runs what it asks for, prints the results."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "experiment", help="hparams/emoq_stage1.yaml or …2.yaml"
    )
    parser.add_argument(
        "--preset",
        action="append",
        default=[],
        metavar="YAML",
        help="a few keys to lay over the experiment; repeatable",
    )
    parser.add_argument(
        "--fold",
        default=None,
        metavar="K",
        help="a fold of the corpus, several (1,2,5), or all",
    )
    parser.add_argument(
        "--describe",
        action="store_true",
        help="print the model's parts and their sizes, and do nothing else",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="prepare the corpus, print what there is in it and some prompts, "
        "and train nothing",
    )
    own, rest = parser.parse_known_args(arguments)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # logs take lines
    options, run_opts = read_options(own.experiment, rest)
    if own.describe:
        print(describe(own.experiment, own.preset, options))
        return
    if own.dry_run:
        log_once()
    runs = plan_runs(
        own.experiment, own.preset, options, own.fold, run_opts["debug"]
    )
    if own.dry_run:
        print("\n\n".join(map(preview, runs)))
        return
    if "device" in run_opts.overridden_args:
        check_device(run_opts["device"])
    init_ranks(run_opts)
    summary = run_folds(runs, run_opts)
    if if_main_process():
        print(summary)
    if dist.is_initialized():
        # Its threads are not to be at work while the interpreter ends.
        dist.destroy_process_group()


def run(arguments=None):
    """``main``, with an error for the person as a message.

    Returns
    -------
    int
        Exit status: 0, or 2 after an error message.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return exit_status(main, arguments, goes_on=True)


if __name__ == "__main__":
    sys.exit(run())
