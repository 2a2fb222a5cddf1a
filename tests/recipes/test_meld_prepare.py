"""MELD.Raw, packed or not, faults and all, becomes audio and manifests."""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import soundfile

from emoq_modules.dataio import clips as clips_module
from emoq_modules.dataio.clips import extract_audio, parallel_map
from emoq_modules.dataio.prepare import read_dialogues, read_manifest
from emoq_modules.errors import AudioError, CorpusError
from recipes.MELD.annotations import repair
from tests.corpus_folders import (
    ROOT,
    SHARED_DATA,
    all_rows,
    clip_bytes,
    crash,
    disk_full,
    link,
    load_recipe,
    read_splits,
    snapshot,
    wav_bytes,
    write,
)

recipe = load_recipe("MELD/meld_prepare.py")

FOLDERS = {
    "train": "train/train_splits",
    "dev": "dev/dev_splits_complete",
    "test": "test/output_repeated_splits_test",
}
FOUR = ["neutral", "angry", "sadness", "joy"]
HEADER = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,"
    "Season,Episode,StartTime,EndTime\n"
)
TIMES = '"00:20:57,256","00:21:00,049"\n'
TABLES = {
    # Quotes, a line break, an apostrophe of Windows-1252 as a control
    # character, UTF-8 read as Windows-1252, ids with gaps.
    "train": HEADER
    + f'1,"“Oh”, she said, ""no""!",Ross,neutral,neutral,0,0,8,21,{TIMES}'
    + f'2,"Two\nlines,\r\nyou know",Rachel,anger,negative,0,3,8,21,{TIMES}'
    + f"3,It\x92s me\x85,Joey,joy,positive,1,0,4,7,{TIMES}"
    + f"4,Youâ€™re late,Monica,sadness,negative,1,1,4,7,{TIMES}"
    + f"7,Ew.,Monica,disgust,negative,125,3,4,7,{TIMES}",
    "dev": HEADER
    + f"1,What?,Dr. Drake Remoray,surprise,negative,0,0,4,4,{TIMES}"
    + f"2,Hm.,Ross,joy,positive,0,1,4,4,{TIMES}"
    + f"3,Gone.,Ross,neutral,neutral,110,7,4,4,{TIMES}",
    "test": HEADER
    + f"1,Ah!,Mark,fear,negative,38,4,3,19,{TIMES}"
    + f"2,No.,Mark,anger,negative,38,5,3,19,{TIMES}"
    + f"3,Mute.,Mark,neutral,neutral,38,6,3,19,{TIMES}",
}


