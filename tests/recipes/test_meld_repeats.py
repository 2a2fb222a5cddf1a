"""Utterances of MELD that two of its splits have, of the CSV files alone."""

import logging

import pytest

from emoq_modules.errors import CorpusError
from emoq_modules.training.configuration import plan_runs
from recipes.MELD.annotations import (
    annotated_times,
    find_episode,
    read_annotations,
)
from tests.corpus_folders import (
    SHARED_DATA,
    all_rows,
    load_recipe,
    read_splits,
    snapshot,
    write,
)

prepare = load_recipe("MELD/meld_prepare.py").prepare_meld
MELD = SHARED_DATA / "MELD"
HEADER = (
    "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID,Season,Episode,"
    "StartTime,EndTime\n"
)
TABLES = {
    "train": [
        '"It’s not serious!",Joey,neutral,0,0,5,3,"00:01:00,5","00:01:02,0"',
        'Hm.,Joey,joy,0,1,5,3,"00:02:00,0","00:02:04,0"',
        '"No way! Okay.",Joey,joy,0,2,5,3,"00:03:00,0","00:03:04,0"',
        'Bye.,Joey,fear,0,3,5,3,"00:04:00,0","00:04:04,0"',
    ],
    "dev": [
        # The words of the training row at another time, and in another episode.
        'Hm.,Ross,joy,0,0,5,3,"00:02:04,0","00:02:08,0"',
        'Hm.,Ross,joy,0,1,6,3,"00:02:00,0","00:02:04,0"',
        # The time of a training row, and another word.
        'Goodbye.,Ross,joy,0,2,5,3,"00:04:00,0","00:04:04,0"',
        'Twice.,Ross,anger,0,3,7,3,"00:05:00,0","00:05:04,0"',
    ],
    "test": [
        # The very same, an apostrophe and a mark aside.
        'it\'s not serious,Joey,fear,0,0,5,3,"00:01:00,5","00:01:02,0"',
        # A training row cut in two.
        'No way!,Ross,joy,0,1,5,3,"00:03:00,0","00:03:01,0"',
        'Okay.,Joey,joy,0,2,5,3,"00:03:01,1","00:03:04,0"',
        'Twice!,Ross,anger,0,3,7,3,"00:05:00,0","00:05:04,0"',
    ],
}
FOUND = (
    "the same sound in two splits: 4 (train/dia0_utt0 in test/dia0_utt0, "
    "train/dia0_utt2 in test/dia0_utt1, train/dia0_utt2 in test/dia0_utt2, "
    "dev/dia0_utt3 in test/dia0_utt3)\n"
)


@pytest.fixture
def raw(tmp_path):
    """MELD.Raw without clips."""
    for split, rows in TABLES.items():
        table = HEADER + "\n".join(rows) + "\n"
        write(tmp_path / f"raw/{split}_sent_emo.csv", table)
    return tmp_path / "raw"


def names(save_folder):
    """Split -> its utterances' ids."""
    return {split: {*rows} for split, rows in read_splits(save_folder).items()}


