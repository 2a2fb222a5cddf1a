"""Audio files of any format: their duration, and their samples.

Training, feature extraction and recognition read them here. What a header says
of a file's length is a hint: what is there is read, by libsndfile or FFmpeg,
and what ends before it was to end is named as truncated.
"""

import math
import os
import stat
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile
import torch
from scipy.signal import resample_poly
from speechbrain.utils.logger import get_logger
from torchaudio.functional import resample

from emoq_modules.errors import AudioError

logger = get_logger(__name__)

SAMPLE_RATE = 16000
# A header may say anything; a filter from 4 GHz would take all memory.
_RATES_HZ = (1000, 768_000)
# All usual rates have this many Hz in common with 16 kHz: 11,025 has 25.
_COMMON_STEP = 25
_DECODED_PIECES = 16
# Some writers put a few bytes too many into a header; that is harmless.
_SLACK = 64
# Magic of a file, where its header tells the size of what follows, and in
# which order of bytes. Those that write to a pipe cannot know the size, and put
# 0, the largest number or about half of it: so sox, espeak, arecord and FFmpeg.
_SIZES = {b"RIFF": (4, "little"), b"FORM": (4, "big"), b".snd": (8, "big")}
_UNKNOWN_FROM = 0x7FFF_F000
# Less is not missed: decoders differ in what they take for silence at the end.
_MISSED_S = 0.1
# Channels whose mean has less of their power cancel: one is of opposite phase.
_CANCELED = 1e-3


def read_audio(path, max_seconds=None, min_seconds=0.0):
    """Reads an audio file, as 16 kHz mono.

    Silence is read as it is, with a warning.

    Arguments
    ---------
    path : str or Path
        Whatever libsndfile reads, of any rate and number of channels; with
        PyAV installed also whatever FFmpeg reads.
    max_seconds : float | None
        A longer file is refused, before more of it is read.
    min_seconds : float
        A shorter one is refused; one without a sample always is.

    Returns
    -------
    torch.Tensor
        Samples in [-1, 1], ``(T,)``, float32.

    Raises
    ------
    AudioError
        If the file is missing, is no audio, is damaged, too long or too short,
        or holds samples that are not finite.

    Example
    -------
    >>> path = getfixture("tmp_path") / "stereo.wav"
    >>> soundfile.write(path, np.zeros((44100, 2)), 44100)
    >>> read_audio(path).shape
    torch.Size([16000])
    """
    blocks, seconds = [], 0
    with open_audio(path) as (rate, stream):
        for block in stream:
            blocks.append(block)
            seconds += len(block) / rate
            check_length(path, seconds, max_seconds)
    samples = checked_samples(torch.cat(blocks), rate, path, min_seconds)
    if not samples.any():
        logger.warning_once(f"{path} is silent: every sample is 0.")
    return samples


@contextmanager
def open_audio(path):
    """Opens an audio file to be read as a stream, from start to end.

    Yields its rate in Hz, and an iterator of blocks of a second or less: mono,
    ``(n,)``, float32. Raises ``AudioError`` if the file is missing, no audio or
    damaged; of what is found midway, from the iterator.
    """
    path = _existing(path)
    with _opened(path) as (rate, _, stream):
        yield rate, stream


@contextmanager
def _opened(path):
    """Rate, number of samples or None if only reading tells it, and blocks."""
    try:
        audio = soundfile.SoundFile(os.fsencode(path))  # need not be UTF-8
    # A headerless .raw is asked for its rate and format by a TypeError.
    except (soundfile.SoundFileRuntimeError, TypeError) as error:
        reason = getattr(error, "error_string", "It has no header.")
        yield SAMPLE_RATE, None, _decoded_blocks(path, reason)
        return
    # Where it can, soundfile seeks after each read, and libsndfile's mp3
    # decoder does not find its place again: clicks, and other samples.
    audio.seekable = lambda: False
    with audio:
        rate, frames = audio.samplerate, audio.frames
        if not _RATES_HZ[0] <= rate <= _RATES_HZ[1]:
            raise AudioError(
                f"{path} says that it has {rate} samples a second; "
                "sound has {} to {}".format(*_RATES_HZ)
            )
        if _is_cut_off(path):
            raise AudioError(f"{path} is truncated: its header says more")
        if not frames and find_spec("av") is not None:
            # A pipe's WAV may say that no data follows.
            yield SAMPLE_RATE, None, _unannounced_blocks(path)
            return
        if frames > sys.maxsize // 2:  # FLAC from a pipe
            frames = None
        yield rate, frames, _blocks(audio, frames, path)


