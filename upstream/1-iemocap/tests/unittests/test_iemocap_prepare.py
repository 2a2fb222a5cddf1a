import json
import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes/IEMOCAP/iemocap_prepare.py"


@pytest.fixture
def prepare():
    # The recipes are not a package, so the script is imported by its path
    from speechbrain.utils.superpowers import import_from_path

    return import_from_path(SCRIPT)


@pytest.fixture
def corpus(tmp_path):
    """Makes a tiny IEMOCAP with one turn of each speaker per dialogue."""
    from speechbrain.dataio.dataio import write_audio

    root = tmp_path / "IEMOCAP_full_release"
    for k in range(1, 6):
        session = root / f"Session{k}"
        emo_folder = session / "dialog/EmoEvaluation"
        emo_folder.mkdir(parents=True)
        dialogues = [f"Ses0{k}F_impro01", f"Ses0{k}M_script01_1"]
        if k == 3:
            # The names of some dialogues are one character longer
            dialogues.append("Ses03M_impro05a")
        for dialogue in dialogues:
            lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n"]
            wav_folder = session / "sentences/wav" / dialogue
            wav_folder.mkdir(parents=True)
            for turn, emo in [("F000", "neu"), ("M000", "exc")]:
                utterance = f"{dialogue}_{turn}"
                lines.append(
                    f"[6.2901 - 8.2357]\t{utterance}\t{emo}\t"
                    "[2.5000, 2.5000, 2.5000]\n"
                )
                wav_file = wav_folder / f"{utterance}.wav"
                write_audio(str(wav_file), torch.zeros(160), 16000)
            emo_file = emo_folder / f"{dialogue}.txt"
            emo_file.write_text("\n".join(lines), encoding="utf-8")
    return root


def test_gender(prepare, corpus, tmp_path, monkeypatch):
    # The recipe uses the same script through a link
    link = ROOT / "recipes/IEMOCAP/emotion_recognition/iemocap_prepare.py"
    assert os.path.samefile(SCRIPT, link)

    monkeypatch.setattr(prepare, "NUMBER_UTT", 22)
    manifests = [tmp_path / f"{s}.json" for s in ("train", "valid", "test")]
    prepare.prepare_data(
        str(corpus),
        *map(str, manifests),
        different_speakers=True,
        test_spk_id=5,
    )
    train, valid, test = (json.loads(m.read_text()) for m in manifests)
    dialogues = ["Ses03F_impro01", "Ses03M_impro05a", "Ses03M_script01_1"]
    assert sorted(test) == [f"{dialogue}_F000" for dialogue in dialogues]
    assert sorted(valid) == [f"{dialogue}_M000" for dialogue in dialogues]
    assert len(train) == 16


def test_sorted_listing(prepare, corpus, monkeypatch):
    # Some file systems list the files in another order
    listdir = os.listdir
    monkeypatch.setattr(
        os, "listdir", lambda path: sorted(listdir(path), reverse=True)
    )
    session = prepare.load_session(str(corpus / "Session3"))
    paths = [path for path, _, _ in session]
    assert len(paths) == 6
    assert paths == sorted(paths)


def test_previous_run(prepare, corpus, tmp_path, caplog):
    def skipped_run(valid, test, different_speakers=True):
        """Writes manifests, prepares again, and returns the warnings."""
        manifests = [tmp_path / f"{s}.json" for s in ("train", "valid", "test")]
        contents = ["{}", valid, test]
        for manifest, content in zip(manifests, contents):
            manifest.write_text(content, encoding="utf-8")
        caplog.clear()
        prepare.prepare_data(
            str(corpus),
            *map(str, manifests),
            different_speakers=different_speakers,
            test_spk_id=5,
        )
        # The manifests are used as they are
        assert [m.read_text(encoding="utf-8") for m in manifests] == contents
        return [
            record.getMessage()
            for record in caplog.records
            if record.levelname == "WARNING"
        ]

    female = {"Ses03F_impro01_F000": {}, "Ses03M_impro05a_F000": {}}
    male = {"Ses03F_impro01_M000": {}, "Ses03M_impro05a_M000": {}}
    # What earlier versions made for the male speaker
    mixed = json.dumps({**male, "Ses03M_impro05a_F000": {}})
    female, male = json.dumps(female), json.dumps(male)

    (warning,) = skipped_run(mixed, female)
    assert str(tmp_path / "valid.json") in warning
    (warning,) = skipped_run(male, mixed)
    assert str(tmp_path / "test.json") in warning

    # Nothing is wrong with these
    assert not skipped_run(male, female)
    assert not skipped_run(mixed, mixed, different_speakers=False)
    # Other manifests pass
    samples = ROOT / "tests/samples/annotation/ASR_dev.json"
    assert not skipped_run(samples.read_text(encoding="utf-8"), "[1, 2]")
    assert not skipped_run("not json", "3")
