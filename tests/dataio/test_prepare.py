"""Manifests: what is written, what is refused, when they are used again."""

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from emoq_modules.dataio import digests as audio_digests, manifest_reader
from emoq_modules.dataio.digests import AudioDigests
from emoq_modules.dataio.prepare import (
    COLUMNS,
    Turn,
    Utterance,
    is_prepared,
    main,
    read_dialogues,
    read_manifest,
    split_by_dialogue,
    write_manifests,
)
from emoq_modules.errors import CorpusError
from tests.corpus_folders import snapshot, wav_bytes, write

LABELS = ["angry", "happy"]
SETTINGS = {"corpus": "toy", "fold": 1, "labels": LABELS}
FILES = ["train.json", "valid.json", "test.json", "dialogues.json"]


@pytest.fixture
def splits(tmp_path):
    """Two utterances a split, and their audio under ``tmp_path/data``."""
    rows = {}
    for split in ("train", "valid", "test"):
        rows[split] = [
            Utterance(
                id=f"{split}_{turn}",
                wav=f"{{data_root}}/{split}_{turn}.wav",
                duration=0.1,
                speaker="a",
                session="1",
                dialogue=split,
                turn=turn,
                text="Schön, “so” \\n",
                emotion=LABELS[turn],
            )
            for turn in (1, 0)
        ]
        for row in rows[split]:
            write(tmp_path / "data" / f"{row.id}.wav", wav_bytes())
    return rows


@pytest.fixture
def prepared(tmp_path, splits):
    write_manifests(tmp_path / "save", splits, LABELS, SETTINGS)
    return tmp_path / "save"


def read(folder, split="train"):
    return read_manifest(
        folder / f"{split}.json", LABELS, folder.parent / "data"
    )


def edit(path, change):
    rows = json.loads(path.read_bytes())
    change(rows)
    path.write_text(json.dumps(rows))


def test_a_manifest_reads_back_as_it_was_written(prepared, splits):
    rows = read(prepared)
    assert list(rows) == ["train_0", "train_1"]  # by dialogue, turn and id
    for row in splits["train"]:
        stored = rows[row.id]
        root = str(prepared.parent / "data")
        wav = row.wav.replace("{data_root}", root)
        assert stored == replace(row, wav=wav)
        on_disk = json.loads((prepared / "train.json").read_bytes())[row.id]
        assert on_disk == dict(row)
        assert list(on_disk) == list(stored.keys()) == list(COLUMNS[1:])


def test_writing_twice_gives_the_same_files(tmp_path, prepared, splits):
    shuffled = {split: rows[::-1] for split, rows in splits.items()}
    write_manifests(tmp_path / "again", shuffled, LABELS, SETTINGS)
    once, again = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (prepared, tmp_path / "again")
    )
    assert once == again
    assert once.keys() == {*FILES, "manifest_settings.json"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"emotion": "furious"}, "'furious', not one of angry, happy"),
        ({"id": "test_0"}, "'test_0' occurs more than once"),
        ({"duration": 0.0}, "lasts 0.0 s"),
        ({"duration": float("nan")}, "lasts nan s"),
        ({"turn": 0}, "dialogue 'train' has turn 0 more than once"),
    ],
)
def test_a_bad_row_is_refused_and_the_old_manifests_stay(
    prepared, splits, change, message
):
    before = snapshot(prepared)
    splits["train"][0] = replace(splits["train"][0], **change)
    splits["valid"] = []
    with pytest.raises(CorpusError, match=message) as error:
        write_manifests(prepared, splits, LABELS, SETTINGS | {"fold": 2})
    assert "the valid split has no utterances" in str(error.value)
    assert snapshot(prepared) == before


def test_a_full_disk_leaves_the_old_manifests(prepared, splits, monkeypatch):
    before = snapshot(prepared)

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_manifests(prepared, splits, LABELS, SETTINGS | {"fold": 2})
    assert snapshot(prepared) == before


