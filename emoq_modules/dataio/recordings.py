"""People's own recordings: any length, rate and format, whole or in pieces.

A corpus is checked once and its utterances are short. A recording may be hours
long, or a video, or no audio at all: it is read as a stream, and what is wrong
with it is said of it alone.
"""

import math
import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile
import torch

from emoq_modules.dataio.audio import (
    SAMPLE_RATE,
    audio_duration,
    decode_sound,
    to_model_rate,
)
from emoq_modules.errors import AudioError

# The window of a filter bank, and what HuBERT makes one frame of: of less no
# encoder has heard anything.
SHORTEST_S = 0.025
# A header may say anything; a filter from 4 GHz would take all memory.
_RATES_HZ = (1000, 768_000)
_BLOCK_S = 1
_DECODED_PIECES = 16


@dataclass(frozen=True)
class Recording:
    """An audio file, and what is known of it.

    Attributes
    ----------
    path : str or Path
        The file.
    text : str | None
        What was said; empty where it is not known.
    speaker : str | None
        Who said it.
    context : tuple of tuple
        Speaker and text of the turns before, oldest first.

    Example
    -------
    >>> Recording("hello.wav", "Oh, hello!").speaker is None
    True
    """

    path: str | Path
    text: str | None = ""
    speaker: str | None = None
    context: tuple = ()

    def readable(self):
        """The same recording, whose words every tokenizer takes.

        Raises
        ------
        ValueError
            If a text or a name is something else.
        """
        return replace(
            self,
            text=_readable(self.text),
            speaker=_readable(self.speaker),
            context=tuple(
                (_readable(speaker), _readable(text))
                for speaker, text in self.context
            ),
        )


def read_recording(path, max_seconds=None):
    """Reads a whole recording, as 16 kHz mono.

    Gives the samples that ``dataio.read_audio`` gives.

    Arguments
    ---------
    path : str or Path
        Whatever libsndfile reads, of any rate and number of channels; with
        PyAV installed also whatever FFmpeg reads.
    max_seconds : float | None
        A longer recording is refused, before more of it is read.

    Returns
    -------
    torch.Tensor
        Samples in [-1, 1], ``(T,)``, float32.

    Raises
    ------
    AudioError
        If the file is missing, is no audio, is damaged, too long, shorter
        than 25 ms, or holds samples that are not finite.

    Example
    -------
    >>> path = getfixture("tmp_path") / "stereo.wav"
    >>> soundfile.write(path, np.zeros((44100, 2)), 44100)
    >>> read_recording(path).shape
    torch.Size([16000])
    """
    blocks, seconds = [], 0
    with _opened(path) as (rate, stream):
        for block in stream:
            blocks.append(block)
            seconds += len(block) / rate
            if max_seconds is not None and seconds > max_seconds:
                raise AudioError(
                    f"{path} is longer than {max_seconds:g} s: cut it up, or "
                    "have it recognized window by window, by timeline (emoq "
                    "predict --timeline)"
                )
    return _checked(torch.cat(blocks), rate, path)


def cut(path, spans):
    """Reads parts of a recording, of which never more is held than is needed.

    Arguments
    ---------
    path : str or Path
        As of ``read_recording``.
    spans : iterable of tuple
        Start and end of each part in seconds, in the order of the starts. It
        may be endless: the first part that reaches past the end of the
        recording is the last, and is moved back to end there.

    Yields
    ------
    start : float
        Where the part starts, in seconds.
    end : float
        Where it ends.
    samples : torch.Tensor | None
        At 16 kHz, ``(T,)``, float32; None of a faulty part.
    fault : str | None
        What is wrong with it.

    Raises
    ------
    AudioError
        If the file is missing, no audio, or damaged.

    Example
    -------
    >>> path = getfixture("tmp_path") / "long.wav"
    >>> soundfile.write(path, np.zeros(16000 * 9), 16000)
    >>> [part[:2] for part in cut(path, fixed_windows(4, 2))]
    [(0.0, 4.0), (2.0, 6.0), (4.0, 8.0), (5.0, 9.0)]
    """
    with _opened(path) as (rate, stream):
        for start, samples in _cut(stream, rate, spans):
            end = start + len(samples)
            try:
                part = _checked(samples, rate, path), None
            except AudioError as error:
                part = None, str(error)
            yield start / rate, end / rate, *part


