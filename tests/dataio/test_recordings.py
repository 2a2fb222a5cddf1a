"""Recordings of any length are read in parts."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from emoq_modules.dataio.audio import read_audio
from emoq_modules.dataio.recordings import (
    Recording,
    iter_segments,
    rms_dbfs,
    sliding_windows,
    write_wav,
)
from tests.corpus_folders import ROOT, clip_bytes

RNG = np.random.default_rng(0)


def write(path, seconds=1.0, rate=16000, channels=1, **options):
    noise = 0.1 * RNG.standard_normal((round(seconds * rate), channels))
    soundfile.write(path, noise, rate, **options)
    return path


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
    for window_s, hop_s in [(0, 1), (0.01, 1), (1, 1e-9), (1, -1)]:
        with pytest.raises(ValueError, match="it has to be"):
            sliding_windows(window_s, hop_s)
    spans = itertools.islice(sliding_windows(1, 0.5), 3)
    assert list(spans) == [(0, 1), (0.5, 1.5), (1, 2)]


def test_level_is_in_db_of_full_scale():
    tone = torch.sin(2 * torch.pi * torch.arange(16000) / 100)
    assert rms_dbfs(tone) == pytest.approx(-3.01, abs=0.01)
    assert rms_dbfs(torch.zeros(100)) < -150
    assert rms_dbfs(torch.full((100,), 0.1)) < -100  # an offset, and no sound


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
