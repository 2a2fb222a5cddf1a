"""The trained system, loaded as others do, says what the run measured."""

import shutil

import numpy as np
import pytest
import soundfile
import torch

import train
from emoq_modules import EmotionRecognizer
from emoq_modules.audio_files import AudioError
from emoq_modules.manifest import read_manifest
from emoq_modules.report import read_predictions

RUN = "tiny/emoq/fold1-seed1234/stage2"
LABELS = ["angry", "happy", "sad"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    results = tmp_path_factory.mktemp("recognizer")
    train.main(
        [
            *("hparams/emoq_stage2.yaml", "--preset", "tests/tiny.yaml"),
            *("--results_folder", str(results)),
        ]
    )
    return results


@pytest.fixture(scope="module")
def recognizer(results):
    return EmotionRecognizer.from_hparams(str(results / RUN / "recognizer"))


@pytest.fixture(scope="module")
def rows(results):
    return read_manifest(
        results / "tiny/manifests/fold1/test.json", LABELS, results / "data"
    )


def test_files_get_the_posteriors_of_the_run(results, recognizer, rows):
    stats = read_predictions(results / RUN)
    for name, expected in zip(stats.ids, stats.posteriors, strict=True):
        row = rows[name]
        posteriors, score, index, label = recognizer.classify_file(
            row["wav"], row["text"], row["speaker"]
        )
        torch.testing.assert_close(posteriors[0], expected, atol=1e-4, rtol=0)
        assert score.item() == posteriors.max().item()
        assert label == [LABELS[index.item()]]


def test_run_may_be_moved(results, recognizer, rows, tmp_path, monkeypatch):
    shutil.copytree(results / RUN, tmp_path / "moved")
    (results / RUN / "backbones").rename(results / RUN / "away")
    monkeypatch.chdir(tmp_path)
    try:
        moved = EmotionRecognizer.from_hparams("moved/recognizer")
    finally:
        (results / RUN / "away").rename(results / RUN / "backbones")
    row = next(iter(rows.values()))
    assert torch.equal(
        moved.classify_file(row["wav"], row["text"])[0],
        recognizer.classify_file(row["wav"], row["text"])[0],
    )


def test_files_with_turns_before_get_the_posteriors_of_the_run(
    results, recognizer, rows, tmp_path
):
    stage1 = "tiny/emoq/fold1-seed1234/stage1"
    (tmp_path / stage1).parent.mkdir(parents=True)
    (tmp_path / stage1).symlink_to(results / stage1)
    options = ["--context_turns", "2", "--number_of_epochs", "1"]
    train.main(
        [
            *("hparams/emoq_stage2.yaml", "--preset", "tests/tiny.yaml"),
            *("--results_folder", str(tmp_path), *options),
        ]
    )
    stats = read_predictions(tmp_path / RUN)
    folder = str(tmp_path / RUN / "recognizer")
    with_context = EmotionRecognizer.from_hparams(folder)
    said = []  # all of the dialogue so far, of which two turns count
    for name, row in rows.items():
        posteriors, *_ = with_context.classify_file(
            row["wav"], row["text"], row["speaker"], said
        )
        expected = stats.posteriors[stats.ids.index(name)]
        torch.testing.assert_close(posteriors[0], expected, atol=1e-4, rtol=0)
        said.append((row["speaker"], row["text"]))
    item = (row["wav"], row["text"], row["speaker"])
    alone, *_ = with_context.classify_file(*item)
    assert (posteriors - alone).abs().max() > 1e-3
    with_context.hparams.speaker_in_prompt = False
    anonymous, *_ = with_context.classify_file(*item, said)
    nobody = [(None, text) for _, text in said]
    expected, *_ = with_context.classify_file(*item, nobody)
    assert torch.equal(anonymous, expected)
    assert not torch.equal(anonymous, posteriors)
    with pytest.raises(ValueError, match="trained without the turns before"):
        recognizer.classify_file(*item, context=said)


def test_batch_gives_what_each_recording_alone_does(recognizer):
    torch.manual_seed(0)
    wavs = 0.1 * torch.randn(2, 16000)
    texts, lens = ["great yes", "no"], torch.tensor([1.0, 0.5])
    together = recognizer.classify_batch(wavs, lens, texts)[0]
    alone = recognizer.classify_batch(wavs[1:, :8000], texts=texts[1:])[0]
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=0)


def test_recording_without_a_transcript_is_recognised_too(recognizer, rows):
    row = next(iter(rows.values()))
    posteriors, *_ = recognizer.classify_file(row["wav"])
    assert posteriors.sum().item() == pytest.approx(1, abs=1e-5)


def test_file_that_is_no_audio_is_named(recognizer, tmp_path):
    path = tmp_path / "notes.wav"
    path.write_text("not audio")
    with pytest.raises(AudioError, match="notes.wav"):
        recognizer.classify_file(path)


def test_any_rate_and_channels_will_do(recognizer, tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.full((44100, 2), 0.01), 44100)
    assert recognizer.classify_file(path, "no")[0].shape == (1, 3)