def test_the_summary_counts_classes_and_what_was_left_out(
    tmp_path, splits, caplog
):
    caplog.set_level(logging.INFO)
    skipped = {"no wav file": [f"u{i}" for i in range(7)], "corrupt": []}
    labels = [*LABELS, "sad"]
    write_manifests(tmp_path, splits, labels, SETTINGS, skipped)
    lines = caplog.messages[0].splitlines()
    assert lines[1].split() == ["angry", "happy", "sad", "total"]
    assert lines[2].split() == ["train", "1", "1", "0", "2"]
    assert lines[5] == "left out, no wav file: 7 (u0, u1, u2, u3, u4, ...)"
    assert len(lines) == 6
    assert caplog.messages[1] == "There is no training utterance for 'sad'."


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (SETTINGS | {"fold": 2}, "fold was 1, is 2"),
        (SETTINGS | {"labels": LABELS[::-1]}, "labels was"),
        (SETTINGS | {"seed": 3}, "seed was None, is 3"),
        ({"corpus": "toy"}, "fold was 1, is None"),
    ],
)
def test_manifests_for_other_settings_are_not_used(
    prepared, caplog, settings, why
):
    caplog.set_level(logging.INFO)
    assert not is_prepared(prepared, settings)
    assert why in caplog.text


@pytest.mark.parametrize("name", FILES)
def test_edited_missing_or_unfinished_manifests_are_not_used(prepared, name):
    path = prepared / name
    content = path.read_bytes()
    path.write_bytes(content.replace(b"Sch", b"sch"))
    assert not is_prepared(prepared, SETTINGS)
    path.unlink()
    assert not is_prepared(prepared, SETTINGS)
    path.write_bytes(content)
    # Tuples become lists in JSON; that is no difference.
    assert is_prepared(prepared, SETTINGS | {"labels": tuple(LABELS)})


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": 0}'])
def test_a_damaged_settings_file_is_not_trusted(prepared, content):
    (prepared / "manifest_settings.json").write_bytes(content)
    assert not is_prepared(prepared, SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"emotion": "sad"}, "has the label 'sad', not one of angry, happy"),
        ({"duration": -1}, "lasts -1 s"),
        ({"duration": "1"}, "lasts '1' s"),
        (
            {"wav": "{data_root}/none.wav"},
            "has bad audio: there is no file .*none.wav",
        ),
        ({"text": None}, "has None as its text, which is no text"),
        ({"wav": 3}, "has 3 as its wav, which is no text"),
        ({"turn": "x"}, "has 'x' as its turn, which is no whole"),
        ({"turn": 10**30}, "has 10{30} as its turn"),
        (lambda rows: rows["train_0"].pop("text"), "has no text"),
        (lambda rows: rows.update(train_0=3), "is not a set of columns"),
        (lambda rows: rows.clear(), "holds no utterances"),
    ],
)
def test_reading_refuses_a_bad_row(prepared, change, message):
    if isinstance(change, dict):
        edit(
            prepared / "train.json", lambda rows: rows["train_0"].update(change)
        )
        message = f"'train_0' {message}"
    else:
        edit(prepared / "train.json", change)
    with pytest.raises(CorpusError, match=message) as error:
        read(prepared)
    assert "train.json" in str(error.value)
    assert "run the prepare step again" in str(error.value)


def test_reading_finds_a_repeated_id(prepared):
    path = prepared / "train.json"
    path.write_text(path.read_text().replace("train_1", "train_0"))
    with pytest.raises(CorpusError, match="'train_0' occurs more than once"):
        read(prepared)


@pytest.mark.parametrize(
    "odd", [{"text": "\ud83d", "speaker": "é"}, {"text": ""}]
)
def test_half_a_character_survives_and_no_text_is_allowed(prepared, odd):
    edit(prepared / "train.json", lambda rows: rows["train_0"].update(odd))
    row = read(prepared)["train_0"]
    assert {key: row[key] for key in odd} == odd


