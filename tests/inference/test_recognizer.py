"""The trained system, loaded as others do, says what the run measured."""

import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from emoq_modules import EmotionRecognizer, Recording
from emoq_modules.dataio.audio import read_audio
from emoq_modules.errors import AudioError, EmoQError, SourceError
from emoq_modules.evaluation.results import read_predictions
from emoq_modules.inference.export import export_recognizer

LABELS = ["angry", "happy", "sad"]


@pytest.fixture(scope="module")
def recognizer(recognizer_folder):
    return as_in_training(recognizer_folder)


def as_in_training(folder, **overrides):
    """A recognizer that gives posteriors as its run's test does."""
    overrides = {"temperature": 1, **overrides}
    return EmotionRecognizer.from_hparams(folder, overrides=overrides)


def test_files_get_the_posteriors_of_the_run(run, recognizer, rows):
    stats = read_predictions(run)
    for name, expected in zip(stats.ids, stats.posteriors, strict=True):
        row = rows[name]
        posteriors, score, index, label = recognizer.classify_file(
            row["wav"], row["text"], row["speaker"]
        )
        torch.testing.assert_close(posteriors[0], expected, atol=1e-4, rtol=0)
        assert score.item() == posteriors.max().item()
        assert label == [LABELS[index.item()]]


def test_run_may_be_moved(run, recognizer, rows, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "moved")
    (run / "backbones").rename(run / "away")
    monkeypatch.chdir(tmp_path)
    try:
        moved = as_in_training("moved/recognizer")
    finally:
        (run / "away").rename(run / "backbones")
    row = next(iter(rows.values()))
    assert torch.equal(
        moved.classify_file(row["wav"], row["text"])[0],
        recognizer.classify_file(row["wav"], row["text"])[0],
    )


def test_it_computes_in_the_precision_of_the_runs_evaluation(train_tiny, rows):
    run = train_tiny("--eval_precision", "bf16")
    stats = read_predictions(run)
    expected = torch.stack(stats.posteriors)

    def distance(**overrides):
        loaded = as_in_training(run / "recognizer", **overrides)
        items = [
            Recording(row["wav"], row["text"], row["speaker"])
            for row in rows.values()
        ]
        found = [
            list(x.posteriors.values())
            for x in loaded.recognize(items, len(items))
        ]
        order = [list(rows).index(name) for name in stats.ids]
        return (torch.tensor(found)[order] - expected).abs().mean()

    in_float32 = distance(eval_precision="fp32")
    # Not equal: in half precision what shares a row moves the last bits.
    assert distance() < in_float32 / 2


def test_files_with_turns_before_get_the_posteriors_of_the_run(
    train_tiny, recognizer, rows
):
    run = train_tiny("--context_turns", "2", "--number_of_epochs", "1")
    stats = read_predictions(run)
    folder = run / "recognizer"
    with_context = as_in_training(folder)
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
    without = as_in_training(folder, speaker_in_prompt=False)
    anonymous, *_ = without.classify_file(*item, said)
    nobody = [(None, text) for _, text in said]
    expected, *_ = with_context.classify_file(*item[:2], None, nobody)
    assert torch.equal(anonymous, expected)
    assert not torch.equal(anonymous, posteriors)
    with pytest.raises(ValueError, match="trained without the turns before"):
        recognizer.classify_file(*item, context=said)


def test_an_export_trained_without_speakers_needs_none(
    train_tiny, rows, tmp_path
):
    options = "--speaker_in_prompt", "False", "--number_of_epochs", "1"
    run = train_tiny(*options)
    exported = as_in_training(export_recognizer(run, tmp_path / "export"))
    stats = read_predictions(run)
    for name, expected in zip(stats.ids, stats.posteriors, strict=True):
        item = rows[name]["wav"], rows[name]["text"]
        posteriors, *_ = exported.classify_file(*item)
        torch.testing.assert_close(posteriors[0], expected, atol=1e-4, rtol=0)
        assert torch.equal(posteriors, exported.classify_file(*item, "Ross")[0])


def test_batch_gives_what_each_recording_alone_does(recognizer):
    torch.manual_seed(0)
    wavs = 0.1 * torch.randn(2, 16000)
    texts, lens = ["great yes", "no"], torch.tensor([1.0, 0.5])
    together = recognizer.classify_batch(wavs, lens, texts)[0]
    alone = recognizer.classify_batch(wavs[1:, :8000], texts=texts[1:])[0]
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=0)


