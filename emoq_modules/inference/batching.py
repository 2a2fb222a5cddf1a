"""From segments of recordings to recognitions: in batches, in the given order.

Nothing here knows a model: ``Recognizing`` is handed the functions that
transcribe and that give posteriors.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import torch

from emoq_modules.dataio.audio import SAMPLE_RATE
from emoq_modules.errors import SourceError

# How far ahead recordings are read, to batch those of similar length: as long
# as they are fewer than so many batches, and than so much sound (38 MB).
_BATCHES_AHEAD = 4
_SECONDS_AHEAD = 600
_LARGEST_BATCH = 10_000


@dataclass(frozen=True)
class Recognition:
    """What was recognized in a recording, or in a part of one.

    Attributes
    ----------
    path : str
        The recording.
    start : float | None
        Where the part starts, in seconds; None if the recording was not read.
    end : float | None
        Where it ends.
    text : str
        What was said, as it was given or transcribed.
    posteriors : dict
        Emotion word -> probability, calibrated; empty after an error, and of a
        part without sound.
    label : str | None
        The most likely emotion; None if it abstained, or after an error.
    confidence : float | None
        How often such an answer is right: the highest posterior.
    abstained : bool
        Whether the confidence is below what was asked for, or a part of a
        timeline is without sound (it then has no posteriors either).
    error : str | None
        Why nothing could be recognized.

    Example
    -------
    >>> found = Recognition("hello.wav", error="there is no file hello.wav")
    >>> found.label is None, found.error
    (True, 'there is no file hello.wav')
    """

    path: str
    start: float | None = None
    end: float | None = None
    text: str = ""
    posteriors: dict = field(default_factory=dict)
    label: str | None = None
    confidence: float | None = None
    abstained: bool = False
    error: str | None = None


@dataclass
class Segment:
    """A recording, or a part of it, on its way to being recognized.

    ``start`` and ``end`` are in seconds, ``samples`` at 16 kHz, ``(T,)``. They
    are None where there is nothing to recognize: ``fault`` says why, or is None
    of a part without sound. ``is_window`` tells a part of a time line.
    """

    recording: object
    start: float | None = None
    end: float | None = None
    samples: torch.Tensor | None = None
    fault: str | None = None
    is_window: bool = False

    def answer(self, **values):
        """The ``Recognition`` of this segment, with these values."""
        return Recognition(
            path=str(self.recording.path),
            start=self.start,
            end=self.end,
            text=self.recording.text or "",
            **values,
        )


def calibrated(posteriors, temperatures):
    """Posteriors ``(B, C)``, the logits of each row divided by a temperature.

    As ``apply_temperature`` does it, in float32 and where they are. A row at 1
    stays as it is, and so does what is not a number.
    """
    temperatures = torch.tensor(temperatures)[:, None].to(posteriors)
    smallest = torch.finfo(posteriors.dtype).tiny
    logits = posteriors.clamp_min(smallest).log()
    scaled = (logits / temperatures).softmax(dim=1)
    return torch.where(temperatures == 1, posteriors, scaled)


@dataclass
class Recognizing:
    """How segments become recognitions.

    ``classify`` gives posteriors ``(B, C)`` of B segments with samples, of
    which ``batch_size`` are recognized together at most. A confidence that is
    below ``abstain_below`` is no answer.
    """

    classify: Callable
    labels: list
    batch_size: int
    abstain_below: float

    def __post_init__(self):
        if not 1 <= self.batch_size <= _LARGEST_BATCH:
            raise ValueError(
                f"batch_size is {self.batch_size}; it has to be from 1 to "
                f"{_LARGEST_BATCH:,}"
            )
        if not 0 <= self.abstain_below <= 1:
            raise ValueError(
                f"abstain_below is {self.abstain_below}; a confidence is from "
                "0 to 1"
            )

    def stream(self, segments):
        """Recognizes segments as they come, in their order.

        Some are read ahead, and those of similar length go together, so that
        little is computed on padding; memory does not grow with their number.
        """
        segments = iter(segments)
        while ahead := list(self._ahead(segments)):
            done = {
                n: part.answer(error=part.fault, abstained=part.fault is None)
                for n, part in enumerate(ahead)
                if part.samples is None
            }
            batches = self._batches(ahead)
            for number in range(len(ahead)):
                while number not in done:
                    batch = next(batches)
                    found = self._recognize([ahead[i] for i in batch])
                    done.update(zip(batch, found, strict=True))
                yield done.pop(number)

    def _ahead(self, segments):
        seconds = 0
        for segment in islice(segments, _BATCHES_AHEAD * self.batch_size):
            yield segment
            if segment.samples is not None:
                seconds += len(segment.samples) / SAMPLE_RATE
            if seconds > _SECONDS_AHEAD:
                return

    def _batches(self, segments):
        """Indices of segments of similar length; the earliest first of all."""
        lengths = {
            n: len(segment.samples)
            for n, segment in enumerate(segments)
            if segment.samples is not None
        }
        order = sorted(lengths, key=lengths.get)
        batches = [
            order[start : start + self.batch_size]
            for start in range(0, len(order), self.batch_size)
        ]
        return iter(sorted(batches, key=min))

    def _recognize(self, segments):
        try:
            posteriors = self.classify(segments)
        except SourceError:
            raise
        except (torch.OutOfMemoryError, ValueError) as error:
            # One of them is what an encoder cannot bear, or all are too much.
            if len(segments) == 1:
                reason = f"{segments[0].recording.path} is not recognized: "
                return [segments[0].answer(error=f"{reason}{error}")]
            half = len(segments) // 2
            return [
                *self._recognize(segments[:half]),
                *self._recognize(segments[half:]),
            ]
        return [
            self._answer(segment, row)
            for segment, row in zip(segments, posteriors.cpu(), strict=True)
        ]

    def _answer(self, segment, posteriors):
        if not posteriors.isfinite().all():
            return segment.answer(
                error=f"{segment.recording.path} gives no probabilities: its "
                "samples are far outside of -1 to 1, perhaps"
            )
        confidence = posteriors.max().item()
        abstained = confidence < self.abstain_below
        return segment.answer(
            posteriors=dict(zip(self.labels, posteriors.tolist(), strict=True)),
            label=None if abstained else self.labels[posteriors.argmax()],
            confidence=confidence,
            abstained=abstained,
        )
