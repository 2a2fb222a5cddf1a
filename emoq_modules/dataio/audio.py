"""Audio files of any format: their duration, and their samples.

Training, feature extraction and recognition read them here.
"""

import math
import os
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
_BLOCK_S = 1
_DECODED_PIECES = 16
# Some writers put a few bytes too many into a RIFF header; that is harmless.
_RIFF_SLACK = 64


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
    path = Path(path)
    if path.is_dir():
        raise AudioError(f"{path} is a folder in which no recording is found")
    if not path.is_file():
        raise AudioError(f"there is no file {path}")
    if not path.stat().st_size:
        raise AudioError(f"{path} is an empty file")
    try:
        audio = soundfile.SoundFile(os.fsencode(path))  # need not be UTF-8
    # A headerless .raw is asked for its rate and format by a TypeError.
    except (soundfile.LibsndfileError, TypeError) as error:
        reason = getattr(error, "error_string", "It has no header.")
        yield SAMPLE_RATE, _decoded_blocks(path, reason)
        return
    # Where it can, soundfile seeks after each read, and libsndfile's mp3
    # decoder does not find its place again: clicks, and other samples.
    audio.seekable = lambda: False
    with audio:
        audio_duration(path)  # sees what is truncated or empty
        if not _RATES_HZ[0] <= audio.samplerate <= _RATES_HZ[1]:
            raise AudioError(
                f"{path} says that it has {audio.samplerate} samples a second; "
                "sound has {} to {}".format(*_RATES_HZ)
            )
        yield audio.samplerate, _blocks(audio, path)


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
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"there is no file {path}")
    try:
        # A name need not be UTF-8, as soundfile would have it.
        audio = soundfile.SoundFile(os.fsencode(path))
    except soundfile.LibsndfileError as error:
        blocks = _decoded_blocks(path, error.error_string)
        return round(sum(map(len, blocks)) / SAMPLE_RATE, 6)
    with audio:
        frames, rate = audio.frames, audio.samplerate
        try:
            if frames:
                # A FLAC header may promise more than the file holds.
                audio.seek(frames - 1)
                audio.read(1)
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"{path} cannot be read as audio ({error.error_string})"
            ) from error
    if _is_truncated_riff(path):
        raise AudioError(f"{path} is truncated: its header says more")
    if not frames:
        raise AudioError(f"{path} has 0 samples")
    return round(frames / rate, 6)


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
    resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
    # A clip is one file: FFmpeg is not to follow what a playlist names.
    options = {"protocol_whitelist": "none"}
    try:
        with av.open(clip, options=options) as media:
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
                    for piece in resampler.resample(frame):
                        samples = piece.to_ndarray()[0]
                        kept += len(samples)
                        yield samples
    except av.error.FFmpegError as error:
        raise AudioError(f"the clip is corrupt: {error.strerror}") from error
    if not kept:
        raise AudioError("the clip's sound track is empty or does not decode")


def _blocks(audio, path):
    size = _BLOCK_S * audio.samplerate
    try:
        while len(block := audio.read(size, "float32", always_2d=True)):
            yield torch.from_numpy(block).mean(dim=1)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path} is damaged ({error.error_string})") from error


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


def _is_truncated_riff(path):
    with path.open("rb") as file:
        magic, size = file.read(4), file.read(4)
    declared = int.from_bytes(size, "little")
    # Writers to a pipe cannot know the size and put 0 or all ones.
    if magic != b"RIFF" or declared in (0, 0xFFFFFFFF):
        return False
    return path.stat().st_size + _RIFF_SLACK < declared + 8
