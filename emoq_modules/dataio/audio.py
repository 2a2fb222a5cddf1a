"""Audio files on disk: their duration, and the sound of video clips.

It knows files, and no corpus.
"""

import io
import math
import os
from pathlib import Path

import numpy as np
import soundfile
import torch
from scipy.signal import resample_poly
from speechbrain.utils.logger import get_logger
from torchaudio.functional import resample

from emoq_modules.dataio.files import write_atomically
from emoq_modules.errors import AudioError

logger = get_logger(__name__)

SAMPLE_RATE = 16000
# Some writers put a few bytes too many into a RIFF header; that is harmless.
_RIFF_SLACK = 64


def audio_duration(path):
    """Seconds of audio in a file, found without decoding all of it.

    Any sampling rate and number of channels will do.

    Arguments
    ---------
    path : str or Path
        A file that libsndfile reads: WAV, FLAC, ...

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
        with soundfile.SoundFile(os.fsencode(path)) as audio:
            frames, rate = audio.frames, audio.samplerate
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


def extract_audio(clip, wav, max_duration_s):
    """Write a video clip's sound as a 16 kHz mono 16-bit WAV file.

    Packets that do not decode are passed over, as the ``ffmpeg`` program
    does; the WAV file appears whole or not at all.

    Arguments
    ---------
    clip : Path or file object
        Anything FFmpeg reads: mp4, mkv, ...
    wav : Path
        The file to write; its folder must exist.
    max_duration_s : float
        Seconds to keep from the start.

    Returns
    -------
    int
        Packets passed over because they were damaged.

    Raises
    ------
    AudioError
        The clip does not open, or has no sound in it.
    """
    wanted = round(max_duration_s * SAMPLE_RATE)
    pieces, kept, damaged = [], 0, 0
    for piece in decode_sound(clip):
        if piece is None:
            damaged += 1
            continue
        pieces.append(piece)
        kept += len(piece)
        if kept >= wanted:
            break
    buffer = io.BytesIO()
    samples = np.concatenate(pieces)[:wanted]
    soundfile.write(buffer, samples, SAMPLE_RATE, "PCM_16", format="WAV")
    write_atomically(wav, buffer.getvalue())
    return damaged


def decode_sound(clip):
    """Decodes the sound of a video clip, or of audio that FFmpeg alone reads.

    Arguments
    ---------
    clip : Path or file object
        Anything FFmpeg reads: mp4, m4a, webm, ...

    Yields
    ------
    np.ndarray | None
        The sound piece by piece, 16 kHz mono, ``(n,)``, int16; None for each
        packet passed over because it was damaged.

    Raises
    ------
    AudioError
        The clip does not open, or has no sound in it.
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


def _is_truncated_riff(path):
    with path.open("rb") as file:
        magic, size = file.read(4), file.read(4)
    declared = int.from_bytes(size, "little")
    # Writers to a pipe cannot know the size and put 0 or all ones.
    if magic != b"RIFF" or declared in (0, 0xFFFFFFFF):
        return False
    return path.stat().st_size + _RIFF_SLACK < declared + 8


# All usual rates have this many Hz in common with 16 kHz: 11,025 has 25.
_COMMON_STEP = 25


def read_audio(path):
    """Reads any file libsndfile can, as 16 kHz mono.

    Silence is read as it is, with a warning.

    Arguments
    ---------
    path : str
        WAV, FLAC, ... of any rate and number of channels.

    Returns
    -------
    torch.Tensor
        Samples in [-1, 1], ``(T,)``, float32.

    Raises
    ------
    AudioError
        If the file is missing, is no audio, is shorter than its header says,
        holds no sample, or samples that are not finite.

    Example
    -------
    >>> path = getfixture("tmp_path") / "stereo.wav"
    >>> soundfile.write(path, np.zeros((44100, 2)), 44100)
    >>> read_audio(path).shape
    torch.Size([16000])
    """
    try:
        audio_duration(path)  # sees what is missing, truncated or empty
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (AudioError, soundfile.LibsndfileError) as error:
        raise AudioError(
            f"{error}. Copy it again from the corpus, or leave it out."
        ) from None
    if not np.isfinite(samples).all():
        raise AudioError(
            f"{path} holds samples that are not finite numbers; leave it out."
        )
    if not samples.any():
        logger.warning_once(f"{path} is silent: every sample is 0.")
    return to_model_rate(torch.from_numpy(samples).mean(dim=1), rate)


def to_model_rate(samples, rate):
    """Resamples to 16 kHz.

    Arguments
    ---------
    samples : torch.Tensor
        ``(T,)``, float32.
    rate : int
        Their rate, in Hz.

    Returns
    -------
    torch.Tensor
        ``(T * 16000 / rate,)``, float32.

    Example
    -------
    >>> to_model_rate(torch.zeros(44101), 44101).shape
    torch.Size([16000])
    """
    if rate == SAMPLE_RATE:
        return samples
    if math.gcd(rate, SAMPLE_RATE) >= _COMMON_STEP:
        return resample(samples, rate, SAMPLE_RATE)
    # torchaudio has a filter for each phase: 2.8 GB of them for 44,101 Hz.
    resampled = resample_poly(samples.numpy(), SAMPLE_RATE, rate)
    return torch.from_numpy(resampled).float()
