"""What the runs of a table measured, beside what the paper prints.

All of it comes from the runs' predictions, and the map of embeddings from those
kept beside them: no model is needed.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from emoq_modules.commands.reproduce_runs import Run
from emoq_modules.errors import ResultsError
from emoq_modules.evaluation.calibration import (
    apply_temperature,
    fit_temperature,
)
from emoq_modules.evaluation.embeddings import (
    EMBEDDINGS_FILE,
    read_embeddings,
    to_plane,
)
from emoq_modules.evaluation.metrics import check_labels
from emoq_modules.evaluation.results import (
    RESULTS_FILE,
    VALID_PREDICTIONS_FILE,
    measure,
    pool,
    read_predictions,
    read_results,
)
from emoq_modules.inference.recognizer_folder import SETTINGS_FILE
from emoq_modules.training.configuration import StageRun
from emoq_modules.training.probe import encoder_yaml, probe_variant

NOTHING = "–"  # where nothing was measured
PROBE = "emoq probe"  # the source of its row


@dataclass(frozen=True)
class Row:
    """A row of a table: the paper's metrics, and what its runs measured."""

    name: str  # as in the paper
    source: str  # whose metrics they are
    paper: dict  # by measure, None where the paper has none
    runs: list  # none where the paper quotes another
    note: str = ""  # why the paper's metrics are of another task
    # Where all runs are done: of each seed the EmotionStats of the folds, in a
    # list, and of all folds together.
    folds: dict = field(default_factory=dict)
    pooled: dict = field(default_factory=dict)
    # The first seed's, fold by fold, where there are validation predictions;
    # and the posteriors of ``stats`` by these temperatures, (N, C).
    temperatures: list = ()
    scaled: np.ndarray | None = None
    # A map of the embeddings of the first run's test set, if they are kept:
    # (N, 2), in the order of its predictions.
    points: np.ndarray | None = None

    @property
    def stats(self):
        """Those of the first seed, or None where a run is missing."""
        return next(iter(self.pooled.values()), None)

    @property
    def first_run(self):
        """Which run is drawn, in words."""
        return f"fold {self.runs[0].fold}, seed {self.runs[0].seed}"

    @property
    def state(self):
        """How many runs there are, or which are missing."""
        if not self.runs:
            return NOTHING
        missing = [run for run in self.runs if not run.is_done]
        if not missing:
            return str(len(self.runs))
        if len(missing) == len(self.runs):
            return "not run"
        of = "folds" if len({run.seed for run in self.runs}) == 1 else "runs"
        done = len(self.runs) - len(missing)
        return (
            f"incomplete: {done} of {len(self.runs)} {of}, missing "
            f"{_places(missing)}"
        )

    @property
    def lacks(self):
        """What is missing, in words; empty where nothing is."""
        if not self.runs:
            return ""
        if self.stats is None:
            return self.state
        if not self.temperatures:
            without = [
                run
                for run in self.runs
                if not (run.folder / VALID_PREDICTIONS_FILE).exists()
            ]
            return (
                f"not calibrated, as there is no {VALID_PREDICTIONS_FILE} of "
                f"{_places(without)}"
            )
        return ""

    @property
    def scope(self):
        """Which part of the runs ``stats`` is of, after a comma."""
        folds, seeds = {run.fold for run in self.runs}, list(self.pooled)
        together = ", all folds together" if len(folds) > 1 else ""
        alone = f", seed {seeds[0]} alone" if len(seeds) > 1 else ""
        return together + alone

    def measured(self, name):
        """A measure over folds and seeds, or None where a run is missing."""
        if self.stats is None:
            return None
        return measure(self.pooled.values(), self.folds.values(), name)


def read_rows(table, runs):
    """Reads what the runs of a table have left: a ``Row`` each, in its order.

    ``runs`` are those of all folds; one that is not done leaves its row without
    metrics. Before the last row stands the linear probe of its encoder, where
    ``emoq probe`` has left one. ResultsError if predictions cannot be read,
    contradict each other, or are not those of the run whose folder they are in.
    """
    probe = _find_probe(runs)
    stats = {run: _read_run(run) for run in [*runs, *probe] if run.is_done}
    if stats:
        check_labels({run.folder: found for run, found in stats.items()})
    rows = [
        Row(
            entry["name"],
            entry["source"],
            {measure: entry[measure] for measure in table["measures"]},
            [run for run in runs if run.row == entry["name"]],
            entry.get("note", ""),
        )
        for entry in table["rows"]
    ]
    if probe:
        paper = dict.fromkeys(table["measures"])
        rows.insert(-1, Row(probe[0].row, PROBE, paper, probe))
    return [_read_row(row, stats) for row in rows]


