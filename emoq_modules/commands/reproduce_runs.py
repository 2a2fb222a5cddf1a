"""Repeats the paper's tables: which runs a table is made of, and running them.

A run is one row of a table, on one fold, with one seed: a command of
``train.py``, in a process of its own. One whose results are there is not run
again, one that was stopped goes on, and one that another process is at, on
this machine or on another that shares the folder, is left to it.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ruamel.yaml import YAML
from speechbrain.utils.logger import get_logger

from emoq_modules.errors import BusyError, ConfigurationError
from emoq_modules.evaluation.results import RESULTS_FILE, read_results
from emoq_modules.training.configuration import (
    change,
    plan_runs,
    read_keys,
    read_options,
)
from emoq_modules.training.run_folder import (
    LOCKS_VARIABLE,
    check_settings,
    claimed,
)

logger = get_logger(__name__)

# A table is run from a clone: recipes and experiments are no package.
PROJECT = Path(__file__).parents[2]
_TABLES = Path(__file__).with_name("paper_tables.yaml")
_WAIT_S = 10


@dataclass(frozen=True)
class Run:
    """A row of a table, on one fold, with one seed."""

    row: str  # the row's name in the paper
    fold: int
    seed: int
    command: tuple  # train.py and its arguments
    stages: tuple  # of StageRun, in order; the last one's results count

    @property
    def folder(self):
        """Where its results are, or will be."""
        return self.stages[-1].folder

    @property
    def is_done(self):
        """Whether its results are there."""
        return is_done(self.folder)

    def __str__(self):
        return f"{self.row}, fold {self.fold}, seed {self.seed}"


def is_done(folder):
    """Tells whether a run's results are in its folder."""
    return (folder / RESULTS_FILE).exists()


def check_clone(command):
    """Refuses a command where there are no recipes and experiments."""
    if not (PROJECT / "train.py").is_file():
        raise ConfigurationError(
            f"emoq {command} needs a clone of EmoQ's repository, whose "
            f"recipes and experiments it runs; {PROJECT} is none. Clone it, "
            "and install it from there by: pip install -e ."
        )


def read_table(number):
    """A table of the paper, as ``paper_tables.yaml`` describes it."""
    tables = {t["table"]: t for t in YAML(typ="safe").load(_TABLES)["tables"]}
    if number not in tables:
        raise ConfigurationError(
            f"The paper has no table {number}; it has "
            f"{', '.join(map(str, tables))}."
        )
    return tables[number]


def plan(table, presets=(), arguments=(), folds="all", seeds=None, rows=None):
    """Lists the runs that a table is made of, row by row.

    ``presets`` are laid over the table's corpus, below those of a row.
    ``arguments`` go to ``train.py``: a run gets those that its stages have a
    key for. ``folds`` are as of ``plan_runs``; without ``seeds`` it is the
    experiment's own, without ``rows`` all that can be run.

    ConfigurationError if this is no clone, a row, a fold, a key or a preset
    does not exist, no run has a key for an argument, two runs would share a
    folder, or what is there was made with other settings.
    """
    check_clone("reproduce")
    chosen = _chosen_rows(table, rows)
    taken = _taken_by_each(chosen, arguments)
    runs = []
    for row in chosen:
        experiment = str(PROJECT / row["run"]["experiment"])
        laid = [str(PROJECT / table["corpus"]), *presets]
        laid += [str(PROJECT / preset) for preset in row["run"]["presets"]]
        own = taken[row["run"]["experiment"]]
        options, _ = read_options(experiment, own)
        command = [str(PROJECT / "train.py"), experiment]
        for preset in laid:
            command += ["--preset", preset]
        for seed in seeds or [None]:
            asked = options if seed is None else change(options, seed=seed)
            for stage in plan_runs(experiment, laid, asked, folds):
                fold, seed = stage.hparams["fold"], stage.hparams["seed"]
                words = *command, *own, "--fold", str(fold), "--seed", str(seed)
                stages = tuple(filter(None, (stage.first, stage)))
                runs.append(Run(row["name"], fold, seed, words, stages))
    _check(runs)
    return runs


def describe_plan(runs):
    """What is done, what is to do and what that will take, for a terminal.

    Times are those of epochs measured in finished runs of the same results
    folder: of the same corpus and variant, or else of the same stage of any.
    """
    rates = _measured_rates(runs[0].folder.parents[3])  # all results
    seconds = {}  # by folder: what several rows share is run once
    width = max(len(str(run)) for run in runs)
    left, lines = [run for run in runs if not run.is_done], []
    for run in runs:
        costs = []
        for stage in run.stages if run in left else ():
            if not is_done(stage.folder):
                seconds[stage.folder] = _estimate(stage.hparams, rates)
                costs.append(
                    f"stage {stage.hparams['stage']}: "
                    f"{_utterances(stage.hparams) or '?'} utterances x "
                    f"{stage.hparams['number_of_epochs']} epochs, "
                    f"{_duration(seconds[stage.folder])}"
                )
        lines.append(f"{str(run):<{width}}  {'; '.join(costs) or 'done'}")
    lines += ["", f"{len(left)} of {len(runs)} runs are to do."]
    if left:
        known = [cost for cost in seconds.values() if cost is not None]
        unknown = len(seconds) - len(known)
        more = f", and {unknown} stages not yet measured" if unknown else ""
        cost = (
            f"At most {_duration(sum(known))}{more}; training may stop earlier."
        )
        if not known:
            cost = "The time is known when a first run has been measured."
        lines += [cost, "", *map(_for_a_shell, left)]
    return "\n".join(lines)