@pytest.fixture(scope="session")
def clips():
    """Split -> file name -> content; the known faults among them."""
    good = clip_bytes()
    return {
        "train": {
            "dia0_utt0.mp4": clip_bytes(0.5, rate=48000, layout="5.1"),
            "dia0_utt3.mp4": good,
            "dia1_utt0.mp4": clip_bytes(0.3, rate=16000, layout="mono"),
            "dia1_utt1.mp4": good,
            "dia125_utt3.mp4": good[: len(good) // 2],
            "._dia0_utt0.mp4": b"\x00\x05\x16\x07",
        },
        "dev": {"dia0_utt0.mp4": good, "dia0_utt1.mp4": good},
        "test": {
            "dia38_utt4.mp4": clip_bytes(2.5),
            "dia38_utt5.mp4": good,
            "dia38_utt6.mp4": clip_bytes(audio=False),
            "dia40_utt0.mp4": good,
            "final_videos_testdia101_utt0.mp4": good,
        },
    }


@pytest.fixture
def raw(tmp_path, clips):
    """MELD.Raw with its archives extracted."""
    folder = tmp_path / "MELD.Raw"
    for split, files in clips.items():
        for name, content in files.items():
            write(folder / FOLDERS[split] / name, content)
    write(folder / "train/train_sent_emo.csv", TABLES["train"])
    write(folder / "dev_sent_emo.csv", TABLES["dev"])
    write(folder / "test_sent_emo.csv", TABLES["test"])
    write(folder / "README.txt", "MELD")
    return folder


@pytest.fixture
def packed(tmp_path, raw):
    """MELD.Raw as distributed: a tar file a split, two CSV files outside."""
    folder = tmp_path / "packed" / "MELD.Raw"
    folder.mkdir(parents=True)
    for split in FOLDERS:
        with tarfile.open(folder / f"{split}.tar.gz", "w:gz") as archive:
            archive.add(raw / split, split)
    for name in ("dev_sent_emo.csv", "test_sent_emo.csv", "README.txt"):
        shutil.copy(raw / name, folder)
    return folder


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """Threads in the place of processes, which take seconds to start."""
    monkeypatch.setattr(
        clips_module,
        "ProcessPoolExecutor",
        lambda workers, context: ThreadPoolExecutor(workers),
    )


@pytest.fixture
def processes(threads, monkeypatch):
    """Processes all the same."""
    monkeypatch.setattr(
        clips_module, "ProcessPoolExecutor", ProcessPoolExecutor
    )


def prepare(data_folder, save_folder, **settings):
    """One second at the most, one worker: quick."""
    settings = {"max_duration_s": 1.0, "num_workers": 1} | settings
    recipe.prepare_meld(data_folder, save_folder, **settings)


@pytest.fixture
def counted(monkeypatch):
    """How many clips went to extraction."""
    keys = []

    def watched(*arguments, **options):
        for key, *outcome in parallel_map(*arguments, **options):
            keys.append(key)
            yield key, *outcome

    monkeypatch.setattr(clips_module, "parallel_map", watched)
    return keys


def extract_by(monkeypatch, function):
    """Has a function of a job in the place of the extraction."""
    monkeypatch.setattr(
        clips_module,
        "parallel_map",
        lambda _, *arguments, **options: parallel_map(
            function, *arguments, **options
        ),
    )


def test_seven_classes_come_out_with_everything_known(raw, tmp_path):
    save = tmp_path / "save"
    prepare(raw, save)
    splits = read_splits(save)
    assert {name: list(rows) for name, rows in splits.items()} == {
        "train": [
            f"train_dia{x}" for x in "0_utt0 0_utt3 1_utt0 1_utt1".split()
        ],
        "valid": ["dev_dia0_utt0", "dev_dia0_utt1"],
        "test": ["test_dia38_utt4", "test_dia38_utt5"],
    }
    assert splits["valid"]["dev_dia0_utt0"] == {
        "wav": "{data_root}/dev/dia0_utt0.wav",
        "duration": pytest.approx(0.1, abs=0.1),
        "speaker": "Dr. Drake Remoray",
        "session": "S04E04",
        "dialogue": "dev_dia0",
        "turn": 0,
        "text": "What?",
        "emotion": "surprise",
        "corpus": "",
    }
    assert splits["train"]["train_dia0_utt3"]["emotion"] == "angry"
    assert splits["train"]["train_dia0_utt3"]["turn"] == 3
    for split in splits:
        read_manifest(save / f"{split}.json", recipe.LABELS, save / "audio")


def test_dialogues_have_every_turn_whatever_its_class_and_clip(raw, tmp_path):
    save = tmp_path / "save"
    prepare(raw, save, labels=FOUR)
    # Dialogue 0 is two: of the training split, and of the development split.
    assert read_dialogues(save / "dialogues.json") == {
        "dev_dia0": [(0, "Dr. Drake Remoray", "What?"), (1, "Ross", "Hm.")],
        "dev_dia110": [(7, "Ross", "Gone.")],  # no clip
        "test_dia38": [
            (4, "Mark", "Ah!"),  # of a class that is not wanted
            (5, "Mark", "No."),
            (6, "Mark", "Mute."),  # no sound
        ],
        "train_dia0": [
            (0, "Ross", '“Oh”, she said, "no"!'),
            (3, "Rachel", "Two lines, you know"),
        ],
        "train_dia1": [
            (0, "Joey", "It’s me…"),
            (1, "Monica", "You’re late"),
        ],
        "train_dia125": [(3, "Monica", "Ew.")],  # the clip is corrupt
    }
    rows = all_rows(save)
    assert "test_dia38_utt4" not in rows
    assert rows["test_dia38_utt5"]["dialogue"] == "test_dia38"
    assert rows["train_dia0_utt3"]["dialogue"] == "train_dia0"


def in_windows_1252(table):
    table = table.replace("Youâ€™re", "You’re")
    return table.replace("\x92", "’").replace("\x85", "…").encode("cp1252")


@pytest.mark.parametrize("encode", [str.encode, in_windows_1252])
def test_texts_are_repaired(raw, tmp_path, encode):
    table = raw / "train/train_sent_emo.csv"
    table.write_bytes(encode(TABLES["train"]))
    prepare(raw, tmp_path / "save")
    rows = read_splits(tmp_path / "save")["train"].values()
    assert [row["text"] for row in rows] == [
        '“Oh”, she said, "no"!',
        "Two lines, you know",
        "It’s me…",
        "You’re late",
    ]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("Youâ€™re a cafÃ©, “ok”", "You’re a café, “ok”"),  # one part is right
        ("â€\x9d â\x80\x99 ðŸ˜€", "” ’ 😀"),
        ("fiancé…” CAFÉ» Müller", "fiancé…” CAFÉ» Müller"),
    ],
)
def test_what_was_misread_is_mended_and_nothing_else(text, meant):
    assert repair(text) == meant