def test_recording_without_a_transcript_is_recognized_too(recognizer, rows):
    row = next(iter(rows.values()))
    posteriors, *_ = recognizer.classify_file(row["wav"])
    assert posteriors.sum().item() == pytest.approx(1, abs=1e-5)


def pairs(rows):
    return [Recording(row["wav"], row["text"]) for row in rows.values()]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_recognitions_are_those_of_each_file_alone(
    recognizer, rows, batch_size
):
    found = list(recognizer.recognize(pairs(rows), batch_size))
    for recording, recognition in zip(pairs(rows), found, strict=True):
        posteriors, score, _, label = recognizer.classify_file(
            recording.path, recording.text
        )
        assert list(recognition.posteriors) == LABELS
        values = list(recognition.posteriors.values())
        assert values == pytest.approx(posteriors[0].tolist(), abs=1e-5)
        assert recognition.label == label[0]
        assert recognition.confidence == pytest.approx(score.item(), abs=1e-5)
        assert recognition.path == recording.path
        assert recognition.text == recording.text
        duration = soundfile.info(recording.path).duration
        assert (recognition.start, recognition.end) == (0, duration)


def test_bad_recordings_are_errors_and_the_rest_goes_on(
    recognizer, rows, tmp_path
):
    (tmp_path / "text.wav").write_text("not audio")
    soundfile.write(tmp_path / "short.wav", np.full(160, 0.1), 16000)
    loud = np.full(16000, 1e30)
    soundfile.write(tmp_path / "loud.wav", loud, 16000, subtype="FLOAT")
    path = next(iter(rows.values()))["wav"]
    bad = {
        "there is no file": tmp_path / "missing.wav",
        "cannot be read as audio": tmp_path / "text.wav",
        "too short: 10 ms": tmp_path / "short.wav",
        "holds samples of up to 1e+30": tmp_path / "loud.wav",
        "trained without the turns": Recording(path, context=[("A", "B")]),
        "5 is given": Recording(path, text=5),
    }
    mixed = [item for fault in bad.values() for item in (fault, path)]
    with pytest.raises(AudioError, match="text.wav cannot be read"):
        recognizer.classify_file(tmp_path / "text.wav")
    found = list(recognizer.recognize(mixed, batch_size=3))
    for message, recognition in zip(bad, found[::2], strict=True):
        assert message in recognition.error
        assert recognition.label is None and recognition.posteriors == {}
    (alone,) = recognizer.recognize([path])
    for recognition in found[1::2]:
        assert recognition.error is None
        assert recognition.posteriors == pytest.approx(
            alone.posteriors, abs=1e-5
        )


def test_a_system_that_recognizes_nothing_is_to_blame_itself(
    recognizer, rows, monkeypatch
):
    path = next(iter(rows.values()))["wav"]
    queries = recognizer.mods.fusion.queries
    monkeypatch.setattr(queries, "data", torch.full_like(queries, torch.nan))
    with pytest.raises(SourceError, match="nothing at all .*values are not f"):
        list(recognizer.recognize([path]))
    monkeypatch.undo()
    monkeypatch.setattr(recognizer.hparams, "store_precision", "fp4")
    with pytest.raises(SourceError, match="nothing at all .*fp4"):
        list(recognizer.recognize([path]))


def test_samples_are_checked_as_files_are(recognizer, rows):
    row = next(iter(rows.values()))
    samples = read_audio(row["wav"])
    faulty = {
        "float32 of shape .*2, 16000": torch.zeros(2, 16000),
        "int16": (samples * 30000).short(),
        "too short: 0.625 ms": samples[:10],
        "not finite": torch.full((16000,), torch.nan),
        "longer than 2 s": torch.zeros(33000),
    }
    recordings = [Recording("it", samples=wrong) for wrong in faulty.values()]
    good = Recording("it", row["text"], samples=samples.numpy())
    *found, last = recognizer.recognize([*recordings, good], max_seconds=2)
    for message, recognition in zip(faulty, found, strict=True):
        assert re.search(message, recognition.error)
    (expected,) = recognizer.recognize([Recording(row["wav"], row["text"])])
    assert last.posteriors == pytest.approx(expected.posteriors, abs=1e-5)


