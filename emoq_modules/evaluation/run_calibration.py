"""How far a run's confidence is to be corrected, from its validation set."""

from dataclasses import dataclass

import torch
from speechbrain.utils.logger import get_logger

from emoq_modules.evaluation.calibration import (
    apply_temperature,
    expected_calibration_error,
    fit_temperature,
)
from emoq_modules.evaluation.results import (
    VALID_PREDICTIONS_FILE,
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

    Arguments
    ---------
    run : Path
        The output folder of a stage.

    Returns
    -------
    Calibration
        Of temperature 1, with a warning, where there is no validation set, or
        nothing to learn from it.

    Raises
    ------
    ResultsError
        If predictions are damaged.
    """
    path = run / VALID_PREDICTIONS_FILE
    if not path.exists():
        return _not_calibrated(f"there is no {path.name} in {run.name}")
    valid, test = read_predictions(path), read_predictions(run)
    if valid.predictions == valid.targets:
        return _not_calibrated(
            f"all {len(valid.ids)} validation utterances are recognized, which "
            "makes any confidence look too low"
        )
    temperature = fit_temperature(_posteriors(valid), valid.targets)
    errors = tuple(
        expected_calibration_error(posteriors, test.targets)
        for posteriors in (
            _posteriors(test),
            apply_temperature(_posteriors(test), temperature),
        )
    )
    return Calibration(temperature, len(valid.ids), errors)


def _not_calibrated(note):
    logger.warning(f"The confidence is not calibrated: {note}.")
    return Calibration(1.0, note=note)


def _posteriors(stats):
    return torch.stack(stats.posteriors).numpy()
