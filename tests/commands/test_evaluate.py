"""``emoq evaluate`` measures what training and the tables' reports measure."""

import csv
import json
from pathlib import Path

import pytest
import torch

from emoq_modules.commands.cli import main
from emoq_modules.commands.reproduce_results import Row
from emoq_modules.evaluation.metrics import MEASURES
from emoq_modules.evaluation.results import read_predictions, write_results
from tests.corpus_folders import wav_bytes, write


@pytest.fixture
def evaluate(tiny_results, recognizer_folder, tmp_path, capsys):
    """Evaluates the tiny run's test set, its rows changed if asked for."""

    def evaluate(change=dict, *options):
        path = tiny_results / "tiny/manifests/fold1/test.json"
        rows = []
        for row in json.loads(path.read_bytes()).values():
            row["path"] = row.pop("wav").removeprefix("{data_root}/")
            rows.append(change(row))
        table = tmp_path / "test set.csv"
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        status = main(
            [
                *("evaluate", "--model", recognizer_folder),
                *("--table", str(table), "--out", str(tmp_path / "out")),
                *("--data_folder", str(tiny_results / "data"), *options),
            ]
        )
        return status, *capsys.readouterr()

    return evaluate


def test_the_numbers_are_those_of_the_run_and_of_a_report(
    evaluate, tiny_results, tmp_path
):
    status, output, _ = evaluate()
    assert status == 0
    run = tiny_results / "tiny/emoq/fold1-seed1234/stage2"
    theirs, ours = read_predictions(run), read_predictions(tmp_path / "out")
    for name in ("ids", "targets", "dialogues", "speakers", "sessions"):
        assert getattr(ours, name) == getattr(theirs, name)
    torch.testing.assert_close(
        torch.stack(ours.posteriors), torch.stack(theirs.posteriors)
    )
    trained, evaluated = (
        json.loads((folder / "results.json").read_bytes())
        for folder in (run, tmp_path / "out")
    )
    row = Row("EmoQ", "here", {}, [], "", {1: [theirs]}, {1: theirs})
    shown = next(line for line in output.splitlines() if "test set" in line)
    for place, name in enumerate(MEASURES, start=-4):
        assert evaluated[name] == trained[name] == row.measured(name).pooled
        assert shown.split()[place] == f"{evaluated[name]:.1f}"
    assert evaluated["confusion"] == trained["confusion"]


@pytest.fixture
def evaluate_corpus(tiny_results, recognizer_folder, tmp_path, capsys):
    """Evaluates the tiny run on its own corpus, by its preset."""

    def evaluate(*options):
        words = ["--results_folder", str(tiny_results)]
        words *= "--preset" in options
        out = str(tmp_path / "out")
        status = main(
            [
                *("evaluate", "--model", recognizer_folder, "--out", out),
                *(*options, *words),
            ]
        )
        return status, *capsys.readouterr()

    return evaluate


def test_a_corpus_has_the_numbers_of_its_run(
    evaluate_corpus, tiny_results, tmp_path
):
    status, output, _ = evaluate_corpus("--preset", "tests/tiny.yaml")
    assert status == 0 and "tiny" in output
    run = tiny_results / "tiny/emoq/fold1-seed1234/stage2"
    theirs, ours = read_predictions(run), read_predictions(tmp_path / "out")
    assert ours.ids == theirs.ids
    assert ours.summarize() == theirs.summarize()
    evaluate_corpus("--preset", "tests/tiny.yaml", "--split", "valid")
    valid = read_predictions(run / "valid_predictions.csv")
    assert read_predictions(tmp_path / "out").ids == valid.ids


def test_a_model_is_not_measured_on_what_it_has_trained_on(evaluate_corpus):
    status, _, messages = evaluate_corpus(
        *("--preset", "tests/tiny.yaml", "--folds", "[1, 2]"),
    )
    assert status == 2 and "has trained on what other folds" in messages
    assert "give --fold 1" in messages
    for words in (["--split", "train"], ["--corpus", "x", "--split", "train"]):
        status, _, messages = evaluate_corpus(
            "--preset", "tests/tiny.yaml", *words
        )
        assert status == 2
        assert "has trained on 21 of the 21 recordings of" in messages


