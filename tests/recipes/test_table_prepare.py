"""A table of anyone's recordings becomes manifests of disjoint splits."""

import csv
import json
import logging
import os
from collections import Counter

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


@pytest.fixture
def folder(tmp_path):
    """12 speakers in 6 dialogues of 2, who say 4 things of 2 emotions."""
    header = "path,emotion,text,speaker,dialogue,turn"
    rows = [
        f"d{d}/{who}{n}.wav,{word},Hm {n}.,{who}{d},d{d},{2 * n + (who > 'a')}"
        for d in range(6)
        for who in "ab"
        for n, word in enumerate(("anger", "joy") * 2)
    ]
    for row in rows:
        write(tmp_path / "calls" / row.split(",")[0], wav_bytes())
    write(tmp_path / "calls/labels.csv", "\n".join([header, *rows]))
    return tmp_path / "calls"


@pytest.fixture
def prepare(folder, tmp_path):
    """Prepares the folder's table, with its rows changed if asked for."""

    def prepare(change=None, **settings):
        table = folder / "labels.csv"
        if change:
            with table.open() as file:
                rows = list(csv.DictReader(file))
            rows = [row for row in map(change, rows) if row]
            table = folder / "changed.csv"
            with table.open("w") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        settings = {"min_utterances": 2, "folds": 3} | settings
        recipe.prepare_table(folder, tmp_path / "save", table, **settings)
        return read_splits(tmp_path / "save")

    return prepare


def set_columns(**values):
    """A change of rows: columns are set, with None dropped."""

    def change(row):
        row = row | {k: v.format(**row) for k, v in values.items() if v}
        return {k: v for k, v in row.items() if values.get(k, "") is not None}

    return change


def test_a_row_tells_what_is_known(prepare, tmp_path):
    prepare(labels=["joy", "anger"])
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


@pytest.mark.parametrize("folds", [2, 3, 6])
def test_nothing_is_on_two_sides_and_everything_is_tested_once(prepare, folds):
    tested = Counter()
    for fold in range(1, folds + 1):
        splits = prepare(fold=fold, folds=folds)
        tested.update(list(splits["test"]))
        for column in ("speaker", "dialogue"):
            found = [
                {row[column] for row in split.values()}
                for split in splits.values()
            ]
            assert sum(map(len, found)) == len(set.union(*found))
    assert set(tested.values()) == {1} and len(tested) == 48


def test_what_two_share_with_a_third_stays_together(prepare):
    # Speaker "x" is in the dialogues d0 and d1, whose others are with them.
    def change(row):
        if row["dialogue"] in ("d0", "d1") and row["speaker"][0] == "a":
            row["speaker"] = "x"
        return row

    splits = prepare(change, folds=5)
    for split in splits.values():
        found = {row["dialogue"] for row in split.values()}
        assert found.isdisjoint({"d0", "d1"}) or found >= {"d0", "d1"}


def test_too_few_groups_are_named(prepare):
    with pytest.raises(CorpusError, match="7 folds need .* the table has 6"):
        prepare(folds=7)


def test_without_speakers_folds_are_drawn_with_a_warning(prepare, caplog):
    splits = prepare(set_columns(speaker=None, dialogue=None, turn=None))
    assert "The table names no speakers" in caplog.text
    counts = Counter(row["emotion"] for row in splits["test"].values())
    assert counts == {"joy": 8, "anger": 8}


def test_validation_may_share_speakers(prepare):
    change = set_columns(dialogue=None, turn=None)
    splits = prepare(change, validate_on="dialogues")
    speakers = {
        name: {row["speaker"] for row in split.values()}
        for name, split in splits.items()
    }
    assert speakers["valid"] <= speakers["train"]
    assert speakers["test"].isdisjoint(speakers["train"])


def test_labels_are_joined_and_rare_ones_left_out(folder, prepare, caplog):
    def change(row):
        row["emotion"] = {"a0": "fury", "b5": "bored"}.get(
            row["speaker"], row["emotion"]
        )
        return row

    with caplog.at_level(logging.INFO):
        splits = prepare(
            change, label_map="fury=anger, joy = happy", min_utterances=5
        )
    labels = recipe.find_labels(
        folder / "changed.csv", None, "fury=anger, joy = happy", 5
    )
    assert labels == ["anger", "happy"]
    with pytest.raises(CorpusError, match="fury: 4.*Join some by"):
        recipe.find_labels(
            folder / "changed.csv", min_utterances=5, rare_labels="refused"
        )
    assert "fewer than 5 utterances: 1 (bored: 4)" in caplog.text
    assert "left out, labeled 'bored': 4" in caplog.text
    found = {
        row["emotion"] for rows in splits.values() for row in rows.values()
    }
    assert found == {"anger", "happy"}