def test_the_audio_is_16_khz_mono_and_the_sound_of_the_clip(raw, tmp_path):
    prepare(raw, tmp_path / "save")
    wav = tmp_path / "save/audio/train/dia0_utt0.wav"
    info = soundfile.info(wav)
    assert (info.samplerate, info.channels, info.subtype) == (
        16000,
        1,
        "PCM_16",
    )
    samples, _ = soundfile.read(wav)
    # AAC puts a frame or two of silence around the half second of 440 Hz.
    assert 0.5 <= len(samples) / 16000 < 0.6
    spectrum = np.abs(np.fft.rfft(samples))
    peak = np.fft.rfftfreq(len(samples), 1 / 16000)[spectrum.argmax()]
    assert peak == pytest.approx(440, abs=3)


def test_dropped_cut_and_unannotated_clips_are_reported(raw, tmp_path, caplog):
    caplog.set_level("INFO")
    prepare(raw, tmp_path / "save")
    text = caplog.text
    assert "the clip is corrupt: " in text and "1 (train/dia125_utt3)" in text
    assert "left out, the clip is missing: 1 (dev/dia110_utt7)" in text
    assert "the clip has no sound track: 1 (test/dia38_utt6)" in text
    assert "cut to 1 s: 1 (test/dia38_utt4)" in text
    assert (
        "clips without annotation: 2 (test/dia40_utt0, "
        "test/final_videos_testdia101_utt0)" in text
    )
    assert "of train 9988 utterances with audio are expected, 4 found" in text
    rows = all_rows(tmp_path / "save")
    assert rows["test_dia38_utt4"]["duration"] == 1.0


def test_four_classes_after_seven_extract_nothing(
    raw, tmp_path, counted, caplog
):
    audio = tmp_path / "audio"
    prepare(raw, tmp_path / "seven", audio_folder=audio)
    assert len(counted) == 12
    before = snapshot(audio)
    counted.clear()
    # Not even the clips are needed any more.
    for split in ("dev", "test"):
        shutil.rmtree(raw / split)
    caplog.set_level("INFO")
    prepare(raw, tmp_path / "four", audio_folder=audio, labels=FOUR)
    assert counted == []
    assert snapshot(audio) == before
    assert Counter(
        row["emotion"] for row in all_rows(tmp_path / "four").values()
    ) == {"neutral": 1, "angry": 2, "sadness": 1, "joy": 2}
    assert "left out, labeled 'surprise': 1 (dev/dia0_utt0)" in caplog.text
    assert "the clip has no sound track: 1 (test/dia38_utt6)" in caplog.text


def test_a_second_run_changes_nothing(raw, tmp_path):
    prepare(raw, tmp_path / "save")
    before = snapshot(tmp_path / "save")
    prepare(raw, tmp_path / "save")
    assert snapshot(tmp_path / "save") == before


def test_a_clip_that_was_mended_is_taken_in(raw, tmp_path, clips, counted):
    prepare(raw, tmp_path / "save")
    counted.clear()
    mended = raw / FOLDERS["train"] / "dia125_utt3.mp4"
    mended.write_bytes(clips["train"]["dia0_utt3.mp4"])
    prepare(raw, tmp_path / "save")
    assert counted == ["train/dia125_utt3"]
    row = all_rows(tmp_path / "save")["train_dia125_utt3"]
    assert row["emotion"] == "disgust"


