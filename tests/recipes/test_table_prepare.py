"""A table of anyone's recordings becomes manifests, or is told its faults."""

import logging
import os

import numpy as np
import pytest
import soundfile

import train
from emoq_modules.dataio.manifest import read_notes
from emoq_modules.dataio.prepare import read_dialogues
from emoq_modules.dataio.tables import parse_pairs
from emoq_modules.errors import CorpusError
from emoq_modules.evaluation.results import pool_results
from tests.corpus_folders import (
    SHARED_DATA,
    all_rows,
    load_recipe,
    read_splits,
    wav_bytes,
    write,
)

recipe = load_recipe("table/table_prepare.py")
emodb = load_recipe("EMODB/emodb_prepare.py")
EMODB = SHARED_DATA / "emodb"


def test_a_row_tells_what_is_known(prepare_calls, tmp_path):
    prepare_calls(labels=["joy", "anger"])
    rows = all_rows(tmp_path / "save")
    assert rows["d3/a1"] == {
        "wav": "{data_root}/d3/a1.wav",
        "duration": 0.1,
        "speaker": "a3",
        "session": "",
        "dialogue": "d3",
        "turn": 2,
        "text": "Hm 1.",
        "emotion": "joy",
        "corpus": "",
    }
    assert len(rows) == 48


def test_labels_are_joined_and_rare_ones_left_out(calls, prepare_calls, caplog):
    def change(row):
        row["emotion"] = {"a0": "fury", "b5": "bored"}.get(
            row["speaker"], row["emotion"]
        )
        return row

    with caplog.at_level(logging.INFO):
        splits = prepare_calls(
            change, label_map="fury=anger, joy = happy", min_utterances=5
        )
    labels = recipe.find_labels(
        calls / "changed.csv", None, "fury=anger, joy = happy", 5
    )
    assert labels == ["anger", "happy"]
    with pytest.raises(CorpusError, match="fury: 4.*Join some by"):
        recipe.find_labels(
            calls / "changed.csv", min_utterances=5, rare_labels="refused"
        )
    assert "fewer than 5 utterances: 1 (bored: 4)" in caplog.text
    assert "left out, labeled 'bored': 4" in caplog.text
    found = {
        row["emotion"] for rows in splits.values() for row in rows.values()
    }
    assert found == {"anger", "happy"}


def test_turns_that_are_left_out_were_said(prepare_calls, tmp_path):
    def change(row):
        return row | ({"emotion": "calm"} if "0.wav" in row["path"] else {})

    prepare_calls(change, labels=["joy", "anger"])
    assert len(all_rows(tmp_path / "save")) == 36
    dialogues = read_dialogues(tmp_path / "save/dialogues.json")
    assert [turn.text for turn in dialogues["d0"]] == [
        f"Hm {n}." for n in (0, 0, 1, 1, 2, 2, 3, 3)
    ]


def test_all_faults_are_told_at_once(prepare_calls, calls, tmp_path):
    def change(row):
        changes = {
            "d0/a0.wav": {"path": "d0/none.wav"},
            "d0/a1.wav": {"path": "../../etc/passwd"},
            "d0/a2.wav": {"path": "d0/a3.wav", "emotion": "anger"},
            "d0/b0.wav": {"end": "soon"},
            "d0/b1.wav": {"end": "0,5"},
        }
        return row | {"end": ""} | changes.get(row["path"], {})

    with pytest.raises(CorpusError) as told:
        prepare_calls(change)
    for line in (
        "faults: 5",
        "line 2: there is no file d0/none.wav in",
        "line 3: ../../etc/passwd is outside of",
        "line 6: end is 'soon', which is no number",
        "line 7: d0/b1.wav ends at 0.10 s, before 0.5 s",
        "line 5: d0/a3 is as 'anger' and 'joy' in line 4, too",
    ):
        assert line in str(told.value)
    assert not (tmp_path / "save").exists()


def test_paths_may_be_from_the_tables_own_folder(prepare_calls, calls):
    (calls / "lists").mkdir()
    text = (calls / "labels.csv").read_text()
    table = calls / "lists/labels.csv"
    table.write_text(text.replace("d0/", "../d0/"))
    expected = prepare_calls()
    prepared = recipe.prepare_table(
        *(calls, calls.parent / "other", table), min_utterances=2, folds=3
    )
    assert prepared is None
    assert read_splits(calls.parent / "other") == expected


def test_two_files_of_one_name_but_for_its_end_are_two(prepare_calls, calls):
    path = calls / "d0/a0.wav"
    path.with_suffix(".flac").write_bytes(path.read_bytes())

    def change(row):
        path = row["path"].replace("d0/a1.wav", "d0/a0.flac")
        return row | {"path": path}

    rows = [name for split in prepare_calls(change).values() for name in split]
    assert {"d0/a0.wav", "d0/a0.flac"} <= set(rows) and len(rows) == 48


def test_a_damaged_recording_is_left_out_and_named(
    prepare_calls, calls, caplog
):
    (calls / "d2/b3.wav").write_bytes(b"no sound")
    with caplog.at_level(logging.INFO):
        splits = prepare_calls()
    assert sum(map(len, splits.values())) == 47
    assert "left out, unusable audio file: 1 (d2/b3)" in caplog.text


