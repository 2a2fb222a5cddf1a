"""The frozen audio encoder that needs no weights: a log-mel filter bank."""

import torch
from speechbrain.lobes.features import Fbank

from emoq_modules.lobes.audio_encoder import FrozenEncoder


class FbankEncoder(FrozenEncoder):
    """SpeechBrain's log-mel filter bank, which needs no weights.

    25 ms windows every 10 ms. Utterances are taken one by one: the filter
    bank's floor is relative to the loudest frame, and its derivatives look
    ahead, so that padding would show in the frames.

    Arguments
    ---------
    n_mels : int
        Number of mel filters.
    deltas : bool
        Whether to append first and second derivatives.
    context_frames : int
        Neighbors to append on either side.
    stack : int
        Consecutive frames to join into one: 4 gives 25 frames a second.
    window : int
        Where above 0, a frame is not joined from its neighbors but describes
        so many of them: mean, deviation and mean absolute change of each
        filter, side by side. How much the spectrum moves tells more of an
        emotion than what it is at an instant.
    normalize : str
        What to do over the frames of each utterance, after a fixed scaling
        that gives speech values around 0 with a deviation around 1: "none",
        "mean" (subtract it) or "mean_std" (divide by the deviation too).

    Raises
    ------
    ValueError
        If ``normalize`` is something else, or a window is 1 or combined with
        derivatives or context.

    Example
    -------
    >>> encoder = FbankEncoder(n_mels=40, stack=4)
    >>> frames, lens = encoder(torch.rand(2, 16000), torch.tensor([1.0, 0.5]))
    >>> frames.shape, lens
    (torch.Size([2, 26, 160]), tensor([1.0000, 0.5000]))
    """

    # Mean and deviations in dB of read speech (EMO-DB), of the filters'
    # output and of its first and second derivative.
    _MEAN_DB = -16.0
    _DEVIATIONS_DB = (17.5, 3.9, 1.6)
    # Mean and deviation of what describes a window of 0.3 s, after that
    # scaling.
    _WINDOW_MEAN = (0.04, 0.65, 0.26)
    _WINDOW_DEVIATION = (0.69, 0.27, 0.09)

    def __init__(
        self,
        n_mels=80,
        deltas=False,
        context_frames=0,
        stack=1,
        window=0,
        normalize="none",
    ):
        if normalize not in ("none", "mean", "mean_std"):
            raise ValueError(
                f"normalize is {normalize!r}; it can be none, mean or mean_std."
            )
        if window == 1 or window and (deltas or context_frames):
            raise ValueError(
                "A window describes how the filters change over some frames: "
                "give it 2 or more, and neither deltas nor context_frames."
            )
        settings = {
            "n_mels": n_mels,
            "deltas": deltas,
            "context_frames": context_frames,
            "stack": stack,
            "window": window,
            "normalize": normalize,
        }
        streams = 3 if deltas else 1
        values = 3 if window else streams * (stack + 2 * context_frames)
        super().__init__(
            n_mels * values,
            {"class": type(self).__name__, "version": 1, **settings},
        )
        self.context_frames = context_frames
        self.stack = stack
        self.window = window
        self.normalize = normalize
        # With 512 points every one of 80 narrow filters has a bin of its own.
        self.fbank = Fbank(
            deltas=deltas,
            sample_rate=self.sample_rate,
            n_fft=512,
            n_mels=n_mels,
        )
        hop = self.fbank.compute_STFT.hop_length  # in samples
        self.hop_s = stack * hop / self.sample_rate
        offset = torch.zeros(streams, n_mels)
        offset[0] = self._MEAN_DB
        scale = torch.tensor(self._DEVIATIONS_DB[:streams])
        self.register_buffer("offset", offset.flatten(), persistent=False)
        self.register_buffer(
            "scale", scale.repeat_interleave(n_mels), persistent=False
        )

    def encode(self, wavs, samples):
        """Computes frames, one every 10 ms, or ``stack`` times as much.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms at 16 kHz, ``(B, T)``, float32.
        samples : list of int
            Length of each in samples, at least 1.

        Returns
        -------
        list of torch.Tensor
            Frames ``(T', dim)`` of each, float32, at least one.
        """
        return [
            self._encode_one(wav[:count])
            for wav, count in zip(wavs, samples, strict=True)
        ]

    def _encode_one(self, wav):
        frames = (self.fbank(wav[None])[0] - self.offset) / self.scale
        if self.normalize != "none":
            frames = frames - frames.mean(dim=0)
        if self.normalize == "mean_std":
            # What does not vary, as in silence, must not become large.
            frames = frames / frames.std(dim=0, correction=0).clamp(min=1e-3)
        if self.window:
            start = (self.stack - self.window) // 2
            neighbors = torch.arange(start, start + self.window)
        else:
            neighbors = torch.arange(
                -self.context_frames, self.stack + self.context_frames
            )
        tokens = -(-len(frames) // self.stack)
        centers = torch.arange(tokens).unsqueeze(1) * self.stack
        # The first and last frame are repeated where there is no neighbor.
        positions = (centers + neighbors).clamp(0, len(frames) - 1)
        frames = frames[positions.to(frames.device)]  # (T', neighbors, n)
        return self._describe(frames) if self.window else frames.flatten(1)

    def _describe(self, windows):
        """Mean, deviation and change over windows ``(T', window, n_mels)``."""
        values = torch.stack(
            [
                windows.mean(dim=1),
                windows.std(dim=1, correction=0),
                windows.diff(dim=1).abs().mean(dim=1),
            ],
            dim=-1,
        )  # (T', n_mels, 3)
        mean, deviation = values.new_tensor(
            [self._WINDOW_MEAN, self._WINDOW_DEVIATION]
        )
        return ((values - mean) / deviation).flatten(1)
