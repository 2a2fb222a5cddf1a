"""A run's results: files, plots, and a summary for the terminal.

``predictions.csv`` is enough to measure again, and ``valid_predictions.csv`` to
calibrate, which is never done on the test set.
"""

import csv
import importlib.metadata
import io
import json
import platform
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from emoq_modules.dataio.files import write_atomically
from emoq_modules.errors import ResultsError
from emoq_modules.evaluation.embeddings import (
    EMBEDDINGS_FILE,
    embeddings_as_bytes,
)
from emoq_modules.evaluation.metrics import (
    MEASURES,
    EmotionStats,
    check_labels,
    format_confusion,
)
from emoq_modules.evaluation.plots import (
    as_png,
    plot_confusion,
    plot_training_curves,
)

RESULTS_FILE = "results.json"
PREDICTIONS_FILE = "predictions.csv"
VALID_PREDICTIONS_FILE = "valid_predictions.csv"
CONFUSION_FILE = "confusion_matrix.png"
CURVES_FILE = "training_curves.png"

_RUN_INFO = ("corpus", "fold", "stage", "seed", "seconds")
_COLUMNS = "id label prediction dialogue speaker session corpus".split()
_FORMATS = (7, 6, 4, 3)  # so many of them, in this version and in earlier ones
_PACKAGES = ("torch", "speechbrain", "transformers", "peft", "emoq")


class Measured(NamedTuple):
    """A measure of a system in percent, and its standard deviations (n − 1).

    Where there is one fold, or one seed, the deviation over them is None.
    """

    pooled: float  # of the utterances of all folds together, mean over seeds
    seed_deviation: float | None
    fold_mean: float  # of the folds' own measures, each the mean over seeds
    fold_deviation: float | None

    @property
    def folds(self):
        """Mean and deviation over folds, as text."""
        return f"{self.fold_mean:.1f} ± {self.fold_deviation:.1f}"