def test_what_was_said_in_a_recording_is_not_said_in_its_windows(
    recognizer, tmp_path
):
    wav = tmp_path / "a.wav"
    soundfile.write(wav, 0.1 * np.random.default_rng(0).random(32000), 16000)
    windows = recognizer.timeline(Recording(wav, "great yes"), 1.0, 1.0)
    assert [window.text for window in windows] == ["", ""]
    assert windows == recognizer.timeline(wav, 1.0, 1.0)
    with pytest.raises(ValueError, match="A VAD reads the file"):
        samples = torch.zeros(16000)
        recognizer.timeline(Recording(wav, samples=samples), vad="somewhere")


def test_longer_recordings_are_for_the_timeline(recognizer, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(16000 * 3, 0.1), 16000)
    (found,) = recognizer.recognize([tmp_path / "a.wav"], max_seconds=2)
    assert "longer than 2 s" in found.error and "timeline" in found.error
    (found,) = recognizer.recognize([tmp_path / "a.wav"], max_seconds=3)
    assert found.error is None


def test_results_come_while_recordings_still_do(recognizer, rows):
    path = next(iter(rows.values()))["wav"]
    asked = []

    def endless():
        while True:
            asked.append(path)
            yield path

    results = recognizer.recognize(endless(), batch_size=2)
    for _ in range(20):
        next(results)
    assert len(asked) < 20 + 2 * 4 * 2


def test_text_of_any_length_is_cut_as_in_training(recognizer, rows):
    path = next(iter(rows.values()))["wav"]
    limit = recognizer.hparams.max_text_tokens
    # Whole words of one token each, in either tokenizer, or one more.
    texts = ["great yes " * 10_000, "great yes " * limit, "x" * 100_000]
    start = time.monotonic()
    long, cut, _ = recognizer.recognize(Recording(path, t) for t in texts)
    assert time.monotonic() - start < 5
    assert long.posteriors == pytest.approx(cut.posteriors, abs=1e-5)


def test_posteriors_are_calibrated_for_what_was_asked(recognizer_folder):
    raw = as_in_training(recognizer_folder)
    recognizer = as_in_training(recognizer_folder)
    fitted = {"transcript": 2.5, "no_transcript": 4.0}
    recognizer.hparams.temperature = fitted
    torch.manual_seed(0)
    wavs, texts = 0.1 * torch.randn(2, 16000), ["Oh no!", ""]
    given, _, chosen, _ = raw.classify_batch(wavs, texts=texts)
    posteriors, score, index, _ = recognizer.classify_batch(wavs, texts=texts)
    temperatures = torch.tensor([[2.5], [4.0]])
    expected = (given.log() / temperatures).softmax(dim=1)
    torch.testing.assert_close(posteriors, expected)
    assert torch.equal(score, posteriors.amax(dim=1))
    assert torch.equal(index, chosen)
    items = [
        Recording("a", text, samples=wav)
        for wav, text in zip(wavs, texts, strict=True)
    ]
    for found, row in zip(recognizer.recognize(items), expected, strict=True):
        assert found.confidence == max(found.posteriors.values())
        assert found.confidence == pytest.approx(row.max().item(), abs=1e-5)
    # To windows nothing was fitted: they are as in training.
    (window,) = recognizer.timeline(items[0])
    (same,) = raw.timeline(items[0])
    assert window.posteriors == same.posteriors


@pytest.mark.parametrize("temperature", [1, 2.5])
def test_one_temperature_of_an_earlier_version_is_for_all(
    recognizer_folder, temperature
):
    recognizer = as_in_training(recognizer_folder, temperature=temperature)
    raw = as_in_training(recognizer_folder)
    torch.manual_seed(0)
    wavs = 0.1 * torch.randn(1, 16000)
    given, found = (x.classify_batch(wavs)[0] for x in (raw, recognizer))
    expected = (given.log() / temperature).softmax(dim=1)
    torch.testing.assert_close(found, expected)


