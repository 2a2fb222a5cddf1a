"""IEMOCAP's preparation, and what its recipes report, on a made-up release."""

import importlib.util
import io
import json
import os
import wave
from pathlib import Path
from types import SimpleNamespace

import pytest
import speechbrain as sb
import torch

RECIPES = Path(__file__).parents[2] / "recipes" / "IEMOCAP"
# Their names differ in length, by a letter or by the part of a scene.
DIALOGUES = ("F_impro01", "M_impro05a", "F_script01_1", "M_script01_1b")
TURNS = (
    ("F000", "neu", "Excuse me."),
    ("M000", "ang", "  Leave me alone! "),
    ("F001", "exc", "We won!"),
    ("M001", "fru", "Well."),
)


def load(path):
    """A script of the recipes, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_wav(path, seconds, rate):
    """A recording of silence."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(2 * int(seconds * rate)))
    path.write_bytes(buffer.getvalue())


def write_dialogue(session, name):
    """What a release has of one dialogue."""
    evaluation = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    spoken = []
    for index, (turn, emotion, words) in enumerate(TURNS):
        start, end = 2.0 * index, 2.0 * index + 1.5
        evaluation += [
            f"[{start:.4f} - {end:.4f}]\t{name}_{turn}\t{emotion}\t"
            "[2.5000, 2.5000, 2.5000]",
            "C-E2:\tNeutral;\t()",
            "",
        ]
        spoken.append(f"{name}_{turn} [{start:08.4f}-{end:08.4f}]: {words}")
        wav = session / "sentences" / "wav" / name / f"{name}_{turn}.wav"
        write_wav(wav, seconds=0.5, rate=16000)
    spoken.insert(1, "M: [LAUGHTER]")
    for folder, lines in (
        ("EmoEvaluation", evaluation),
        ("transcriptions", spoken),
    ):
        path = session / "dialog" / folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def release(tmp_path):
    """The folder of a release with five sessions."""
    folder = tmp_path / "IEMOCAP_full_release"
    for index in range(1, 6):
        for dialogue in DIALOGUES:
            session = folder / f"Session{index}"
            write_dialogue(session, f"Ses{index:02d}{dialogue}")
    return folder


@pytest.fixture
def recipe(monkeypatch):
    """The preparation, for a release of sixty utterances."""
    module = load(RECIPES / "iemocap_prepare.py")
    monkeypatch.setattr(module, "NUMBER_UTT", 5 * len(DIALOGUES) * 3)
    return module


@pytest.fixture
def prepare(recipe, release, tmp_path):
    """Prepares the release, and gives the three manifests."""

    def run(folder="save", **settings):
        paths = [
            tmp_path / folder / name
            for name in ("train.json", "valid.json", "test.json")
        ]
        paths[0].parent.mkdir(exist_ok=True)
        recipe.prepare_data(str(release), *map(str, paths), **settings)
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    return run


def test_a_speaker_is_told_by_the_last_part_of_the_id(prepare):
    """Whatever the length of the dialogue's name before it."""
    _, valid, test = prepare(different_speakers=True, test_spk_id=1)
    of_session = [f"Ses01{dialogue}" for dialogue in DIALOGUES]
    assert sorted(test) == sorted(
        f"{name}_{turn}" for name in of_session for turn in ("F000", "F001")
    )
    assert sorted(valid) == sorted(f"{name}_M000" for name in of_session)


def test_manifests_of_another_fold_are_refused(prepare):
    """They would test its speaker, with a model that has heard the others."""
    fold = {"different_speakers": True, "test_spk_id": 1}
    first = prepare(**fold)
    assert prepare(**fold) == first
    with pytest.raises(ValueError, match="other settings"):
        prepare(different_speakers=True, test_spk_id=3)
    _, _, third = prepare("other", different_speakers=True, test_spk_id=3)
    assert {name[:5] for name in first[2]} == {"Ses01"}
    assert {name[:5] for name in third} == {"Ses02"}


