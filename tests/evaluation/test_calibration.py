"""Calibration by hand, and temperatures that are known."""

import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from emoq_modules.evaluation.calibration import (
    apply_temperature,
    expected_calibration_error,
    fit_temperature,
    fit_temperatures,
    reliability,
)
from emoq_modules.evaluation.metrics import EmotionStats


def calibrated_case(seed=0, n=4000, classes=4):
    """Logits (N, C) whose posteriors are exactly right, and labels drawn so."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((n, classes))
    targets = [rng.choice(classes, p=row) for row in softmax(logits, axis=1)]
    return logits, np.array(targets)


# Four bins have exact edges, and 0.5 is in (0.25, 0.5].
BY_HAND = [
    [0.6, 0.3, 0.1],
    [0.2, 0.5, 0.3],
    [0.1, 0.2, 0.7],
    [0.9, 0.1, 0.0],
    [1.0, 0.0, 0.0],
]
TARGETS = [0, 2, 2, 0, 1]


def test_reliability_and_calibration_error_by_hand():
    found = reliability(BY_HAND, TARGETS, bins=4)
    assert found.count.tolist() == [0, 1, 2, 2]
    np.testing.assert_allclose(found.confidence, [np.nan, 0.5, 0.65, 0.95])
    np.testing.assert_allclose(found.accuracy, [np.nan, 0, 1, 0.5])
    error = expected_calibration_error(BY_HAND, TARGETS, bins=4)
    assert error == pytest.approx((1 * 0.5 + 2 * 0.35 + 2 * 0.45) / 5)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_reliability_is_scikit_learns(bins):
    logits, targets = calibrated_case(n=500)
    posteriors = softmax(logits, axis=1)
    found = reliability(posteriors, targets, bins)
    right = posteriors.argmax(axis=1) == targets
    accuracy, confidence = calibration_curve(
        right, posteriors.max(axis=1), n_bins=bins
    )
    filled = found.count > 0
    np.testing.assert_allclose(found.accuracy[filled], accuracy)
    np.testing.assert_allclose(found.confidence[filled], confidence)
    assert found.count.sum() == 500


def test_posteriors_of_the_metric_are_taken_as_they_are():
    posteriors = torch.tensor(BY_HAND)
    expected = reliability(BY_HAND, TARGETS, bins=7)
    for given in (posteriors, list(posteriors)):
        found = reliability(given, torch.tensor(TARGETS), bins=7)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_a_known_temperature_is_found(temperature):
    # What was calibrated is made too sure, or not sure enough, by it.
    logits, targets = calibrated_case()
    posteriors = softmax(logits / temperature, axis=1)
    found = fit_temperature(posteriors, targets)
    assert found == pytest.approx(1 / temperature, rel=0.05)
    before = expected_calibration_error(posteriors, targets)
    after = apply_temperature(posteriors, found)
    assert expected_calibration_error(after, targets) < 0.03
    if temperature != 1:
        assert before > 0.1


def test_the_fitted_temperature_has_the_smallest_log_loss():
    logits, targets = calibrated_case(n=300)
    posteriors = softmax(3 * logits, axis=1)

    def slope(log_temperature, step=1e-4):
        return np.diff(
            [
                log_loss(targets, softmax(3 * logits / np.exp(t), axis=1))
                for t in (log_temperature - step, log_temperature + step)
            ]
        )[0]

    best = np.exp(brentq(slope, np.log(0.5), np.log(20)))
    assert fit_temperature(posteriors, targets) == pytest.approx(best, rel=1e-3)


def test_a_temperature_divides_the_logits():
    logits, _ = calibrated_case(n=50)
    posteriors = softmax(logits, axis=1)
    for temperature in (0.2, 1.0, 5.0):
        found = apply_temperature(posteriors, temperature)
        np.testing.assert_allclose(found, softmax(logits / temperature, axis=1))
        assert (found.argmax(axis=1) == posteriors.argmax(axis=1)).all()


def test_posteriors_of_zero_neither_warn_nor_spoil_the_fit():
    posteriors = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0.5, 0.5], [1, 0, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = apply_temperature(posteriors, 1.0)
        cold = apply_temperature(posteriors, 1e-3)
        warm = apply_temperature(posteriors, 1e3)
        # The last is wrong, and was held for certain.
        temperature = fit_temperature(posteriors, [0, 1, 2, 1])
    np.testing.assert_allclose(same, posteriors, atol=1e-30)
    np.testing.assert_allclose(cold, posteriors, atol=1e-30)
    np.testing.assert_allclose(warm, 1 / 3, atol=0.03)
    assert 1 < temperature <= 20


@pytest.mark.parametrize(
    ("posteriors", "targets", "says"),
    {
        "logits": ([[2.0, -1.0]], [0], "row 0 are no probabilities: .2.0, -1"),
        "no sum of 1": ([[1, 0], [0.3, 0.3]], [0, 0], "row 1 are no prob"),
        "not a number": ([[np.nan, 1.0]], [0], "row 0 are no probabilities"),
        "one utterance": ([0.5, 0.5], [0], r"shape \(2,\); \(N, C\) is needed"),
        "none": (np.zeros((0, 3)), [], r"shape \(0, 3\)"),
        "targets missing": ([[1.0, 0.0]], [0, 0], r"shape \(1,\), not \(2,\)"),
        "another class": ([[1.0, 0.0]], [2], "target 2 is none of the 2"),
        "no class": ([[1.0, 0.0]], [-1], "target -1 is none of the 2"),
    }.values(),
)
def test_what_cannot_be_calibrated_is_refused(posteriors, targets, says):
    for calibrate in (reliability, fit_temperature):
        with pytest.raises(ValueError, match=says):
            calibrate(posteriors, targets)


@pytest.mark.parametrize("temperature", [0, -1, np.inf, np.nan])
def test_what_is_no_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="it has to be a positive number"):
        apply_temperature([[1.0, 0.0]], temperature)


def asked(seed, right=False):
    """A validation set of which not all, or all, is recognized."""
    posteriors = softmax(np.random.default_rng(seed).normal(size=(50, 2)), 1)
    targets = posteriors.argmax(axis=1)
    if not right:
        targets[::4] = 1 - targets[::4]
    stats = EmotionStats(["sad", "happy"])
    ids = [str(number) for number in range(50)]
    stats.append(ids, torch.tensor(posteriors), torch.tensor(targets), ids)
    return stats


def test_each_way_of_asking_has_a_temperature_of_its_own():
    ways = {"transcript": asked(0), "no_transcript": asked(1)}
    own = {
        way: fit_temperature(stats.posteriors, stats.targets)
        for way, stats in ways.items()
    }
    assert own["transcript"] != own["no_transcript"]
    # No utterance was longer than a window.
    same = {"window": own["no_transcript"]}
    assert fit_temperatures(ways) == own | same
    found = fit_temperatures(ways | {"window": asked(2)})
    assert found["window"] not in own.values()
    right = fit_temperatures({"transcript": asked(0, right=True)})
    assert right == {"transcript": 1.0}