def test_audio_that_was_read_is_opened_again_only_if_it_changes(
    prepared, monkeypatch
):
    now = time.time_ns() + 10**10  # files are not as new as in a test
    monkeypatch.setattr(audio_digests.time, "time_ns", lambda: now)
    opened, measure = [], manifest_reader.audio_duration
    monkeypatch.setattr(
        manifest_reader,
        "audio_duration",
        lambda path: opened.append(Path(path).name) or measure(path),
    )
    digests = AudioDigests(prepared / "digests.npy")
    digests.of(prepared.parent / "data/train_0.wav")

    def read_with_digests():
        opened.clear()
        return read_manifest(
            prepared / "train.json", LABELS, prepared.parent / "data", digests
        )

    read_with_digests()
    assert opened == ["train_1.wav"]
    (prepared.parent / "data/train_0.wav").write_bytes(wav_bytes(1)[:5000])
    with pytest.raises(CorpusError, match="'train_0' has bad .* is truncated"):
        read_with_digests()
    (prepared.parent / "data/train_0.wav").unlink()
    with pytest.raises(CorpusError, match="'train_0' has bad .* no file"):
        read_with_digests()


def test_several_faults_are_told_together_but_not_hundreds(prepared):
    def spoil(rows):
        for i in range(100):
            rows[f"u{i}"] = rows["train_0"] | {"emotion": "sad"}

    edit(prepared / "train.json", spoil)
    with pytest.raises(CorpusError, match="faults: 100") as error:
        read(prepared)
    assert str(error.value).count("label 'sad'") == 5
    assert "and 95 more" in str(error.value)


@pytest.mark.parametrize("name", ["train", "dialogues"])
def test_a_missing_or_cut_file_says_what_to_do(prepared, name):
    path = prepared / f"{name}.json"
    read_it = read if name == "train" else lambda _: read_dialogues(path)
    path.write_bytes(path.read_bytes()[:50])
    message = f"{name}.json is damaged .* delete it and run"
    with pytest.raises(CorpusError, match=message):
        read_it(prepared)
    path.write_text("[]")
    with pytest.raises(CorpusError, match="holds no .*: run the prep"):
        read_it(prepared)
    path.unlink()
    message = f"no manifest .*{name}.json: run .* prepare step"
    with pytest.raises(CorpusError, match=message):
        read_it(prepared)


def test_a_data_root_that_was_forgotten_is_named(prepared):
    with pytest.raises(CorpusError, match="no data_root was given"):
        read_manifest(prepared / "train.json", LABELS)


def test_dialogues_are_the_rows_unless_there_are_other_turns(prepared):
    text = "Schön, “so” \\n"
    assert read_dialogues(prepared / "dialogues.json") == {
        split: [Turn(0, "a", text), Turn(1, "a", text)]
        for split in ("test", "train", "valid")
    }


def test_dialogues_keep_turns_that_are_no_rows(tmp_path, splits):
    turns = {
        split: [Turn(9, "b", ""), Turn(1, "a", "x"), Turn(0, "a", "“y”")]
        for split in splits
    }
    turns["other"] = [Turn(0, "c", "z")]
    write_manifests(tmp_path, splits, LABELS, SETTINGS, dialogues=turns)
    ordered = {name: sorted(turns[name]) for name in turns}
    assert read_dialogues(tmp_path / "dialogues.json") == ordered
    edit(tmp_path / "dialogues.json", lambda names: names.pop("other"))
    assert not is_prepared(tmp_path, SETTINGS)


