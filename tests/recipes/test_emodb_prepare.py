"""EMO-DB's files become manifests of speaker-disjoint folds."""

import csv
import hashlib
import zipfile
from collections import Counter

import pytest
import soundfile

from emoq_modules.dataio.prepare import read_dialogues, read_manifest
from emoq_modules.errors import CorpusError
from tests.corpus_folders import (
    SHARED_DATA,
    all_rows,
    load_recipe,
    read_splits,
    snapshot,
    wav_bytes,
    write,
)

recipe = load_recipe("EMODB/emodb_prepare.py")
prepare = recipe.prepare_emodb

SEVEN = ["angry", "bored", "disgust", "fear", "happy", "neutral", "sad"]
EMODB = SHARED_DATA / "emodb"
needs_emodb = pytest.mark.skipif(
    not EMODB.is_dir(), reason=f"{EMODB} is not at hand"
)


@pytest.fixture
def corpus(tmp_path):
    """Every speaker says one sentence in every emotion."""
    folder = tmp_path / "emodb"
    for pair in recipe.FOLDS:
        for speaker in pair:
            for letter in recipe.EMOTIONS:
                write(folder / f"wav/{speaker}a05{letter}b.wav", wav_bytes())
    return folder


def test_a_file_name_tells_everything(corpus, tmp_path):
    prepare(corpus, tmp_path / "save", labels=SEVEN)
    assert len(all_rows(tmp_path / "save")) == 70
    assert read_splits(tmp_path / "save")["test"]["03a05Fb"] == {
        "wav": "{data_root}/wav/03a05Fb.wav",
        "duration": 0.1,
        "speaker": "03",
        "session": "03",
        "dialogue": "03a05Fb",
        "turn": 0,
        "text": "Das schwarze Stück Papier befindet sich da oben neben dem "
        "Holzstück.",
        "emotion": "happy",
        "corpus": "",
    }
    emotions = {
        id_[5]: row["emotion"]
        for id_, row in all_rows(tmp_path / "save").items()
    }
    assert emotions == recipe.EMOTIONS


def test_every_utterance_is_a_dialogue_of_one_turn(corpus, tmp_path):
    prepare(corpus, tmp_path / "save", labels=SEVEN)
    dialogues = read_dialogues(tmp_path / "save/dialogues.json")
    assert dialogues == {
        id_: [(0, row["speaker"], row["text"])]
        for id_, row in all_rows(tmp_path / "save").items()
    }


@pytest.mark.parametrize("valid_speakers", [1, 2])
def test_no_speaker_is_in_two_sets_and_every_speaker_is_tested(
    corpus, tmp_path, valid_speakers
):
    tested, validated = [], []
    for fold in range(1, 6):
        settings = {"fold": fold, "valid_speakers": valid_speakers}
        prepare(corpus, tmp_path / "save", **settings)
        speakers = {
            split: {row["speaker"] for row in rows.values()}
            for split, rows in read_splits(tmp_path / "save").items()
        }
        assert speakers["test"] == set(recipe.FOLDS[fold - 1])
        assert len(speakers["valid"]) == valid_speakers
        assert speakers["valid"] <= set(recipe.FOLDS[fold % 5])
        assert len(speakers["train"]) == 8 - valid_speakers
        assert len(set().union(*speakers.values())) == 10
        tested += speakers["test"]
        validated += speakers["valid"]
    assert len(set(tested)) == 10
    assert len(set(validated)) == 5 * valid_speakers


def test_without_validation_speakers_eight_train_and_a_tenth_validates(
    corpus, tmp_path
):
    prepare(corpus, tmp_path / "save", fold=2, valid_speakers=0)
    splits = read_splits(tmp_path / "save")
    tested = {row["speaker"] for row in splits["test"].values()}
    learned = {row["speaker"] for row in splits["train"].values()}
    heard = {row["speaker"] for row in splits["valid"].values()}
    assert tested == set(recipe.FOLDS[1])
    assert len(learned) == 8 and not learned & tested
    assert heard <= learned
    share = len(splits["valid"]) / (len(splits["train"]) + len(splits["valid"]))
    assert abs(share - 0.1) < 0.02


def test_a_flat_folder_will_do(corpus, tmp_path):
    prepare(corpus / "wav", tmp_path / "save")
    row = read_splits(tmp_path / "save")["test"]["03a05Fb"]
    assert row["wav"] == "{data_root}/03a05Fb.wav"


def test_flac_files_will_do(corpus, tmp_path):
    for path in (corpus / "wav").iterdir():
        samples, rate = soundfile.read(path)
        flac = corpus / "flac" / f"{path.stem}.flac"
        flac.parent.mkdir(exist_ok=True)
        soundfile.write(flac, samples, rate)
        path.unlink()
    prepare(corpus, tmp_path / "save")
    row = read_splits(tmp_path / "save")["test"]["03a05Fb"]
    assert row["wav"] == "{data_root}/flac/03a05Fb.flac"
    assert row["duration"] == 0.1