def check_length(path, seconds, max_seconds):
    """Refuses what is longer than ``max_seconds``, if that is not None."""
    if max_seconds is not None and seconds > max_seconds:
        raise AudioError(
            f"{path} is longer than {max_seconds:g} s: cut it up, or have it "
            "recognized window by window, by timeline (emoq predict --timeline)"
        )


def checked_samples(samples, rate, path, min_seconds=0.0):
    """Resamples to 16 kHz what an encoder can do something with.

    Samples ``(T,)`` that are shorter than ``min_seconds``, or not finite, are
    an ``AudioError``, which names the ``path`` that they are from.
    """
    if len(samples) < min_seconds * rate:
        raise AudioError(
            f"{path} is too short: {1000 * len(samples) / rate:.3g} ms, and "
            f"{1000 * min_seconds:g} ms are needed at least"
        )
    if not torch.isfinite(samples).all():
        raise AudioError(
            f"{path} holds samples that are not finite numbers; leave it out"
        )
    return to_model_rate(samples, rate)


def to_model_rate(samples, rate):
    """Resamples ``(T,)`` to 16 kHz: ``(T * 16000 / rate,)``, float32."""
    if rate == SAMPLE_RATE:
        return samples
    if math.gcd(rate, SAMPLE_RATE) >= _COMMON_STEP:
        return resample(samples, rate, SAMPLE_RATE)
    # torchaudio has a filter for each phase: 2.8 GB of them for 44,101 Hz.
    resampled = resample_poly(samples.numpy(), SAMPLE_RATE, rate)
    return torch.from_numpy(resampled).float()


def audio_duration(path):
    """Seconds of audio in a file, of any sampling rate and number of channels.

    Arguments
    ---------
    path : str or Path
        A file that libsndfile reads, which need not decode all of it; or with
        PyAV installed, one that FFmpeg does.

    Returns
    -------
    float
        Seconds, above zero.

    Raises
    ------
    AudioError
        The file is missing, not audio, truncated, or without a sample.
    """
    path = _existing(path)
    with _opened(path) as (rate, frames, stream):
        if frames is None or not _holds(path, frames):
            frames = sum(map(len, stream))
    if not frames:
        raise AudioError(f"{path} has 0 samples")
    return round(frames / rate, 6)


def _existing(path):
    path = Path(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise AudioError(f"there is no file {path}") from error
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {error.strerror}") from error
    if not os.access(path, os.R_OK):
        raise AudioError(f"{path} cannot be read: Permission denied")
    if stat.S_ISDIR(status.st_mode):
        raise AudioError(f"{path} is a folder in which no recording is found")
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(f"{path} is a pipe or a device, and no file")
    if not status.st_size:
        raise AudioError(f"{path} is an empty file")
    return path


def _holds(path, frames):
    """Whether the last of so many samples can be read."""
    with soundfile.SoundFile(os.fsencode(path)) as audio:
        try:
            audio.seek(frames - 1)
            return len(audio.read(1)) == 1
        except soundfile.SoundFileRuntimeError:
            return False


def decode_sound(clip):
    """Decodes the sound of a video clip, or of audio that FFmpeg alone reads.

    Takes a path or a file object. Yields pieces ``(n,)``, int16, 16 kHz mono;
    None for each packet that is passed over because it is damaged. Raises
    ``AudioError`` if the clip does not open, or has no sound in it.
    """
    import av  # only here: libsndfile reads what is only audio

    if isinstance(clip, Path):
        with clip.open("rb") as file:
            yield from decode_sound(file)
        return
    kept = 0
    mixer = _Mixer()
    # A clip is one file: FFmpeg is not to follow what a playlist names. Titles
    # in whatever encoding are nothing that is heard.
    options = {"protocol_whitelist": "none"}
    try:
        with av.open(clip, options=options, metadata_errors="ignore") as media:
            if not media.streams.audio:
                raise AudioError("the clip has no sound track")
            for packet in media.demux(media.streams.audio[0]):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    yield None
                    continue
                # After the last packet, None empties the resampler.
                for frame in frames if packet.size else [*frames, None]:
                    for samples in mixer.mix(frame):
                        kept += len(samples)
                        yield samples
    except (AudioError, MemoryError):
        raise
    # FFmpeg, and what binds it to Python, raise errors of many kinds.
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"the clip is corrupt: {reason}") from error
    if not kept:
        raise AudioError("the clip's sound track is empty or does not decode")


