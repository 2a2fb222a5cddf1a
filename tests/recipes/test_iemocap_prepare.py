"""IEMOCAP's release folder, odd cases and all, becomes checked manifests."""

import csv
import itertools
import re
from collections import Counter

import pytest

from emoq_modules.dataio.prepare import read_dialogues, read_manifest
from emoq_modules.errors import CorpusError
from emoq_modules.training.configuration import plan_runs
from tests.corpus_folders import (
    SHARED_DATA,
    all_rows,
    link,
    load_recipe,
    read_splits,
    snapshot,
    wav_bytes,
    write,
)

recipe = load_recipe("IEMOCAP/iemocap_prepare.py")
prepare = recipe.prepare_iemocap

DURATIONS = SHARED_DATA / "IEMOCAP" / "durations.csv"


def write_dialogue(session_folder, name, turns, wav=None):
    """A dialogue of (suffix, start, emotion code, text) turns."""
    evaluation, spoken = (
        ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n"],
        [],
    )
    for suffix, start, code, text in turns:
        end = start + 2.0
        evaluation.append(
            f"[{start:.4f} - {end:.4f}]\t{name}_{suffix}\t{code}\t"
            "[2.5000, 2.5000, 2.5000]\n"
            "C-E2:\tNeutral;\t()\nC-F1:\tAnger; Sadness;\t(Ses)\n"
            "A-E3:\tval 3; act 2; dom  2;\t()\n"
        )
        spoken.append(f"{name}_{suffix} [{start:08.4f}-{end:08.4f}]: {text}\n")
        target = session_folder / f"sentences/wav/{name}/{name}_{suffix}.wav"
        if wav is None:
            write(target, wav_bytes())
        else:
            link(wav, target)
    # The transcriptions run in time, the evaluations not always.
    dialog = session_folder / "dialog"
    write(dialog / f"EmoEvaluation/{name}.txt", "\n".join(evaluation))
    spoken.insert(1, "F: [BREATHING]\n")
    spoken.append(f"{name}_MXX0 [001.0000-001.5000]: (Right)\n")
    content = "".join(spoken).encode("cp1252")
    write(dialog / f"transcriptions/{name}.txt", content)


@pytest.fixture
def release(tmp_path):
    """Five sessions, three dialogues each; the odd cases in the first."""
    folder = tmp_path / "IEMOCAP_full_release"
    for session in range(1, 6):
        for name in ("F_impro01", "M_impro01", "F_script01_1"):
            turns = [
                ("F000", 6.2901, "neu", "Excuse me."),
                ("M000", 9.5, "xxx", "Yeah."),
                ("F001", 15.0, "ang", "No!"),
                ("M001", 12.0, "exc", "  It's   on! "),
                ("M002", 18.0, "hap", "[LAUGHTER]"),
                ("F002", 111.5, "sad", "café"),
                ("M003", 120.0, "fru", "What?"),
            ]
            write_dialogue(
                folder / f"Session{session}", f"Ses{session:02d}{name}", turns
            )
    first = folder / "Session1"
    emotions = first / "dialog/EmoEvaluation"
    write(emotions / "._Ses01F_impro01.txt", b"\x00\x05\x16\x07Mac OS X")
    write(emotions / "Categorical/Ses01F_impro01_e2_cat.txt", "Ses01F :Anger;")
    write(emotions / "Self-evaluation/Ses01F_impro01_f1.txt", "x")
    write(
        first / "sentences/wav/Ses01F_impro01/._Ses01F_impro01_F000.wav", b"M"
    )
    return folder


def test_the_four_classes_are_kept_with_everything_known(release, tmp_path):
    prepare(release, tmp_path / "save", fold=1)
    splits = read_splits(tmp_path / "save")
    assert len(all_rows(tmp_path / "save")) == 5 * 3 * 5
    test = splits["test"]
    assert {row["session"] for row in test.values()} == {"Ses01"}
    assert test["Ses01F_impro01_F002"]["text"] == "café"
    assert test["Ses01F_impro01_M001"] == {
        "wav": "{data_root}/Session1/sentences/wav/Ses01F_impro01/"
        "Ses01F_impro01_M001.wav",
        "duration": 0.1,
        "speaker": "Ses01M",
        "session": "Ses01",
        "dialogue": "Ses01F_impro01",
        "turn": 2,
        "text": "It's on!",
        "emotion": "happy",
        "corpus": "",
    }
    for split in splits:
        path = tmp_path / "save" / f"{split}.json"
        assert read_manifest(path, recipe.LABELS, release) != {}