def test_a_truncated_and_a_deleted_wav_are_made_again(raw, tmp_path, counted):
    prepare(raw, tmp_path / "save")
    audio = tmp_path / "save/audio"
    first = audio / "train/dia0_utt0.wav"
    content = first.read_bytes()
    first.write_bytes(content[:500])
    (audio / "dev/dia0_utt0.wav").unlink()
    counted.clear()
    prepare(raw, tmp_path / "save")
    assert set(counted) >= {"train/dia0_utt0", "dev/dia0_utt0"}
    assert not set(counted) & {"train/dia0_utt3", "dev/dia0_utt1"}
    assert first.read_bytes() == content
    assert (audio / "dev/dia0_utt0.wav").is_file()


def test_a_stopped_extraction_goes_on_where_it_stopped(
    raw, tmp_path, monkeypatch, counted
):
    class Stopped(Exception):
        pass

    measure = clips_module.audio_duration
    finished = []

    def stop_at_the_third(path):
        finished.append(path)
        if len(finished) == 3:
            raise Stopped
        return measure(path)

    monkeypatch.setattr(clips_module, "audio_duration", stop_at_the_third)
    with pytest.raises(Stopped):
        prepare(raw, tmp_path / "save")
    monkeypatch.setattr(clips_module, "audio_duration", measure)
    extracted = set((tmp_path / "save/audio").glob("*/*.wav"))
    assert extracted
    assert not (tmp_path / "save/train.json").exists()
    counted.clear()
    prepare(raw, tmp_path / "save")
    again = {tmp_path / f"save/audio/{key}.wav" for key in counted}
    assert not again & extracted
    assert len(all_rows(tmp_path / "save")) == 8
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("outermost", [False, True])
def test_archives_give_the_same(raw, packed, tmp_path, outermost):
    prepare(raw, tmp_path / "a")
    if outermost:
        archive = tmp_path / "MELD.Raw.tar.gz"
        with tarfile.open(archive, "w:gz") as file:
            file.add(packed, "MELD.Raw")
        packed = archive
    prepare(packed, tmp_path / "b")
    assert read_splits(tmp_path / "a") == read_splits(tmp_path / "b")
    wavs = sorted((tmp_path / "a/audio").glob("*/*.wav"))
    assert len(wavs) == 10
    for wav in wavs:
        other = tmp_path / "b" / wav.relative_to(tmp_path / "a")
        assert wav.read_bytes() == other.read_bytes()
    assert not list(tmp_path.joinpath("b").rglob("*.mp4"))


def test_an_archive_that_gave_all_it_has_is_not_opened_again(
    packed, tmp_path, monkeypatch, caplog
):
    audio = tmp_path / "audio"
    prepare(packed, tmp_path / "seven", audio_folder=audio)

    def closed(*_, **__):
        raise AssertionError("an archive was opened")

    monkeypatch.setattr(tarfile, "open", closed)
    caplog.set_level("INFO")
    prepare(packed, tmp_path / "four", audio_folder=audio, labels=FOUR)
    assert len(all_rows(tmp_path / "four")) == 6
    assert "the clip is corrupt" in caplog.text
    (audio / "dev/dia0_utt0.wav").unlink()
    with pytest.raises(AssertionError):
        prepare(packed, tmp_path / "four", audio_folder=audio, labels=FOUR)


def test_a_truncated_archive_is_named_and_what_came_out_is_kept(
    packed, tmp_path
):
    archive = packed / "train.tar.gz"
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(CorpusError, match="train.tar.gz is truncated"):
        prepare(packed, tmp_path / "save")
    assert not (tmp_path / "save/train.json").exists()
    archive.write_bytes(content)
    prepare(packed, tmp_path / "save")
    assert len(all_rows(tmp_path / "save")) == 8


def test_a_killed_process_and_a_missing_library_say_what_to_do(
    raw, tmp_path, monkeypatch, processes
):
    extract_by(monkeypatch, crash)
    with pytest.raises(CorpusError, match="killed, at dev/dia.*num_workers"):
        prepare(raw, tmp_path / "save")
    monkeypatch.setattr(clips_module, "find_spec", lambda name: None)
    with pytest.raises(CorpusError, match="pip install 'av>=13'"):
        prepare(raw, tmp_path / "save")