def run_all(runs, wait=True):
    """Runs what is left, and waits for what others are running, if it is to.

    Returns the runs that failed, or that are left to others.
    """
    left, failed = [run for run in runs if not run.is_done], []
    done = len(runs) - len(left)
    while left:
        busy, holders = [], []
        for run in left:
            try:
                with claimed(*(stage.folder for stage in run.stages)) as locks:
                    done += 1
                    # Another process may have done it in the meantime.
                    if not run.is_done:
                        logger.info(f"Run {done} of {len(runs)}: {run}")
                        if _run(run, locks) or not run.is_done:
                            failed.append(run)
            except BusyError as error:
                busy.append(run)
                holders.append(str(error))
        left = busy
        if not wait:
            break
        if busy:
            logger.info(f"Waiting for {len(left)} runs: {holders[0]}")
            time.sleep(_WAIT_S)
    return failed + left


def _chosen_rows(table, names):
    rows = {row["name"]: row for row in table["rows"] if row["run"]}
    for name in names or ():
        if name not in rows:
            raise ConfigurationError(
                f"Table {table['table']} has no row {name!r} that can be run; "
                f"it has {', '.join(rows)}."
            )
    return [rows[name] for name in dict.fromkeys(names or rows)]


def _taken_by_each(rows, arguments):
    """The arguments for each experiment: none that only its other stage has."""
    given = []  # each option's key, and its words
    for argument in arguments:
        if argument.startswith("--") or not given:
            given.append((argument.lstrip("-").split("=")[0], []))
        given[-1][1].append(argument)
    known = {
        file.relative_to(PROJECT).as_posix(): read_keys(file).keys()
        & {key for key, _ in given}
        for file in PROJECT.glob("hparams/emoq_stage*.yaml")
    }
    anywhere = set().union(*known.values())
    experiments = {row["run"]["experiment"] for row in rows}
    others = {name: anywhere - known[name] for name in experiments}
    for key, words in given:
        if all(key in unknown for unknown in others.values()):
            raise ConfigurationError(
                f"{words[0]} is no key of the experiments of these rows, so no "
                "run would get it. If it is one of the stage before, put it "
                "into a preset's section stage1, and give that by --preset."
            )
    return {
        name: sum((words for key, words in given if key not in unknown), [])
        for name, unknown in others.items()
    }


def _check(runs):
    """Whether each folder is one run's, and what is done is this very run."""
    owner = {}
    for run, stage in ((r, stage) for r in runs for stage in r.stages):
        other = owner.setdefault(stage.folder, run)
        if other is not run:
            raise ConfigurationError(
                f"{other} and {run} would both write to {stage.folder}: "
                "leave the variant and the output_folder to the table."
            )
        check_settings(stage)


def _measured_rates(results_folder):
    """Seconds an utterance and epoch, by stage, and by corpus and variant."""
    rates = {}
    for file in results_folder.glob(f"*/*/fold*-seed*/stage*/{RESULTS_FILE}"):
        results = read_results(file.parent)
        if results.get("epoch_seconds"):
            rate = results["epoch_seconds"] / results["train_utterances"]
            key = (results["corpus"], results["variant"])
            for where in (None, key):
                rates.setdefault((results["stage"], where), []).append(rate)
    return {where: median(values) for where, values in rates.items()}


def _estimate(hparams, rates):
    """Seconds that a stage takes at most, or None where nothing tells."""
    stage, key = hparams["stage"], (hparams["corpus"], hparams["variant"])
    rate = rates.get((stage, key), rates.get((stage, None)))
    utterances = _utterances(hparams)
    if rate is None or utterances is None:
        return None
    return rate * utterances * hparams["number_of_epochs"]


def _utterances(hparams):
    """How many train, or None as long as the corpus is not prepared."""
    manifest = Path(hparams["manifest_folder"], "train.json")
    if not manifest.exists():
        return None
    return len(json.loads(manifest.read_text(encoding="utf-8")))


def _run(run, locks):
    """Exit status of a run. It holds the locks too, should we be killed."""
    words, fds = [sys.executable, *run.command], [f.fileno() for f in locks]
    shared = {LOCKS_VARIABLE: ",".join(map(str, fds))}
    done = subprocess.run(words, pass_fds=fds, env=os.environ | shared)
    return done.returncode


def _for_a_shell(run):
    """What starts a run, in the present folder."""
    words = [
        os.path.relpath(w) if Path(w).is_file() else w for w in run.command
    ]
    return shlex.join(["python", *words])


def _duration(seconds):
    if seconds is None:
        return "time not known yet"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