def fixed_windows(window_s, hop_s):
    """Endless spans of one length, for ``cut``.

    Arguments
    ---------
    window_s : float
        Length of each, in seconds.
    hop_s : float
        From the start of one to the start of the next.

    Returns
    -------
    iterator of tuple

    Raises
    ------
    ValueError
        If a window is shorter than 25 ms, or the windows do not move on.
    """
    if not SHORTEST_S <= window_s < float("inf"):
        raise ValueError(
            f"window_s is {window_s}; it has to be {SHORTEST_S} s at least."
        )
    if not 1 / SAMPLE_RATE <= hop_s < float("inf"):
        raise ValueError(f"hop_s is {hop_s}; it has to be above 0 s.")
    return _windows(window_s, hop_s)


def level_dbfs(samples):
    """The root mean square of samples, in dB of full scale.

    Example
    -------
    >>> level_dbfs(torch.full((100,), 0.1))
    -20.0
    """
    power = samples.double().square().mean().item()
    return round(10 * math.log10(max(power, 1e-20)), 6)


def _readable(words):
    """Half of a surrogate pair, as JSON may hold, is no character."""
    if words is None:
        return None
    if not isinstance(words, str):
        raise ValueError(f"{words!r} is given in the place of words")
    return words.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _windows(window_s, hop_s):
    number = 0
    while True:
        yield number * hop_s, number * hop_s + window_s
        number += 1


def _cut(stream, rate, spans):
    """First sample and samples of each span, as of ``cut``, at any rate."""
    spans = ((round(a * rate), round(b * rate)) for a, b in spans)
    span = next(spans, None)
    kept, first = torch.zeros(0), 0  # ``kept`` begins with sample ``first``
    reached = 0
    for block in stream:
        kept = torch.cat([kept, block])
        end = first + len(kept)
        while span is not None and span[1] <= end:
            yield span[0], kept[span[0] - first : span[1] - first]
            reached = span[1]
            span = next(spans, None)
        if span is None:
            return
        # The last part may be moved back to all that has been read.
        needed = min(span[0], end - (span[1] - span[0]))
        if needed > first:
            kept, first = kept[needed - first :], needed
    end = first + len(kept)
    if span is not None and span[0] < end and reached < end:
        start = max(first, end - (span[1] - span[0]))
        yield start, kept[start - first :]


def write_wav(path, wav):
    """Writes a recording as 16 kHz mono, for programs that read no other.

    Arguments
    ---------
    path : str or Path
        As of ``read_recording``.
    wav : Path
        The file to write.

    Raises
    ------
    AudioError
        If the file is missing, no audio, or damaged.
    """
    with (
        _opened(path) as (rate, stream),
        soundfile.SoundFile(wav, "w", SAMPLE_RATE, 1) as audio,
    ):
        for block in stream:
            audio.write(to_model_rate(block, rate).numpy())


@contextmanager
def _opened(path):
    """The rate of a recording, and a generator of its mono blocks."""
    path = Path(path)
    if path.is_dir():
        raise AudioError(f"{path} is a folder in which no recording is found")
    if not path.is_file():
        raise AudioError(f"there is no file {path}")
    if not path.stat().st_size:
        raise AudioError(f"{path} is an empty file")
    try:
        audio = _Stream(os.fsencode(path))  # need not be UTF-8
    # A headerless .raw is asked for its rate and format by a TypeError.
    except (soundfile.LibsndfileError, TypeError) as error:
        reason = getattr(error, "error_string", "It has no header.")
        yield SAMPLE_RATE, _decoded_blocks(path, reason)
        return
    with audio:
        audio_duration(path)  # sees what is truncated or empty
        if not _RATES_HZ[0] <= audio.samplerate <= _RATES_HZ[1]:
            raise AudioError(
                f"{path} says that it has {audio.samplerate} samples a second; "
                "sound has {} to {}".format(*_RATES_HZ)
            )
        yield audio.samplerate, _blocks(audio, path)


class _Stream(soundfile.SoundFile):
    """Is read from its start to its end.

    soundfile seeks after each read where it can, and libsndfile's mp3 decoder
    does not find its place again: clicks, and other samples.
    """

    def seekable(self):
        return False


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


def _checked(samples, rate, path):
    """Samples at 16 kHz, if an encoder can do something with them."""
    if len(samples) < SHORTEST_S * rate:
        raise AudioError(
            f"{path} is too short: {1000 * len(samples) / rate:.3g} ms, and "
            f"{1000 * SHORTEST_S:g} ms are needed at least"
        )
    if not torch.isfinite(samples).all():
        raise AudioError(f"{path} holds samples that are not finite numbers")
    return to_model_rate(samples, rate)
