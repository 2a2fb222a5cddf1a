"""Audio is read in any format, and what is wrong with a file is said."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from emoq_modules.dataio import audio
from emoq_modules.dataio.audio import (
    audio_duration,
    read_audio,
    to_model_rate,
)
from emoq_modules.dataio.recordings import SHORTEST_S
from emoq_modules.errors import AudioError
from tests.corpus_folders import clip_bytes, wav_bytes, write

RNG = np.random.default_rng(0)


def tone(rate, seconds=1.0, frequency=440.0):
    """A sine wave."""
    return 0.5 * np.sin(
        2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate
    )


def write_noise(path, seconds=1.0, rate=16000, channels=1, **options):
    noise = 0.1 * RNG.standard_normal((round(seconds * rate), channels))
    soundfile.write(path, noise, rate, **options)
    return path


def audio_bytes(form):
    """Two seconds of noise."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 32000)
    soundfile.write(file, noise, 16000, format=form)
    return file.getvalue()


def flac_bytes(tells_length=True):
    content = bytearray(audio_bytes("FLAC"))
    if not tells_length:  # as FFmpeg leaves it in a pipe, or a segment
        content[21] &= 0xF0
        content[22:26] = bytes(4)
    return bytes(content)


def piped_wav(riff, data):
    """Two seconds whose sizes are what a writer to a pipe has guessed."""
    content = bytearray(wav_bytes(2))
    content[4:8] = riff.to_bytes(4, "little")
    content[40:44] = data.to_bytes(4, "little")
    return bytes(content)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000, 44101])
@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_any_rate_is_read_as_16_khz(tmp_path, rate, ending):
    path = tmp_path / f"tone.{ending}"
    soundfile.write(path, tone(rate), rate)
    audio = read_audio(path)
    assert audio.dtype == torch.float32
    assert audio.shape == (16000,)
    # Away from the ends the wave itself is the same.
    expected = torch.tensor(tone(16000), dtype=torch.float32)
    torch.testing.assert_close(
        audio[100:-100], expected[100:-100], atol=1e-3, rtol=0
    )


def test_resampling_lets_nothing_above_8_khz_fold_back(tmp_path):
    soundfile.write(tmp_path / "high.wav", tone(44100, frequency=15000), 44100)
    assert read_audio(tmp_path / "high.wav")[1000:-1000].abs().max() < 0.01


def test_samples_are_read_as_they_are(tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, 500).astype("float32")
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    assert np.array_equal(read_audio(tmp_path / "a.wav").numpy(), samples)