def test_a_full_disk_stops_the_extraction(raw, tmp_path, monkeypatch):
    extract_by(monkeypatch, disk_full)
    with pytest.raises(OSError, match="No space left on device"):
        prepare(raw, tmp_path / "save")
    assert not (tmp_path / "save/train.json").exists()


def test_one_store_has_one_length(raw, tmp_path):
    prepare(raw, tmp_path / "save")
    before = snapshot(tmp_path / "save")
    with pytest.raises(CorpusError, match="is cut to 1.0 s, not to 2.0 s"):
        prepare(raw, tmp_path / "save", max_duration_s=2.0)
    assert snapshot(tmp_path / "save") == before


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        ("Dialogue_ID", "Dialog", "has no column Dialogue_ID"),
        (r"(7,Ew\..*)", r"\1\n\1", r"Line 9 .*dia125_utt3.* repeats an earl"),
        ("disgust", "boredom", "Line 8 .* has an unknown emotion, 'boredom'"),
        (r",3,4,7.*\n\Z", "", r"line 8: 6 cells, where the header has 11"),
    ],
    ids=["column", "repeated", "emotion", "cut short"],
)
def test_a_table_that_is_not_melds_is_refused(
    raw, tmp_path, pattern, replacement, message
):
    path = raw / "train/train_sent_emo.csv"
    path.write_text(re.sub(pattern, replacement, TABLES["train"]))
    with pytest.raises(CorpusError, match=message):
        prepare(raw, tmp_path / "save")


def test_missing_parts_are_named(raw, tmp_path):
    (raw / "dev_sent_emo.csv").unlink()
    with pytest.raises(CorpusError, match="There is no dev_sent_emo.csv in"):
        prepare(raw, tmp_path / "a")
    shutil.rmtree(raw / "test")
    with pytest.raises(CorpusError, match="no clips of MELD's test split"):
        prepare(raw, tmp_path / "b")
    with pytest.raises(CorpusError, match="nowhere does not exist"):
        prepare(raw / "nowhere", tmp_path / "c")
    with pytest.raises(CorpusError, match="label is 'happy'"):
        prepare(raw, tmp_path / "d", labels=["happy"])
    with pytest.raises(CorpusError, match="max_duration_s is 0"):
        prepare(raw, tmp_path / "e", max_duration_s=0)
    for name in "bcde":
        assert not (tmp_path / name).exists()


def test_the_tables_alone_will_do_where_nothing_hears_the_audio(tmp_path):
    for split, table in TABLES.items():
        write(tmp_path / "raw" / f"{split}_sent_emo.csv", table)
    with pytest.raises(CorpusError, match="no clips of MELD's train split"):
        recipe.prepare_meld(tmp_path / "raw", tmp_path / "out")
    recipe.prepare_meld(tmp_path / "raw", tmp_path / "out", without_clips=True)
    splits = read_splits(tmp_path / "out")
    assert [len(rows) for rows in splits.values()] == [5, 3, 3]
    for row in all_rows(tmp_path / "out").values():
        assert row["duration"] == pytest.approx(2.793)
    table = TABLES["test"].replace("00:21:00,049", "later", 1)
    write(tmp_path / "raw/test_sent_emo.csv", table)
    with pytest.raises(CorpusError, match="Dialogue 38, utterance 4 .*'later'"):
        recipe.prepare_meld(
            tmp_path / "raw", tmp_path / "n", without_clips=True
        )


def test_clips_that_are_there_are_taken_all_the_same(raw, tmp_path):
    with_clips, without = tmp_path / "with", tmp_path / "without"
    recipe.prepare_meld(raw, with_clips)
    recipe.prepare_meld(raw, without, without_clips=True)
    assert read_splits(with_clips) == read_splits(without)


def test_clips_of_which_none_has_audio_are_no_reason_to_do_without(
    raw, tmp_path
):
    for clip in raw.rglob("*.mp4"):
        clip.write_bytes(b"no clip")
    with pytest.raises(CorpusError, match="no utterance"):
        recipe.prepare_meld(raw, tmp_path / "out")


