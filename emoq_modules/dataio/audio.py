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
from speechbrain.utils.logger import get_logger
from torchaudio.functional import resample

from emoq_modules.dataio.headers import has_length, is_cut_off
from emoq_modules.errors import AudioError

logger = get_logger(__name__)

SAMPLE_RATE = 16000
# A header may say anything; a filter from 4 GHz would take all memory.
_RATES_HZ = (1000, 768_000)
# All usual rates have this many Hz in common with 16 kHz: 11,025 has 25.
_COMMON_STEP = 25
_DECODED_PIECES = 16
# Of these libsndfile reads the first of streams that follow each other, and of
# MP3 as much as it guesses from the first frame.
_JOINED = "MP3", "OGG"
# Integers of 32 bits, written as floats; what is larger is no sound.
_LOUDEST = 2.0**31
# Less is not missed: decoders differ in what they take for silence at the end.
_MISSED_S = 0.1
# Channels whose mean has less of their power cancel: one is of opposite phase.
# They do so until it has the second share.
_CANCELED, _MIXED = 1e-3, 0.1


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
        if "does not exist" in reason:  # as it says of what is no MP3
            reason = "Format not recognised."
        yield SAMPLE_RATE, None, _decoded_blocks(path, f"{reason} ")
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
        if is_cut_off(path):
            raise AudioError(f"{path} is truncated: its header says more")
        if audio.format == "MP3" and not has_length(path):
            frames = None  # a guess
        if find_spec("av") is not None:
            if audio.format in _JOINED:
                least = (frames or 0) / rate
                yield SAMPLE_RATE, None, _decoded_blocks(path, "", least)
                return
            if not frames:
                # A pipe's WAV may say that no data follows.
                yield SAMPLE_RATE, None, _unannounced_blocks(path)
                return
        if frames and frames > sys.maxsize // 2:  # FLAC from a pipe
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
    if samples.abs().max() > _LOUDEST:
        raise AudioError(
            f"{path} holds samples of up to {samples.abs().max():.1g}, and "
            "sound is from -1 to 1; leave it out"
        )
    return to_model_rate(samples, rate)


def to_model_rate(samples, rate):
    """Resamples ``(T,)`` to 16 kHz: ``(T * 16000 / rate,)``, float32."""
    if rate == SAMPLE_RATE:
        return samples
    if math.gcd(rate, SAMPLE_RATE) >= _COMMON_STEP:
        return resample(samples, rate, SAMPLE_RATE)
    # Here, as such rates are rare, and the module takes a second to import.
    from scipy.signal import resample_poly

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
    kept, announced = 0, 0.0
    mixer = _Mixer()
    # A clip is one file: FFmpeg is not to follow what a playlist names. Titles
    # in whatever encoding are nothing that is heard.
    options = {"protocol_whitelist": "none"}
    try:
        with av.open(clip, options=options, metadata_errors="ignore") as media:
            if not media.streams.audio:
                raise AudioError("the clip has no sound track")
            # Of sound alone; beside a picture it is that of the longer one.
            if media.format.name.startswith("matroska") and media.duration:
                is_alone = len(media.streams) == 1
                announced = is_alone * media.duration / av.time_base
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
    _check_whole("the clip", kept / SAMPLE_RATE, announced)


class _Mixer:
    """Makes 16 kHz mono of frames, whose rate and channels may change."""

    def __init__(self):
        self._kind, self._mono, self._stereo = None, None, None
        self._downmix = _Downmix()

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
            yield self._downmix(channels.astype(np.float32), mixed)


class _Downmix:
    """What channels ``(C, n)`` are mixed to; one of them where they cancel."""

    def __init__(self):
        self._channel, self._cancel = None, False

    def __call__(self, channels, mixed):
        powers = (channels**2).mean(axis=1)
        power = (mixed.astype(np.float32) ** 2).mean()
        # From block to block neither the channel nor its phase is to change.
        share = _MIXED if self._cancel else _CANCELED
        self._cancel = bool(power < share * powers.max())
        if not self._cancel:
            return mixed
        if self._channel is None:
            self._channel = powers.argmax()
        return channels[self._channel].astype(mixed.dtype)


def _blocks(audio, frames, path):
    """What libsndfile reads, mono; ``frames`` is how much there should be."""
    rate, found = audio.samplerate, 0
    downmix = _Downmix()
    try:
        while len(block := audio.read(rate, "float32", always_2d=True)):
            found += len(block)
            mixed = torch.from_numpy(block).mean(dim=1)
            if block.shape[1] > 1:
                mixed = torch.from_numpy(downmix(block.T, mixed.numpy()))
            yield mixed
    except soundfile.SoundFileRuntimeError as error:
        reason = getattr(error, "error_string", error)
        raise AudioError(
            f"{path} is damaged or truncated after {found / rate:.2f} s "
            f"({reason})"
        ) from error
    _check_whole(path, found / rate, (frames or 0) / rate)


def _check_whole(path, seconds, announced):
    if seconds < announced - _MISSED_S:
        raise AudioError(
            f"{path} is truncated: its header says {announced:.2f} s, and it "
            f"holds {seconds:.2f} s"
        )


def _decoded_blocks(path, reason, announced=0.0):
    """What FFmpeg makes of a file that libsndfile does not read in full."""
    if find_spec("av") is None:
        raise AudioError(
            f"{path} cannot be read as audio. {reason}With PyAV (pip install "
            "'av>=13') the sound of mp4, m4a, webm and the like can be."
        )
    found = 0
    pieces = (piece for piece in decode_sound(path) if piece is not None)
    try:
        # A piece is of some milliseconds.
        while some := list(islice(pieces, _DECODED_PIECES)):
            samples = np.concatenate(some).astype(np.float32) / 2**15
            found += len(samples)
            yield torch.from_numpy(samples)
    except AudioError as error:
        raise AudioError(
            f"{path} cannot be read as audio. {reason}With FFmpeg: {error}"
        ) from error
    _check_whole(path, found / SAMPLE_RATE, announced)


def _unannounced_blocks(path):
    """What FFmpeg finds where a header promises nothing."""
    try:
        yield from _decoded_blocks(path, "")
    except AudioError as error:
        raise AudioError(f"{path} has 0 samples") from error