def test_strange_and_damaged_files_are_left_out_and_named(
    corpus, tmp_path, caplog
):
    write(corpus / "wav/notes.wav", b"")
    write(corpus / "wav/._03a05Fb.wav", b"\x00\x05")
    write(corpus / "wav/03a05Wb.wav", wav_bytes(1)[:2000])
    write(corpus / "wav/03a05Nb.wav", wav_bytes(0))
    write(corpus / "wav/08a05Nb.wav", wav_bytes(0.5, 44100, channels=2))
    caplog.set_level("INFO")
    prepare(corpus, tmp_path / "save")
    rows = all_rows(tmp_path / "save")
    assert len(rows) == 38 and rows["08a05Nb"]["duration"] == 0.5
    text = caplog.text
    assert "not a name of EMO-DB: 2 (._03a05Fb.wav, notes.wav)" in text
    assert "left out, unusable audio file: 2 (03a05Nb, 03a05Wb)" in text
    assert "03a05Wb.wav is truncated" in text
    assert "left out, labeled 'bored': 10" in text
    assert "535 files are expected, 70 found" in text


def test_a_second_run_changes_nothing_and_other_settings_do(corpus, tmp_path):
    save = tmp_path / "save"
    prepare(corpus, save)
    before = snapshot(save)
    prepare(str(corpus), str(save), labels=list(recipe.LABELS))
    assert snapshot(save) == before
    prepare(corpus, save, fold=2)
    assert (
        read_splits(save)["test"]
        .keys()
        .isdisjoint(id_ for id_ in all_rows(save) if id_[:2] in ("03", "08"))
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fold": 0}, "fold is 0; it must be one of 1, 2, 3, 4, 5"),
        (
            {"valid_speakers": 3},
            "valid_speakers is 3; it must be one of 0, 1, 2",
        ),
        ({"labels": ["angry", "joy"]}, "label is 'joy'"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    corpus, tmp_path, settings, message
):
    with pytest.raises(CorpusError, match=message):
        prepare(corpus, tmp_path / "save", **settings)


def test_another_folder_is_refused_by_a_clear_message(tmp_path, run_script):
    status, said = run_script(
        "EMODB/emodb_prepare.py", tmp_path, tmp_path / "save"
    )
    assert status == 2
    assert said.startswith(f"error: There is no EMO-DB in {tmp_path}")
    assert "README.md" in said and "Traceback" not in said


@pytest.fixture
def published(corpus, tmp_path):
    """An archive as published, with a path that leads out of it."""
    path = tmp_path / "emodb.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for wav in sorted((corpus / "wav").iterdir()):
            archive.write(wav, f"emodb/wav/{wav.name}")
        archive.writestr("emodb/db.yaml", "name: emodb")
        archive.writestr("../../wav/evil.wav", b"evil")
    content = path.read_bytes()
    return {
        "url": path.as_uri(),
        "size": len(content),
        "md5": hashlib.md5(content).hexdigest(),
    }


def test_the_download_is_checked_unpacked_and_done_once(
    published, corpus, tmp_path
):
    target = tmp_path / "new" / "emodb"
    recipe.download_emodb(target, **published)
    assert [p.name for p in target.iterdir()] == ["wav"]
    names = sorted(path.name for path in (target / "wav").iterdir())
    assert names == sorted(path.name for path in (corpus / "wav").iterdir())
    before = snapshot(target)
    recipe.download_emodb(target, "file:///nowhere", size=0, md5="")
    assert snapshot(target) == before


@pytest.mark.parametrize(
    "change", [{"size": 10}, {"md5": "0" * 32}, {"url": "file:///nowhere"}]
)
def test_a_wrong_archive_leaves_nothing(published, tmp_path, change):
    target = tmp_path / "new"
    with pytest.raises(CorpusError, match="file:///") as error:
        recipe.download_emodb(target, **published | change)
    assert "Where there is a network" in str(error.value)
    assert list(target.iterdir()) == []


def test_without_a_network_the_download_fails_at_once(tmp_path):
    # The name is reserved never to resolve (RFC 2606).
    with pytest.raises(CorpusError, match="cannot be downloaded from"):
        recipe.download_emodb(tmp_path, "http://emodb.invalid/emodb.zip")


@needs_emodb
def test_the_sentences_are_the_corpus_own():
    with (EMODB / "sentences.tsv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        assert {r["code"]: r["text"] for r in rows} == recipe.SENTENCES


@needs_emodb
def test_the_true_corpus_has_535_and_339_utterances(tmp_path, caplog):
    pooled = Counter()
    for fold in range(1, 6):
        prepare(EMODB, tmp_path / "save", fold=fold)
        splits = read_splits(tmp_path / "save")
        pooled.update(row["emotion"] for row in splits["test"].values())
    assert pooled == {"angry": 127, "happy": 71, "neutral": 79, "sad": 62}
    prepare(EMODB, tmp_path / "save", labels=SEVEN)
    rows = all_rows(tmp_path / "save").values()
    assert Counter(row["emotion"] for row in rows) == recipe.COMPLETE
    hours = sum(row["duration"] for row in rows) / 3600
    assert hours == pytest.approx(0.41, abs=0.005)
    assert "not all of EMO-DB" not in caplog.text
    train = read_manifest(tmp_path / "save/train.json", SEVEN, EMODB)
    assert len(train) > 300
