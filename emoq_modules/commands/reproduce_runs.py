"""Repeats the paper's tables: which runs a table is made of, and running them.

A run is one row of a table, on one fold, with one seed: a command of
``train.py``, in a process of its own. One whose results are there is not run
again, one that was stopped goes on, and one that another process is at, on
this machine or on another that shares the folder, is left to it.
"""

import fcntl
import json
import os
import shlex
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ruamel.yaml import YAML
from speechbrain.utils.logger import get_logger

from emoq_modules.errors import ConfigurationError
from emoq_modules.evaluation.results import RESULTS_FILE
from emoq_modules.training.configuration import (
    change,
    plan_runs,
    read_keys,
    read_options,
)
from emoq_modules.training.run_folder import check_settings

logger = get_logger(__name__)

# A table is run from a checkout: recipes and experiments are no package.
PROJECT = Path(__file__).parents[2]
_TABLES = Path(__file__).with_name("paper_tables.yaml")
_LOCK_FILE = ".lock"
_WAIT_S = 10


@dataclass(frozen=True)
class Stage:
    """A stage that a run needs.

    Attributes
    ----------
    composed : emoq_modules.training.configuration.StageRun
        What ``train.py`` runs.
    """

    composed: object

    @property
    def number(self):
        """1 or 2."""
        return self.composed.hparams["stage"]

    @property
    def key(self):
        """Corpus and variant."""
        hparams = self.composed.hparams
        return hparams["corpus"], hparams["variant"]

    @property
    def folder(self):
        """Where its results go."""
        return self.composed.folder

    @property
    def epochs(self):
        """How many there are at most."""
        return self.composed.hparams["number_of_epochs"]

    @property
    def is_done(self):
        """Whether its results are there."""
        return (self.folder / RESULTS_FILE).exists()

    @property
    def utterances(self):
        """How many train, or None as long as the corpus is not prepared."""
        folder = self.composed.hparams["manifest_folder"]
        manifest = Path(folder, "train.json")
        if not manifest.exists():
            return None
        return len(json.loads(manifest.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Run:
    """A row of a table, on one fold, with one seed.

    Attributes
    ----------
    row : str
        The row's name in the paper.
    fold : int
        Which of the corpus.
    seed : int
        That of the random numbers.
    arguments : tuple of str
        Of ``train.py``.
    stages : tuple of Stage
        What it runs, in order; the results are those of the last.
    """

    row: str
    fold: int
    seed: int
    arguments: tuple
    stages: tuple

    @property
    def folder(self):
        """Where its results are, or will be."""
        return self.stages[-1].folder

    @property
    def is_done(self):
        """Whether its results are there."""
        return self.stages[-1].is_done

    def __str__(self):
        return f"{self.row}, fold {self.fold}, seed {self.seed}"


def read_table(number):
    """A table of the paper, as ``paper_tables.yaml`` describes it.

    Raises
    ------
    ConfigurationError
        If the paper has no such table.

    Example
    -------
    >>> [row["name"] for row in read_table(6)["rows"]]
    ['end-to-end training', 'two-stage training']
    """
    tables = YAML(typ="safe").load(_TABLES)["tables"]
    for table in tables:
        if table["table"] == number:
            return table
    raise ConfigurationError(
        f"The paper has no table {number}; it has "
        f"{', '.join(str(table['table']) for table in tables)}."
    )


def plan(table, presets=(), arguments=(), folds="all", seeds=None, rows=None):
    """Lists the runs that a table is made of.

    Arguments
    ---------
    table : dict
        What ``read_table`` returned.
    presets : list of str
        Presets to lay over the table's corpus, below those of a row.
    arguments : list of str
        More arguments for ``train.py``. A run gets those that its stages
        have a key for.
    folds : str
        A fold, several (``1,2``) or ``all``.
    seeds : list of int | None
        None is the experiment's own.
    rows : list of str | None
        Names of rows; None are all that can be run.

    Returns
    -------
    list of Run
        Row by row.

    Raises
    ------
    ConfigurationError
        If a row, a fold, a key or a preset does not exist, no run has a key
        for an argument, or two runs would share a folder.
    """
    chosen = _chosen_rows(table, rows)
    _check_each_is_taken(arguments, chosen)
    runs = []
    for row in chosen:
        experiment = str(PROJECT / row["run"]["experiment"])
        laid = [
            str(PROJECT / table["corpus"]),
            *presets,
            *(str(PROJECT / preset) for preset in row["run"]["presets"]),
        ]
        taken = _taken_by(experiment, arguments)
        options, _ = read_options(experiment, taken)
        for seed in seeds or [read_keys(experiment)["seed"]]:
            seeded = change(options, seed=seed)
            for composed in plan_runs(experiment, laid, seeded, folds):
                fold = composed.hparams["fold"]
                command = [experiment]
                for preset in laid:
                    command += ["--preset", preset]
                command += [*taken, "--fold", str(fold), "--seed", str(seed)]
                stages = filter(None, (composed.first, composed))
                runs.append(
                    Run(
                        row["name"],
                        fold,
                        seed,
                        tuple(command),
                        tuple(map(Stage, stages)),
                    )
                )
    _check_folders_differ(runs)
    return runs


def describe_plan(runs):
    """What is done, what is to do and what that will take, for a terminal.

    Times are those of epochs measured in finished runs of the same results
    folder: of the same corpus and variant, or else of the same stage of any.

    Arguments
    ---------
    runs : list of Run
        What ``plan`` returned.

    Returns
    -------
    str
        A line for each run and one for all, and the commands.
    """
    # results / corpus / variant / fold and seed / stage
    rates = _measured_rates(runs[0].folder.parents[3])
    lines, total, open_ends, counted = [], 0.0, 0, set()
    width = max(len(str(run)) for run in runs)
    for run in runs:
        todo = [s for s in run.stages if not s.is_done]
        todo = [] if run.is_done else todo
        costs = []
        for stage in todo:
            seconds = _estimate(stage, rates)
            costs.append(
                f"stage {stage.number}: {stage.utterances or '?'} utterances x "
                f"{stage.epochs} epochs, {_duration(seconds)}"
            )
            # What several rows share is run once.
            if stage.folder not in counted:
                counted.add(stage.folder)
                total += seconds or 0.0
                open_ends += seconds is None
        lines.append(f"{str(run):<{width}}  {'; '.join(costs) or 'done'}")
    left = [run for run in runs if not run.is_done]
    lines += ["", f"{len(left)} of {len(runs)} runs are to do."]
    if left:
        more = f", and {open_ends} stages not yet measured" * (open_ends > 0)
        cost = f"At most {_duration(total)}{more}; training may stop earlier."
        if not total:
            cost = "The time is known when a first run has been measured."
        lines += [
            cost,
            "",
            *(_command(run) for run in left),
        ]
    return "\n".join(lines)


def check_done(runs):
    """Whether what is there was made with the settings that are asked for.

    Arguments
    ---------
    runs : list of Run
        What ``plan`` returned.

    Raises
    ------
    ConfigurationError
        If it was made with others.
    """
    for stage in (stage for run in runs for stage in run.stages):
        if stage.is_done:
            check_settings(stage.composed)


def run_all(runs, wait=True):
    """Runs what is left of a list, and waits for what others are running.

    Arguments
    ---------
    runs : list of Run
        What ``plan`` returned.
    wait : bool
        False leaves without those that others are running.

    Returns
    -------
    list of Run
        Those that failed, or that are left to others.

    Raises
    ------
    ConfigurationError
        If what is there was made with other settings.
    """
    check_done(runs)
    left, failed = [run for run in runs if not run.is_done], []
    done = len(runs) - len(left)
    while left:
        busy = []
        for run in left:
            with _claimed(run.folder.parent) as lock:
                if lock is None:
                    busy.append(run)
                    continue
                done += 1
                # Another process may have done it in the meantime.
                if not run.is_done:
                    logger.info(f"Run {done} of {len(runs)}: {run}")
                    if _run(run, lock) or not run.is_done:
                        failed.append(run)
        left = busy
        if left and not wait:
            break
        if left:
            logger.info(f"Others are running {len(left)}: waiting for them.")
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


def _check_each_is_taken(arguments, rows):
    taken = {
        tuple(group)
        for row in rows
        for group in _grouped(
            _taken_by(str(PROJECT / row["run"]["experiment"]), arguments)
        )
    }
    for group in _grouped(arguments):
        if tuple(group) not in taken:
            raise ConfigurationError(
                f"{group[0]} is no key of the experiments of these rows, so "
                "no run would get it. If it is one of the stage before, put it "
                "into a preset's section stage1, and give that by --preset."
            )


def _check_folders_differ(runs):
    owner = {}
    for run in runs:
        for stage in run.stages:
            other = owner.setdefault(stage.folder, run)
            if other is not run:
                raise ConfigurationError(
                    f"{other} and {run} would both write to {stage.folder}: "
                    "leave the variant and the output_folder to the table."
                )


def _taken_by(experiment, arguments):
    """Leaves out options that only the other stage has a key for."""
    taken = []
    for group in _grouped(arguments):
        key = group[0].lstrip("-").split("=")[0]
        others = {
            str(path)
            for path in Path(experiment).parent.glob("emoq_stage*.yaml")
            if key in read_keys(path)
        }
        if not others or experiment in others:
            taken += group
    return taken


def _grouped(arguments):
    """Each option with its values."""
    groups = []
    for argument in arguments:
        if argument.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(argument)
    return groups


def _measured_rates(results_folder):
    """Seconds an utterance and epoch, by stage, and by corpus and variant."""
    rates = {}
    for file in results_folder.glob(f"*/*/fold*-seed*/stage*/{RESULTS_FILE}"):
        results = json.loads(file.read_text(encoding="utf-8"))
        if results.get("epoch_seconds"):
            rate = results["epoch_seconds"] / results["train_utterances"]
            key = (results["corpus"], results["variant"])
            for where in (None, key):
                rates.setdefault((results["stage"], where), []).append(rate)
    return {where: median(values) for where, values in rates.items()}


def _estimate(stage, rates):
    """Seconds that a stage takes at most, or None where nothing tells."""
    rate = rates.get((stage.number, stage.key), rates.get((stage.number, None)))
    utterances = stage.utterances
    if rate is None or utterances is None:
        return None
    return rate * utterances * stage.epochs


@contextmanager
def _claimed(folder):
    """Holds the lock of a run's folder; yields None where another does.

    The kernel lets go of it when the last process that holds it ends, however
    it ends: no lock is ever stale.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield lock


def _run(run, lock):
    """Exit status of a run. It holds the lock too, should we be killed."""
    # The experiments name functions of recipes/.
    command = [sys.executable, str(PROJECT / "train.py"), *run.arguments]
    return subprocess.run(command, pass_fds=[lock.fileno()]).returncode


def _command(run):
    """What starts a run, for a shell in the present folder."""
    words = [str(PROJECT / "train.py"), *run.arguments]
    short = [os.path.relpath(w) if Path(w).is_file() else w for w in words]
    return shlex.join(["python", *short])


def _duration(seconds):
    if seconds is None:
        return "time not known yet"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