def test_the_script_runs_alone(raw, tmp_path, processes, run_script):
    command = ["MELD/meld_prepare.py", raw, tmp_path / "save"]
    short = ["--max_duration_s", "1", "--num_workers", "2"]
    status, said = run_script(*command, *short)
    assert status == 0, said
    assert len(all_rows(tmp_path / "save")) == 8
    assert "neutral  angry  sadness" in said
    status, said = run_script(*command)
    assert status == 2
    assert said.startswith("error: The audio in ")


def test_the_script_finds_what_lies_beside_it(tmp_path):
    # As a program of its own, in a folder of no clone.
    script = ROOT / "recipes/MELD/meld_prepare.py"
    done = subprocess.run(
        [sys.executable, script, "--help"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "--without_repeats" in done.stdout


def test_clips_with_nothing_in_them_say_so(tmp_path):
    for content, message in [
        (b"", "the clip is corrupt"),
        (b"no clip", "the clip is corrupt"),
        (clip_bytes(audio=False), "no sound track"),
    ]:
        with pytest.raises(AudioError, match=message):
            extract_audio(io.BytesIO(content), tmp_path / "a.wav", 30.0)
    assert list(tmp_path.iterdir()) == []


def test_a_clip_damaged_in_the_middle_is_kept_and_named(raw, tmp_path, caplog):
    content = bytearray(clip_bytes(0.9))
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(range(250)) * 8
    (raw / FOLDERS["train"] / "dia1_utt1.mp4").write_bytes(content)
    prepare(raw, tmp_path / "save")
    row = read_splits(tmp_path / "save")["train"]["train_dia1_utt1"]
    assert 0.5 < row["duration"] <= 1.0
    assert "train/dia1_utt1 is kept, though " in caplog.text


MELD = SHARED_DATA / "MELD"
# Utterances of each of recipe.LABELS.
SEVEN_IN_TEST = [1256, 345, 208, 402, 281, 68, 50]


def sizes(splits):
    return {split: len(rows) for split, rows in splits.items()}


@pytest.mark.skipif(not MELD.is_dir(), reason=f"{MELD} is not at hand")
def test_all_of_meld_leaves_9988_1108_2610(tmp_path, monkeypatch, caplog):
    """The true tables, and what stands for a clip for each that has one."""
    caplog.set_level("INFO")
    clip = write(tmp_path / "clip.wav", wav_bytes(0.02))

    def take(job):
        key, clip, wav, _ = job
        if clip.read_bytes() == b"corrupt":
            return key, 0, "the clip is corrupt"
        link(clip, wav)
        return key, 0, None

    extract_by(monkeypatch, take)
    raw = tmp_path / "MELD.Raw"
    with (MELD / "clip_durations.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            name = f"dia{row['dialogue_id']}_utt{row['utterance_id']}.mp4"
            link(clip, raw / FOLDERS[row["split"]] / name)
    write(raw / FOLDERS["train"] / "dia125_utt3.mp4", b"corrupt")
    for i in range(3):
        link(clip, raw / FOLDERS["test"] / f"final_videos_testdia{i}_utt0.mp4")
    for split in FOLDERS:
        shutil.copy(MELD / f"{split}_sent_emo.csv", raw)

    audio = tmp_path / "audio"
    recipe.prepare_meld(raw, tmp_path / "seven", audio_folder=audio)
    splits = read_splits(tmp_path / "seven")
    assert sizes(splits) == {"train": 9988, "valid": 1108, "test": 2610}
    test = Counter(row["emotion"] for row in splits["test"].values())
    assert [test[label] for label in recipe.LABELS] == SEVEN_IN_TEST
    assert "not all of MELD" not in caplog.text
    assert "1 (train/dia125_utt3)" in caplog.text
    assert "the clip is missing: 1 (dev/dia110_utt7)" in caplog.text
    assert "clips without annotation: 3 " in caplog.text

    shutil.rmtree(raw / "train")  # nothing is extracted again
    recipe.prepare_meld(raw, tmp_path / "four", audio_folder=audio, labels=FOUR)
    four = read_splits(tmp_path / "four")
    turns = read_dialogues(tmp_path / "four/dialogues.json").values()
    assert sum(map(len, turns)) == 9989 + 1109 + 2610
    # The published 8245 + 897 + 2211, without the two that have no audio.
    assert sizes(four) == {"train": 8244, "valid": 896, "test": 2211}
