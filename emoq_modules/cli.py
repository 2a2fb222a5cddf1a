"""The ``emoq`` command."""

import argparse
import sys

from emoq_modules.command_line import exit_status
from emoq_modules.comparison import format_rows, report_folder, write_report
from emoq_modules.configuration import ConfigurationError
from emoq_modules.export_command import add_export
from emoq_modules.reproduce import (
    check_done,
    describe_plan,
    plan,
    read_table,
    run_all,
)
from emoq_modules.table_results import read_rows


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
    add_export(commands)
    own, rest = parser.parse_known_args(arguments)
    return own.function(own, rest)


def _add_reproduce(commands):
    command = commands.add_parser(
        "reproduce",
        help="repeat a table of the paper",
        description=(
            "Runs what a table of the paper is made of, and writes a report. "
            "What is there is not run again; stopped, the same command goes "
            "on. Any other option goes to train.py: --data_folder, "
            "--results_folder, --device, any key of the experiment."
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
    command.add_argument(
        "--no_wait",
        action="store_true",
        help="do not wait for the runs that other processes are at",
    )
    command.add_argument(
        "--report",
        action="store_true",
        help="run nothing, and write the report of what is there",
    )
    command.set_defaults(function=_reproduce)


def _reproduce(own, rest):
    table, seeds = read_table(_number(own.table)), _seeds(own.seed)
    runs = plan(table, own.preset, rest, own.fold, seeds, own.row)
    if own.dry_run:
        print(describe_plan(runs))
        return 0
    # A report is of the whole table, whatever part of it this command runs.
    whole = plan(table, own.preset, rest, "all", seeds)
    check_done(whole)
    if not own.report:
        for run in run_all(runs, wait=not own.no_wait):
            print(f"Not finished: {run}", file=sys.stderr)
    _report(table, whole)
    return 0 if all(run.is_done for run in runs) else 1


def _report(table, runs):
    rows, folder = read_rows(table, runs), report_folder(table, runs)
    for missing in write_report(table, rows, folder):
        print(f"Missing: {missing}", file=sys.stderr)
    print(f"\n{format_rows(table, rows)}")
    print(f"\nReport\n  {folder / 'report.html'}")


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
        return list(dict.fromkeys(int(seed) for seed in text.split(",")))
    except ValueError:
        raise ConfigurationError(
            f"--seed is {text!r}; it has to be numbers: 1234 or 1234,1235."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
