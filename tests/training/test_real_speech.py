"""Real speech, from training to the predictions of an export (EMO-DB)."""

import csv
import json

import numpy as np
import pytest

import train
from emoq_modules.commands.cli import main
from emoq_modules.evaluation.results import read_predictions
from emoq_modules.inference.export import export_recognizer

FOLD = "emodb4/emoq/fold1-seed1234/stage2"


@pytest.fixture(scope="module")
def results(shared_data, tmp_path_factory):
    """The results folder of both stages, an epoch each, on four classes."""
    results = tmp_path_factory.mktemp("results")
    train.main(
        [
            *("hparams/emoq_stage2.yaml", "--number_of_epochs", "1"),
            *("--preset", "hparams/presets/offline.yaml"),
            *("--preset", "recipes/EMODB/emodb4.yaml"),
            *("--data_folder", str(shared_data / "emodb")),
            *("--results_folder", str(results)),
        ]
    )
    return results


def test_an_export_predicts_what_the_training_run_measured(
    results, shared_data, tmp_path, capsys
):
    export = export_recognizer(results / FOLD, tmp_path / "export")
    manifest = results / "emodb4/manifests/fold1/test.json"
    rows = json.loads(manifest.read_text(encoding="utf-8"))
    flac = shared_data / "emodb" / "flac"
    words = tmp_path / "words.csv"
    with words.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows([name, row["text"]] for name, row in rows.items())
    capsys.readouterr()

    arguments = ["predict", "--model", str(export), "--format", "jsonl"]
    arguments += ["--transcripts", str(words)]
    assert main([*arguments, *(str(flac / f"{id}.flac") for id in rows)]) == 0

    lines = capsys.readouterr().out.splitlines()
    found = [json.loads(line)["posteriors"] for line in lines]
    measured = read_predictions(results / FOLD)
    expected = {
        name: dict(zip(measured.labels, posteriors.tolist(), strict=True))
        for name, posteriors in zip(
            measured.ids, measured.posteriors, strict=True
        )
    }
    assert len(expected) == 81
    # Otherwise those of another utterance would do too.
    assert np.ptp([row["angry"] for row in expected.values()]) > 0.01
    for name, posteriors in zip(rows, found, strict=True):
        assert posteriors == pytest.approx(expected[name], abs=1e-4)