def test_the_speaker_is_in_the_last_part_of_the_id(release, tmp_path):
    prepare(release, tmp_path / "save")
    test = read_splits(tmp_path / "save")["test"]
    assert test["Ses01M_impro01_F000"]["speaker"] == "Ses01F"
    assert test["Ses01F_script01_1_M002"]["speaker"] == "Ses01M"


def test_dialogues_have_every_turn_whatever_its_class_and_audio(
    release, tmp_path
):
    wavs = release / "Session1/sentences/wav/Ses01F_impro01"
    (wavs / "Ses01F_impro01_F001.wav").unlink()
    (wavs / "Ses01F_impro01_M000.wav").write_bytes(wav_bytes()[:1000])
    (release / "Session3/dialog/transcriptions/Ses03M_impro01.txt").unlink()
    prepare(release, tmp_path / "save", labels=["neutral", "sad"])
    dialogues = read_dialogues(tmp_path / "save/dialogues.json")
    assert len(dialogues) == 15
    # xxx, frustrated and the two without a good wav among them, in time.
    assert dialogues["Ses01F_impro01"] == [
        (0, "Ses01F", "Excuse me."),
        (1, "Ses01M", "Yeah."),
        (2, "Ses01M", "It's on!"),
        (3, "Ses01F", "No!"),
        (4, "Ses01M", "[LAUGHTER]"),
        (5, "Ses01F", "café"),
        (6, "Ses01M", "What?"),
    ]
    assert {turn.text for turn in dialogues["Ses03M_impro01"]} == {""}
    for row in all_rows(tmp_path / "save").values():
        turn = (row["turn"], row["speaker"], row["text"])
        assert turn in dialogues[row["dialogue"]]


def test_what_is_left_out_is_counted_by_reason(release, tmp_path, caplog):
    caplog.set_level("INFO")
    prepare(release, tmp_path / "save")
    assert "left out, no majority ('xxx'): 15 (Ses01F_impro01_M000" in (
        caplog.text
    )
    assert "left out, labeled 'fru': 15" in caplog.text
    assert "5531 utterances expected, 75 found" in caplog.text
    assert "angry 1103 expected, 15 found" in caplog.text
    assert "Ses05 1241 expected, 15 found" in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        "[6.2.901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5, 2.5, 2.5]",
        "[6,2901 - 8,2357]\tSes01F_impro01_F000\tneu\t[2.5, 2.5, 2.5]",
        "",
    ],
)
def test_what_no_evaluation_mentions_is_named(release, tmp_path, caplog, line):
    caplog.set_level("INFO")
    path = release / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    path.write_text(
        re.sub(r"\[6\.2901.*F000.*", line, path.read_text(), count=1)
    )
    prepare(release, tmp_path / "save")
    assert (
        "left out, of which EmoEvaluation says nothing: 1 (Ses01F_impro01_F000)"
        in caplog.text
    )


def test_missing_and_damaged_wavs_are_left_out_and_named(
    release, tmp_path, caplog
):
    wavs = release / "Session2/sentences/wav/Ses02F_impro01"
    (wavs / "Ses02F_impro01_F000.wav").unlink()
    (wavs / "Ses02F_impro01_F001.wav").write_bytes(wav_bytes()[:1000])
    (wavs / "Ses02F_impro01_F002.wav").write_bytes(wav_bytes(0))
    (wavs / "Ses02F_impro01_M001.wav").write_bytes(
        wav_bytes(0.5, rate=44100, channels=2)
    )
    caplog.set_level("INFO")
    prepare(release, tmp_path / "save")
    rows = all_rows(tmp_path / "save")
    assert len(rows) == 72
    assert rows["Ses02F_impro01_M001"]["duration"] == 0.5
    assert "left out, no wav file: 1 (Ses02F_impro01_F000)" in caplog.text
    assert "left out, unusable wav file: 2" in caplog.text
    assert "Ses02F_impro01_F001.wav is truncated" in caplog.text
    assert "Ses02F_impro01_F002.wav has 0 samples" in caplog.text


