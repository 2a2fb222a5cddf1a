"""``emoq reproduce``: repeats a table of the paper."""

import logging
import sys

from emoq_modules.commands.options import add_command
from emoq_modules.errors import ConfigurationError

_DESCRIPTION = """\
Trains each row of a table of the paper that is the paper's own, on all folds,
and writes a report with the metrics that were measured beside the printed ones.
What is done is not run again, and stopped, the same command goes on. Processes
that share a results folder share the work.

Any other option goes to train.py, in all runs: --data_folder, --results_folder,
--device, or any key of the experiment (--number_of_epochs 10).
"""
_EXAMPLES = """\
examples:
  emoq reproduce table4 --data_folder /data/MELD.Raw
      run what is not done yet, then write the report
  emoq reproduce table4 --data_folder /data/MELD.Raw --dry_run
      only list the runs, the time they will take and their commands
  emoq reproduce table1 --data_folder /data/IEMOCAP --row EmoQ --fold 1,2
      a part of a table
  emoq reproduce table4 --preset hparams/presets/offline.yaml \\
      --preset recipes/demo/demo.yaml --seed 1234,1235
      on the demo corpus, with two seeds: no data or download needed, on a CPU

exit status: 0; 1 if a run that was asked for is not done; 2 if the command is
wrong.
"""


def add_reproduce(commands):
    """Adds ``reproduce`` to the commands of ``emoq``."""
    command = add_command(
        commands,
        "reproduce",
        _reproduce,
        "repeat a table of the paper",
        _DESCRIPTION,
        _EXAMPLES,
    )
    command.add_argument(
        "table",
        choices=[f"table{number}" for number in range(1, 7)],
        metavar="TABLE",
        help="table1 to table6",
    )
    command.add_argument(
        "--preset",
        action="append",
        default=[],
        metavar="YAML",
        help="keys to lay over the table's corpus, in all rows; repeatable",
    )
    command.add_argument(
        "--row",
        action="append",
        metavar="NAME",
        help="only this row, by its name in the table; repeatable",
    )
    command.add_argument(
        "--fold",
        default="all",
        metavar="K",
        help="only this fold of the corpus, or several (1,2)",
    )
    command.add_argument(
        "--seed",
        metavar="S",
        help="another seed than the experiment's, or several (1234,1235)",
    )
    command.add_argument(
        "--dry_run",
        action="store_true",
        help="list the runs, the time they will take and their commands",
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


def _reproduce(own):
    # Imports of seconds, which help and completion need not wait for.
    from emoq_modules.commands.reproduce_runs import (
        describe_plan,
        plan,
        read_table,
        run_all,
    )

    table = read_table(int(own.table.removeprefix("table")))
    seeds = _seeds(own.seed)
    runs = plan(table, own.preset, own.rest, own.fold, seeds, own.row)
    if own.dry_run:
        print(describe_plan(runs))
        return 0
    # A report is of the whole table, whatever part of it this command runs.
    whole = runs
    if own.row or own.fold != "all":
        whole = plan(table, own.preset, own.rest, "all", seeds)
    if not own.report:
        # Which run it is at, in the form that SpeechBrain gives to its lines.
        logging.basicConfig(format="%(name)s - %(message)s")
        logging.getLogger("emoq_modules").setLevel(logging.INFO)
        for run in run_all(runs, wait=not own.no_wait):
            print(f"Not finished: {run}", file=sys.stderr)
    _report(table, whole)
    return 0 if all(run.is_done for run in runs) else 1


def _report(table, runs):
    from emoq_modules.commands.reproduce_report import (
        format_rows,
        report_folder,
        write_report,
    )
    from emoq_modules.commands.reproduce_results import read_rows

    rows, folder = read_rows(table, runs), report_folder(table, runs)
    for missing in write_report(table, rows, folder):
        print(f"Missing: {missing}", file=sys.stderr)
    print(f"\n{format_rows(table, rows)}")
    print(f"\nReport\n  {folder / 'report.html'}")


def _seeds(text):
    if text is None:
        return None
    try:
        return list(dict.fromkeys(int(seed) for seed in text.split(",")))
    except ValueError:
        raise ConfigurationError(
            f"--seed is {text!r}; it has to be numbers: 1234 or 1234,1235."
        ) from None
