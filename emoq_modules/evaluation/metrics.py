"""Metrics of emotion recognition: WA, UA and WF1."""

from collections import Counter

import numpy as np
import torch
from speechbrain.utils.metric_stats import MetricStats

from emoq_modules.errors import ResultsError

MEASURES = ("WA", "UA", "WF1")


class EmotionStats(MetricStats):
    """Accuracies, F1 and confusion over a set of utterances.

    - **WA**, weighted accuracy: the share of utterances recognized.
    - **UA**, unweighted accuracy: the mean of the class recalls.
    - **WF1**: the mean of the class F1 scores, weighted by class size.

    All in percent. What is measured is a set: an utterance that comes twice is
    refused. The utterances seen so far stand side by side in ``ids``,
    ``dialogues``, ``speakers``, ``sessions`` and ``corpora`` (str; the last
    three are empty where they are not known), ``targets`` and ``predictions``
    (class indices) and ``posteriors`` (float32 tensors, (C,)).

    Arguments
    ---------
    labels : list of str
        Names of the classes, in the order of the posteriors.

    Raises
    ------
    ValueError
        If there are no labels, or one occurs twice.

    Example
    -------
    >>> stats = EmotionStats(["angry", "happy", "sad"])
    >>> posteriors = torch.tensor(
    ...     [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]]
    ... )
    >>> stats.append(["a", "b", "c"], posteriors, torch.tensor([0, 0, 1]))
    >>> stats.summarize("UA")
    50.0
    >>> stats.summarize("recall")
    {'angry': 100.0, 'happy': 0.0, 'sad': None}
    >>> stats.summarize("confusion")
    [[2, 0, 0], [0, 0, 1], [0, 0, 0]]
    """

    def __init__(self, labels):
        self.labels = list(labels)
        if not self.labels or _repeated(self.labels):
            raise ValueError(
                f"labels is {self.labels}: name at least one class, each once"
            )
        self.clear()

    def clear(self):
        """Forgets all utterances."""
        self.ids = []
        self.dialogues = []
        self.speakers = []
        self.sessions = []
        self.corpora = []
        self.targets = []
        self.predictions = []
        self.posteriors = []
        self.summary = {}

    def append(
        self,
        ids,
        posteriors,
        targets,
        dialogues=None,
        speakers=None,
        sessions=None,
        corpora=None,
    ):
        """Adds the utterances of a batch, or none of them if one is faulty.

        Arguments
        ---------
        ids : list of str
            Names of the utterances, B of them.
        posteriors : torch.Tensor
            A score for each class, (B, C). The highest is the prediction.
        targets : torch.Tensor
            Class indices of the reference, (B,).
        dialogues : list of str | None
            The dialogue of each utterance; None makes each a dialogue of its
            own.
        speakers, sessions, corpora : list of str | None
            The speaker and recording session of each, and which of several
            corpora it is of; None if not known.

        Raises
        ------
        ValueError
            If an id has come before, a target is not one of the classes, a
            posterior is not finite, or the shapes do not agree.
        """
        ids = list(ids)
        dialogues = ids if dialogues is None else list(dialogues)
        unknown = [""] * len(ids)
        speakers, sessions, corpora = (
            unknown if names is None else list(names)
            for names in (speakers, sessions, corpora)
        )
        places = dialogues, speakers, sessions, corpora
        posteriors = posteriors.detach().to("cpu", torch.float32)
        targets = torch.as_tensor(targets).cpu()
        self._check(ids, posteriors, targets, places)
        self.ids += ids
        self.dialogues += dialogues
        self.speakers += speakers
        self.sessions += sessions
        self.corpora += corpora
        self.posteriors += posteriors.unbind()
        self.predictions += posteriors.argmax(dim=1).tolist()
        self.targets += targets.tolist()

    def locate(self, rows):
        """Takes speakers, sessions and corpora of what is here from elsewhere.

        Arguments
        ---------
        rows : dict
            By the utterance's id, what has ``speaker``, ``session`` and
            ``corpus``, such as the rows of a manifest; others may be among
            them.
        """
        found = [rows[utterance] for utterance in self.ids]
        self.speakers = [row["speaker"] for row in found]
        self.sessions = [row["session"] for row in found]
        self.corpora = [row["corpus"] for row in found]

    def by_corpus(self):
        """The utterances of each corpus, where there are several.

        Returns
        -------
        dict[str, EmotionStats]
            By the corpus' name, in the order of the alphabet; empty if all are
            of one.
        """
        names = sorted(set(self.corpora))
        return {name: self._of(name) for name in names if len(names) > 1}

    def _of(self, corpus):
        part = EmotionStats(self.labels)
        chosen = [n for n, name in enumerate(self.corpora) if name == corpus]
        columns = (
            [values[n] for n in chosen]
            for values in (
                self.ids,
                self.posteriors,
                self.targets,
                self.dialogues,
                self.speakers,
                self.sessions,
                self.corpora,
            )
        )
        ids, posteriors, targets, *places = columns
        part.append(
            ids, torch.stack(posteriors), torch.tensor(targets), *places
        )
        return part

    def summarize(self, field=None):
        """Computes all measures over the utterances appended so far.

        Arguments
        ---------
        field : str | None
            The one measure to return; None returns all.

        Returns
        -------
        dict or object
            Plain Python values, fit for JSON and for checkpoint metadata, or
            the ``field`` of them: ``WA``, ``UA`` and ``WF1`` in percent;
            ``recall``, in percent by class name, None for a class that does
            not occur in the reference and has no part in UA; ``confusion``,
            counts by reference (row) and prediction (column); ``n``, the
            number of utterances; and ``ties``, where there are any, in how
            many of them several classes have the highest score, of which the
            first is the prediction.

        Raises
        ------
        ValueError
            If nothing has been appended.
        """
        if not self.ids:
            raise ValueError(
                "no utterances to measure: nothing was appended to the metric"
            )
        confusion = np.zeros((len(self.labels),) * 2, dtype=int)
        np.add.at(confusion, (self.targets, self.predictions), 1)
        metrics = confusion_metrics(confusion)
        recalls = zip(self.labels, metrics["recall"], strict=True)
        self.summary = {
            **{measure: float(metrics[measure]) for measure in MEASURES},
            "recall": {
                label: None if np.isnan(value) else float(value)
                for label, value in recalls
            },
            "confusion": confusion.tolist(),
            "n": len(self.ids),
        }
        scores = torch.stack(self.posteriors)
        best = scores == scores.amax(dim=1, keepdim=True)
        if ties := int((best.sum(dim=1) > 1).sum()):
            self.summary["ties"] = ties
        return self.summary if field is None else self.summary[field]

    def write_stats(self, filestream):
        """Writes the measures and the confusion counts as text.

        Arguments
        ---------
        filestream : file object
            A text stream.

        Raises
        ------
        ValueError
            If nothing has been appended.
        """
        summary = self.summarize()
        for name in MEASURES:
            filestream.write(f"{name}: {summary[name]:.2f} %\n")
        filestream.write(f"utterances: {summary['n']}\n\n")
        filestream.write("Confusion (rows: reference, columns: recognized)\n")
        filestream.write(format_confusion(self) + "\n")

    def _check(self, ids, posteriors, targets, places):
        batch, classes = len(ids), len(self.labels)
        wanted = (batch, classes), (batch,), *[batch] * len(places)
        found = tuple(posteriors.shape), tuple(targets.shape), *map(len, places)
        if found != wanted:
            raise ValueError(
                f"{batch} utterances of {classes} classes need posteriors of "
                "shape {}, targets of shape {} and {} dialogues, {} speakers, "
                "{} sessions and {} corpora".format(*wanted)
                + ", not {}, {} and {}, {}, {} and {}".format(*found)
            )
        repeated = _repeated(ids) or sorted(set(self.ids).intersection(ids))
        if repeated:
            raise ValueError(
                f"{str(repeated[:3])[1:-1]} measured more than once: the data "
                "set repeats ids, or the metric was not cleared before a new "
                "pass"
            )
        facts = zip(ids, targets.tolist(), posteriors, strict=True)
        for utterance, target, row in facts:
            if not 0 <= target < classes:
                raise ValueError(
                    f"target {target} of utterance '{utterance}' is not one "
                    f"of the {classes} classes 0 to {classes - 1} "
                    f"({', '.join(self.labels)}): the data set has another "
                    "label set"
                )
            if not row.isfinite().all():
                raise ValueError(
                    f"posteriors of utterance '{utterance}' are not finite: "
                    f"{row.tolist()}. Its audio may be faulty, or the model "
                    "may have diverged."
                )