def test_a_turn_without_a_transcript_is_kept_and_named(
    release, tmp_path, caplog
):
    (release / "Session3/dialog/transcriptions/Ses03M_impro01.txt").unlink()
    prepare(release, tmp_path / "save")
    assert all_rows(tmp_path / "save")["Ses03M_impro01_F000"]["text"] == ""
    assert "Kept without a transcript: 5 (Ses03M_impro01_F000" in caplog.text


@pytest.mark.parametrize(
    ("leave_out", "folds"), [("session", 5), ("speaker", 10)]
)
def test_each_fold_tests_others_and_no_dialogue_is_in_train_and_valid(
    release, tmp_path, leave_out, folds
):
    column = leave_out
    tested = []
    for fold in range(1, folds + 1):
        prepare(release, tmp_path / "save", fold=fold, leave_out=leave_out)
        splits = read_splits(tmp_path / "save")
        held_out = {row[column] for row in splits["test"].values()}
        assert len(held_out) == 1
        tested += held_out
        seen = [
            {row[column] for row in splits[split].values()}
            for split in ("train", "valid")
        ]
        assert held_out.isdisjoint(seen[0] | seen[1])
        train, valid = (
            {row["dialogue"] for row in splits[split].values()}
            for split in ("train", "valid")
        )
        assert train and valid and not train & valid
        assert len(all_rows(tmp_path / "save")) == 75
    assert len(set(tested)) == folds


@pytest.mark.parametrize(
    ("leave_out", "folds"), [("session", 5), ("speaker", 10)]
)
def test_validation_by_a_session_has_no_speaker_of_training_or_test(
    release, tmp_path, leave_out, folds
):
    validated = []
    for fold in range(1, folds + 1):
        options = {"leave_out": leave_out, "validate_on": "session"}
        prepare(release, tmp_path / "save", fold=fold, **options)
        splits = read_splits(tmp_path / "save")
        speakers = {
            split: {row["speaker"] for row in rows.values()}
            for split, rows in splits.items()
        }
        (session,) = {row["session"] for row in splits["valid"].values()}
        validated.append(session)
        assert speakers["valid"] == {f"{session}F", f"{session}M"}
        assert speakers["valid"].isdisjoint(speakers["train"])
        assert speakers["test"].isdisjoint(speakers["train"])
        assert speakers["valid"].isdisjoint(speakers["test"])
        assert len(all_rows(tmp_path / "save")) == 75
    expected = ["Ses02", "Ses03", "Ses04", "Ses05", "Ses01"]
    per_session = folds // 5
    assert validated == [s for s in expected for _ in range(per_session)]


def test_improvised_dialogues_alone_have_no_play(release, tmp_path, caplog):
    caplog.set_level("INFO")
    prepare(release, tmp_path / "save", improvised_only=True)
    rows = all_rows(tmp_path / "save")
    assert len(rows) == 5 * 2 * 5
    assert not any("script" in row["dialogue"] for row in rows.values())
    assert "left out, scripted: 25 (Ses01F_script01_1_F000" in caplog.text
    # The release is compared whole.
    assert "5531 utterances expected, 75 found" in caplog.text


def test_how_many_utterances_are_of_the_plays_is_told_by_session(
    release, tmp_path, caplog
):
    caplog.set_level("INFO")
    name = "Ses05M_script02_2"
    turns = [("F000", 1.0, "ang", "No."), ("M000", 2.0, "fru", "Yes.")]
    write_dialogue(release / "Session5", name, turns)
    prepare(release, tmp_path / "save")
    counts = "Ses01 10 + 5, Ses02 10 + 5, Ses03 10 + 5, Ses04 10 + 5"
    assert f"improvised + scripted: {counts}, Ses05 10 + 6\n" in caplog.text


def test_excited_may_be_a_class_of_its_own(release, tmp_path):
    labels = ["happy", "excited", "frustrated"]
    prepare(release, tmp_path / "save", labels=labels)
    counts = Counter(
        row["emotion"] for row in all_rows(tmp_path / "save").values()
    )
    assert counts == dict.fromkeys(labels, 15)


def test_the_parent_folder_will_do(release, tmp_path):
    prepare(release.parent, tmp_path / "save")
    row = read_splits(tmp_path / "save")["test"]["Ses01F_impro01_F000"]
    assert row["wav"].startswith("{data_root}/IEMOCAP_full_release/Session1/")