def test_what_two_splits_have_is_named_in_a_line_and_kept(
    raw, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    prepare(raw, tmp_path / "save", without_clips=True)
    assert FOUND in caplog.text
    assert len(all_rows(tmp_path / "save")) == 12


def test_without_repeats_the_later_split_alone_has_them(raw, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    whole, save = tmp_path / "whole", tmp_path / "save"
    prepare(raw, whole, without_clips=True)
    prepare(raw, save, without_clips=True, without_repeats=True)
    left, everything = names(save), names(whole)
    assert left["test"] == everything["test"]
    assert everything["valid"] - left["valid"] == {"dev_dia0_utt3"}
    gone = {"train_dia0_utt0", "train_dia0_utt2"}
    assert everything["train"] - left["train"] == gone
    assert "left out, its sound is in a later split: 3 (" in caplog.text
    # The turns were said all the same.
    dialogues = [f / "dialogues.json" for f in (whole, save)]
    assert dialogues[0].read_bytes() == dialogues[1].read_bytes()


def test_what_is_of_no_wanted_class_repeats_nothing(raw, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    labels = ["neutral", "joy", "angry"]
    prepare(raw, tmp_path / "save", without_clips=True, labels=labels)
    assert "the same sound in two splits: 3 (train/dia0_utt2 in" in caplog.text


def test_the_preset_leaves_them_out_and_has_folders_of_its_own(raw, tmp_path):
    preset = "recipes/MELD/meld7_without_repeats.yaml"
    options = (
        f"data_folder: {raw}\nresults_folder: {tmp_path}\nwithout_clips: True\n"
    )
    (run,) = plan_runs("hparams/emoq_stage1.yaml", [preset], options)
    run.hparams["prepare"]()
    save = tmp_path / "meld7_without_repeats/manifests/fold1"
    assert len(all_rows(save)) == 9
    before = snapshot(save)
    run.hparams["prepare"]()
    assert snapshot(save) == before


def test_another_value_is_refused(raw, tmp_path):
    with pytest.raises(CorpusError, match="without_repeats is 'no'; it must"):
        prepare(raw, tmp_path / "save", without_repeats="no")


@pytest.mark.skipif(not MELD.is_dir(), reason=f"{MELD} is not at hand")
@pytest.mark.parametrize("without", [False, True])
def test_of_meld_a_scene_is_in_training_and_test(tmp_path, caplog, without):
    caplog.set_level(logging.INFO)
    options = {"without_clips": True, "without_repeats": without}
    prepare(MELD, tmp_path / "save", **options)
    (line,) = (t for t in caplog.messages if t.startswith("the same sound"))
    # Found by hand: the first two to the letter, the others cut elsewhere.
    pairs = [
        ("train/dia12_utt7", "test/dia85_utt0"),
        ("train/dia12_utt8", "test/dia85_utt1"),
        ("train/dia12_utt9", "test/dia85_utt2"),
        ("train/dia12_utt9", "test/dia85_utt3"),
        ("train/dia12_utt11", "test/dia85_utt4"),
        ("train/dia12_utt11", "test/dia85_utt5"),
        ("train/dia51_utt8", "test/dia155_utt0"),
        ("train/dia433_utt1", "dev/dia77_utt0"),
    ]
    assert line.startswith("the same sound in two splits: 8 (")
    for key, other in pairs:
        assert f"{key} in {other}" in line
    gone = {key.replace("/", "_") for key, _ in pairs}
    left = names(tmp_path / "save")
    assert left["train"] & gone == (set() if without else gone)
    sizes = [len(rows) for rows in left.values()]
    assert sizes == [9989 - len(gone) * without, 1109, 2610]


def test_times_may_be_seconds_and_numbers_as_pandas_writes_them():
    row = {"StartTime": "00:01:02,5", "EndTime": "63.25"}
    assert annotated_times(row) == (62.5, 63.25)


ROW = 'Hm.,Joey,joy,{Dialogue_ID},1,{Season},3,"{StartTime}","00:02:04,0"'
GOOD = {"Dialogue_ID": "0.0", "Season": "8.0", "StartTime": "00:02:00,0"}


def test_numbers_may_be_as_pandas_writes_them(tmp_path):
    path = write(tmp_path / "a.csv", HEADER + ROW.format(**GOOD))
    rows = read_annotations("train", path)
    assert list(rows) == ["train/dia0_utt1"]
    assert find_episode(rows["train/dia0_utt1"]) == (8, 3)


@pytest.mark.parametrize("value", ["", "eight", "8.5", "nan", "inf"])
@pytest.mark.parametrize("column", GOOD)
def test_what_is_no_number_is_named_with_its_line(tmp_path, column, value):
    if column == "StartTime":
        value = f"{value}:x"
    row = ROW.format(**(GOOD | {column: value}))
    path = write(tmp_path / "a.csv", f"{HEADER}\n{row}")
    with pytest.raises(
        CorpusError, match=f"Line 3 of .*a.csv.* has the {column}"
    ):
        read_annotations("train", path)