def test_a_row_that_is_in_no_dialogue_is_refused(tmp_path, splits):
    turns = {split: [Turn(0, "a", "x")] for split in splits}
    with pytest.raises(
        CorpusError, match="'train_1' is turn 1 of dialogue 'train', which has"
    ):
        write_manifests(
            tmp_path / "save", splits, LABELS, SETTINGS, dialogues=turns
        )
    assert not (tmp_path / "save").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda names: names["train"].reverse(),
        lambda names: names["train"].append(names["train"][-1]),
        lambda names: names["train"][0].pop(),
        lambda names: names["train"].append(["2", "a", "x"]),
        lambda names: names["train"].append([2, "a", None]),
        lambda names: names.update(train="x"),
    ],
)
def test_reading_refuses_a_bad_dialogue(prepared, change):
    edit(prepared / "dialogues.json", change)
    with pytest.raises(
        CorpusError, match="dialogue 'train' is no list of"
    ) as error:
        read_dialogues(prepared / "dialogues.json")
    assert "run the prepare step again" in str(error.value)


def conversations(sizes):
    return [
        Utterance(f"{d}_{t}", "", 1.0, "a", "s", d, t, "", "happy")
        for d, size in sizes.items()
        for t in range(size)
    ]


def test_dialogues_stay_whole_and_about_the_fraction_is_taken():
    rows = conversations({f"d{i}": 20 + i % 15 for i in range(120)})
    rest, chosen = split_by_dialogue(rows, 0.1, seed=1)
    assert len(rest) + len(chosen) == len(rows)
    assert not {r.dialogue for r in rest} & {r.dialogue for r in chosen}
    # The longest dialogue has 34 turns: half of one is the most it can miss.
    assert abs(len(chosen) - 0.1 * len(rows)) <= 17


def test_the_choice_hangs_on_names_and_seed_alone():
    rows = conversations({f"d{i}": 5 for i in range(40)})
    chosen = {r.id for r in split_by_dialogue(rows, 0.2, seed=1)[1]}
    assert chosen == {r.id for r in split_by_dialogue(rows[::-1], 0.2, 1)[1]}
    assert chosen != {r.id for r in split_by_dialogue(rows, 0.2, 2)[1]}


def test_a_small_fraction_still_takes_one_dialogue_and_leaves_one():
    rows = conversations({"a": 50, "b": 50})
    for fraction in (0.001, 0.999):
        rest, chosen = split_by_dialogue(rows, fraction, seed=1)
        assert len(rest) == len(chosen) == 50


@pytest.mark.parametrize(
    ("sizes", "fraction"), [({"a": 9}, 0.1), ({"a": 9, "b": 9}, 0.0)]
)
def test_a_split_that_cannot_be_made_is_refused(sizes, fraction):
    with pytest.raises(CorpusError):
        split_by_dialogue(conversations(sizes), fraction, seed=1)


def test_a_prepare_function_becomes_a_program(capsys):
    called = {}

    def prepare_toy(
        data_folder: str,
        save_folder: str,
        fold: int = 1,
        labels: tuple[str, ...] = ("a", "b"),
        leave_out: Literal["session", "speaker"] = "session",
        workers: int | None = None,
        download: bool = False,
    ):
        """Make a toy corpus."""
        called.update(arguments=[data_folder, save_folder, fold, leave_out])
        called.update(labels=labels, workers=workers, download=download)
        if fold == 9:
            raise CorpusError("fold is 9")

    assert main(prepare_toy, ["in", "out"]) == 0
    assert called["labels"] == ("a", "b") and called["workers"] is None
    options = "in out --fold 2 --labels c d --workers 3 --download".split()
    assert main(prepare_toy, options) == 0
    assert called == {
        "arguments": ["in", "out", 2, "session"],
        "labels": ["c", "d"],
        "workers": 3,
        "download": True,
    }
    assert main(prepare_toy, ["in", "out", "--fold", "9"]) == 2
    assert capsys.readouterr().err == "error: fold is 9\n"
    with pytest.raises(SystemExit) as exit_:
        main(prepare_toy, ["in", "out", "--leave_out", "nobody"])
    assert exit_.value.code == 2