def test_a_second_run_changes_nothing_and_other_settings_do(release, tmp_path):
    save = tmp_path / "save"
    prepare(release, save, fold=2)
    before = snapshot(save)
    prepare(str(release), str(save), fold=2, labels=list(recipe.LABELS))
    assert snapshot(save) == before
    prepare(release, save, fold=2, seed=99)
    assert snapshot(save) != before
    prepare(release, save, fold=2)
    contents = [content for content, _ in snapshot(save).values()]
    assert contents == [content for content, _ in before.values()]


def test_a_wav_that_came_later_is_taken_in(release, tmp_path):
    wav = release / "Session1/sentences/wav/Ses01F_impro01"
    wav /= "Ses01F_impro01_F000.wav"
    content = wav.read_bytes()
    wav.unlink()
    prepare(release, tmp_path / "save")
    assert len(all_rows(tmp_path / "save")) == 74
    wav.write_bytes(content)
    prepare(release, tmp_path / "save")
    assert len(all_rows(tmp_path / "save")) == 75


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fold": 6}, "fold is 6; it must be one of 1, 2, 3, 4, 5"),
        ({"fold": 11, "leave_out": "speaker"}, "fold is 11"),
        ({"leave_out": "dialogue"}, "must be one of session, speaker"),
        ({"labels": ["angry", "joy"]}, "label is 'joy'; it must be one of"),
        ({"valid_fraction": 1.5}, "between 0 and 1"),
        ({"validate_on": "speaker"}, "must be one of dialogues, session"),
        ({"improvised_only": "yes"}, "must be one of True, False"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    release, tmp_path, settings, message
):
    with pytest.raises(CorpusError, match=message):
        prepare(release, tmp_path / "save", **settings)
    assert not (tmp_path / "save").exists()


def test_the_preset_of_improvised_dialogues_shares_nothing(release, tmp_path):
    preset = "recipes/IEMOCAP/iemocap4_improvised.yaml"
    options = f"data_folder: {release}\nmanifest_folder: {tmp_path / 'save'}"
    plan_runs("hparams/emoq_stage1.yaml", [preset], options)[0].hparams[
        "prepare"
    ]()
    splits = read_splits(tmp_path / "save")
    sessions = [
        {row["session"] for row in rows.values()} for rows in splits.values()
    ]
    assert sessions == [{"Ses03", "Ses04", "Ses05"}, {"Ses02"}, {"Ses01"}]
    assert len(all_rows(tmp_path / "save")) == 50


def test_another_folder_is_refused_by_a_clear_message(tmp_path, run_script):
    status, said = run_script(
        "IEMOCAP/iemocap_prepare.py", tmp_path, tmp_path / "save"
    )
    assert status == 2
    assert said.startswith(f"error: {tmp_path} is not IEMOCAP")
    assert "Session1" in said and "Traceback" not in said


@pytest.mark.skipif(
    not DURATIONS.is_file(), reason=f"{DURATIONS} is not at hand"
)
def test_the_complete_release_gives_the_standard_5531(tmp_path, caplog):
    """A release of the true number of turns by session and class."""
    wav = write(tmp_path / "one.wav", wav_bytes(0.02))
    with DURATIONS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for session, group in itertools.groupby(rows, lambda r: r["session"]):
        codes = [row["emotion"] for row in group]
        for start in range(0, len(codes), 40):
            turns = [
                (f"{'FM'[i % 2]}{i:03d}", 1.0 + i, code, "Hm.")
                for i, code in enumerate(codes[start : start + 40])
            ]
            turns.append(("M099", 99.0, "xxx", "Hm."))
            write_dialogue(
                tmp_path / f"Session{session}",
                f"Ses{int(session):02d}F_impro{start // 40 + 1:02d}",
                turns,
                wav,
            )
    prepare(tmp_path, tmp_path / "save", fold=5)
    found = all_rows(tmp_path / "save").values()
    standard = recipe.STANDARD_COUNTS
    assert len(found) == 5531
    assert Counter(row["emotion"] for row in found) == standard["class"]
    assert Counter(row["session"] for row in found) == standard["session"]
    assert "not the complete release" not in caplog.text
    sizes = {k: len(v) for k, v in read_splits(tmp_path / "save").items()}
    assert sizes["test"] == 1241
    assert abs(sizes["valid"] - 429) <= 20
