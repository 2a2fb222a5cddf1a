"""Recordings are read in any format and length, and what is wrong is said."""

import io
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from emoq_modules.dataio import audio
from emoq_modules.dataio.audio import decode_sound, read_audio, to_model_rate
from emoq_modules.dataio.recordings import (
    SHORTEST_S,
    Recording,
    iter_segments,
    rms_dbfs,
    sliding_windows,
    write_wav,
)
from emoq_modules.errors import AudioError
from tests.corpus_folders import ROOT, clip_bytes

RNG = np.random.default_rng(0)


def write(path, seconds=1.0, rate=16000, channels=1, **options):
    noise = 0.1 * RNG.standard_normal((round(seconds * rate), channels))
    soundfile.write(path, noise, rate, **options)
    return path


@pytest.mark.parametrize(
    "name, rate, channels",
    [
        ("a.wav", 16000, 1),
        ("a.wav", 8000, 2),
        ("a.flac", 44100, 6),
        ("a.ogg", 48000, 1),
        ("a.mp3", 22050, 2),
        ("a.aiff", 96000, 1),
        ("a.wav", 44101, 1),  # nothing in common with 16,000
    ],
)
def test_any_format_rate_and_number_of_channels_is_read(
    tmp_path, name, rate, channels
):
    path = write(tmp_path / name, 2.3, rate, channels)
    samples = read_audio(path)
    assert abs(len(samples) - 2.3 * 16000) < 16000 * 0.1  # mp3 pads
    whole, _ = soundfile.read(path, dtype="float32", always_2d=True)
    whole = to_model_rate(torch.from_numpy(whole).mean(dim=1), rate)
    torch.testing.assert_close(samples, whole, atol=1e-6, rtol=0)


def test_tone_stays_a_tone_at_an_unusual_rate(tmp_path):
    times = np.arange(44101) / 44101
    soundfile.write(tmp_path / "a.wav", np.sin(2 * np.pi * 440 * times), 44101)
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(16000) / 16000)
    error = (read_audio(tmp_path / "a.wav") - expected)[100:-100]
    assert error.abs().max() < 1e-3


def test_what_only_ffmpeg_reads_is_read_too(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip_bytes(seconds=2.0))
    samples = read_audio(path)
    assert abs(len(samples) / 16000 - 2.0) < 0.1
    # A tone of amplitude 0.3.
    assert samples[8000:24000].std() == pytest.approx(0.3 / 2**0.5, rel=0.05)
    starts = [
        part[0] for part in iter_segments(path, sliding_windows(0.5, 0.5))
    ]
    assert starts[:4] == [0, 0.5, 1, 1.5]


def test_without_pyav_the_message_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip_bytes())
    monkeypatch.setattr(audio, "find_spec", lambda name: None)
    with pytest.raises(AudioError, match=r"clip.mp4 .*pip install 'av>=13'"):
        read_audio(path)