def test_unsure_answers_are_withheld(recognizer, rows):
    free = list(recognizer.recognize(pairs(rows)))
    median = sorted(found.confidence for found in free)[len(free) // 2]
    shy = list(recognizer.recognize(pairs(rows), abstain_below=median))
    for sure, found in zip(free, shy, strict=True):
        assert found.abstained == (sure.confidence < median)
        assert found.label == (None if found.abstained else sure.label)
        assert found.posteriors == sure.posteriors
    assert 0 < sum(found.abstained for found in shy) < len(shy)
    recognizer.hparams.abstain_below = 1.0
    try:
        assert all(
            found.abstained for found in recognizer.recognize(pairs(rows))
        )
    finally:
        recognizer.hparams.abstain_below = 0.0


def test_arguments_out_of_range_are_refused_at_once(recognizer):
    for options in ({"batch_size": 0}, {"abstain_below": 1.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            recognizer.recognize([], **options)


def test_batch_that_is_too_large_for_the_memory_is_cut_up(
    recognizer, rows, monkeypatch
):
    expected = list(recognizer.recognize(pairs(rows)))
    compute, sizes = recognizer.mods.decoder.posteriors, []

    def limited(embeddings, *others):
        sizes.append(len(embeddings))
        if len(embeddings) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(embeddings, *others)

    monkeypatch.setattr(recognizer.mods.decoder, "posteriors", limited)
    found = list(recognizer.recognize(pairs(rows)))
    assert max(sizes) > 2
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.path == theirs.path and ours.label == theirs.label


def test_timeline_recognizes_each_window_as_a_file_of_its_own(
    recognizer, tmp_path
):
    torch.manual_seed(0)
    samples = 0.1 * torch.randn(16000 * 5).numpy()
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    found = recognizer.timeline(path, window_s=1, hop_s=0.7, batch_size=3)
    times = [(window.start, window.end) for window in found]
    assert times == [
        *((pytest.approx(s), pytest.approx(s + 1)) for s in (0, 0.7, 1.4)),
        *((pytest.approx(s), pytest.approx(s + 1)) for s in (2.1, 2.8, 3.5)),
        (4, 5),
    ]
    for window in found:
        piece = samples[round(16000 * window.start) : round(16000 * window.end)]
        soundfile.write(tmp_path / "b.wav", piece, 16000, subtype="FLOAT")
        posteriors, *_, label = recognizer.classify_file(tmp_path / "b.wav")
        values = list(window.posteriors.values())
        assert values == pytest.approx(posteriors[0].tolist(), abs=1e-5)
        assert window.label == label[0] and window.path == str(path)


def test_silence_and_what_cancels_are_abstained_from(recognizer, tmp_path):
    tone = 0.1 * np.sin(np.arange(16000))
    for name, samples in (
        ("silent.wav", 0 * tone),
        ("opposite.wav", np.stack([tone, -tone], axis=1)),
        ("left.wav", tone),
    ):
        soundfile.write(tmp_path / name, samples, 16000, "FLOAT")
    silent, opposite, left = recognizer.recognize(
        tmp_path / name for name in ("silent.wav", "opposite.wav", "left.wav")
    )
    assert silent.abstained and silent.label is None and silent.end == 1.0
    assert opposite.posteriors == pytest.approx(left.posteriors, abs=1e-5)


@pytest.mark.parametrize("single", ["a.wav", Path("a.wav"), Recording("a.wav")])
def test_a_single_recording_in_the_place_of_several_is_named(
    recognizer, single
):
    with pytest.raises(ValueError, match="one recording, in the place of sev"):
        recognizer.recognize(single)


@pytest.mark.parametrize(
    ("wavs", "wav_lens", "message"),
    [
        (torch.zeros(1, 800, dtype=torch.int16), None, "are torch.int16 of"),
        (torch.zeros(800), None, r"of shape \(800,\)"),
        (torch.zeros(1, 10), None, "has 10 samples; 25 ms, 400, are"),
        (torch.zeros(2, 800), torch.tensor([1.0, 0.1]), "has 80 samples"),
        (torch.zeros(1, 800), torch.tensor([1.5]), r"wav_lens is \[1.5\]"),
        (torch.zeros(1, 800), torch.tensor([800]), r"wav_lens is \[800\]"),
    ],
)
def test_a_batch_that_no_encoder_makes_sense_of_is_refused(
    recognizer, wavs, wav_lens, message
):
    with pytest.raises(ValueError, match=message):
        recognizer.classify_batch(wavs, wav_lens)


def test_windows_without_sound_are_not_recognized(recognizer, tmp_path):
    samples = np.zeros(16000 * 3)
    samples[:16000] = 0.1 * np.sin(np.arange(16000))
    samples[16000:32000] = 0.0005 * np.sin(np.arange(16000))  # -69 dB
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    heard, faint, silent = recognizer.timeline(tmp_path / "a.wav", 1, 1)
    assert heard.label is not None and not heard.abstained
    for window in (faint, silent):
        assert window.abstained and window.posteriors == {}
        assert (window.label, window.confidence, window.error) == (None,) * 3
    _, faint, silent = recognizer.timeline(
        tmp_path / "a.wav", 1, 1, silence_dbfs=-80
    )
    assert faint.label is not None and silent.label is None


def test_timeline_of_what_is_no_audio_is_an_error(recognizer, tmp_path):
    with pytest.raises(AudioError, match="there is no file"):
        recognizer.timeline(tmp_path / "missing.wav")
    with pytest.raises(ValueError, match="hop_s"):
        recognizer.timeline(tmp_path / "missing.wav", hop_s=0)


class FakeVAD:
    """Speaks of the same two segments, and of what it was given."""

    def get_speech_segments(self, path):
        self.info = soundfile.info(path)
        return torch.tensor([[0.25, 1.0], [1.5, 62.0]])


def test_vad_gives_segments_in_the_place_of_windows(recognizer, tmp_path):
    noise = 0.1 * np.random.default_rng(0).standard_normal((44100 * 62, 2))
    soundfile.write(tmp_path / "a.wav", noise, 44100)
    vad = FakeVAD()
    found = recognizer.timeline(tmp_path / "a.wav", vad=vad)
    assert (vad.info.samplerate, vad.info.channels) == (16000, 1)
    times = [time for window in found for time in (window.start, window.end)]
    third = 60.5 / 3  # no segment is longer than 30 s
    expected = [0.25, 1, 1.5]
    expected += [1.5 + third, 1.5 + third, 1.5 + 2 * third, 1.5 + 2 * third, 62]
    assert times == pytest.approx(expected, abs=1e-4)
    assert all(window.label for window in found)


def test_prompt_text_is_what_the_model_reads(recognizer):
    text = recognizer.prompt_text("Oh, hello!", "Ross")
    assert "Speaker: Ross\nTranscript: Oh, hello!\nVoice:<AUDIO>" in text
    assert text.endswith("Emotion:")
    prompt = recognizer.mods.decoder.prompt
    before, after = prompt.encode("Oh, hello!", "Ross")
    beginning, end = text.split("<AUDIO>")
    assert prompt.tokenizer.decode(before) == beginning
    assert prompt.tokenizer.decode(after) == end
    assert "Transcript" not in recognizer.prompt_text()


def test_folder_that_holds_no_recognizer_is_said(run, tmp_path):
    with pytest.raises(SourceError, match="is in .*stage2/recognizer"):
        EmotionRecognizer.from_hparams(run)
    with pytest.raises(SourceError, match="no hyperparams.yaml"):
        EmotionRecognizer.from_hparams(tmp_path)
    with pytest.raises(SourceError, match="There is no folder"):
        EmotionRecognizer.from_hparams(tmp_path / "missing")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (r"eval_precision: \w+", "eval_precision: fp5", "cannot be built"),
        (r"dtype: \w+", "dtype: floaty", "cannot be built"),
        (
            r"n_mels: \d+",
            "n_mels: 40",
            "gives 160 values a frame, and what .* 80",
        ),
        (r"labels: (&\w+ )?\[.*\]", r"labels: \1[]", "labels is"),
        (r"temperature:", "temperature: 0\nx:", "temperature is 0 in a "),
        (r"transcript: [\d.]+", "transcript: warm", "transcript is 'warm'"),
        (r"num_queries: \d+", "num_queries: 5", "another model"),
    ],
)
def test_a_folder_with_a_changed_value_is_named(
    recognizer_folder, tmp_path, before, after, message
):
    run = shutil.copytree(Path(recognizer_folder).parent, tmp_path / "run")
    settings = run / "recognizer/hyperparams.yaml"
    text = settings.read_text()
    changed = re.sub(before, after, text, count=1)
    assert changed != text
    settings.write_text(changed)
    with pytest.raises(EmoQError, match=message) as refusal:
        EmotionRecognizer.from_hparams(run / "recognizer")
    assert len(str(refusal.value).splitlines()) == 1
