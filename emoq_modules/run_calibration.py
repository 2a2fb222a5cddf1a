"""How far a run's confidence is to be corrected, from its validation set."""

from dataclasses import dataclass

import torch
from speechbrain.utils.logger import get_logger

from emoq_modules.calibration import (
    apply_temperature,
    expected_calibration_error,
    fit_temperature,
)
from emoq_modules.report import (
    VALID_PREDICTIONS_FILE,
    ResultsError,
    read_predictions,
)

logger = get_logger(__name__)


@dataclass(frozen=True)
class Calibration:
    """How confidence is corrected.

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

    temperature: float
    utterances: int = 0
    errors: tuple | None = None
    note: str = ""


def calibrate(run):
    """Fits a run's temperature on its validation set, and on nothing else.

    Returns
    -------
    Calibration
    """
    note = _not_fitted(run)
    if note:
        logger.warning(f"The confidence is not calibrated: {note}.")
        return Calibration(1.0, note=note)
    valid = read_predictions(run / VALID_PREDICTIONS_FILE)
    temperature = fit_temperature(_posteriors(valid), valid.targets)
    test = read_predictions(run)
    errors = tuple(
        expected_calibration_error(posteriors, test.targets)
        for posteriors in (
            _posteriors(test),
            apply_temperature(_posteriors(test), temperature),
        )
    )
    return Calibration(temperature, len(valid.ids), errors)


def _not_fitted(run):
    """Why no temperature can be fitted, or an empty text."""
    try:
        valid = read_predictions(run / VALID_PREDICTIONS_FILE)
    except ResultsError as error:
        return str(error)
    if valid.predictions == valid.targets:
        return (
            f"all {len(valid.ids)} validation utterances are recognised, which "
            "makes any confidence look too low"
        )
    return ""


def _posteriors(stats):
    return torch.stack(stats.posteriors).numpy()
