"""Whatever shows a run's metrics shows those of scikit-learn.

They are computed here from ``predictions.csv`` as it lies on the disk.
"""

import csv
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    recall_score,
)

from emoq_modules.commands.reproduce_report import format_rows
from emoq_modules.commands.reproduce_results import read_rows
from emoq_modules.evaluation.metrics import EmotionStats
from emoq_modules.evaluation.results import write_results
from emoq_modules.training import experiment
from emoq_modules.training.configuration import StageRun
from tests.commands.test_reproduce_report import (
    LABELS,
    TABLE,
    WHOLE,
    make_run,
    report,
    row_of,
    tables,
)

MEASURES = ["WA", "UA", "WF1"]


def by_scikit_learn(pairs):
    """All metrics of rows of label and prediction, in percent and counts."""
    labels, predictions = zip(*pairs, strict=True)
    present = sorted(set(labels))
    recalls = recall_score(labels, predictions, labels=present, average=None)
    f1 = f1_score(labels, predictions, average="weighted", zero_division=0)
    return {
        "WA": 100 * accuracy_score(labels, predictions),
        "UA": 100 * balanced_accuracy_score(labels, predictions),
        "WF1": 100 * f1,
        "recall": dict(zip(present, 100 * recalls, strict=True)),
        "confusion": confusion_matrix(
            labels, predictions, labels=LABELS
        ).tolist(),
    }


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Three folds of a system, the last without a class; their metrics."""
    results = tmp_path_factory.mktemp("metrics")
    runs, pairs = [], []
    for fold, classes in ((1, 3), (2, 3), (3, 2)):
        run = make_run(results, WHOLE, fold, 7)
        rng = np.random.default_rng(fold)
        targets = rng.integers(classes, size=20 + 9 * fold)
        logits = rng.standard_normal((len(targets), 3))
        logits[np.arange(len(targets)), targets] += 1
        stats = EmotionStats(LABELS)
        stats.append(
            [f"{fold}-{i}" for i in range(len(targets))],
            torch.from_numpy(logits).softmax(dim=1),
            torch.from_numpy(targets),
        )
        info = dict(run.stages[-1].hparams, fold=fold, seed=7, seconds=1.0)
        write_results(run.folder, stats, info)
        with (run.folder / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        pairs.append([(row["label"], row["prediction"]) for row in rows])
        runs.append(run)
    assert "sad" not in dict(pairs[-1])
    return runs, [*map(by_scikit_learn, pairs)], by_scikit_learn(sum(pairs, []))


def expected_texts(measured):
    """Of each measure what is shown of the folds together, and their mean."""
    _, folds, pooled = measured
    texts = {}
    for name in MEASURES:
        values = [fold[name] for fold in folds]
        mean, deviation = np.mean(values), np.std(values, ddof=1)
        texts[name] = f"{pooled[name]:.1f}", f"{mean:.1f} ± {deviation:.1f}"
    return texts


def test_results_json_has_scikit_learns(measured):
    runs, folds, _ = measured
    for run, expected in zip(runs, folds, strict=True):
        found = json.loads((run.folder / "results.json").read_text())
        for name in MEASURES:
            assert found[name] == pytest.approx(expected[name])
        assert found["confusion"] == expected["confusion"]
        recalls = {k: v for k, v in found["recall"].items() if v is not None}
        assert recalls == pytest.approx(expected["recall"])


def test_train_prints_scikit_learns(measured, monkeypatch):
    runs, _, pooled = measured
    monkeypatch.setattr(experiment, "run_stage", lambda *arguments: None)
    stages = [run.stages[-1].hparams | {"fusion_weights": None} for run in runs]
    text = experiment.run_folds([StageRun(json.dumps(s)) for s in stages])
    lines = [" ".join(line.split()) for line in text.splitlines()]
    together, means = zip(*expected_texts(measured).values(), strict=True)
    count = np.sum(pooled["confusion"])
    assert lines[1] == f"stage 2, pooled {' '.join(together)} {count}"
    assert lines[2] == f"stage 2, mean of 3 folds {' '.join(means)}"
    for line, label, counts in zip(
        lines[6:9], LABELS, pooled["confusion"], strict=True
    ):
        counts = " ".join(map(str, counts))
        assert line == f"{label} {counts} {pooled['recall'][label]:.1f}"


def test_reproduce_and_its_report_have_scikit_learns(measured, tmp_path):
    runs, _, pooled = measured
    rows = [TABLE["rows"][-1] | {"WF1": 60.0}]
    table = {**TABLE, "measures": MEASURES, "rows": rows}
    markdown, _ = report(table, runs, tmp_path)
    found, texts = tables(markdown), expected_texts(measured)
    together, means = zip(*texts.values(), strict=True)
    line = format_rows(table, read_rows(table, runs)).splitlines()[-1]
    shown = f"{WHOLE} 60.0 61.0 60.0 {' '.join([*means, *together])} 3"
    assert " ".join(line.split()) == shown
    overview = row_of(found["The table"], WHOLE)
    for name, (of_all, of_folds) in texts.items():
        assert overview[f"{name}, pooled"] == of_all
        assert overview[f"{name}, mean of folds"] == of_folds
        detail = row_of(found[name], WHOLE)
        assert detail["pooled"] == of_all
        spread = f"{detail['mean of folds']} ± {detail['s.d. of folds']}"
        assert spread == of_folds
    for label, recall in pooled["recall"].items():
        of_class = row_of(found["Recall of each class"], label)
        assert of_class[WHOLE] == f"{recall:.1f}"