def test_a_corpus_may_have_words_of_its_own(evaluate_corpus, tmp_path):
    labels = ["--labels", "[angry, happy, sad]"]
    status, _, messages = evaluate_corpus(
        *("--preset", "tests/tiny.yaml", *labels),
        *("--label_map", "happy=sad"),
    )
    assert status == 0 and "tiny has no happy" in messages
    found = read_predictions(tmp_path / "out")
    assert found.labels == ["angry", "sad"] and len(found.ids) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "is a --table, or the corpus of a --preset"),
        (["--preset", "p.yaml", "--table", "t.csv"], "give one of the two"),
        (["--preset", "p.yaml", "--columns", "path=x"], "is for --table"),
        (["--preset", "tests/tiny.yaml", "--split", "all"], "--split all is"),
        (["--preset", "tests/tiny.yaml", "--label_map", "x=sad"], "names x"),
        (["--table", "t.csv", "--lr", "1"], "evaluate knows no --lr 1"),
    ],
)
def test_a_corpus_that_cannot_be_meant_is_refused(
    evaluate_corpus, options, message
):
    status, _, messages = evaluate_corpus(*options)
    assert status == 2 and message in messages


def test_equal_predictions_give_equal_numbers(evaluate, tmp_path):
    # Not those of a system that is always right, as that above may be.
    evaluate()
    stats = read_predictions(tmp_path / "out")
    stats.targets[:4] = [(target + 1) % 3 for target in stats.targets[:4]]
    info = dict.fromkeys(("corpus", "fold", "stage", "seed", "seconds"), 1)
    written = write_results(tmp_path / "again", stats, info)
    again = read_predictions(tmp_path / "again")
    row = Row("EmoQ", "here", {}, [], "", {1: [again]}, {1: again})
    for name in MEASURES:
        assert 0 < written[name] < 100
        assert row.measured(name).pooled == written[name]


def test_classes_that_one_side_lacks_are_named_and_left_out(evaluate, tmp_path):
    words = {"happy": "joy", "sad": "bored"}

    def change(row):
        return row | {"emotion": words.get(row["emotion"], row["emotion"])}

    status, output, messages = evaluate(change, "--label_map", "joy=happy")
    assert status == 0
    assert "The model has no word for bored (3): left out." in messages
    assert "test set.csv has no sad" in messages
    stats = read_predictions(tmp_path / "out")
    assert stats.labels == ["angry", "happy"] and len(stats.ids) == 6
    sums = torch.stack(stats.posteriors).sum(dim=1)
    torch.testing.assert_close(sums, torch.ones(6))
    status, _, messages = evaluate(change)
    assert status == 2 and "fewer than two are the same" in messages


def test_rows_without_an_emotion_are_told(evaluate, tiny_results):
    def change(row):
        known = row["emotion"] != "happy"
        return row | {"emotion": row["emotion"] if known else ""}

    status, output, _ = evaluate(change)
    assert status == 0 and "left out, without an emotion: 3" in output


@pytest.mark.parametrize("name", ["results.json", "index.html"])
def test_no_file_of_a_persons_own_is_written_over(evaluate, tmp_path, name):
    write(tmp_path / "out" / name, "{}")
    status, _, messages = evaluate()
    assert status == 2 and f"holds {name}, which no evaluation" in messages
    assert (tmp_path / "out" / name).read_text() == "{}"


def test_parts_of_recordings_are_recognized_as_the_whole_is(
    evaluate, tiny_results, tmp_path
):
    evaluate()
    whole = read_predictions(tmp_path / "out")
    evaluate(lambda row: row | {"start": "0", "end": str(row["duration"])})
    parts = read_predictions(tmp_path / "out")
    torch.testing.assert_close(
        torch.stack(parts.posteriors), torch.stack(whole.posteriors)
    )


def test_what_cannot_be_recognized_is_named(evaluate, tiny_results, tmp_path):
    name = "too short.wav"
    (tiny_results / "data" / name).write_bytes(wav_bytes(0.01))

    def change(row):
        return row | {"path": name} if row["path"] == "test00.wav" else row

    status, output, messages = evaluate(change)
    assert status == 1
    assert "not recognized: too short: " in messages
    assert len(read_predictions(tmp_path / "out").ids) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label_map", "happy=hapy"], "names hapy, which is no word of the"),
        (["--batch_size", "0"], "batch_size is 0"),
        (["--data_folder", "/no"], "There is no folder /no"),
    ],
)
def test_what_cannot_be_meant_is_refused(evaluate, options, message):
    status, _, messages = evaluate(dict, *options)
    assert status == 2 and message in messages
    assert "Traceback" not in messages


