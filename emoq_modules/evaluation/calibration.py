"""Whether a system is as often right as its posteriors say.

``reliability`` and ``expected_calibration_error`` measure it, temperature
scaling improves it, all after Guo et al., 2017, "On calibration of modern
neural networks". Confidences and calibration errors are between 0 and 1, as
posteriors are.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

# A system may be told what was said, or not, or be asked about a window of a
# time line. It is not as sure of itself each time, nor as often right.
TOLD, UNTOLD, WINDOW = WAYS = ("transcript", "no_transcript", "window")

_TEMPERATURES = (0.05, 20.0)  # beyond these posteriors are one-hot or uniform
# A posterior of 0 was too small for a float32: it was below this.
_SMALLEST = np.finfo(np.float32).tiny


class Reliability(NamedTuple):
    """Means over the utterances in each bin of confidence, NaN where none."""

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


class Calibration(NamedTuple):
    """How a system's confidence is corrected, and what that changes."""

    temperatures: dict = {}  # by the way of asking: what logits are divided by
    errors: tuple | None = None  # calibration errors on test, before and after
    note: str = ""  # why nothing was fitted


def reliability(posteriors, targets, bins=15):
    """Confidence against accuracy, in bins of equal width.

    ``posteriors`` are ``(N, C)``, ``targets`` class indices, ``(N,)``. The
    confidence of an utterance is its highest posterior. A bin holds its upper
    edge and not its lower one. ValueError where the posteriors are no
    probabilities, or do not fit the targets; so do the functions below.
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
    """How far confidence is from accuracy, in the mean over utterances."""
    confidence, accuracy, count = reliability(posteriors, targets, bins)
    gaps = np.nan_to_num(np.abs(accuracy - confidence))
    return float(np.average(gaps, weights=count))


def fit_temperature(posteriors, targets):
    """The temperature that makes the reference most likely, from 0.05 to 20.

    Fit it on a validation set: on the test set it would make the calibration
    look better than it is. It is above 1 where the system is too sure of
    itself. Where every utterance is recognized no temperature is low enough,
    and what is returned says nothing more than that.
    """
    posteriors, targets = _checked(posteriors, targets)
    logits = _logits(posteriors)

    def negative_log_likelihood(log_temperature):
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -scaled[np.arange(len(targets)), targets].mean()

    # It is convex in 1 / T, and so has one minimum in log T.
    found = minimize_scalar(
        negative_log_likelihood,
        bounds=np.log(_TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def apply_temperature(posteriors, temperature):
    """Posteriors ``(N, C)`` with all logits divided by a positive temperature.

    It may be one for each of the N. The prediction stays the same. A posterior
    of exactly 0 counts as the smallest that a float32 holds.
    """
    temperature = np.asarray(temperature, dtype=float)
    if not ((temperature > 0) & (temperature < np.inf)).all():
        raise ValueError(
            f"the temperature is {temperature}; it has to be a positive number"
        )
    logits = _logits(_probabilities(posteriors))
    return softmax(logits / temperature.reshape(-1, 1), axis=1)


def fit_temperatures(valid):
    """The temperature of each way of asking; 1 where all is recognized.

    Takes the ``EmotionStats`` of the validation set by the way it was asked,
    one of ``WAYS``. A window is asked about as an utterance without transcript
    is, where none of them was longer than one.
    """
    if UNTOLD in valid:
        valid = {WINDOW: valid[UNTOLD], **valid}
    return {
        way: fit_temperature(stats.posteriors, stats.targets)
        if stats.predictions != stats.targets
        else 1.0
        for way, stats in ((way, valid[way]) for way in WAYS if way in valid)
    }


def temperature_for(fitted, text, is_window=False):
    """The temperature for what is asked with this text, None if there is none.

    ``fitted`` is as of ``fit_temperatures``, or what an earlier version fitted
    to all ways of asking.
    """
    if isinstance(fitted, dict):
        way = TOLD if text else WINDOW if is_window else UNTOLD
        fitted = fitted.get(way, 1)
    return None if fitted == 1 else fitted


def calibrate(temperatures, test):
    """What the temperatures of a system are worth on its test set.

    Takes what ``fit_temperatures`` gave for the validation set, None where it
    was never asked, and the ``EmotionStats`` of the test set.
    """
    if temperatures is None:
        return Calibration(
            note="a version of EmoQ trained it that did not; train.py with "
            "--test_only does"
        )
    if set(temperatures.values()) == {1.0}:
        return Calibration(
            note="all validation utterances are recognized, which makes any "
            "confidence look too low"
        )
    own = temperatures.get(TOLD, temperatures.get(UNTOLD))
    scaled = apply_temperature(test.posteriors, own)
    errors = tuple(
        expected_calibration_error(posteriors, test.targets)
        for posteriors in (test.posteriors, scaled)
    )
    return Calibration(temperatures, errors)


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