def test_parts_are_cut_out_of_their_recordings(prepare_calls, calls, tmp_path):
    tone = np.sin(np.arange(32000) / 9).astype(np.float32) / 2
    soundfile.write(calls / "long.wav", tone, 16000, "FLOAT")

    def change(row):
        place = {"start": "", "end": ""}
        if row["path"].startswith("d0/a"):
            n = int(row["path"][4])
            place = {"start": f"0.{n}", "end": f"{n + 1}e-1"}
            row = row | {"path": "long.wav"}
        return row | place

    prepare_calls(change)
    row = all_rows(tmp_path / "save")["long@0.1-0.2"]
    assert row["duration"] == pytest.approx(0.1)
    samples, rate = soundfile.read(row["wav"])
    assert rate == 16000
    np.testing.assert_allclose(samples, tone[1600:3200], atol=2**-15)


def test_missing_words_are_recognized_once(
    prepare_calls, tmp_path, monkeypatch
):
    heard = []

    def load(model, device, language):
        assert (model, language) == ("whisper", "de")
        return lambda samples: heard.append(len(samples)) or f"Nr {len(heard)}"

    monkeypatch.setattr(recipe, "load_transcriber", load)

    def change(row):
        return row | {"text": "" if row["dialogue"] == "d0" else row["text"]}

    asr = {"transcribe": "whisper", "transcribe_language": "de"}
    prepare_calls(change, **asr)
    texts = {row["text"] for row in all_rows(tmp_path / "save").values()}
    assert heard == [1600] * 8 and texts > {"Nr 1", "Nr 8"}
    spoken = read_dialogues(tmp_path / "save/dialogues.json")["d0"]
    assert all(turn.text.startswith("Nr ") for turn in spoken)
    assert read_notes(tmp_path / "save") == [
        "The words of 8 of 48 utterances were recognized by whisper."
    ]
    kept = tmp_path / "save/transcripts.jsonl"
    kept.write_bytes(kept.read_bytes()[:-5])  # as a kill leaves it
    prepare_calls(change, fold=2, **asr)
    assert len(heard) == 9
    prepare_calls(change)
    assert read_notes(tmp_path / "save") == ["8 of 48 utterances have no text."]


def test_parts_of_another_recording_are_cut_anew(
    prepare_calls, calls, tmp_path
):
    def change(row):
        return row | {"start": "0", "end": "0.05"}

    first = prepare_calls(change)["test"]
    for path in calls.rglob("*.wav"):
        samples, rate = soundfile.read(path)
        soundfile.write(path, samples / 2, rate)
        os.utime(path, (0, 0))  # as an archive has it
    prepare_calls(change, seed=2)
    cut = all_rows(tmp_path / "save")
    for name, row in first.items():
        before, after = (soundfile.read(x["wav"])[0] for x in (row, cut[name]))
        np.testing.assert_allclose(after, before / 2, atol=1e-4)


def test_a_recording_by_two_names_is_one(prepare_calls, calls):
    for path in list(calls.glob("d[0-5]/a0.wav")):
        path.with_name("link.wav").symlink_to(path)

    def change(row, end):
        row = {k: row[k] for k in ("path", "emotion")} | {"end": ""}
        if row["path"].endswith("a1.wav"):
            row["path"] = row["path"].replace("a1", "link")
            row["end"] = end * ("link" in row["path"])
        return row

    splits = prepare_calls(
        lambda row: change(row, "0.05"), validate_on="dialogues"
    )
    for split in splits.values():
        # A part of it, by the link, is where it is.
        for name in split:
            if "link" in name:
                assert name.split("@")[0].replace("link", "a0") in split
    assert any("link" in name for name in splits["train"])
    with pytest.raises(CorpusError, match="d0/link is as 'anger' and 'joy' in"):
        prepare_calls(lambda row: change(row, ""))
    twice = "d0/../d0/a0.wav"
    with pytest.raises(CorpusError, match="line 3: d0/a0 is as 'anger' and"):
        prepare_calls(
            lambda row: (
                row | {"path": twice} if row["path"] == "d0/a1.wav" else row
            )
        )


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("turn", ("3", ""), "some rows of dialogue d0 have no turn"),
        ("turn", ("3", "3"), "turn 3 of dialogue d0 is in line 2, too"),
        ("path", ("", "d0/a1.wav"), "line 2: it has no path"),
        ("end", ("0.01", ""), "line 2: it lasts 10 ms, and has to last 25"),
    ],
)
def test_rows_that_contradict_each_other_are_told(
    prepare_calls, column, values, message
):
    paths = dict(zip(("d0/a0.wav", "d0/a1.wav"), values, strict=True))

    def change(row):
        value = paths.get(row["path"], row.get(column, ""))
        return row | {"end": ""} | {column: value}

    with pytest.raises(CorpusError, match=message):
        prepare_calls(change)