def test_missing_words_and_unreadable_sound_are_told(evaluate, tiny_results):
    name = "broken.wav"
    (tiny_results / "data" / name).write_text("no sound")

    def change(row):
        row = row | {"text": ""}
        return row | {"path": name} if row["path"] == "test00.wav" else row

    status, _, messages = evaluate(change)
    assert status == 1 and "not recognized: broken" in messages
    assert "8 of 8 recordings have no text: --asr MODEL" in messages


def test_one_split_of_a_table(evaluate, tmp_path):
    def change(row):
        return row | {"split": "dev" if row["turn"] < 4 else "test"}

    evaluate(change, "--split", "Test")
    assert len(read_predictions(tmp_path / "out").ids) == 5
    evaluate(change, "--split", "Validation")  # which it calls dev
    assert len(read_predictions(tmp_path / "out").ids) == 4
    status, _, messages = evaluate(change, "--split", "tests")
    assert status == 2 and "its splits are 'dev', 'test'" in messages


def test_tables_with_words_of_their_own_are_measured_together_and_apart(
    evaluate, tmp_path
):
    evaluate()
    other = tmp_path / "other.csv"
    text = (tmp_path / "test set.csv").read_text()
    other.write_text(
        text.replace(",happy,", ",joy,").replace("test0", "./test0")
    )
    options = "--table", str(other), "--label_map", "joy=happy"
    status, output, _ = evaluate(dict, *options)
    assert status == 0
    first, second = (
        read_predictions(tmp_path / f"out/1-{name}")
        for name in ("test set", "other")
    )
    assert first.summarize() == second.summarize()
    both = f"{tmp_path / 'test set.csv'},{other}"
    status, output, messages = evaluate(
        dict, *("--label_map", "joy=happy", "--table", both)
    )
    # The same recordings twice are not two sets of recordings.
    assert status == 2 and ", too" in messages


def test_nothing_is_measured_before_all_is_known_to_be_there(
    evaluate, recognizer_folder, tmp_path
):
    run = Path(recognizer_folder).parent
    before = (run / "results.json").read_bytes()
    for options, message in (
        (["--table", "missing.csv"], "missing.csv cannot be read"),
        (["--model", "no model"], "no model"),
        (["--label_map", "joi=happy"], "names joi, which is no label of"),
        (["--out", str(run)], "is the folder of a run"),
    ):
        status, _, messages = evaluate(dict, *options)
        assert status == 2 and message in messages
    assert not (tmp_path / "out").exists()
    assert (run / "results.json").read_bytes() == before


def test_it_draws_and_tells_how_sure_it_is(evaluate, tmp_path):
    _, output, _ = evaluate()
    assert str(tmp_path / "out/index.html") in output
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("<img ") == 2
    assert "Calibration error: 0." in output
    # All of the nine are of one dialogue and one speaker.
    assert "There are no intervals of 1 dialogue." in output
    _, output, _ = evaluate(
        lambda row: row | {"dialogue": f"d{row['turn'] % 3}"}
    )
    assert "95 % intervals (bootstrap of 3 dialogues)" in output


def test_several_models_and_tables_make_a_matrix(
    evaluate, recognizer_folder, tiny_results, tmp_path
):
    evaluate()
    first = tmp_path / "test set.csv"
    header, *rows = first.read_text().splitlines()
    other = tmp_path / "few.csv"
    other.write_text("\n".join([header, *rows[:4]]))
    options = ["--table", str(other), "--model", recognizer_folder]
    status, output, _ = evaluate(dict, *options)
    assert status == 0
    *_, matrix, _ = output.split("\n\n")
    name, *lines = matrix.splitlines()
    assert name.split() == ["UA", "test", "set", "few"]
    values = [
        json.loads((tmp_path / "out" / x / "results.json").read_bytes())["UA"]
        for x in ("1-test set", "1-few", "2-test set", "2-few")
    ]
    shown = [float(x) for line in lines for x in line.split()[-2:]]
    assert shown == pytest.approx(values, abs=0.05)
    assert (tmp_path / "out/matrix.png").read_bytes().startswith(b"\x89PNG")
