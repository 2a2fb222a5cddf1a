"""What is in training is not in test: the splits of a table."""

import csv
import itertools
import json
from collections import Counter

import numpy as np
import pytest
import soundfile

from emoq_modules.errors import CorpusError
from tests.corpus_folders import (
    SHARED_DATA,
    load_recipe,
)

recipe = load_recipe("table/table_prepare.py")
emodb = load_recipe("EMODB/emodb_prepare.py")
EMODB = SHARED_DATA / "emodb"


def set_columns(**values):
    """A change of rows: columns are set, with None dropped."""

    def change(row):
        row = row | {k: v.format(**row) for k, v in values.items() if v}
        return {k: v for k, v in row.items() if values.get(k, "") is not None}

    return change


def test_rows_without_a_speaker_among_others_are_told(prepare_calls, caplog):
    def change(row):
        nameless = row["path"].startswith("d0")
        return row | {"speaker": "" if nameless else row["speaker"]}

    prepare_calls(change)
    assert "8 of 48 rows name no speaker" in caplog.text


@pytest.mark.parametrize("folds", [2, 3, 6])
def test_nothing_is_on_two_sides_and_everything_is_tested_once(
    prepare_calls, folds
):
    tested = Counter()
    for fold in range(1, folds + 1):
        splits = prepare_calls(fold=fold, folds=folds)
        tested.update(list(splits["test"]))
        for column in ("speaker", "dialogue"):
            found = [
                {row[column] for row in split.values()}
                for split in splits.values()
            ]
            assert sum(map(len, found)) == len(set.union(*found))
    assert set(tested.values()) == {1} and len(tested) == 48


def test_what_two_share_with_a_third_stays_together(prepare_calls):
    # Speaker "x" is in the dialogues d0 and d1, whose others are with them.
    def change(row):
        if row["dialogue"] in ("d0", "d1") and row["speaker"][0] == "a":
            row["speaker"] = "x"
        return row

    splits = prepare_calls(change, folds=5)
    for split in splits.values():
        found = {row["dialogue"] for row in split.values()}
        assert found.isdisjoint({"d0", "d1"}) or found >= {"d0", "d1"}


def test_too_few_groups_are_named(prepare_calls):
    with pytest.raises(CorpusError, match="7 folds need .* has 6: ") as told:
        prepare_calls(folds=7)
    advice = "take fewer --folds, or have a column not looked at (--columns "
    assert f"{advice}speaker=, --columns dialogue=)." in str(told.value)


def test_one_recording_is_no_corpus(prepare_calls, calls):
    long = np.concatenate([0.1 * np.sin(np.arange(1600))] * 48)
    soundfile.write(calls / "long.wav", long, 16000)

    def change(row):
        place = next(counted) / 10
        return {
            "path": "long.wav",
            "emotion": row["emotion"],
            "start": f"{place:.1f}",
            "end": f"{place + 0.1:.1f}",
        }

    counted = itertools.count()
    with pytest.raises(CorpusError, match="of one recording: cut it into"):
        prepare_calls(change)


@pytest.mark.parametrize(
    ("dialogue", "advice"),
    [
        ("{dialogue}", "give --validate_on dialogues."),
        ("d0", "mark some rows as valid in a column of splits."),
    ],
)
def test_where_nothing_can_validate_it_is_said_what_would(
    prepare_calls, dialogue, advice
):
    def change(row):
        split = "test" if row["speaker"] == "a0" else "train"
        name = "b" + dialogue if split == "train" else "a"
        row = row | {"speaker": split, "split": split, "turn": None}
        return row | {"dialogue": name.format(**row)}

    with pytest.raises(CorpusError, match="one has to train") as told:
        prepare_calls(change)
    assert str(told.value).endswith(advice)


def test_without_speakers_folds_are_drawn_with_a_warning(prepare_calls, caplog):
    splits = prepare_calls(set_columns(speaker=None, dialogue=None, turn=None))
    assert "The table names no speakers" in caplog.text
    counts = Counter(row["emotion"] for row in splits["test"].values())
    assert counts == {"joy": 8, "anger": 8}


@pytest.mark.filterwarnings("error")
def test_a_label_rarer_than_folds_is_split_without_a_warning(prepare_calls):
    def change(row):
        emotion = "awe" if row["path"] == "d0/a0.wav" else row["emotion"]
        return {"path": row["path"], "emotion": emotion}

    splits = prepare_calls(change, min_utterances=1)
    labels = [row["emotion"] for s in splits.values() for row in s.values()]
    assert labels.count("awe") == 1


def test_validation_may_share_speakers(prepare_calls):
    change = set_columns(dialogue=None, turn=None)
    splits = prepare_calls(change, validate_on="dialogues")
    speakers = {
        name: {row["speaker"] for row in split.values()}
        for name, split in splits.items()
    }
    assert speakers["valid"] <= speakers["train"]
    assert speakers["test"].isdisjoint(speakers["train"])


SPLIT = {"d0": "Train", "d1": "training", "d2": "train", "d3": "dev"}


def test_splits_of_the_table_are_kept(prepare_calls, caplog):
    def change(row):
        return row | {"split": SPLIT.get(row["dialogue"], "test")}

    splits = prepare_calls(change)
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 24,
        "valid": 8,
        "test": 16,
    }
    assert "Speakers in several splits" not in caplog.text
    splits = prepare_calls(
        lambda row: change(row) | {"speaker": row["speaker"][0]}
    )
    assert "Speakers in several splits of the table: 2 (a, b)" in caplog.text
    with pytest.raises(CorpusError, match="fold, .* is 2; it must be one of 1"):
        prepare_calls(change, fold=2)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("dialogue", r"a dialogue in several splits, 1 \(d9\)"),
        ("split", r"splits that mean nothing here, 1 \('d9'\): they can be"),
    ],
)
def test_splits_that_leak_or_mean_nothing_are_refused(
    prepare_calls, column, message
):
    def change(row):
        row = row | {"split": SPLIT.get(row["dialogue"], "test")}
        if row["path"] in ("d0/a0.wav", "d5/a1.wav"):
            row[column] = "d9"
        return row

    with pytest.raises(CorpusError, match=message):
        prepare_calls(change)


@pytest.mark.skipif(not EMODB.is_dir(), reason=f"{EMODB} is not at hand")
@pytest.mark.parametrize("fold", [1, 4])
def test_emodb_as_a_table_has_its_own_folds(tmp_path, fold):
    table = tmp_path / "emodb.csv"
    with table.open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "emotion", "text", "speaker", "session"])
        for path in sorted(EMODB.glob("flac/*.flac")):
            speaker, sentence, letter = emodb._NAME.fullmatch(
                path.stem
            ).groups()
            pair = next(p for p in emodb.FOLDS if speaker in p)
            rows.writerow(
                [
                    f"flac/{path.name}",
                    emodb.EMOTIONS[letter],
                    emodb.SENTENCES[sentence],
                    speaker,
                    pair[0],
                ]
            )
    emodb.prepare_emodb(EMODB, tmp_path / "own", fold, valid_speakers=0)
    recipe.prepare_table(
        EMODB,
        tmp_path / "table",
        table,
        emodb.LABELS,
        fold=fold,
        validate_on="dialogues",
    )
    for split in ("train", "valid", "test"):
        own, ours = (
            json.loads((tmp_path / name / f"{split}.json").read_bytes())
            for name in ("own", "table")
        )
        for row in (*own.values(), *ours.values()):
            del row["session"]
        assert list(ours.items()) == list(own.items())