def counted(values, name):
    """Some values with what they are, such as ``folds 1, 2``."""
    plural = "s" * (len(values) > 1)
    return f"{name}{plural} {', '.join(map(str, values))}"


def _find_probe(runs):
    """The runs of a probe of the last run's encoder, of all folds, or none."""
    wanted = encoder_yaml(runs[-1].stages[-1].hparams_yaml)
    if wanted is None:
        return []
    corpus_folder, seed = runs[-1].folder.parents[2], runs[0].seed
    variant = probe_variant(runs[-1].stages[-1].hparams_yaml)
    found, layers = [], {}
    for fold in dict.fromkeys(run.fold for run in runs):
        folder = corpus_folder / variant / f"fold{fold}-seed{seed}" / "stage1"
        if not (folder / RESULTS_FILE).exists():
            return []
        results = read_results(folder)
        stage = StageRun((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        if encoder_yaml(stage.hparams_yaml) != wanted:
            return []
        layers[results["layer"]] = None
        found.append((fold, seed, tuple(results["command"]), (stage,)))
    name = f"linear probe, {counted(layers, 'layer')}"
    return [Run(name, *described) for described in found]


def _read_run(run):
    path = run.folder / RESULTS_FILE
    results = read_results(run.folder)
    hparams = run.stages[-1].hparams
    corpus, variant = hparams["corpus"], hparams["variant"]
    expected = {"corpus": corpus, "variant": variant}
    expected |= {"fold": run.fold, "seed": run.seed}
    for key, value in expected.items():
        if results.get(key) != value:
            raise ResultsError(
                f"{path} is of {key} {results.get(key)!r}, where {value!r} "
                "belongs: was the folder copied?"
            )
    stats = read_predictions(run.folder)
    confusion = stats.summarize("confusion")
    if results.get("confusion", confusion) != confusion:
        raise ResultsError(
            f"{path} has another confusion than the predictions beside it: "
            "was one of them exchanged or edited?"
        )
    return stats


def _read_row(row, stats):
    """The row with what was measured, once all of its runs are done."""
    runs = row.runs
    if not runs or any(run not in stats for run in runs):
        return row
    seeds = {}
    for run in runs:
        seeds.setdefault(run.seed, []).append(run)
    first = {run: stats[run] for run in next(iter(seeds.values()))}
    temperatures, scaled = _calibrate(first)
    return replace(
        row,
        folds={
            seed: [stats[run] for run in folds] for seed, folds in seeds.items()
        },
        pooled={
            seed: pool({run.folder: stats[run] for run in folds})
            for seed, folds in seeds.items()
        },
        temperatures=temperatures,
        scaled=scaled,
        points=_map(runs[0], stats[runs[0]]),
    )


def _map(run, stats):
    path = run.folder / EMBEDDINGS_FILE
    if not path.exists():
        return None
    return to_plane(read_embeddings(path, stats.ids))


def _calibrate(stats):
    """Each fold with its own temperature; none where one is not known."""
    temperatures, scaled = [], []
    for run, test in stats.items():
        path = run.folder / VALID_PREDICTIONS_FILE
        if not path.exists():
            return [], None
        valid = read_predictions(path)
        check_labels({run.folder: test, path: valid})
        try:
            temperature = fit_temperature(valid.posteriors, valid.targets)
            scaled.append(apply_temperature(test.posteriors, temperature))
        except ValueError as error:
            raise ResultsError(f"{run.folder}: {error}") from error
        temperatures.append(temperature)
    return temperatures, np.concatenate(scaled)


def _places(runs):
    """Folds and seeds of some runs."""
    seeds = {}
    for run in runs:
        seeds.setdefault(run.seed, []).append(run.fold)
    return "; ".join(
        f"{counted(folds, 'fold')} (seed {seed})"
        for seed, folds in seeds.items()
    )
