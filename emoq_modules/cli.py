"""The ``emoq`` command."""

import argparse
import sys

from emoq_modules.command_line import exit_status
from emoq_modules.configuration import ConfigurationError
from emoq_modules.reproduce import describe_plan, plan, read_table, run_all


def main(arguments=None):
    """Does what a command line asks for.

    Returns
    -------
    int
        Exit status: 0, 1 if some of the work could not be done, 2 after an
        error message.
    """
    return exit_status(_main, arguments)


def _main(arguments):
    parser = argparse.ArgumentParser(
        prog="emoq", description="Speech emotion recognition with EmoQ."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_reproduce(commands)
    own, rest = parser.parse_known_args(arguments)
    return own.function(own, rest)


def _add_reproduce(commands):
    command = commands.add_parser(
        "reproduce",
        help="repeat a table of the paper",
        description=(
            "Runs what a table of the paper is made of. What is there is not "
            "run again; stopped, the same command goes on. Any other option "
            "goes to train.py: --data_folder, --results_folder, --device, any "
            "key of the experiment."
        ),
        allow_abbrev=False,
    )
    command.add_argument("table", help="table1 to table6")
    command.add_argument(
        "--preset",
        action="append",
        default=[],
        metavar="YAML",
        help="keys to lay over the table's corpus, for all rows; repeatable",
    )
    command.add_argument(
        "--row",
        action="append",
        metavar="NAME",
        help="a row, by its name; repeatable; all if not given",
    )
    command.add_argument(
        "--fold", default="all", metavar="K", help="a fold, several (1,2), all"
    )
    command.add_argument(
        "--seed", metavar="S", help="a seed, or several (1234,1235)"
    )
    command.add_argument(
        "--dry_run",
        action="store_true",
        help="list the runs, what they will cost and their commands",
    )
    command.set_defaults(function=_reproduce)


def _reproduce(own, rest):
    runs = plan(
        read_table(_number(own.table)),
        own.preset,
        rest,
        own.fold,
        _seeds(own.seed),
        own.row,
    )
    if own.dry_run:
        print(describe_plan(runs))
        return 0
    failed = run_all(runs)
    for run in failed:
        print(f"Not finished: {run}", file=sys.stderr)
    return 1 if failed else 0


def _number(table):
    digits = table.removeprefix("table")
    if not digits.isdecimal():
        raise ConfigurationError(
            f"{table!r} is no table of the paper: give table1 to table6."
        )
    return int(digits)


def _seeds(text):
    if text is None:
        return None
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise ConfigurationError(
            f"--seed is {text!r}; it has to be numbers: 1234 or 1234,1235."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
