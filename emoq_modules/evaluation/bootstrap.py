"""How far results can be trusted: confidence intervals and comparisons.

Utterances of a dialogue share speakers, topic and mood, so they are not
independent: what is resampled are whole dialogues.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

from emoq_modules.evaluation.metrics import (
    MEASURES,
    check_labels,
    confusion_metrics,
)

_CONFIDENCE = 0.95
_BATCH = 256  # resamples at a time: 20 MB where there are 10,000 dialogues


class Interval(NamedTuple):
    """A measure and its confidence interval, in percent."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """How much better the first system is, in percent; is it by chance?"""

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(stats, measure="UA", resamples=9999):
    """Percentile interval of 95 % of WA, UA or WF1 over resampled dialogues.

    The interval is that of other dialogues of the same kind, with this very
    system: what other speakers or another seed would change is not in it. A
    class that a resample lacks has no part in its UA. ValueError where there is
    no such measure, or fewer than two dialogues.
    """
    _check_measure(measure)
    value, resampled = _resample(
        _dialogue_confusions(stats),
        lambda confusions: confusion_metrics(confusions)[measure],
        resamples,
    )
    return Interval(value, *map(float, resampled.confidence_interval))


def paired_bootstrap(a, b, measure="UA", resamples=9999):
    """Compares two systems on the same utterances, in any order.

    Both are measured on each resample of dialogues (Koehn, 2004, "Statistical
    significance tests for machine translation evaluation"). The two-sided
    p-value inverts the percentile interval (Efron and Tibshirani, 1993, "An
    introduction to the bootstrap"): it is twice the share of resamples in which
    ``a`` is not better, or ``b`` is not, whichever is smaller. A share is
    (k + 1) / (n + 1): no number of resamples proves that a probability is 0.
    ValueError as of an interval, or where utterances or labels differ.
    """
    _check_measure(measure)
    _check_same_utterances(a, b)

    def difference(confusions):
        values = confusion_metrics(confusions)[measure]
        # Rounded, so that what is equal but for the order of sums is a tie.
        return (values[..., 0] - values[..., 1]).round(9)

    both = np.stack([_dialogue_confusions(a), _dialogue_confusions(b)], axis=1)
    value, resampled = _resample(both, difference, resamples)
    differences = resampled.bootstrap_distribution
    fewer = min((differences <= 0).sum(), (differences >= 0).sum())
    p_value = min(1.0, float(2 * (fewer + 1) / (resamples + 1)))
    interval = map(float, resampled.confidence_interval)
    return Comparison(value, *interval, p_value)


def _dialogue_confusions(stats):
    """Confusion counts of each dialogue, by name, ``(D, C, C)``."""
    names, dialogue = np.unique(stats.dialogues, return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"dialogues are resampled, and there is {len(names)} in "
            f"{len(stats.ids)} utterances: at least two are needed"
        )
    classes = len(stats.labels)
    counts = np.zeros((len(names), classes, classes))
    np.add.at(counts, (dialogue, stats.targets, stats.predictions), 1)
    return counts


def _resample(counts, statistic, resamples):
    """The statistic of all counts ``(D, …)`` summed, and SciPy's bootstrap.

    ``statistic`` takes sums of R resamples, ``(R, …)``, and returns ``(R,)``.
    """
    dialogues = len(counts)

    def of_resamples(chosen, axis):
        # How often each dialogue is in each resample: (R, D). One product with
        # the counts is then their sum over each resample.
        rows = np.arange(len(chosen))[:, None]
        flat = (dialogues * rows + chosen.astype(int)).ravel()
        times = np.bincount(flat, minlength=len(chosen) * dialogues)
        times = times.reshape(-1, dialogues).astype(float)
        return statistic(np.tensordot(times, counts, axes=1))

    resampled = bootstrap(
        [np.arange(dialogues)],
        of_resamples,
        n_resamples=resamples,
        batch=_BATCH,
        vectorized=True,
        confidence_level=_CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(statistic(counts.sum(axis=0))), resampled


def _check_measure(measure):
    if measure not in MEASURES:
        raise ValueError(
            f"there is no measure {measure!r}; it can be {', '.join(MEASURES)}"
        )


def _check_same_utterances(a, b):
    check_labels({"the first system": a, "the second": b})
    known_a, known_b = (
        {
            utterance: (stats.labels[target], dialogue)
            for utterance, target, dialogue in zip(
                stats.ids, stats.targets, stats.dialogues, strict=True
            )
        }
        for stats in (a, b)
    )
    for utterance in sorted(known_a.keys() | known_b.keys()):
        in_a, in_b = known_a.get(utterance), known_b.get(utterance)
        if in_a is None or in_b is None:
            raise ValueError(
                f"only the {'first' if in_b is None else 'second'} system was "
                f"measured on '{utterance}': compare systems on the same "
                "corpus, fold and split"
            )
        if in_a != in_b:
            raise ValueError(
                f"'{utterance}' is '{in_a[0]}' in dialogue '{in_a[1]}' for "
                f"the first system, '{in_b[0]}' in dialogue '{in_b[1]}' for "
                "the second: evaluate both on the same manifest"
            )