def test_manifests_of_unknown_settings_are_refused(prepare, tmp_path):
    """Those from before settings were kept may be of any fold."""
    prepare()
    (tmp_path / "save" / "opt_iemocap_prepare.json").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="do not say with which settings"):
        prepare()


def test_an_interrupted_preparation_is_made_again(prepare, tmp_path):
    """Its settings are written last."""
    whole = prepare()
    (tmp_path / "save" / "opt_iemocap_prepare.json").unlink()
    (tmp_path / "save" / "test.json").unlink()
    assert prepare() == whole


def test_splits_do_not_depend_on_the_order_of_a_folder(prepare, monkeypatch):
    """File systems list the same files in different orders."""
    listed = os.listdir
    splits = []
    for backwards in (False, True):
        monkeypatch.setattr(
            os,
            "listdir",
            lambda path, order=backwards: sorted(listed(path), reverse=order),
        )
        splits.append(prepare("backwards" if backwards else "forwards"))
    assert splits[0] == splits[1]


def test_files_of_macos_are_passed_over(prepare, release):
    """It leaves one beside each on disks of other systems."""
    folder = release / "Session1" / "dialog" / "EmoEvaluation"
    (folder / "._Ses01F_impro01.txt").write_bytes(b"\x00\x05\xb0")
    assert prepare()


def test_a_duration_is_in_seconds_at_any_rate(prepare, release):
    """It is the header's number of frames by the header's rate."""
    name = "Ses01F_impro01_F000"
    folder = release / "Session1" / "sentences" / "wav" / "Ses01F_impro01"
    write_wav(folder / f"{name}.wav", seconds=0.5, rate=8000)
    rows = {}
    for manifest in prepare():
        rows.update(manifest)
    assert {row["length"] for row in rows.values()} == {0.5}


def test_a_release_without_transcriptions_has_no_words(prepare, release):
    """The audio is enough for these recipes."""
    for folder in release.glob("Session*/dialog/transcriptions"):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    train, _, _ = prepare()
    assert {row["words"] for row in train.values()} == {""}


def test_a_manifest_says_what_was_said_and_by_whom(prepare):
    """As the session's transcriptions have it."""
    rows = {}
    for manifest in prepare():
        rows.update(manifest)
    row = rows["Ses03M_impro05a_M000"]
    assert row["words"] == "Leave me alone!"
    assert row["spk_id"] == "Ses03M"
    assert rows["Ses05M_script01_1b_F001"]["spk_id"] == "Ses05F"


@pytest.mark.parametrize(
    ("script", "per_frame"),
    [("train.py", True), ("train_with_wav2vec2.py", False)],
)
def test_the_recipes_report_unweighted_accuracy(script, per_frame):
    """Three of four are right, but of two classes only one and a half."""
    logged = []
    brain = load(RECIPES / "emotion_recognition" / script).EmoIdBrain(
        hparams={
            "error_stats": lambda: SimpleNamespace(
                append=lambda *_: None, summarize=lambda _: 0.25
            ),
            "compute_cost": lambda *_: torch.zeros(()),
            "epoch_counter": SimpleNamespace(current=1),
            "train_logger": SimpleNamespace(
                log_stats=lambda *_, **stats: logged.append(stats)
            ),
        }
    )
    targets = torch.tensor([0, 0, 1, 1])
    scores = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 0]), 2).float()
    scores = scores.unsqueeze(1) if per_frame else scores
    ones = torch.ones(4)
    batch = SimpleNamespace(
        id=["a", "b", "c", "d"],
        sig=(None, ones),
        emo_encoded=(targets.unsqueeze(1), ones),
    )
    brain.on_stage_start(sb.Stage.TEST)
    brain.compute_objectives(scores, batch, sb.Stage.TEST)
    brain.on_stage_end(sb.Stage.TEST, 0.0)
    assert logged[0]["test_stats"]["UA"] == pytest.approx(0.75)
