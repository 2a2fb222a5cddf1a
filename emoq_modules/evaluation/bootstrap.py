"""How far results can be trusted: confidence intervals and comparisons.

Utterances of a dialogue share speakers, topic and mood, and utterances of a
speaker a voice, so they are not independent: what is resampled are whole
clusters of them, and where a system was trained with several seeds, seeds too.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

from emoq_modules.evaluation.metrics import (
    MEASURES,
    EmotionStats,
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


class Clusters(NamedTuple):
    """What is resampled: dialogues, speakers or utterances."""

    unit: str
    of: dict  # the cluster of each utterance, by id

    @property
    def count(self):
        """How many there are."""
        return len(set(self.of.values()))

    def __str__(self):
        return f"{self.count} {self.unit}{'s' * (self.count != 1)}"


def find_clusters(*systems):
    """The ``Clusters`` of the utterances that some ``EmotionStats`` measured.

    Dialogues where one has more than one utterance. Where each was recorded by
    itself, speakers, of the first system whose predictions name them; and where
    none does, single utterances.
    """
    first = systems[0]
    if max(Counter(first.dialogues).values(), default=0) > 1:
        return Clusters("dialogue", _by_id(first, first.dialogues))
    for stats in systems:
        if all(stats.speakers):
            return Clusters("speaker", _by_id(stats, stats.speakers))
    return Clusters("utterance", _by_id(first, first.ids))


def bootstrap_interval(system, measure="UA", resamples=9999):
    """Percentile interval of 95 % of WA, UA or WF1 over resampled clusters.

    ``system`` is one ``EmotionStats``, or a list of them: the same utterances
    as measured with each of several seeds. The value is their mean then, and a
    resample draws seeds and clusters anew, independently of each other: all
    chosen seeds are measured on the same chosen clusters. Owen, 2007, "The
    pigeonhole bootstrap", shows of such crossed samples that the variance is
    hardly underestimated, where resampling either alone leaves one of its two
    sources out.

    The interval is that of other clusters of the same kind, with this very
    system; of other seeds, too, where there are several. With few of either it
    is too narrow (Cameron, Gelbach and Miller, 2008, "Bootstrap-based
    improvements for inference with clustered errors"). A class that a resample
    lacks has no part in its UA. ValueError where there is no such measure,
    fewer than two clusters, or the seeds' utterances or labels differ.
    """
    value, resampled = _resample([system], measure, lambda a: a, resamples)
    return Interval(value, *map(float, resampled.confidence_interval))


def paired_bootstrap(a, b, measure="UA", resamples=9999):
    """Compares two systems on the same utterances, in any order.

    Both are measured on each resample of clusters (Koehn, 2004, "Statistical
    significance tests for machine translation evaluation"). Either may be a
    list of seeds, as of an interval; seeds of two systems have nothing to do
    with each other, and are drawn for each by itself. The two-sided p-value
    inverts the percentile interval (Efron and Tibshirani, 1993, "An
    introduction to the bootstrap"): it is twice the share of resamples in which
    ``a`` is not better, or ``b`` is not, whichever is smaller. A share is
    (k + 1) / (n + 1): no number of resamples proves that a probability is 0.
    ValueError as of an interval, or where utterances or labels differ.
    """

    def difference(of_a, of_b):
        # Rounded, so that what is equal but for the order of sums is a tie.
        return (of_a - of_b).round(9)

    value, resampled = _resample([a, b], measure, difference, resamples)
    differences = resampled.bootstrap_distribution
    fewer = min((differences <= 0).sum(), (differences >= 0).sum())
    p_value = min(1.0, float(2 * (fewer + 1) / (resamples + 1)))
    interval = map(float, resampled.confidence_interval)
    return Comparison(value, *interval, p_value)


def _resample(systems, measure, statistic, resamples):
    """The statistic of the systems' measures, and SciPy's bootstrap of it.

    ``statistic`` takes the measure of each system in R resamples, ``(R,)``.
    """
    if measure not in MEASURES:
        raise ValueError(
            f"there is no measure {measure!r}; it can be {', '.join(MEASURES)}"
        )
    systems = [[s] if isinstance(s, EmotionStats) else [*s] for s in systems]
    first, *others = (stats for seeds in systems for stats in seeds)
    for other in others:
        _check_same_utterances(first, other)
    clusters = find_clusters(first, *others)
    if clusters.count < 2:
        raise ValueError(
            f"{clusters.unit}s are resampled, and there is {clusters.count} in "
            f"{len(first.ids)} utterances: at least two are needed"
        )
    # Of each system, by cluster and seed: (D, S, C, C).
    counts = [
        np.stack([_cluster_confusions(stats, clusters) for stats in seeds], 1)
        for seeds in systems
    ]

    def of_resamples(chosen, *seeds, axis):
        # One product with how often each cluster is in each resample, (R, D),
        # makes the counts' sum over each resample: (R, S, C, C).
        times = _times(chosen, clusters.count)
        means, seeds = [], iter(seeds)
        for of_system in counts:
            confusions = np.tensordot(times, of_system, axes=1)
            values = confusion_metrics(confusions)[measure]  # (R, S)
            weights = np.ones(values.shape)
            if values.shape[1] > 1:
                weights = _times(next(seeds), values.shape[1])
            means.append(np.average(values, axis=1, weights=weights))
        return statistic(*means)

    sizes = [clusters.count, *(len(s) for s in systems if len(s) > 1)]
    drawn_from = [np.arange(size) for size in sizes]
    whole = of_resamples(*(sample[None] for sample in drawn_from), axis=1)
    return float(whole[0]), bootstrap(
        drawn_from,
        of_resamples,
        n_resamples=resamples,
        batch=_BATCH,
        vectorized=True,
        confidence_level=_CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )


def _times(chosen, size):
    """How often each of ``size`` is among the chosen, ``(R, size)``."""
    rows = np.arange(len(chosen))[:, None]
    flat = (size * rows + chosen.astype(int)).ravel()
    times = np.bincount(flat, minlength=len(chosen) * size)
    return times.reshape(-1, size).astype(float)


def _cluster_confusions(stats, clusters):
    """Confusion counts of each cluster, by name, ``(D, C, C)``."""
    names = [clusters.of[utterance] for utterance in stats.ids]
    found, cluster = np.unique(names, return_inverse=True)
    classes = len(stats.labels)
    counts = np.zeros((len(found), classes, classes))
    np.add.at(counts, (cluster, stats.targets, stats.predictions), 1)
    return counts


def _by_id(stats, values):
    return dict(zip(stats.ids, values, strict=True))


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
