"""The one way from a batch to posteriors, in training and in recognition.

::

    batch.audio ──▶ encoder ──▶ rounding ──┐
      (stored frames skip both)            ├──▶ fusion ──▶ e'_q ──┐
    batch.tokens ──────────────────────────┘                      ├──▶ decoder
    batch.prompt ─────────────────────────────────────────────────┘

Frames that are computed on the fly are rounded as those of a store are, so that
both give the same results.
"""

import torch
from speechbrain.dataio.batch import PaddedData
from speechbrain.utils.data_utils import batch_pad_right

DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
}


def leave_out(batch, text_dropout, audio_dropout):
    """Leaves out the transcripts of some utterances, and the frames of others.

    A system that trains with both alone leans on the stronger of the two. What
    is left out is drawn from torch's generator, one number an utterance.

    Arguments
    ---------
    batch : speechbrain.dataio.batch.PaddedBatch
        With ``tokens`` and, for stage 2, ``prompt``, which change; and where
        transcripts are left out, with ``untold_tokens`` and ``untold_prompt``
        to take their places.
    text_dropout : float
        The share of utterances whose transcript is left out.
    audio_dropout : float
        Likewise, of others, whose frames are; both together are 1 at most.

    Returns
    -------
    torch.Tensor | None
        Whose frames are heard, ``(B,)``, bool; None if all are.
    """
    if not text_dropout and not audio_dropout:
        return None
    tokens, lens = batch.tokens
    draws = torch.rand(len(tokens)).to(tokens.device)
    untold = draws < text_dropout
    if text_dropout:
        nothing, _ = batch.untold_tokens
        tokens = tokens.clone()
        tokens[untold, : nothing.shape[1]] = nothing[untold]
        share = nothing.shape[1] / tokens.shape[1]
        batch.tokens = PaddedData(tokens, lens.masked_fill(untold, share))
    if text_dropout and hasattr(batch, "prompt"):
        batch.prompt = [
            without if left_out else prompt
            for prompt, without, left_out in zip(
                batch.prompt, batch.untold_prompt, untold.tolist(), strict=True
            )
        ]
    return draws < 1 - audio_dropout


def embed(
    modules,
    batch,
    store_precision,
    augment_audio=None,
    augment_frames=None,
    heard=None,
):
    """Computes the embeddings e'_q of a batch.

    Arguments
    ---------
    modules : torch.nn.ModuleDict
        ``fusion``, an ``EmoQFormer`` or what stands in its place, and
        ``encoder``, a ``FrozenEncoder``, where the audio is waveforms.
    batch : speechbrain.dataio.batch.PaddedBatch
        Its ``audio`` holds stored frames ``(B, T, audio_dim)``, or waveforms at
        16 kHz, ``(B, T)``, and its ``tokens`` those of the transcripts,
        ``(B, L)``; each with relative lengths, and where the modules are.
    store_precision : str
        What frames are rounded to: fp16, bf16 or fp32.
    augment_audio : callable | None
        What changes a waveform, ``(1, T)``. Each is changed by itself, so that
        a batch is as varied as an epoch.
    augment_frames : callable | None
        What changes the frames, ``(B, T, audio_dim)``.
    heard : torch.Tensor | None
        Whose frames are not left out, ``(B,)``, bool; None leaves none out.

    Returns
    -------
    torch.Tensor | tuple | None
        Embeddings, ``(B, d_h)``; or several of each utterance, ``(B, N, d_h)``,
        and their relative lengths; None if there is no ``fusion``.
    """
    if "fusion" not in modules:
        return None
    audio, lens = batch.audio
    if "encoder" in modules:
        if augment_audio is not None:
            audio, lens = _augmented(augment_audio, audio, lens)
        audio, lens = modules["encoder"](audio, lens)
        audio = to_precision(audio, store_precision)
    frames = audio.float()
    if augment_frames is not None:
        frames = augment_frames(frames)
    if heard is not None:
        lens = lens * heard
    return modules["fusion"](frames, lens, *batch.tokens)


def decode(
    modules,
    batch,
    labels=None,
    with_posteriors=True,
    class_weights=None,
    **options,
):
    """Computes what the LLM makes of a batch.

    Arguments
    ---------
    modules : torch.nn.ModuleDict
        As ``embed`` takes them, and ``decoder``, a ``SoftPromptDecoder``.
    batch : speechbrain.dataio.batch.PaddedBatch
        As ``embed`` takes it, and with ``prompt``, what
        ``TokenizedPrompt.encode`` gives for each utterance.
    labels : torch.Tensor | None
        Class indices, ``(B,)``; None computes no loss.
    with_posteriors : bool
        Whether posteriors are wanted.
    class_weights : torch.Tensor | None
        As ``SoftPromptDecoder`` takes them.
    **options : dict
        Further arguments of ``embed``.

    Returns
    -------
    embeddings : torch.Tensor | tuple | None
        As ``embed`` gives them.
    loss : torch.Tensor | None
        The loss of Eq. 7, a scalar.
    posteriors : torch.Tensor | None
        Posteriors of Eqs. 8 and 9, ``(B, C)``, float32.
    """
    embeddings = embed(modules, batch, **options)
    loss, posteriors = modules["decoder"](
        embeddings, batch.prompt, labels, with_posteriors, class_weights
    )
    return embeddings, loss, posteriors


def to_precision(frames, precision):
    """Rounds frames to what the store keeps.

    Arguments
    ---------
    frames : torch.Tensor
        Frames of any shape.
    precision : str
        fp16, bf16 or fp32.

    Returns
    -------
    torch.Tensor
        Frames of that type; a ``ValueError`` if a value does not fit it.

    Example
    -------
    >>> to_precision(torch.tensor([1 / 3]), "fp16").float()
    tensor([0.3333])
    """
    frames = frames.to(dtype_of(precision))
    if not torch.isfinite(frames).all():
        raise ValueError(
            f"Frames of the audio encoder do not fit {precision}: some are "
            "infinite in it, or not numbers. Try store_precision bf16."
        )
    return frames


def dtype_of(precision):
    """The type of frames of a precision.

    Arguments
    ---------
    precision : str
        fp16, bf16 or fp32.

    Returns
    -------
    torch.dtype
        The type; a ``ValueError`` if there is no such precision.
    """
    if precision not in DTYPES:
        raise ValueError(
            f"The precision of a feature store is one of {', '.join(DTYPES)}; "
            f"it is {precision!r}."
        )
    return DTYPES[precision]


def _augmented(augment, wavs, lens):
    counts = (lens * wavs.shape[1]).round().long().tolist()
    augmented = [
        augment(wav[None, :count])[0]
        for wav, count in zip(wavs, counts, strict=True)
    ]
    wavs, lens = batch_pad_right(augmented)
    return wavs, lens.to(wavs.device)
