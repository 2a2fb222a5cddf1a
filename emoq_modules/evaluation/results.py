"""A run's results: files, plots, and a summary for the terminal.

``write_results`` puts ``results.json``, predictions and two plots into a run's
folder. ``predictions.csv`` is enough to measure again, and
``valid_predictions.csv`` to calibrate, which is never done on the test set:
``read_predictions`` takes it back, and ``pool_results`` joins the folds of a
cross-validation, whose test sets are disjoint.
"""

import csv
import importlib.metadata
import io
import json
import platform
from pathlib import Path

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
_COLUMNS = ["id", "label", "prediction", "dialogue"]
_PACKAGES = ("torch", "speechbrain", "transformers", "peft", "emoq")


def write_results(
    folder,
    stats,
    run_info,
    history=(),
    best_epoch=None,
    valid_stats=None,
    embeddings=None,
):
    """Writes everything that is known of a run's performance.

    Everything is made before anything is written, and each file is replaced
    in one step, so a failure leaves earlier results as they were.

    Arguments
    ---------
    folder : str or Path
        Made if it is not there. Receives ``results.json``,
        ``predictions.csv``, ``confusion_matrix.png``, if there is a history
        ``training_curves.png``, with ``valid_stats``
        ``valid_predictions.csv``, and with ``embeddings``
        ``test_embeddings.safetensors``.
    stats : EmotionStats
        The metric after a pass over the test set.
    run_info : dict
        ``corpus``, ``fold`` (None where the corpus has none), ``stage``,
        ``seed`` and ``seconds``; whatever else it holds is kept too. Values
        are for JSON.
    history : list of dict
        One dict an epoch, with ``epoch`` and any of ``lr``, ``train_loss``,
        ``valid_loss``, ``valid_WA``, ``valid_UA``, ``valid_WF1``.
    best_epoch : int
        The epoch whose weights were measured.
    valid_stats : EmotionStats | None
        The metric after a pass over the validation set with these weights.
    embeddings : torch.Tensor | None
        e'_q of the test utterances, ``(N, d_h)``, in the order of ``stats``.

    Returns
    -------
    dict
        What ``results.json`` holds.

    Raises
    ------
    ValueError
        If ``run_info`` lacks a key, nothing was measured, or there is not one
        embedding an utterance.

    Example
    -------
    >>> stats = EmotionStats(["no", "yes"])
    >>> stats.append(["a", "b"], torch.eye(2), torch.tensor([0, 1]))
    >>> run_info = dict(corpus="toy", fold=1, stage=2, seed=0, seconds=0.5)
    >>> folder = getfixture("tmp_path")
    >>> write_results(folder, stats, run_info)["UA"]
    100.0
    >>> sorted(path.name for path in folder.iterdir())
    ['confusion_matrix.png', 'predictions.csv', 'results.json']
    """
    missing = [key for key in _RUN_INFO if key not in run_info]
    if missing:
        raise ValueError(f"run_info lacks {', '.join(missing)}")
    results = {
        **run_info,
        "best_epoch": best_epoch,
        "labels": stats.labels,
        **stats.summarize(),
        "versions": _versions(),
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
    content[RESULTS_FILE] = _json(results)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        write_atomically(folder / name, data)
    return results


def read_predictions(path):
    """Reads a ``predictions.csv`` back into the metric it was written from.

    Of a file of an earlier version, which has no column ``dialogue``, each
    utterance is a dialogue of its own.

    Arguments
    ---------
    path : str or Path
        The file, or the folder of the run that holds it.

    Returns
    -------
    EmotionStats
        With the ids, dialogues, posteriors and targets of the file, in its
        order.

    Raises
    ------
    ResultsError
        If the file is missing, is no predictions file, or contradicts itself.
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

    # What the fourth column is called decides, and nothing further on: a class
    # may be called "dialogue" too.
    columns = _COLUMNS if header[3:4] == _COLUMNS[3:] else _COLUMNS[:3]
    labels = header[len(columns) :]
    if header[: len(columns)] != columns or not labels or not rows:
        raise ResultsError(
            f"{path} is not a predictions file: it needs the columns "
            f"{', '.join(_COLUMNS)} and one column a class, and a row for "
            "every utterance"
        )
    try:
        return _stats_from_rows(len(columns), labels, rows)
    except ValueError as error:
        raise ResultsError(f"{path}: {error}") from error


def pool_results(runs):
    """Joins the predictions of several runs, such as the folds of a corpus.

    Pooled measures are those of the joint set of utterances, not a mean of
    the runs' measures.

    Arguments
    ---------
    runs : list of str or Path
        Folders of the runs, or their ``predictions.csv`` files.

    Returns
    -------
    EmotionStats
        Over all utterances; ``summarize()`` gives the pooled measures.

    Raises
    ------
    ResultsError
        If there are no runs, a file is missing or faulty, the label sets
        differ, or two runs share an utterance.

    Example
    -------
    >>> for fold, utterance in enumerate(["a", "b"]):
    ...     stats = EmotionStats(["no", "yes"])
    ...     stats.append([utterance], torch.eye(2)[:1], torch.tensor([fold]))
    ...     folder = getfixture("tmp_path") / str(fold)
    ...     run_info = dict.fromkeys(["corpus", "stage", "seed", "seconds"])
    ...     _ = write_results(folder, stats, {**run_info, "fold": fold})
    >>> pool_results(getfixture("tmp_path").iterdir()).summarize("WA")
    50.0
    """
    pooled, first, run_of = None, None, {}
    for run in runs:
        stats = read_predictions(run)
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
        )
    if pooled is None:
        raise ResultsError("there are no runs to pool")
    return pooled


def format_summary(results, plots=()):
    """Measures of several runs and the last one's confusion, as plain text.

    Arguments
    ---------
    results : dict
        ``EmotionStats`` by the name of the row, such as "stage 1".
    plots : list of str or Path
        Pictures to point to.

    Returns
    -------
    str
        The text, without a final newline.

    Example
    -------
    >>> stats = EmotionStats(["no", "yes"])
    >>> stats.append(["a", "b"], torch.eye(2), torch.tensor([0, 1]))
    >>> print(format_summary({"stage 1": stats}, ["confusion_matrix.png"]))
                 WA      UA     WF1       n
    stage 1   100.0   100.0   100.0       2
    <BLANKLINE>
    Confusion of stage 1 (rows: reference, columns: recognized)
            no    yes  recall
     no      1      0   100.0
    yes      0      1   100.0
    <BLANKLINE>
    Plots
      confusion_matrix.png
    """
    metrics = {name: stats.summarize() for name, stats in results.items()}
    width = max(len(name) for name in metrics)
    header = "".join(f"{name:>8}" for name in (*MEASURES, "n"))
    lines = [" " * width + header]
    for name, row in metrics.items():
        values = "".join(f"{row[measure]:8.1f}" for measure in MEASURES)
        lines.append(f"{name:<{width}}{values}{row['n']:8}")
    last = list(results)[-1]
    lines += [
        "",
        f"Confusion of {last} (rows: reference, columns: recognized)",
        format_confusion(results[last]),
    ]
    if plots:
        lines += ["", "Plots", *(f"  {plot}" for plot in plots)]
    return "\n".join(lines)


def _versions():
    return {"python": platform.python_version()} | {
        package: importlib.metadata.version(package) for package in _PACKAGES
    }


def _title(run_info):
    parts = [str(run_info["corpus"])]
    parts += [
        f"{key} {run_info[key]}"
        for key in ("fold", "stage")
        if run_info[key] is not None
    ]
    return ", ".join(parts)


def _json(values):
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _predictions_csv(stats):
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*_COLUMNS, *stats.labels])
    words = (
        [stats.labels[i] for i in x] for x in (stats.targets, stats.predictions)
    )
    columns = (stats.ids, *words, stats.dialogues, stats.posteriors)
    for *cells, posteriors in zip(*columns, strict=True):
        # Nine digits bring every float32 back exactly.
        digits = [f"{value:.9g}" for value in posteriors.tolist()]
        writer.writerow([*cells, *digits])
    return buffer.getvalue().encode()


def _stats_from_rows(columns, labels, rows):
    """The metric of a predictions file; ValueError without the file's name.

    So many ``columns`` stand before those of the posteriors.
    """
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
        [row[3] if columns > 3 else row[0] for row in rows],
    )
    for row, prediction in zip(rows, stats.predictions, strict=True):
        if row[2] != labels[prediction]:
            raise ValueError(
                f"'{row[0]}' has the prediction '{row[2]}', but its highest "
                f"posterior is that of '{labels[prediction]}': was the file "
                "edited?"
            )
    return stats