def confusion_metrics(confusion):
    """WA, UA, WF1 ``(...)`` and recalls ``(..., C)`` in percent, from counts.

    The counts are by reference (row) and prediction (column), of any number
    of sets at once, ``(..., C, C)``, none of them empty. The recall of a class
    that does not occur in the reference is NaN, and has no part in UA.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    members, recognized = confusion.sum(axis=-1), confusion.sum(axis=-2)
    total = members.sum(axis=-1)
    # Where a class has no members there are no hits either: 0 / 1 is its
    # F1, as in scikit-learn, and what its recall adds to UA.
    recall = 100 * hits / np.maximum(members, 1)
    f1 = 200 * hits / np.maximum(members + recognized, 1)
    present = members > 0
    return {
        "WA": 100 * hits.sum(axis=-1) / total,
        "UA": recall.sum(axis=-1) / present.sum(axis=-1),
        "WF1": (f1 * members).sum(axis=-1) / total,
        "recall": np.where(present, recall, np.nan),
    }


def check_labels(systems):
    """Refuses systems, by what to call them, whose classes are not the same."""
    (first, expected), *others = systems.items()
    for name, stats in others:
        if stats.labels != expected.labels:
            raise ResultsError(
                f"{name} has the classes {', '.join(stats.labels)}, but "
                f"{first} has {', '.join(expected.labels)}: only what has the "
                "same classes in the same order can be compared or pooled"
            )


def format_confusion(stats):
    """A table of confusion counts and recalls, one line a class."""
    labels, metrics = stats.labels, stats.summarize()
    first = max(len(label) for label in labels)
    # A column is as wide as its name, or as a count of five digits.
    widths = [max(len(label) + 2, 7) for label in labels]

    def line(*cells):
        pairs = zip(cells, [first, *widths, 8], strict=True)
        return "".join(f"{cell:>{width}}" for cell, width in pairs)

    lines = [line("", *labels, "recall")]
    for label, counts in zip(labels, metrics["confusion"], strict=True):
        recall = metrics["recall"][label]
        percent = "-" if recall is None else f"{recall:.1f}"
        lines.append(line(label, *counts, percent))
    return "\n".join(lines)


def _repeated(values):
    return [value for value, count in Counter(values).items() if count > 1]
