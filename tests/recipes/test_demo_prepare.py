"""From nothing to the demo corpus's wavs and manifests."""

import json
import logging

import numpy as np
import pytest
import soundfile

from emoq_modules.dataio.prepare import read_dialogues, read_manifest
from emoq_modules.errors import CorpusError
from recipes.demo.dialogues import plan_corpus
from tests.corpus_folders import load_recipe, snapshot

SIZES = {"seed": 5, "num_speakers": 6, "num_dialogues": 3, "num_turns": 8}
EMOTIONS = ("angry", "happy", "neutral", "sad")
prepare = load_recipe("demo/demo_prepare.py").prepare_demo


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "data", tmp_path / "save"


@pytest.fixture
def prepared(folders):
    prepare(*folders, **SIZES)
    return folders


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def wavs_of(folder):
    return sorted(folder.rglob("*.wav"))


def test_manifests_hold_the_plan_and_the_wavs_its_sound(prepared):
    data, save = prepared
    plan = plan_corpus(**SIZES)
    rows = {
        split: read_manifest(save / f"{split}.json", EMOTIONS, data)
        for split in ("train", "valid", "test")
    }
    assert sum(map(len, rows.values())) == len(plan.utterances) == 24
    for planned in plan.utterances:
        row = rows[planned.split][planned.id]
        for column in "speaker session dialogue turn text emotion".split():
            assert row[column] == getattr(planned, column)
        samples, rate = soundfile.read(row["wav"])
        info = soundfile.info(row["wav"])
        assert (rate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert row["duration"] == pytest.approx(len(samples) / rate)
        expected = plan.speak(planned)
        np.testing.assert_allclose(samples, expected, atol=2**-15)


def test_dialogues_are_those_of_the_plan(prepared):
    planned = {}
    for turn in plan_corpus(**SIZES).utterances:
        said = (turn.turn, turn.speaker, turn.text)
        planned.setdefault(turn.dialogue, []).append(said)
    assert read_dialogues(prepared[1] / "dialogues.json") == planned
    assert {len(turns) for turns in planned.values()} == {8}


def test_paths_in_the_manifests_move_with_the_data(prepared):
    rows = json.loads((prepared[1] / "test.json").read_text())
    assert all(row["wav"].startswith("{data_root}/") for row in rows.values())


def test_a_second_run_changes_nothing(prepared):
    before = [snapshot(folder) for folder in prepared]
    prepare(*prepared, **SIZES)
    assert [snapshot(folder) for folder in prepared] == before


def test_the_same_seed_gives_the_same_bytes_elsewhere(prepared, tmp_path):
    prepare(tmp_path / "other", tmp_path / "save2", **SIZES)
    assert contents(tmp_path / "other") == contents(prepared[0])


def test_a_half_made_corpus_is_completed(prepared):
    data, _ = prepared
    whole = contents(data)
    next(data.rglob("corpus.json")).unlink()
    first, *_, last = wavs_of(data)
    last.unlink()
    stamp = first.stat().st_mtime_ns
    prepare(*prepared, **SIZES)
    assert contents(data) == whole
    assert first.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("damage", ["truncated", "missing", "record"])
def test_a_changed_corpus_is_made_again(prepared, damage, caplog):
    data, _ = prepared
    whole = contents(data)
    victim = wavs_of(data)[3]
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:1000])
    elif damage == "missing":
        victim.unlink()
    else:
        next(data.rglob("corpus.json")).write_text("{")
    with caplog.at_level(logging.WARNING):
        prepare(*prepared, **SIZES)
    assert contents(data) == whole
    assert "has changed since it was made" in caplog.text


def test_another_seed_leaves_the_first_corpus_alone(prepared):
    data, save = prepared
    before = contents(data)
    texts = (save / "train.json").read_text()
    prepare(data, save, **{**SIZES, "seed": 6})
    assert before.items() < contents(data).items()
    assert (save / "train.json").read_text() != texts


def test_it_runs_as_a_program(folders, run_script):
    sizes = [word for k, v in SIZES.items() for word in (f"--{k}", v)]
    status, said = run_script("demo/demo_prepare.py", *folders, *sizes)
    assert status == 0, said
    assert (folders[1] / "train.json").is_file()


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((0, 5, 9, 4), "num_speakers is 5; it must be even and at least 6"),
        ((0, 4, 9, 4), "num_speakers is 4"),
        ((0, 24, 11, 4), "24 speakers need at least 12 dialogues"),
        ((0, 24, 12, 0), "num_turns 0"),
        ((-1, 24, 12, 4), "seed -1"),
    ],
)
def test_sizes_that_make_no_corpus_are_refused_before_anything_is_written(
    folders, sizes, message
):
    with pytest.raises(CorpusError, match=message):
        prepare(*folders, *sizes)
    assert not folders[0].exists() and not folders[1].exists()


def test_a_data_folder_that_is_a_file_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(CorpusError, match="Cannot make the folder .*file"):
        prepare(file, tmp_path / "save", **SIZES)
    assert file.read_text() == "kept"