def faulty(folder):
    """Name of a faulty file, and what is to be said of it."""
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("not audio")
    (folder / "text.raw").write_text("not audio")
    (folder / "silent.mp4").write_bytes(clip_bytes(audio=False))
    soundfile.write(folder / "none.wav", np.zeros(0), 16000)
    write(folder / "short.wav", 0.01)
    nan = np.array([0.1, np.nan] * 1000)
    soundfile.write(folder / "nan.wav", nan, 16000, subtype="FLOAT")
    write(folder / "long.wav", 3.1)
    write(folder / "fast.wav", 0.1, rate=1_000_003)
    content = write(folder / "cut.wav", 1.0).read_bytes()
    (folder / "cut.wav").write_bytes(content[:20000])
    content = write(folder / "cut.flac", 1.0).read_bytes()
    (folder / "cut.flac").write_bytes(content[: len(content) // 2])
    return {
        "missing.wav": "there is no file",
        ".": "is a folder",
        "empty.wav": "is an empty file",
        "text.wav": "cannot be read as audio",
        "text.raw": "cannot be read as audio",
        "silent.mp4": "has no sound track",
        "none.wav": "has 0 samples",
        "short.wav": "too short: 10 ms, and 25 ms are needed",
        "nan.wav": "not finite numbers",
        "long.wav": "longer than 3 s: .* timeline",
        "fast.wav": "1000003 samples a second",
        "cut.wav": "truncated",
        "cut.flac": "cut.flac",
    }


def test_what_is_wrong_with_a_file_is_said(tmp_path):
    for name, message in faulty(tmp_path).items():
        with pytest.raises(AudioError, match=message):
            read_audio(tmp_path / name, 3.0, SHORTEST_S)


def test_file_that_names_others_is_not_followed(tmp_path, monkeypatch):
    write(tmp_path / "secret.wav")
    monkeypatch.chdir(tmp_path)  # where FFmpeg would look for it
    Path("a.wav").write_text("ffconcat version 1.0\nfile secret.wav\n")
    Path("b.wav").write_text(  # would listen to the network
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=audio 5004 RTP/AVP 0\n"
    )
    for name in ("a.wav", "b.wav"):
        with pytest.raises(AudioError, match="cannot be read"):
            read_audio(name)


def test_mp3_is_read_without_clicks(tmp_path):
    times = np.arange(5 * 22050) / 22050
    tone = 0.3 * np.sin(2 * np.pi * 440 * times)
    soundfile.write(tmp_path / "a.mp3", tone, 22050)
    # At once, and not second by second as a stream is.
    whole, rate = soundfile.read(tmp_path / "a.mp3", dtype="float32")
    whole = to_model_rate(torch.from_numpy(whole), rate)
    samples = read_audio(tmp_path / "a.mp3")
    torch.testing.assert_close(samples, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize(
    "seconds, window_s, hop_s, expected",
    [
        (9, 4, 2, [(0, 4), (2, 6), (4, 8), (5, 9)]),  # the last is moved back
        (8, 4, 2, [(0, 4), (2, 6), (4, 8)]),  # and there is none too many
        (3, 4, 2, [(0, 3)]),
        (9, 2, 4, [(0, 2), (4, 6), (7, 9)]),  # with gaps
        (7, 2, 4, [(0, 2), (4, 6)]),  # the end is in a gap
    ],
)
def test_windows_are_the_samples_of_their_times(
    tmp_path, rate, seconds, window_s, hop_s, expected
):
    path = write(tmp_path / "a.wav", seconds, rate, subtype="FLOAT")
    whole = soundfile.read(path, dtype="float32")[0]
    parts = list(iter_segments(path, sliding_windows(window_s, hop_s)))
    assert [part[:2] for part in parts] == expected
    for number, (start, end, samples, fault) in enumerate(parts):
        assert fault is None
        alone = tmp_path / f"{number}.wav"
        piece = whole[round(start * rate) : round(end * rate)]
        soundfile.write(alone, piece, rate, "FLOAT")
        assert torch.equal(samples, read_audio(alone))


def test_faulty_window_does_not_end_the_others(tmp_path):
    samples = np.full(16000 * 3, 0.1)
    samples[20000] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    faults = [
        fault
        for *_, fault in iter_segments(tmp_path / "a.wav", [(0, 1), (1, 2)])
    ]
    assert faults[0] is None and "not finite" in faults[1]


def test_windows_that_do_not_move_on_are_refused():
    for window_s, hop_s in [(0, 1), (0.01, 1), (1, 0), (1, -1)]:
        with pytest.raises(ValueError, match="it has to be"):
            sliding_windows(window_s, hop_s)
    spans = itertools.islice(sliding_windows(1, 0.5), 3)
    assert list(spans) == [(0, 1), (0.5, 1.5), (1, 2)]


def test_level_is_in_db_of_full_scale():
    tone = torch.sin(2 * torch.pi * torch.arange(16000) / 100)
    assert rms_dbfs(tone) == pytest.approx(-3.01, abs=0.01)
    assert rms_dbfs(torch.zeros(100)) < -150


def test_wav_for_other_programs_is_16_khz_mono(tmp_path):
    path = write(tmp_path / "a.flac", 2.5, 44100, 2)
    write_wav(path, tmp_path / "b.wav")
    info = soundfile.info(tmp_path / "b.wav")
    assert (info.samplerate, info.channels) == (16000, 1)
    assert info.duration == pytest.approx(2.5, abs=0.001)


def test_words_are_such_that_tokenizers_take_them():
    recording = Recording("a.wav", "Oh \ud83d\ude00 \ud800!", None, [("R", "")])
    assert recording.readable().text == "Oh \U0001f600 \ufffd!"
    assert recording.readable().context == (("R", ""),)
    with pytest.raises(ValueError, match="5 is given"):
        Recording("a.wav", 5).readable()


def test_memory_stays_flat_over_an_hour(tmp_path):
    """In a process of its own, whose peak is that of this work."""
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 16000, 1) as file:
        for _ in range(3600):
            file.write(np.zeros(16000))
    program = (
        "import resource, sys\n"
        "from emoq_modules.dataio import recordings\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "spans = recordings.sliding_windows(4, 2)\n"
        "parts = recordings.iter_segments(sys.argv[1], spans)\n"
        "print(sum(1 for _ in parts), peak() - before)\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    output = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    count, kilobytes = map(int, output.stdout.split())
    assert count == 1799
    assert kilobytes < 50_000  # of samples alone there are 230,000


def test_file_objects_are_decoded_as_files_are(tmp_path):
    content = clip_bytes()
    (tmp_path / "a.mp4").write_bytes(content)
    pieces = zip(
        decode_sound(io.BytesIO(content)),
        decode_sound(tmp_path / "a.mp4"),
        strict=True,
    )
    assert all(np.array_equal(*pair) for pair in pieces)
