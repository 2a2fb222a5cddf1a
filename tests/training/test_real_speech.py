"""Real speech, from training to the predictions of an export (EMO-DB)."""

import csv
import json

import numpy as np
import torch
from ruamel.yaml import YAML

import train
from emoq_modules.commands.cli import main
from emoq_modules.evaluation.results import read_predictions
from emoq_modules.inference.export import export_recognizer

FOLD = "emodb4/emoq/fold1-seed1234/stage2"


def test_an_export_predicts_what_the_training_run_measured(
    shared_data, tmp_path, capsys
):
    data, results = shared_data / "emodb", tmp_path / "results"
    train.main(
        [
            *("hparams/emoq_stage2.yaml", "--number_of_epochs", "1"),
            *("--preset", "hparams/presets/offline.yaml"),
            *("--preset", "recipes/EMODB/emodb4.yaml"),
            *("--data_folder", str(data), "--results_folder", str(results)),
        ]
    )
    export = export_recognizer(results / FOLD, tmp_path / "export")
    manifest = results / "emodb4/manifests/fold1/test.json"
    rows = json.loads(manifest.read_text(encoding="utf-8"))
    words = tmp_path / "words.csv"
    with words.open("w", newline="", encoding="utf-8") as file:
        lines = [[name, row["text"]] for name, row in rows.items()]
        csv.writer(file).writerows([["id", "text"], *lines])
    capsys.readouterr()

    arguments = ["predict", "--model", str(export), "--format", "jsonl"]
    arguments += ["--transcripts", str(words)]
    assert main([*arguments, *(f"{data}/flac/{id}.flac" for id in rows)]) == 0

    printed = capsys.readouterr().out.splitlines()
    printed = [json.loads(line) for line in printed if line.startswith("{")]
    measured = read_predictions(results / FOLD)
    assert measured.ids == list(rows) and len(rows) == 81
    settings = (export / "hyperparams.yaml").read_text(encoding="utf-8")
    fitted = YAML().load(settings)["temperature"]["transcript"]
    found = torch.tensor(
        [[row["posteriors"][key] for key in measured.labels] for row in printed]
    )
    given = torch.stack(measured.posteriors).to(found)
    # Otherwise those of another utterance would do too.
    assert np.ptp(given[:, 0]) > 0.01
    expected = (given.log() / fitted).softmax(dim=1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