class _Mixer:
    """Makes 16 kHz mono of frames, whose rate and channels may change."""

    def __init__(self):
        self._kind, self._mono, self._stereo = None, None, None

    def mix(self, frame):
        """Pieces ``(n,)``, int16; of None those that are left."""
        kind = frame and (frame.format.name, frame.layout.name, frame.rate)
        if self._kind is not None and kind != self._kind:
            yield from self._pieces(None)
            self._kind = None
        if frame is None:
            return
        if self._kind is None:
            self._start(kind)
        yield from self._pieces(frame)

    def _start(self, kind):
        import av

        self._kind, self._stereo = kind, None
        self._mono = av.AudioResampler("s16", "mono", SAMPLE_RATE)
        if kind[1] == "stereo":
            self._stereo = av.AudioResampler("s16p", "stereo", SAMPLE_RATE)

    def _pieces(self, frame):
        mono = [p.to_ndarray()[0] for p in self._mono.resample(frame)]
        if self._stereo is None:
            yield from mono
            return
        both = [p.to_ndarray() for p in self._stereo.resample(frame)]
        for mixed, channels in zip(mono, both, strict=True):
            yield _louder(channels.astype(np.float32), mixed)


def _louder(channels, mixed):
    """What channels ``(C, n)`` are mixed to, or the loudest if they cancel."""
    powers = (channels**2).mean(axis=1)
    power = (mixed.astype(np.float32) ** 2).mean()
    if power < _CANCELED * powers.max():
        return channels[powers.argmax()].astype(mixed.dtype)
    return mixed


def _blocks(audio, frames, path):
    """What libsndfile reads, mono; ``frames`` is how much there should be."""
    rate, found = audio.samplerate, 0
    try:
        while len(block := audio.read(rate, "float32", always_2d=True)):
            found += len(block)
            mixed = torch.from_numpy(block).mean(dim=1)
            if block.shape[1] > 1:
                mixed = torch.from_numpy(_louder(block.T, mixed.numpy()))
            yield mixed
    except soundfile.SoundFileRuntimeError as error:
        reason = getattr(error, "error_string", error)
        raise AudioError(
            f"{path} is damaged or truncated after {found / rate:.2f} s "
            f"({reason})"
        ) from error
    if frames is not None and found < frames - _MISSED_S * rate:
        raise AudioError(
            f"{path} is truncated: its header says {frames / rate:.2f} s, and "
            f"it holds {found / rate:.2f} s"
        )


def _decoded_blocks(path, reason):
    """What FFmpeg makes of a file that libsndfile does not read."""
    if find_spec("av") is None:
        raise AudioError(
            f"{path} cannot be read as audio. {reason} With PyAV (pip install "
            "'av>=13') the sound of mp4, m4a, webm and the like can be."
        )
    pieces = (piece for piece in decode_sound(path) if piece is not None)
    try:
        # A piece is of some milliseconds.
        while some := list(islice(pieces, _DECODED_PIECES)):
            samples = np.concatenate(some).astype(np.float32) / 2**15
            yield torch.from_numpy(samples)
    except AudioError as error:
        raise AudioError(
            f"{path} cannot be read as audio. {reason} With FFmpeg: {error}"
        ) from error


def _unannounced_blocks(path):
    """What FFmpeg finds where a header promises nothing."""
    try:
        yield from _decoded_blocks(path, "")
    except AudioError as error:
        raise AudioError(f"{path} has 0 samples") from error


def _is_cut_off(path):
    """Whether a header tells a size that the file does not have."""
    with path.open("rb") as file:
        head = file.read(16)
    place, order = _SIZES.get(head[:4], (None, None))
    if place is None:
        return False
    declared = int.from_bytes(head[place : place + 4], order)
    if head[:4] == b".snd":
        declared += int.from_bytes(head[4:8], order)  # the header's own
    if declared >= _UNKNOWN_FROM:
        return False
    return path.stat().st_size + _SLACK < declared + 8
