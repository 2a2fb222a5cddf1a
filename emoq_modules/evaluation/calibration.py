"""Whether a system is as often right as its posteriors say.

``reliability`` and ``expected_calibration_error`` measure it. Temperature
scaling improves it: ``fit_temperature`` on the validation set, then
``apply_temperature`` to the test set; ``calibrate`` does both. All
after Guo et al., 2017, "On calibration of modern neural networks". Confidences,
and with them calibration errors, are between 0 and 1, as posteriors are.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

_TEMPERATURES = (0.05, 20.0)  # beyond these posteriors are one-hot or uniform
# A posterior of 0 was too small for a float32: it was below this.
_SMALLEST = np.finfo(np.float32).tiny


class Reliability(NamedTuple):
    """Means over the utterances in each bin of confidence, NaN where none."""

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


@dataclass(frozen=True)
class Calibration:
    """How a system's confidence is corrected.

    Attributes
    ----------
    temperature : float
        What the logits are divided by; 1 where nothing is corrected.
    utterances : int
        Validation utterances that it was fitted on; 0 if it was not fitted.
    errors : tuple of float | None
        Expected calibration error on test, before and after.
    note : str
        Why it was not fitted, or empty.
    """

    temperature: float = 1.0
    utterances: int = 0
    errors: tuple | None = None
    note: str = ""


def reliability(posteriors, targets, bins=15):
    """Confidence against accuracy, in bins of equal width.

    The confidence of an utterance is its highest posterior. A bin holds its
    upper edge and not its lower one.

    Arguments
    ---------
    posteriors : array_like
        Probabilities of the classes, (N, C).
    targets : array_like
        Class indices of the reference, (N,).
    bins : int
        Into how many the confidences from 0 to 1 are put.

    Returns
    -------
    Reliability
        ``confidence`` and ``accuracy``, means over the utterances in each bin,
        and their ``count``, each (bins,).

    Raises
    ------
    ValueError
        If the posteriors are no probabilities, or do not fit the targets.

    Example
    -------
    >>> posteriors = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]
    >>> found = reliability(posteriors, [0, 1, 1], bins=2)
    >>> found.confidence.round(3), found.accuracy.round(3), found.count
    (array([nan, 0.8]), array([  nan, 0.667]), array([0, 3]))
    """
    posteriors, targets = _checked(posteriors, targets)
    confidence = posteriors.max(axis=1)
    right = posteriors.argmax(axis=1) == targets
    inner_edges = np.linspace(0, 1, bins + 1)[1:-1]
    place = np.digitize(confidence, inner_edges, right=True)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return Reliability(
            np.bincount(place, confidence, bins) / count,
            np.bincount(place, right, bins) / count,
            count,
        )


def expected_calibration_error(posteriors, targets, bins=15):
    """How far confidence is from accuracy: the mean over utterances of the gap.

    Arguments
    ---------
    posteriors, targets, bins
        As of :func:`reliability`.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        As :func:`reliability` does.

    Example
    -------
    >>> posteriors = [[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.3, 0.7]]
    >>> round(expected_calibration_error(posteriors, [0, 0, 1, 0]), 3)
    0.15
    """
    confidence, accuracy, count = reliability(posteriors, targets, bins)
    gaps = np.nan_to_num(np.abs(accuracy - confidence))
    return float(np.average(gaps, weights=count))


def fit_temperature(posteriors, targets):
    """The temperature that makes the reference most likely.

    Fit it on a validation set: on the test set it would make the calibration
    look better than it is.

    Arguments
    ---------
    posteriors, targets
        As of :func:`reliability`.

    Returns
    -------
    float
        From 0.05 to 20; above 1 where the system is too sure of itself. Where
        it recognizes every utterance no temperature is low enough, and what
        is returned says nothing more than that.

    Raises
    ------
    ValueError
        As :func:`reliability` does.

    Example
    -------
    >>> sure = [[0.99, 0.01]] * 10  # and right in 8 of 10
    >>> temperature = fit_temperature(sure, [0] * 8 + [1] * 2)
    >>> apply_temperature(sure, temperature)[0].round(3)
    array([0.8, 0.2])
    """
    posteriors, targets = _checked(posteriors, targets)
    logits = _logits(posteriors)

    def negative_log_likelihood(log_temperature):
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -scaled[np.arange(len(targets)), targets].mean()

    # Of 1 / T it is convex, hence of log T it has one minimum.
    found = minimize_scalar(
        negative_log_likelihood,
        bounds=np.log(_TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def apply_temperature(posteriors, temperature):
    """Posteriors as they would be with all logits divided by a temperature.

    The prediction stays the same. A posterior of exactly 0 counts as the
    smallest that a float32 holds.

    Arguments
    ---------
    posteriors : array_like
        Probabilities of the classes, (N, C).
    temperature : float
        Above 1 confidence goes down, below 1 up.

    Returns
    -------
    np.ndarray
        Probabilities, (N, C), float64.

    Raises
    ------
    ValueError
        If the temperature is not positive, or the posteriors are no
        probabilities.

    Example
    -------
    >>> apply_temperature([[0.8, 0.2], [1.0, 0.0]], 2).round(3)
    array([[0.667, 0.333],
           [1.   , 0.   ]])
    """
    if not 0 < temperature < np.inf:
        raise ValueError(
            f"the temperature is {temperature}; it has to be a positive number"
        )
    return softmax(_logits(_probabilities(posteriors)) / temperature, axis=1)


def calibrate(valid, test):
    """Fits a system's temperature on its validation set, and on nothing else.

    Arguments
    ---------
    valid, test : EmotionStats
        The system's posteriors on the two sets.

    Returns
    -------
    Calibration
        Not fitted where all of the validation set is recognized.
    """
    if valid.predictions == valid.targets:
        return Calibration(
            note=f"all {len(valid.ids)} validation utterances are recognized, "
            "which makes any confidence look too low"
        )
    temperature = fit_temperature(valid.posteriors, valid.targets)
    scaled = apply_temperature(test.posteriors, temperature)
    errors = tuple(
        expected_calibration_error(posteriors, test.targets)
        for posteriors in (test.posteriors, scaled)
    )
    return Calibration(temperature, len(valid.ids), errors)


def _logits(probabilities):
    return np.log(np.maximum(probabilities, _SMALLEST))


def _checked(posteriors, targets):
    """Both as arrays, ``(N, C)`` and ``(N,)``, if they go together."""
    posteriors, targets = _probabilities(posteriors), np.asarray(targets)
    count, classes = posteriors.shape
    if targets.shape != (count,):
        raise ValueError(
            f"posteriors of {count} utterances need targets of shape "
            f"({count},), not {targets.shape}"
        )
    for target in targets[(targets < 0) | (targets >= classes)]:
        raise ValueError(
            f"target {target} is none of the {classes} classes of the "
            "posteriors"
        )
    return posteriors, targets


def _probabilities(posteriors):
    """As an array, ``(N, C)``, if they are probabilities."""
    posteriors = np.asarray(posteriors, dtype=float)
    if posteriors.ndim != 2 or not posteriors.size:
        raise ValueError(
            f"posteriors have the shape {posteriors.shape}; (N, C) is needed, "
            "with at least one utterance"
        )
    # Sums of values that were computed in half precision are off by so much.
    # What is not a number fails both comparisons.
    sums_to_1 = np.abs(posteriors.sum(axis=1) - 1) < 1e-2
    faulty = np.flatnonzero(~(sums_to_1 & (posteriors >= 0).all(axis=1)))
    if len(faulty):
        raise ValueError(
            f"posteriors of row {faulty[0]} are no probabilities: "
            f"{posteriors[faulty[0]].tolist()}. They have to be from 0 to 1, "
            "with the sum 1"
        )
    return posteriors
