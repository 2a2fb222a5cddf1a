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
        captured = capsys.readouterr()
        assert "test UA" not in captured.out + captured.err
        return [
            line
            for line in captured.out.splitlines()
            if line.startswith((LITTLE, MUCH, "best"))
        ]

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
    *means, _ = chosen("--seed", "1234,1235")
    for line, setting in zip(means, (LITTLE, MUCH), strict=True):
        other = next(tmp_path.glob(f"tiny/{choose.variant(setting)}/*1235"))
        valid = read_predictions(other / "stage1/valid_predictions.csv")
        mean = (found[setting] + valid.summarize("UA")) / 2
        assert f"UA {mean:.1f}, " in line
    with pytest.raises(ConfigurationError, match="other settings: gamma"):
        chosen("--gamma", "1.0")
