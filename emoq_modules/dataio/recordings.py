"""People's own recordings: any length, rate and format, whole or in pieces.

A corpus is checked once and its utterances are short. A recording may be hours
long, or a video, or no audio at all: it is read as a stream, and what is wrong
with it is said of it alone.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import soundfile
import torch

from emoq_modules.dataio.audio import (
    SAMPLE_RATE,
    check_length,
    checked_samples,
    open_audio,
    read_audio,
    to_model_rate,
)
from emoq_modules.errors import AudioError

# The window of a filter bank, and what HuBERT makes one frame of: of less no
# encoder has heard anything.
SHORTEST_S = 0.025
# A part of a time line, unless another length is asked for.
WINDOW_S = 4.0
# What is below, in dB of full scale, is silence: there is nothing to recognize.
SILENCE_DBFS = -60.0


@dataclass(frozen=True)
class Recording:
    """An audio file, and what is known of it.

    Arguments
    ---------
    path : str or Path
        The file.
    text : str | None
        What was said; empty where it is not known.
    speaker : str | None
        Who said it.
    context : tuple of tuple
        Speaker and text of the turns before, oldest first.
    samples : torch.Tensor | None
        At 16 kHz, ``(T,)``, where it has been read; the file is not, then.

    Example
    -------
    >>> Recording("hello.wav", "Oh, hello!").speaker is None
    True
    """

    path: str | Path
    text: str | None = ""
    speaker: str | None = None
    context: tuple = ()
    samples: torch.Tensor | None = field(
        default=None, compare=False, repr=False
    )

    def readable(self):
        """The same recording, as every tokenizer and encoder takes it.

        Half a character, as JSON may hold, is replaced.

        Returns
        -------
        Recording
            Its words can be encoded, and its samples are ``(T,)``.

        Raises
        ------
        ValueError
            If a text, a name or the samples are something else.
        """
        samples = self.samples
        if samples is not None:
            samples = torch.as_tensor(samples)
            if samples.ndim != 1 or not samples.is_floating_point():
                raise ValueError(
                    f"The samples of {self.path} are {samples.dtype} of shape "
                    f"{tuple(samples.shape)}; they have to be floats in "
                    "[-1, 1], (T,), at 16 kHz."
                )
        return replace(
            self,
            samples=samples,
            text=_readable(self.text),
            speaker=_readable(self.speaker),
            context=tuple(
                (_readable(speaker), _readable(text))
                for speaker, text in self.context
            ),
        )


def as_recording(recording):
    """Makes a ``Recording`` of a path; one that is one stays as it is."""
    if isinstance(recording, Recording):
        return recording
    return Recording(recording)


def as_recordings(recordings):
    """The same of several; ValueError if it is a single one."""
    if isinstance(recordings, str | Path | Recording):
        raise ValueError(
            f"{recordings} is one recording, in the place of several: put it "
            "into a list."
        )
    return map(as_recording, recordings)


def read_samples(recording, max_seconds=None):
    """The samples of a recording at 16 kHz, ``(T,)``, if all is well with them.

    An ``AudioError`` says what is not: also what is longer than ``max_seconds``
    or shorter than 25 ms.
    """
    if recording.samples is None:
        return read_audio(recording.path, max_seconds, SHORTEST_S)
    seconds = len(recording.samples) / SAMPLE_RATE
    check_length(recording.path, seconds, max_seconds)
    return checked_samples(
        recording.samples, SAMPLE_RATE, recording.path, SHORTEST_S
    )


def check_batch(wavs, wav_lens):
    """Refuses waveforms ``(B, T)`` at 16 kHz that no encoder makes sense of.

    ``wav_lens`` are their relative lengths, ``(B,)``. ValueError says why.
    """
    if wavs.ndim != 2 or not wavs.is_floating_point():
        raise ValueError(
            f"The waveforms are {wavs.dtype} of shape {tuple(wavs.shape)}; "
            "they have to be floats in [-1, 1], (B, T), at 16 kHz."
        )
    if (
        wav_lens.shape != wavs.shape[:1]
        or not ((0 < wav_lens) & (wav_lens <= 1)).all()
    ):
        raise ValueError(
            f"wav_lens is {wav_lens.tolist()}; it has to have, for each of the "
            f"{len(wavs)} waveforms, its share of the longest, above 0 and 1 "
            "at most."
        )
    shortest = (wav_lens * wavs.shape[1]).min().item()
    if shortest < SHORTEST_S * SAMPLE_RATE:
        raise ValueError(
            f"A waveform has {shortest:.0f} samples; 25 ms, "
            f"{SHORTEST_S * SAMPLE_RATE:.0f}, are needed at least."
        )


def iter_segments(recording, spans):
    """Reads parts of a recording, never holding more of it than is needed.

    ``spans`` are start and end of each part in seconds, in the order of the
    starts. They may be endless: the first part that reaches past the end of
    the recording is the last, and is moved back to end there.

    Yields start and end in seconds, samples ``(T,)`` at 16 kHz or None, and
    what is wrong with the part or None. Raises ``AudioError`` if the file is
    missing, no audio, or damaged.
    """
    recording = as_recording(recording)
    path = recording.path
    opened = nullcontext((SAMPLE_RATE, [recording.samples]))
    if recording.samples is None:
        opened = open_audio(path)
    with opened as (rate, stream):
        for start, samples in _segments(stream, rate, spans):
            end = start + len(samples)
            try:
                part = checked_samples(samples, rate, path, SHORTEST_S), None
            except AudioError as error:
                part = None, str(error)
            yield start / rate, end / rate, *part


def sliding_windows(window_s, hop_s):
    """Endless spans of one length, for ``iter_segments``.

    Raises ``ValueError`` if a window is shorter than 25 ms, or the windows do
    not move on.
    """
    if not SHORTEST_S <= window_s < float("inf"):
        raise ValueError(
            f"window_s is {window_s}; it has to be {SHORTEST_S} s at least."
        )
    if not SHORTEST_S <= hop_s < float("inf"):
        raise ValueError(
            f"hop_s is {hop_s}; it has to be {SHORTEST_S} s at least."
        )
    return ((n * hop_s, n * hop_s + window_s) for n in count())


def rms_dbfs(samples):
    """The root mean square of samples ``(T,)`` in [-1, 1], in dB of full scale.

    0 of a square wave that fills the scale; -200 of silence. An offset that all
    samples have is nothing that is heard.
    """
    power = samples.double().var(correction=0).item()
    return round(10 * math.log10(max(power, 1e-20)), 6)


def heard(samples, silence_dbfs=SILENCE_DBFS):
    """Samples ``(T,)`` or None, and None where they are silence."""
    if samples is None or rms_dbfs(samples) < silence_dbfs:
        return None
    return samples


def _readable(words):
    if words is None:
        return None
    if not isinstance(words, str):
        raise ValueError(f"{words!r} is given in the place of words")
    return words.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _segments(stream, rate, spans):
    """First sample and samples of each span, at any rate."""
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
    """Writes a recording as 16 kHz mono, for programs that read no other."""
    with (
        open_audio(path) as (rate, stream),
        soundfile.SoundFile(wav, "w", SAMPLE_RATE, 1) as audio,
    ):
        for block in stream:
            audio.write(to_model_rate(block, rate).numpy())