def write_results(
    folder,
    stats,
    run_info,
    history=(),
    best_epoch=None,
    valid_stats=None,
    embeddings=None,
):
    """Writes a run's results into its folder, made if it is not there.

    ``stats`` and ``valid_stats`` are ``EmotionStats`` of the test and the
    validation set, with the weights of ``best_epoch``. ``run_info`` is for
    JSON, and has at least ``corpus``, ``fold`` (None where the corpus has
    none), ``stage``, ``seed`` and ``seconds``. ``history`` has a dict an epoch,
    with ``epoch`` and any of ``lr``, ``train_loss``, ``valid_loss``,
    ``valid_WA``, ``valid_UA``, ``valid_WF1``. ``embeddings`` are e'_q of the
    test utterances, ``(N, d_h)``. Returns what ``results.json`` holds.

    Everything is made before anything is written, and each file is replaced
    in one step, so a failure leaves earlier results as they were.
    """
    missing = [key for key in _RUN_INFO if key not in run_info]
    if missing:
        raise ValueError(f"run_info lacks {', '.join(missing)}")
    results = {
        **run_info,
        "best_epoch": best_epoch,
        "labels": stats.labels,
        **stats.summarize(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    parts = {name: of.summarize() for name, of in stats.by_corpus().items()}
    if parts:
        results["by_corpus"] = {
            name: {key: summary[key] for key in (*MEASURES, "n")}
            for name, summary in parts.items()
        }
    title = _title(run_info)
    content = {
        PREDICTIONS_FILE: _predictions_csv(stats),
        CONFUSION_FILE: as_png(plot_confusion(stats, title)),
    }
    if history:
        curves = plot_training_curves(history, best_epoch, title)
        content[CURVES_FILE] = as_png(curves)
    if valid_stats is not None:
        valid = valid_stats.summarize()
        results["valid"] = {measure: valid[measure] for measure in MEASURES}
        content[VALID_PREDICTIONS_FILE] = _predictions_csv(valid_stats)
    if embeddings is not None:
        content[EMBEDDINGS_FILE] = embeddings_as_bytes(stats.ids, embeddings)
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    content[RESULTS_FILE] = f"{text}\n".encode()

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        write_atomically(folder / name, data)
    return results


def read_results(folder):
    """What ``write_results`` has told of a run, and of its figures.

    ResultsError where the file is missing, or none of a run.
    """
    path = Path(folder, RESULTS_FILE)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(
            f"{path} does not exist: has this run been evaluated?"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path} is damaged ({error}).") from error
    if not isinstance(found, dict) or not {"corpus", "fold"} <= found.keys():
        raise ResultsError(f"{path} is damaged: it holds no results of a run.")
    return found


def read_predictions(path):
    """The ``EmotionStats`` that a ``predictions.csv`` was written from.

    ``path`` is the file, or the folder of the run that holds it. Earlier
    versions wrote no column ``corpus``, nor ``speaker`` and ``session``, which
    are not known then, nor ``dialogue``: each utterance is a dialogue of its
    own. ResultsError where the file is missing, is no predictions file, or
    contradicts itself.
    """
    path = Path(path)
    if path.is_dir():
        path = path / PREDICTIONS_FILE
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except FileNotFoundError:
        raise ResultsError(
            f"{path} does not exist: has this run been evaluated?"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ResultsError(f"{path} is not a CSV file: {error}") from error

    # What the first columns are called decides, and nothing further on: a
    # class may be called "dialogue" too.
    fitting = [n for n in _FORMATS if header[:n] == _COLUMNS[:n]]
    if not fitting or not header[fitting[0] :] or not rows:
        raise ResultsError(
            f"{path} is not a predictions file: it needs the columns "
            f"{', '.join(_COLUMNS)} and one column a class, and a row for "
            "every utterance"
        )
    try:
        return _stats_from_rows(fitting[0], header[fitting[0] :], rows)
    except ValueError as error:
        raise ResultsError(f"{path}: {error}") from error


def pool_results(runs):
    """Joins the predictions of several runs, such as the folds of a corpus.

    ``runs`` are folders or files as of ``read_predictions``. Pooled measures
    are those of the joint set of utterances, not a mean of the runs' measures.
    ResultsError where the label sets differ, or two runs share an utterance.
    """
    return pool({run: read_predictions(run) for run in runs})


def pool(runs):
    """The same of ``EmotionStats``, by the folder of the run."""
    pooled, first, run_of = None, None, {}
    for run, stats in runs.items():
        if pooled is None:
            pooled, first = EmotionStats(stats.labels), run
        check_labels({first: pooled, run: stats})
        for utterance in stats.ids:
            if utterance in run_of:
                raise ResultsError(
                    f"utterance '{utterance}' is in {run_of[utterance]} and "
                    f"in {run}: pool each fold once, and only runs whose test "
                    "sets are disjoint"
                )
            run_of[utterance] = run
        pooled.append(
            stats.ids,
            torch.stack(stats.posteriors),
            torch.tensor(stats.targets),
            stats.dialogues,
            stats.speakers,
            stats.sessions,
            stats.corpora,
        )
    if pooled is None:
        raise ResultsError("there are no runs to pool")
    return pooled


def measure(pooled, folds, name):
    """One of a system's measures, ``Measured``, for whatever shows it.

    ``pooled`` has an ``EmotionStats`` for each seed, ``folds`` for each seed
    those of the folds that it was pooled from, in the same order.
    """
    by_seed = [stats.summarize(name) for stats in pooled]
    by_fold = np.mean(
        [[stats.summarize(name) for stats in of_seed] for of_seed in folds],
        axis=0,
    )
    spread = [
        float(np.std(values, ddof=1)) if len(values) > 1 else None
        for values in (by_seed, by_fold)
    ]
    means = float(np.mean(by_seed)), float(np.mean(by_fold))
    return Measured(means[0], spread[0], means[1], spread[1])


def format_summary(results, pages=(), notes=()):
    """Measures of several systems, and the confusion of the last, as text.

    ``results`` are by the name of the row, such as "stage 1", the
    ``EmotionStats`` of its folds, by folder: they are shown pooled, and where
    there are several their mean and standard deviation, too. ``pages`` are
    files to look at, ``notes`` what must be known of the measures.
    """
    table, ties = [["", *MEASURES, "n"]], {}
    for name, folds in results.items():
        stats = pool(folds)
        if "ties" in stats.summarize():
            ties[len(table)] = f"  (ties: {stats.summarize('ties')})"
        found = [measure([stats], [folds.values()], x) for x in MEASURES]
        table.append(
            [name, *(f"{x.pooled:.1f}" for x in found), len(stats.ids)]
        )
        if len(folds) > 1:
            table[-1][0] += ", pooled"
            what = f"{name}, mean of {len(folds)} folds"
            table.append([what, *(x.folds for x in found), ""])
        for corpus, part in stats.by_corpus().items():
            measures = (f"{part.summarize(x):.1f}" for x in MEASURES)
            table.append([f"  {corpus}", *measures, len(part.ids)])
    first = max(len(row[0]) for row in table)
    wide = max(8, *(2 + len(str(cell)) for row in table for cell in row[1:]))
    lines = [
        row[0].ljust(first)
        + "".join(f"{cell:>{wide}}" for cell in row[1:]).rstrip()
        + ties.get(number, "")
        for number, row in enumerate(table)
    ]
    lines += [
        "",
        f"Confusion of {name} (rows: reference, columns: recognized)",
        format_confusion(stats),
    ]
    for title, entries in (("Pages", pages), ("Notes", notes)):
        if entries:
            lines += ["", title, *(f"  {entry}" for entry in entries)]
    return "\n".join(lines)


def _title(run_info):
    parts = [str(run_info["corpus"])]
    parts += [
        f"{key} {run_info[key]}"
        for key in ("fold", "stage")
        if run_info[key] is not None
    ]
    return ", ".join(parts)


def _predictions_csv(stats):
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*_COLUMNS, *stats.labels])
    words = (
        [stats.labels[i] for i in x] for x in (stats.targets, stats.predictions)
    )
    places = stats.dialogues, stats.speakers, stats.sessions, stats.corpora
    columns = (stats.ids, *words, *places, stats.posteriors)
    for *cells, posteriors in zip(*columns, strict=True):
        # Nine digits bring every float32 back exactly.
        digits = [f"{value:.9g}" for value in posteriors.tolist()]
        writer.writerow([*cells, *digits])
    return buffer.getvalue().encode()


def _stats_from_rows(columns, labels, rows):
    """The metric of rows with so many ``columns`` before the posteriors."""
    width = columns + len(labels)
    for number, row in enumerate(rows, start=1):
        if len(row) != width:
            raise ValueError(
                f"row {number} has {len(row)} columns, not {width}: was the "
                "file cut off?"
            )
        for word in row[1:3]:
            if word not in labels:
                raise ValueError(
                    f"row {number} ('{row[0]}') names the class '{word}', "
                    "which has no column"
                )
    stats = EmotionStats(labels)
    stats.append(
        [row[0] for row in rows],
        torch.tensor([[float(x) for x in row[columns:]] for row in rows]),
        torch.tensor([labels.index(row[1]) for row in rows]),
        *([row[place] for row in rows] for place in range(3, columns)),
    )
    for row, prediction in zip(rows, stats.predictions, strict=True):
        if row[2] != labels[prediction]:
            raise ValueError(
                f"'{row[0]}' has the prediction '{row[2]}', but its highest "
                f"posterior is that of '{labels[prediction]}': was the file "
                "edited?"
            )
    return stats