def test_turns_that_are_left_out_were_said(prepare, tmp_path):
    def change(row):
        return row | ({"emotion": "calm"} if "0.wav" in row["path"] else {})

    prepare(change, labels=["joy", "anger"])
    assert len(all_rows(tmp_path / "save")) == 36
    dialogues = read_dialogues(tmp_path / "save/dialogues.json")
    assert [turn.text for turn in dialogues["d0"]] == [
        f"Hm {n}." for n in (0, 0, 1, 1, 2, 2, 3, 3)
    ]


SPLIT = {"d0": "Train", "d1": "training", "d2": "train", "d3": "dev"}


def test_splits_of_the_table_are_kept(prepare, caplog):
    def change(row):
        return row | {"split": SPLIT.get(row["dialogue"], "test")}

    splits = prepare(change)
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 24,
        "valid": 8,
        "test": 16,
    }
    assert "Speakers in several splits" not in caplog.text
    splits = prepare(lambda row: change(row) | {"speaker": row["speaker"][0]})
    assert "Speakers in several splits of the table: 2 (a, b)" in caplog.text
    with pytest.raises(CorpusError, match="fold, .* is 2; it must be one of 1"):
        prepare(change, fold=2)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("dialogue", r"a dialogue in several splits, 1 \(d9\)"),
        ("split", r"splits that mean nothing here, 1 \('d9'\): they can be"),
    ],
)
def test_splits_that_leak_or_mean_nothing_are_refused(prepare, column, message):
    def change(row):
        row = row | {"split": SPLIT.get(row["dialogue"], "test")}
        if row["path"] in ("d0/a0.wav", "d5/a1.wav"):
            row[column] = "d9"
        return row

    with pytest.raises(CorpusError, match=message):
        prepare(change)


def test_all_faults_are_told_at_once(prepare, folder, tmp_path):
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
        prepare(change)
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


def test_a_damaged_recording_is_left_out_and_named(prepare, folder, caplog):
    (folder / "d2/b3.wav").write_bytes(b"no sound")
    with caplog.at_level(logging.INFO):
        splits = prepare()
    assert sum(map(len, splits.values())) == 47
    assert "left out, unusable audio file: 1 (d2/b3)" in caplog.text


def test_parts_are_cut_out_of_their_recordings(prepare, folder, tmp_path):
    tone = np.sin(np.arange(32000) / 9).astype(np.float32) / 2
    soundfile.write(folder / "long.wav", tone, 16000, "FLOAT")

    def change(row):
        place = {"start": "", "end": ""}
        if row["path"].startswith("d0/a"):
            n = int(row["path"][4])
            place = {"start": f"0.{n}", "end": f"{n + 1}e-1"}
            row = row | {"path": "long.wav"}
        return row | place

    prepare(change)
    row = all_rows(tmp_path / "save")["long@0.1-0.2"]
    assert row["duration"] == pytest.approx(0.1)
    samples, rate = soundfile.read(row["wav"])
    assert rate == 16000
    np.testing.assert_allclose(samples, tone[1600:3200], atol=2**-15)


def test_missing_words_are_recognized_once(prepare, tmp_path, monkeypatch):
    heard = []

    def load(model, device, language):
        assert (model, language) == ("whisper", "de")
        return lambda samples: heard.append(len(samples)) or f"Nr {len(heard)}"

    monkeypatch.setattr(recipe, "load_transcriber", load)

    def change(row):
        return row | {"text": "" if row["dialogue"] == "d0" else row["text"]}

    asr = {"transcribe": "whisper", "transcribe_language": "de"}
    prepare(change, **asr)
    texts = {row["text"] for row in all_rows(tmp_path / "save").values()}
    assert heard == [1600] * 8 and texts > {"Nr 1", "Nr 8"}
    spoken = read_dialogues(tmp_path / "save/dialogues.json")["d0"]
    assert all(turn.text.startswith("Nr ") for turn in spoken)
    assert read_notes(tmp_path / "save") == [
        "The words of 8 of 48 utterances were recognized by whisper."
    ]
    kept = tmp_path / "save/transcripts.jsonl"
    kept.write_bytes(kept.read_bytes()[:-5])  # as a kill leaves it
    prepare(change, fold=2, **asr)
    assert len(heard) == 9
    prepare(change)
    assert read_notes(tmp_path / "save") == ["8 of 48 utterances have no text."]


