"""Hyperparameters are chosen by what they do on validation utterances."""

from pathlib import Path

import pytest

from benchmarks import choose
from emoq_modules.errors import ConfigurationError
from emoq_modules.evaluation.results import read_predictions

LITTLE, MUCH = "{lr: 0.0, number_of_epochs: 1}", "{number_of_epochs: 2}"


def test_the_best_on_validation_is_named_and_what_is_done_is_kept(
    tmp_path, capsys
):
    def chosen(*options):
        choose.main(
            [
                *("hparams/emoq_stage1.yaml", "--preset", "tests/tiny.yaml"),
                *("--results_folder", str(tmp_path)),
                *("--setting", LITTLE, "--setting", MUCH, *options),
            ]
        )
        printed = capsys.readouterr().out
        return [line for line in printed.splitlines() if "UA" in line]

    *scores, best = chosen()
    found = {}
    for line, setting in zip(scores, (LITTLE, MUCH), strict=True):
        folder = next(tmp_path.glob(f"tiny/{choose.variant(setting)}/*/stage1"))
        valid = read_predictions(folder / "valid_predictions.csv")
        found[setting] = valid.summarize("UA")
        assert line.startswith(f"{setting}: WA")
        assert f"UA {found[setting]:.1f}, " in line
        # What it has on the test set is not looked at.
        Path(folder / "predictions.csv").unlink()
    assert best == f"best by UA: {max(found, key=found.get)}"
    assert chosen() == [*scores, best]
    with pytest.raises(ConfigurationError, match="other settings: gamma"):
        chosen("--gamma", "1.0")