def test_silence_is_read_with_a_warning(tmp_path, caplog):
    soundfile.write(tmp_path / "silent.wav", np.zeros(160), 16000)
    soundfile.write(tmp_path / "quiet.wav", np.full(160, 1e-4), 16000)
    for _ in range(2):
        assert not read_audio(tmp_path / "silent.wav").any()
        assert read_audio(tmp_path / "quiet.wav").any()
    assert caplog.text.count("is silent") == 1  # told once
    assert f"{tmp_path / 'silent.wav'} is silent" in caplog.text


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
    path = write_noise(tmp_path / name, 2.3, rate, channels)
    samples = read_audio(path)
    assert abs(len(samples) - 2.3 * 16000) < 16000 * 0.1  # mp3 pads
    # At once, and not second by second as a stream is.
    whole, _ = soundfile.read(path, dtype="float32", always_2d=True)
    whole = to_model_rate(torch.from_numpy(whole).mean(dim=1), rate)
    if name.endswith((".mp3", ".ogg")):
        # Of these FFmpeg reads all, and cuts off below 8 kHz in its own way.
        size = min(len(samples), len(whole))
        difference = (samples[:size] - whole[:size]).square().mean()
        assert difference < 0.05 * whole.square().mean()
        return
    torch.testing.assert_close(samples, whole, atol=1e-6, rtol=0)


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
    write_noise(folder / "short.wav", 0.01)
    nan = np.array([0.1, np.nan] * 1000)
    soundfile.write(folder / "nan.wav", nan, 16000, subtype="FLOAT")
    write_noise(folder / "long.wav", 3.1)
    write_noise(folder / "fast.wav", 0.1, rate=1_000_003)
    content = write_noise(folder / "cut.wav", 1.0).read_bytes()
    (folder / "cut.wav").write_bytes(content[:20000])
    content = write_noise(folder / "cut.flac", 1.0).read_bytes()
    (folder / "cut.flac").write_bytes(content[: len(content) // 2])
    return {
        "missing.wav": "there is no file .*missing.wav",
        ".": "is a folder",
        "empty.wav": "is an empty file",
        "text.wav": "text.wav cannot be read as audio",
        "text.raw": "cannot be read as audio",
        "silent.mp4": "has no sound track",
        "none.wav": "none.wav has 0 samples",
        "short.wav": "too short: 10 ms, and 25 ms are needed",
        "nan.wav": "holds samples that are not finite numbers; leave it out",
        "long.wav": "longer than 3 s: .* timeline",
        "fast.wav": "1000003 samples a second",
        "cut.wav": "cut.wav is truncated",
        "cut.flac": "cut.flac is damaged or truncated after 0",
    }


def test_what_is_wrong_with_a_file_is_said(tmp_path):
    for name, message in faulty(tmp_path).items():
        with pytest.raises(AudioError, match=message):
            read_audio(tmp_path / name, 3.0, SHORTEST_S)


def test_what_may_not_be_read_is_not_called_missing(tmp_path, monkeypatch):
    path = write_noise(tmp_path / "shut.wav")
    monkeypatch.setattr(audio.os, "access", lambda *_: False)
    for refused in (path, tmp_path):
        with pytest.raises(AudioError, match="cannot be read: Permission"):
            read_audio(refused)
    with pytest.raises(AudioError, match="cannot be read: File name too long"):
        read_audio("a" * 300)
    monkeypatch.undo()
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match=r"pipe.wav is a pipe or a device"):
        read_audio(tmp_path / "pipe.wav")


@pytest.mark.parametrize("form", ["ogg", "mp3"])
def test_recordings_that_were_joined_are_read_to_their_end(tmp_path, form):
    parts = [write_noise(tmp_path / f"{n}.{form}", 1.5) for n in range(2)]
    path = tmp_path / f"both.{form}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert len(read_audio(path)) == pytest.approx(48000, abs=3200)
    assert audio_duration(path) == pytest.approx(3.0, abs=0.2)


@pytest.mark.parametrize("has_av", [True, False])
def test_an_mp3_that_tells_no_length_is_read_whatever_is_before_it(
    tmp_path, monkeypatch, has_av
):
    frames = write_noise(tmp_path / "a.mp3", 1.5).read_bytes()
    frames = frames[frames.index(b"\xff", 400) :]  # the first tells how many
    assert b"Xing" not in frames and b"Info" not in frames
    picture = b"ID3\x03\0\0" + bytes([0, 6, 13, 32]) + bytes(100_000)
    (tmp_path / "b.mp3").write_bytes(picture + frames)
    if not has_av:
        monkeypatch.setattr(audio, "find_spec", lambda name: None)
    samples = read_audio(tmp_path / "b.mp3")
    assert len(samples) == pytest.approx(24000, abs=3200)


@pytest.mark.parametrize("form", ["w64", "rf64", "aiff", "mp3", "mkv"])
def test_what_was_cut_off_is_named(tmp_path, form):
    path = tmp_path / f"a.{form}"
    if form == "mkv":
        path.write_bytes(clip_bytes(3.0, form="matroska", video=False))
    else:
        write_noise(path, 3.0, format=form.upper())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for read in (read_audio, audio_duration):
        with pytest.raises(AudioError, match="truncated: its header says"):
            read(path)


def test_file_that_names_others_is_not_followed(tmp_path, monkeypatch):
    write_noise(tmp_path / "secret.wav")
    monkeypatch.chdir(tmp_path)  # where FFmpeg would look for it
    Path("a.wav").write_text("ffconcat version 1.0\nfile secret.wav\n")
    Path("b.wav").write_text(  # would listen to the network
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=audio 5004 RTP/AVP 0\n"
    )
    for name in ("a.wav", "b.wav"):
        with pytest.raises(AudioError, match="cannot be read"):
            read_audio(name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.wav", b"", "is an empty file"),
        ("a.wav", b"not audio", "cannot be read as audio"),
        ("a.flac", flac_bytes()[:20000], "is damaged or truncated after 0"),
        ("a.mp3", audio_bytes("MP3")[:5000], "is truncated: .* says 2.00 s"),
        ("a.aiff", audio_bytes("AIFF")[:20000], "is truncated"),
        ("a.au", audio_bytes("AU")[:20000], "is truncated"),
        ("a.wav", wav_bytes(0), "has 0 samples"),
        ("a.wav", wav_bytes(1)[:5000], "is truncated"),
        ("a.wav", wav_bytes(1)[:44], "is truncated"),
    ],
)
def test_unusable_audio_is_named(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(AudioError, match=f"{name} {message}"):
        audio_duration(path)


@pytest.mark.parametrize(
    "content",
    [
        wav_bytes(2),
        wav_bytes(2, rate=44100, channels=2),
        flac_bytes(),
        # From a pipe, whose writer does not know the size.
        flac_bytes(tells_length=False),
        piped_wav(0xFFFFFFFF, 0xFFFFFFFF),
        piped_wav(0x7FFFF024, 0x7FFFF000),  # sox, espeak
        piped_wav(0x80000024, 0x80000000),  # arecord
        piped_wav(0xFFFFFFF7, 0xFFFFFFD3),
        piped_wav(0x7FFFFFFF, 0x7FFFFFDB),
        piped_wav(0, 0),
    ],
)
def test_any_rate_and_format_is_measured(tmp_path, content):
    path = write(tmp_path / "a", content)
    assert audio_duration(path) == 2.0
    assert len(read_audio(path)) == 32000


def test_what_ffmpeg_alone_reads_is_measured(tmp_path):
    path = write(tmp_path / "a.mp4", clip_bytes(2))
    seconds = len(read_audio(path)) / 16000
    assert audio_duration(path) == pytest.approx(seconds, abs=1e-6)
    assert audio_duration(path) == pytest.approx(2, abs=0.05)


def test_titles_in_any_encoding_are_not_heard(tmp_path):
    tagged = clip_bytes(0.5).replace(b"XXXXYYYY", "Müllerßé".encode("cp1252"))
    found = read_audio(write(tmp_path / "a.m4a", tagged))
    assert torch.equal(
        found, read_audio(write(tmp_path / "b", clip_bytes(0.5)))
    )


@pytest.mark.parametrize(
    ("rate", "layout"), [(48000, "mono"), (44100, "stereo"), (48000, "5.1")]
)
def test_sound_may_change_on_its_way(tmp_path, rate, layout):
    parts = [
        clip_bytes(1.0, *kind, video=False, form="adts")
        for kind in ((48000, "stereo"), (rate, layout))
    ]
    found = read_audio(write(tmp_path / "a.aac", b"".join(parts)))
    whole = [len(read_audio(write(tmp_path / "b.aac", x))) for x in parts]
    # AAC begins with some milliseconds of silence.
    assert len(found) == pytest.approx(sum(whole), abs=1600)
    assert found[-8000:-2000].square().mean() > 0.01


@pytest.mark.parametrize("form", ["wav", "mp4"])
def test_of_channels_that_cancel_the_louder_is_heard(tmp_path, form):
    path = tmp_path / f"a.{form}"
    both = 0.3 * np.stack([tone(16000), -0.9995 * tone(16000)], axis=1)
    if form == "wav":
        soundfile.write(path, both, 16000)
    else:
        write(path, clip_bytes(1.0, gains=(1, -1)))
    power = read_audio(path).square().mean()
    assert power == pytest.approx(0.3**2 / 8 if form == "wav" else 0.045, 0.1)
