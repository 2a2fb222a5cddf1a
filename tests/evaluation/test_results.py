"""A run's files, the way back from them, and the summary."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from emoq_modules.errors import ResultsError
from emoq_modules.evaluation.calibration import (
    apply_temperature,
    expected_calibration_error,
    reliability,
)
from emoq_modules.evaluation.metrics import EmotionStats
from emoq_modules.evaluation.plots import (
    plot_confusion,
    plot_reliability,
    plot_training_curves,
)
from emoq_modules.evaluation.results import (
    format_summary,
    pool_results,
    read_predictions,
    write_results,
)

LABELS = ["neutral", "angry", "sadness", "joy", "surprise", "disgust", "fear"]
RUN_INFO = {"corpus": "MELD", "fold": 3, "stage": 2, "seed": 7, "seconds": 1.5}
FILES = {
    "results.json",
    "predictions.csv",
    "confusion_matrix.png",
    "training_curves.png",
}


def random_stats(seed=0, n=60, labels=LABELS):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, len(labels), generator=generator)
    targets = torch.randint(len(labels), (n,), generator=generator)
    logits[range(n), targets] += 1.0
    stats = EmotionStats(labels)
    ids = [f"run{seed}_utt{i}" for i in range(n)]
    places = [
        [f"run{seed}_{name}{i // size}" for i in range(n)]
        for name, size in (("dia", 8), ("speaker", 4), ("session", 16))
    ]
    stats.append(ids, logits.softmax(dim=-1), targets, *places)
    return stats


def history(epochs):
    first = {"lr": 1e-4, "train_loss": 2.0, "valid_loss": 2.5}
    last = {"valid_WA": 90, "valid_UA": 85, "valid_WF1": 88}
    return [
        {"epoch": epoch}
        | {key: value / epoch for key, value in first.items()}
        | {key: value - 50 / epoch for key, value in last.items()}
        for epoch in range(1, epochs + 1)
    ]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_results_json_holds_the_measures_and_what_was_run(tmp_path):
    stats = random_stats()
    run_info = {**RUN_INFO, "preset": ["meld7.yaml"]}
    path = tmp_path / "a" / "b" / "results.json"
    returned = write_results(path.parent, stats, run_info, history(2))
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found == returned
    expected = {**run_info, **stats.summarize(), "labels": LABELS}
    assert {key: found[key] for key in expected} == expected
    packages = "python torch speechbrain transformers peft emoq"
    assert set(found["versions"]) == set(packages.split())
    assert {p.name for p in path.parent.iterdir()} == FILES


def test_validation_is_reported_beside_the_test_set(tmp_path):
    stats, valid = random_stats(0), random_stats(1, n=20)
    found = write_results(tmp_path, stats, RUN_INFO, valid_stats=valid)
    assert found["UA"] == stats.summarize("UA")
    measures = ("WA", "UA", "WF1")
    assert found["valid"] == {key: valid.summarize(key) for key in measures}
    read = read_predictions(tmp_path / "valid_predictions.csv")
    assert (read.ids, read.predictions) == (valid.ids, valid.predictions)
    assert read_predictions(tmp_path).ids == stats.ids


def test_predictions_csv_has_one_row_an_utterance(tmp_path):
    stats = random_stats()
    write_results(tmp_path, stats, RUN_INFO)
    # No training, no curves.
    names = {path.name for path in tmp_path.iterdir()}
    assert names == FILES - {"training_curves.png"}
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = "id label prediction dialogue speaker session corpus".split()
    assert list(rows[0]) == [*columns, *LABELS]
    assert [row["id"] for row in rows] == stats.ids
    assert [row["dialogue"] for row in rows] == stats.dialogues
    assert [row["speaker"] for row in rows] == stats.speakers
    assert [row["session"] for row in rows] == stats.sessions
    for column, classes in (
        ("label", stats.targets),
        ("prediction", stats.predictions),
    ):
        assert [LABELS.index(row[column]) for row in rows] == classes


def test_predictions_are_read_back_bit_for_bit(tmp_path):
    awkward = ['a,b "c"', "zwei\nZeilen", "Ärger_émotion", " spaces "]
    stats = random_stats()
    posteriors = torch.tensor([[1 / 3, 2 / 3], [1, 0], [1e-30, 1], [0.1, 0.9]])
    of_awkward = EmotionStats(["wütend", "$happy$"])
    of_awkward.append(awkward, posteriors, torch.tensor([0, 1, 1, 0]))
    for written in (stats, of_awkward):
        write_results(tmp_path, written, RUN_INFO)
        for path in (tmp_path, tmp_path / "predictions.csv"):
            found = read_predictions(path)
            kept = "labels ids dialogues speakers sessions targets predictions"
            for name in kept.split():
                assert getattr(found, name) == getattr(written, name)
            assert torch.equal(
                torch.stack(found.posteriors), torch.stack(written.posteriors)
            )


@pytest.mark.parametrize(
    ("column", "value", "dialogue"),
    [("", "", "a"), (",dialogue", ",d", "d")],
)
def test_files_of_earlier_versions_are_read(tmp_path, column, value, dialogue):
    path = tmp_path / "predictions.csv"
    path.write_text(
        f"id,label,prediction{column},no,yes\na,no,no{value},0.9,0.1\n"
    )
    found = read_predictions(path)
    # Without a dialogue each utterance is one of its own.
    assert (found.labels, found.dialogues) == (["no", "yes"], [dialogue])
    assert (found.speakers, found.sessions) == ([""], [""])


@pytest.mark.parametrize("labels", [["dialogue", "sad"], ["sad", "dialogue"]])
def test_a_class_may_be_called_dialogue(tmp_path, labels):
    written = random_stats(labels=labels)
    write_results(tmp_path, written, RUN_INFO)
    found = read_predictions(tmp_path)
    assert found.labels == labels
    assert found.dialogues == written.dialogues
    assert found.summarize() == written.summarize()


def test_corpora_that_train_together_have_figures_of_their_own(tmp_path):
    stats = random_stats()
    stats.corpora = [
        "calls" if n % 3 else "plays" for n in range(len(stats.ids))
    ]
    results = write_results(tmp_path, stats, RUN_INFO)
    found = read_predictions(tmp_path)
    assert found.corpora == stats.corpora
    parts = found.by_corpus()
    assert list(results["by_corpus"]) == ["calls", "plays"]
    for name, figures in results["by_corpus"].items():
        assert figures["UA"] == parts[name].summarize("UA")
    assert sum(x["n"] for x in results["by_corpus"].values()) == results["n"]
    rows = format_summary({"stage 2": {tmp_path: found}}).splitlines()
    assert rows[1].startswith("stage 2 ")
    assert rows[2].split()[:2] == [
        "calls",
        f"{results['by_corpus']['calls']['WA']:.1f}",
    ]


def test_pooled_measures_are_those_of_the_joint_set(tmp_path):
    folds = [random_stats(seed, n=20 + 7 * seed) for seed in range(5)]
    for fold, stats in enumerate(folds):
        write_results(tmp_path / str(fold), stats, {**RUN_INFO, "fold": fold})
    found = pool_results([tmp_path / str(fold) for fold in range(5)])

    targets = sum((stats.targets for stats in folds), [])
    predictions = sum((stats.predictions for stats in folds), [])
    assert found.dialogues == sum((stats.dialogues for stats in folds), [])
    assert found.speakers == sum((stats.speakers for stats in folds), [])
    assert found.sessions == sum((stats.sessions for stats in folds), [])
    pooled = found.summarize()
    assert pooled["n"] == len(targets)
    for name, expected in (
        ("WA", accuracy_score(targets, predictions)),
        ("UA", balanced_accuracy_score(targets, predictions)),
        ("WF1", f1_score(targets, predictions, average="weighted")),
    ):
        assert pooled[name] == pytest.approx(100 * expected)
    # What was pooled can be reported as any other run.
    write_results(tmp_path / "all", found, {**RUN_INFO, "fold": "0-4"})
    assert read_predictions(tmp_path / "all").summarize() == pooled


def test_runs_that_share_utterances_or_differ_in_labels_do_not_pool(tmp_path):
    other = LABELS[::-1]
    write_results(tmp_path / "a", random_stats(0), RUN_INFO)
    write_results(tmp_path / "b", random_stats(1, labels=other), RUN_INFO)
    with pytest.raises(
        ResultsError, match="b has the classes .*: only .* the same classes"
    ):
        pool_results([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ResultsError, match="'run0_utt0' is in .*a and in"):
        pool_results([tmp_path / "a", tmp_path / "a" / "predictions.csv"])
    with pytest.raises(ResultsError, match="has this run been evaluated"):
        pool_results([tmp_path / "a", tmp_path / "missing"])
    with pytest.raises(ResultsError, match="no runs to pool"):
        pool_results([])


HEADER = "id,label,prediction,dialogue,no,yes\n"


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "empty": ("", "is not a predictions file"),
        "no rows": (HEADER, "is not a predictions file"),
        "other columns": ("ID,emotion\na,no\n", "is not a predictions file"),
        "cut off": (HEADER + "a,no,no,d,0.9", "row 1 has 5 columns, not 6"),
        "unknown class": (
            HEADER + "a,maybe,no,d,0.9,0.1\n",
            r"row 1 \('a'\) names the class 'maybe'",
        ),
        "a class in the place of the dialogue": (
            "id,label,prediction,dialogue,yes\na,dialogue,dialogue,0.9,0.1\n",
            "names the class 'dialogue'",
        ),
        "not a number": (HEADER + "a,no,no,d,0.9,x\n", "'x'"),
        "not finite": (HEADER + "a,no,no,d,nan,0.1\n", "'a' are not finite"),
        "repeated id": (
            HEADER + "a,no,no,d,1,0\na,no,no,d,1,0\n",
            "'a' measured more than once",
        ),
        "edited": (HEADER + "a,no,yes,d,0.9,0.1\n", "highest posterior"),
        "not text": (b"\xff\xfe\x00", "is not a CSV file"),
    }.values(),
)
def test_a_faulty_predictions_file_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "predictions.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ResultsError, match=message) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)


def test_what_cannot_be_written_leaves_earlier_results(tmp_path):
    write_results(tmp_path, random_stats(0), RUN_INFO, history(3))
    before = contents(tmp_path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_results(
            tmp_path, random_stats(1), {**RUN_INFO, "seed": torch.tensor(1)}
        )
    with pytest.raises(ValueError, match="run_info lacks fold, seconds"):
        incomplete = {"corpus": "MELD", "stage": 1, "seed": 1}
        write_results(tmp_path, random_stats(1), incomplete)
    with pytest.raises(ValueError, match="no utterances"):
        write_results(tmp_path, EmotionStats(LABELS), RUN_INFO)
    assert contents(tmp_path) == before


def test_a_full_disk_leaves_earlier_results(tmp_path, monkeypatch):
    write_results(tmp_path, random_stats(0), RUN_INFO, history(3))
    before = contents(tmp_path)
    write_bytes = Path.write_bytes

    def fill_up(path, data):
        write_bytes(path, data[: len(data) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_up)
    with pytest.raises(OSError, match="No space left"):
        write_results(tmp_path, random_stats(1), RUN_INFO, history(3))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("epochs", [1, 30])
def test_plots_are_pictures(tmp_path, epochs):
    write_results(tmp_path, random_stats(), RUN_INFO, history(epochs), 1)
    for name in ("confusion_matrix.png", "training_curves.png"):
        pixels = imread(tmp_path / name)
        height, width, _ = pixels.shape
        assert 500 < height < 2000 and 500 < width < 2000
        assert len(np.unique(pixels[..., 0])) > 9  # shades of red


def overlap(texts, renderer):
    boxes = [text.get_window_extent(renderer) for text in texts]
    return any(
        a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]
    )


@pytest.mark.parametrize(
    "labels", [LABELS, ["no", "yes"], [f"a long emotion {i}" for i in range(7)]]
)
def test_confusion_matrix_names_everything_without_overlap(labels):
    stats = random_stats(labels=labels, n=2000)
    figure = plot_confusion(stats, "MELD, fold 3, stage 2")
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    axes = figure.axes[0]
    columns, rows = axes.get_xticklabels(), axes.get_yticklabels()
    assert [text.get_text() for text in columns] == labels
    assert all(label in rows[i].get_text() for i, label in enumerate(labels))
    assert "MELD, fold 3, stage 2" in axes.get_title()
    assert f"UA {stats.summarize('UA'):.1f} %" in axes.get_title()

    cells = list(axes.texts)
    counts = np.array(stats.summarize("confusion"))
    percent = 100 * counts / counts.sum(axis=1, keepdims=True)
    assert [text.get_text() for text in cells] == [
        f"{share:.0f} %\n{count}"
        for share, count in zip(percent.flat, counts.flat, strict=True)
    ]
    assert not overlap(cells, renderer) and not overlap(rows, renderer)
    if max(map(len, labels)) < 10:  # longer names stand at a slant
        assert not overlap(columns, renderer)


def test_class_without_utterances_has_no_percentages():
    stats = EmotionStats(["no", "never"])
    stats.append(["a"], torch.eye(2)[:1], torch.tensor([0]))
    cells = plot_confusion(stats, "toy").axes[0].texts
    texts = [text.get_text() for text in cells]
    assert texts == ["100 %\n1", "0 %\n0", "–", "–"]


def test_curves_show_every_value_and_mark_the_best_epoch():
    figure = plot_training_curves(history(5), 4, "MELD, stage 2")
    losses, measures, rate = figure.axes
    drawn = {
        line.get_label(): line for axes in figure.axes for line in axes.lines
    }
    assert list(drawn["training"].get_xdata()) == [1, 2, 3, 4, 5]
    assert drawn["UA"].get_ydata()[-1] == 75.0
    assert drawn["learning rate"].get_ydata()[0] == 1e-4
    assert {"training", "validation", "WA", "WF1"} < set(drawn)
    assert list(drawn["best epoch (4)"].get_xdata()) == [4, 4]


def test_reliability_is_drawn_before_and_after_scaling():
    stats = random_stats(n=400)
    scaled = apply_temperature(stats.posteriors, 2.5)
    systems = {"T = 1": stats.posteriors, "T = 2.50": scaled}
    figure = plot_reliability(systems, stats.targets, "MELD")
    diagram, spread = figure.axes
    lines = diagram.lines[1:]
    for line, (name, posteriors) in zip(lines, systems.items(), strict=True):
        expected = reliability(posteriors, stats.targets)
        filled = expected.count > 0
        assert (line.get_xdata() == expected.confidence[filled]).all()
        assert (line.get_ydata() == expected.accuracy[filled]).all()
        error = expected_calibration_error(posteriors, stats.targets)
        assert line.get_label() == f"{name}, ECE {error:.3f}"
        drawn = [patch.get_data().values for patch in spread.patches]
        share = 100 * expected.count / 400
        assert any(np.array_equal(values, share) for values in drawn)
    assert diagram.get_title() == "MELD"


def test_the_summary_names_every_run_and_confuses_the_last():
    stats = EmotionStats(["no", "yes"])
    posteriors = torch.eye(2)[[0, 0, 1, 1]]
    stats.append(list("abcd"), posteriors, torch.tensor([0, 0, 0, 1]))
    first = random_stats(n=1, labels=["no", "yes"])
    runs = {"stage 1": {"a": first}, "all": {"b": stats}}
    lines = format_summary(runs, [Path("results/index.html")]).splitlines()
    assert lines[0] == "             WA      UA     WF1       n"
    assert lines[1].startswith("stage 1 ") and lines[1].endswith("       1")
    assert lines[2:] == [
        "all        75.0    83.3    76.7       4",
        "",
        "Confusion of all (rows: reference, columns: recognized)",
        "        no    yes  recall",
        " no      2      1    66.7",
        "yes      0      1   100.0",
        "",
        "Pages",
        "  results/index.html",
    ]


def test_the_summary_has_folds_together_and_their_mean_and_deviation():
    # By hand: 3 of 4 and 1 of 2 are recognized, 4 of 6 together; the mean of 75
    # and 50 is 62.5, each 12.5 away: the root of 2 x 12.5 x 12.5 is 17.7.
    folds = {}
    for fold, predictions, targets in (
        ("a", [0, 0, 1, 1], [0, 0, 0, 1]),
        ("b", [0, 1], [0, 0]),
    ):
        folds[fold] = EmotionStats(["no", "yes"])
        ids = [f"{fold}{i}" for i in range(len(targets))]
        posteriors = torch.eye(2)[predictions]
        folds[fold].append(ids, posteriors, torch.tensor(targets))
    lines = format_summary({"stage 2": folds}).splitlines()
    assert lines[0].split() == ["WA", "UA", "WF1", "n"]
    # Recalls of 3 of 5 and 1 of 1 are 80 on the whole; 83.3 and 50 by fold.
    # F1 of "no" is 6/8 together, and of "yes" 1/2: (5 * 75 + 50) / 6.
    pooled = "stage 2, pooled 66.7 80.0 70.8 6"
    assert lines[1].split() == pooled.split()
    start = "stage 2, mean of 2 folds 62.5 ± 17.7 66.7 ± 23.6"
    assert " ".join(lines[2].split()).startswith(start)
    assert lines[4].startswith("Confusion of stage 2 ")
    assert lines[6].split() == ["no", "3", "2", "60.0"]


def test_ties_are_told_in_the_results_and_the_summary(tmp_path):
    stats = EmotionStats(["no", "yes"])
    posteriors = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    stats.append(["a", "b"], posteriors, torch.tensor([0, 0]))
    assert write_results(tmp_path, stats, RUN_INFO)["ties"] == 1
    assert "ties" not in write_results(tmp_path, random_stats(), RUN_INFO)
    _, row, *_ = format_summary({"stage 2": {"a": stats}}).splitlines()
    assert row == "stage 2   100.0   100.0   100.0       2  (ties: 1)"