def test_a_folder_that_is_a_link_holds_its_files(
    prepare_calls, calls, tmp_path
):
    link = tmp_path / "link"
    link.symlink_to(calls)
    rows = [
        f"{calls}/d{d}/a{n}.wav,{'ab'[n % 2]},s{d}"
        for d in range(6)
        for n in range(4)
    ]
    table = write(
        tmp_path / "t.csv", "\n".join(["path,emotion,speaker", *rows])
    )
    save = tmp_path / "linked"
    recipe.prepare_table(link, save, table, ["a", "b"], folds=3)
    assert len(all_rows(save)) == 24


def test_windows_paths_are_read(prepare_calls, tmp_path):
    def change(row):
        return row | {"path": row["path"].replace("/", "\\")}

    prepare_calls(change)
    assert "d0/a0" in all_rows(tmp_path / "save")


def test_a_changed_table_is_prepared_again(prepare_calls):
    first = prepare_calls()
    assert prepare_calls() == first
    assert prepare_calls(lambda row: row | {"text": "Other."}) != first


def test_another_column_of_emotions_and_numbers_in_it(calls, prepare_calls):
    def change(row):
        return row | {"emotion": "none", "arousal": row["path"][4]}

    prepare_calls(change, columns="emotion=arousal, turn=")
    labels = recipe.find_labels(
        calls / "changed.csv", "emotion=arousal", None, 2
    )
    assert labels == ["0", "1", "2", "3"]
    with pytest.raises(CorpusError, match="1 labels with 2 utterances"):
        prepare_calls(change)
    table = calls / "numbers.csv"
    table.write_text(
        "path,label\n" + "".join(f"{n}.wav,{n / 7}\n" for n in range(200))
    )
    with pytest.raises(CorpusError, match="are 200 different values"):
        recipe.find_labels(table)


def test_labels_that_differ_in_capitals_come_with_their_map(prepare_calls):
    def change(row):
        return row | {"emotion": "Joy"} if row["path"] == "d1/a1.wav" else row

    with pytest.raises(CorpusError, match='--label_map "Joy=joy"'):
        prepare_calls(change)
    assert prepare_calls(change, label_map="Joy=joy")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": ["joy", "calm"]}, r"no row .* 1 \(calm\); the table has 2"),
        ({"labels": ["joy"]}, "two or more are needed"),
        ({"labels": ["joy", "joy", "anger"]}, "each once"),
        ({"folds": 0}, "folds is 0"),
        ({"folds": 1}, "folds is 1, and the table has no splits"),
        ({"label_map": "joy=a, joy=b"}, "names one thing twice"),
        ({"label_map": "joy="}, "gives a label none in its place"),
        ({"columns": "mood=x"}, "columns names 'mood', which is none of path"),
        ({"columns": "emotion"}, "has to be like 'ang=angry, exc=happy'"),
        ({"label_map": "calm=neutral"}, r"has no label 1 \(calm\)"),
    ],
)
def test_what_is_not_there_is_refused(prepare_calls, settings, message):
    with pytest.raises(CorpusError, match=message):
        prepare_calls(**settings)


def test_several_tables_are_one_corpus(calls, tmp_path):
    """Each with paths from its own calls, if need be."""
    rows = (calls / "labels.csv").read_text().splitlines()
    for name, first, last in (("a", 1, 25), ("b", 25, 49)):
        for line in rows[first:last]:
            wav = line.split(",")[0]
            write(tmp_path / "both" / name / wav, wav_bytes())
        text = "\n".join([rows[0], *rows[first:last]])
        write(tmp_path / "both" / name / "labels.csv", text)
    tables = ",".join(
        str(tmp_path / "both" / name / "labels.csv") for name in "ab"
    )
    recipe.prepare_table(tmp_path / "both", tmp_path / "save", tables, folds=3)
    found = all_rows(tmp_path / "save")
    assert len(found) == 48
    for row in found.values():
        corpus = row["corpus"]
        assert corpus in ("a/labels", "b/labels")
        assert row["wav"].startswith(f"{{data_root}}/{corpus[0]}/d")


def test_pairs_may_be_a_mapping():
    assert parse_pairs({"a": "b"}) == parse_pairs("a=b") == {"a": "b"}
    assert parse_pairs(None) == parse_pairs("") == {}


def test_a_table_trains_both_stages(calls, tmp_path, capsys):
    train.main(
        [
            *("hparams/emoq_stage2.yaml", "--preset", "tests/tiny.yaml"),
            *("--preset", "recipes/table/table.yaml", "--folds", "2"),
            *("--number_of_epochs", "1", "--label_map", "joy=happy"),
            *("--data_folder", str(calls), "--fold", "all"),
            *("--table", str(calls / "labels.csv")),
            *("--results_folder", str(tmp_path / "results")),
        ]
    )
    output = capsys.readouterr().out
    assert "stage 2, mean of 2 folds" in output and "happy" in output
    runs = sorted(tmp_path.glob("results/table/emoq/*/stage2"))
    stats = pool_results(runs)
    assert len(stats.ids) == 48 and stats.labels == ["anger", "happy"]
    settings = (runs[0] / "recognizer/hyperparams.yaml").read_text()
    assert "labels.csv" not in settings