def test_parts_of_another_recording_are_cut_anew(prepare, folder, tmp_path):
    def change(row):
        return row | {"start": "0", "end": "0.05"}

    first = prepare(change)["test"]
    for path in folder.rglob("*.wav"):
        samples, rate = soundfile.read(path)
        soundfile.write(path, samples / 2, rate)
        os.utime(path, (0, 0))  # as an archive has it
    prepare(change, seed=2)
    cut = all_rows(tmp_path / "save")
    for name, row in first.items():
        before, after = (soundfile.read(x["wav"])[0] for x in (row, cut[name]))
        np.testing.assert_allclose(after, before / 2, atol=1e-4)


def test_a_recording_by_two_names_is_one(prepare, folder):
    for path in list(folder.glob("d[0-5]/a0.wav")):
        path.with_name("link.wav").symlink_to(path)

    def change(row):
        if row["path"].endswith("a1.wav"):
            row["path"] = row["path"].replace("a1", "link")
        return {k: row[k] for k in ("path", "emotion")}

    splits = prepare(change, validate_on="dialogues")
    for split in splits.values():
        names = {row["wav"] for row in split.values()}
        assert all(
            x.replace("link", "a0") in names for x in names if "link" in x
        )
    twice = "d0/../d0/a0.wav"
    with pytest.raises(CorpusError, match="line 3: d0/a0 is as 'anger' and"):
        prepare(
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
    prepare, column, values, message
):
    paths = dict(zip(("d0/a0.wav", "d0/a1.wav"), values, strict=True))

    def change(row):
        value = paths.get(row["path"], row.get(column, ""))
        return row | {"end": ""} | {column: value}

    with pytest.raises(CorpusError, match=message):
        prepare(change)


def test_a_folder_that_is_a_link_holds_its_files(prepare, folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder)
    rows = [
        f"{folder}/d{d}/a{n}.wav,{'ab'[n % 2]},s{d}"
        for d in range(6)
        for n in range(4)
    ]
    table = write(
        tmp_path / "t.csv", "\n".join(["path,emotion,speaker", *rows])
    )
    save = tmp_path / "linked"
    recipe.prepare_table(link, save, table, ["a", "b"], folds=3)
    assert len(all_rows(save)) == 24


def test_windows_paths_are_read(prepare, tmp_path):
    def change(row):
        return row | {"path": row["path"].replace("/", "\\")}

    prepare(change)
    assert "d0/a0" in all_rows(tmp_path / "save")


def test_a_changed_table_is_prepared_again(prepare):
    first = prepare()
    assert prepare() == first
    assert prepare(lambda row: row | {"text": "Other."}) != first


def test_another_column_of_emotions_and_numbers_in_it(folder, prepare):
    def change(row):
        return row | {"emotion": "none", "arousal": row["path"][4]}

    prepare(change, columns="emotion=arousal, turn=")
    labels = recipe.find_labels(
        folder / "changed.csv", "emotion=arousal", None, 2
    )
    assert labels == ["0", "1", "2", "3"]
    with pytest.raises(CorpusError, match="1 labels with 2 utterances"):
        prepare(change)
    table = folder / "numbers.csv"
    table.write_text(
        "path,label\n" + "".join(f"{n}.wav,{n / 7}\n" for n in range(200))
    )
    with pytest.raises(CorpusError, match="are 200 different values"):
        recipe.find_labels(table)


def test_labels_that_differ_in_capitals_come_with_their_map(prepare):
    def change(row):
        return row | {"emotion": "Joy"} if row["path"] == "d1/a1.wav" else row

    with pytest.raises(CorpusError, match='--label_map "Joy=joy"'):
        prepare(change)
    assert prepare(change, label_map="Joy=joy")


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
def test_what_is_not_there_is_refused(prepare, settings, message):
    with pytest.raises(CorpusError, match=message):
        prepare(**settings)


def test_several_tables_are_one_corpus(folder, tmp_path):
    """Each with paths from its own folder, if need be."""
    rows = (folder / "labels.csv").read_text().splitlines()
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


def test_a_table_trains_both_stages(folder, tmp_path, capsys):
    train.main(
        [
            *("hparams/emoq_stage2.yaml", "--preset", "tests/tiny.yaml"),
            *("--preset", "recipes/table/table.yaml", "--folds", "2"),
            *("--number_of_epochs", "1", "--label_map", "joy=happy"),
            *("--data_folder", str(folder), "--fold", "all"),
            *("--table", str(folder / "labels.csv")),
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
