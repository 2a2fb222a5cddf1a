"""From pieces of recordings to recognitions: in batches, in the given order.

Nothing here knows a model: ``Recognizing`` is handed the functions that
transcribe and that give posteriors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch.nn.utils.rnn import pad_sequence

from emoq_modules.dataio.audio import SAMPLE_RATE
from emoq_modules.evaluation.calibration import apply_temperature

# How far ahead recordings are read, to batch those of similar length: as long
# as they are fewer than so many batches, and than so much sound (38 MB).
_BATCHES_AHEAD = 4
_SECONDS_AHEAD = 600


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
        Emotion word -> probability, as in training; empty after an error, and
        of a part without sound.
    label : str | None
        The most likely emotion; None if it abstained, or after an error.
    confidence : float | None
        How often such an answer is right: the highest posterior, calibrated.
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
class Piece:
    """A recording, or a part of it, on its way to being recognized.

    Attributes
    ----------
    recording : Recording
        What it is of.
    start : float | None
        In seconds, as ``end``.
    samples : torch.Tensor | None
        At 16 kHz, ``(T,)``; None where there is nothing to recognize.
    fault : str | None
        Why not; None of a part without sound.
    """

    recording: object
    start: float | None = None
    end: float | None = None
    samples: torch.Tensor | None = None
    fault: str | None = None

    def answer(self, **values):
        """The ``Recognition`` of this piece, with these values."""
        return Recognition(
            path=str(self.recording.path),
            start=self.start,
            end=self.end,
            text=self.recording.text or "",
            **values,
        )


def calibrated(posteriors, temperature):
    """The confidence in each answer: the highest posterior, calibrated.

    Arguments
    ---------
    posteriors : torch.Tensor
        ``(B, C)``
    temperature : float
        As of ``calibration.apply_temperature``; 1 changes nothing.

    Returns
    -------
    torch.Tensor
        ``(B,)``, float32, on the same device.

    Example
    -------
    >>> calibrated(torch.tensor([[0.8, 0.2]]), 2.0)
    tensor([0.6667])
    """
    if temperature == 1:
        return posteriors.amax(dim=1)
    scaled = apply_temperature(posteriors.float().cpu().numpy(), temperature)
    return torch.from_numpy(scaled).float().amax(dim=1).to(posteriors.device)


@dataclass
class Recognizing:
    """How pieces become recognitions.

    Attributes
    ----------
    classify : callable
        From waveforms ``(B, T)``, relative lengths ``(B,)`` and B recordings
        to posteriors ``(B, C)``.
    labels : list of str
        The emotion words, in the order of the classes.
    batch_size : int
        Pieces that are recognized together, at most.
    temperature : float
        That of the confidence.
    abstain_below : float
        A confidence below is no answer.
    """

    classify: Callable
    labels: list
    batch_size: int
    temperature: float
    abstain_below: float

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; 1 is the least")
        if not 0 <= self.abstain_below <= 1:
            raise ValueError(
                f"abstain_below is {self.abstain_below}; a confidence is from "
                "0 to 1"
            )

    def stream(self, pieces):
        """Recognizes pieces as they come.

        Some are read ahead, and those of similar length go together, so that
        little is computed on padding; memory does not grow with their number.

        Arguments
        ---------
        pieces : iterable of Piece

        Yields
        ------
        Recognition
            In the order of the pieces.
        """
        pieces = iter(pieces)
        while ahead := list(self._ahead(pieces)):
            done = {
                number: self._without_samples(piece)
                for number, piece in enumerate(ahead)
                if piece.samples is None
            }
            batches = self._batches(ahead)
            for number in range(len(ahead)):
                while number not in done:
                    batch = next(batches)
                    found = self._recognize([ahead[i] for i in batch])
                    done.update(zip(batch, found, strict=True))
                yield done.pop(number)

    def _ahead(self, pieces):
        seconds = 0
        for piece in islice(pieces, _BATCHES_AHEAD * self.batch_size):
            yield piece
            if piece.samples is not None:
                seconds += len(piece.samples) / SAMPLE_RATE
            if seconds > _SECONDS_AHEAD:
                return

    def _batches(self, pieces):
        """Indices of pieces of similar length; the earliest first of all."""
        order = sorted(
            (n for n, piece in enumerate(pieces) if piece.samples is not None),
            key=lambda n: len(pieces[n].samples),
        )
        batches = [
            order[start : start + self.batch_size]
            for start in range(0, len(order), self.batch_size)
        ]
        return iter(sorted(batches, key=min))

    def _without_samples(self, piece):
        return piece.answer(error=piece.fault, abstained=piece.fault is None)

    def _recognize(self, pieces):
        lengths = torch.tensor([len(piece.samples) for piece in pieces])
        wavs = pad_sequence([p.samples for p in pieces], batch_first=True)
        recordings = [piece.recording for piece in pieces]
        try:
            posteriors = self.classify(
                wavs, lengths / lengths.max(), recordings
            )
        except (torch.OutOfMemoryError, ValueError) as error:
            # One of them is what an encoder cannot bear, or all are too much.
            if len(pieces) == 1:
                reason = f"{pieces[0].recording.path} is not recognized: "
                return [pieces[0].answer(error=f"{reason}{error}")]
            half = len(pieces) // 2
            return [
                *self._recognize(pieces[:half]),
                *self._recognize(pieces[half:]),
            ]
        return [
            self._answer(piece, row)
            for piece, row in zip(pieces, posteriors.cpu(), strict=True)
        ]

    def _answer(self, piece, posteriors):
        if not all(map(math.isfinite, posteriors.tolist())):
            return piece.answer(
                error=f"{piece.recording.path} gives no probabilities: its "
                "samples are far outside of -1 to 1, perhaps"
            )
        confidence = calibrated(posteriors[None], self.temperature).item()
        abstained = confidence < self.abstain_below
        return piece.answer(
            posteriors=dict(zip(self.labels, posteriors.tolist(), strict=True)),
            label=None if abstained else self.labels[posteriors.argmax()],
            confidence=confidence,
            abstained=abstained,
        )
