"""The precision of frames: what is stored, and what is computed on the fly."""

import torch

DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
}


def round_trip(frames, precision):
    """Rounds frames as storing and loading them does.

    What is computed on the fly goes through this, and so gives the same
    results as what comes from a store.

    Arguments
    ---------
    frames : torch.Tensor
        Frames of any shape.
    precision : str
        fp16, bf16 or fp32.

    Returns
    -------
    torch.Tensor
        float32, of the same shape.

    Raises
    ------
    ValueError
        If a value does not fit the precision.

    Example
    -------
    >>> round_trip(torch.tensor([1 / 3]), "fp16")
    tensor([0.3333])
    >>> round_trip(torch.tensor([1e6]), "fp16")
    Traceback (most recent call last):
    ...
    ValueError: Frames of the audio encoder do not fit fp16...
    """
    return to_precision(frames, precision).float()


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
        Of that type.

    Raises
    ------
    ValueError
        If a value does not fit the precision.
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
        Of the same name.

    Raises
    ------
    ValueError
        If there is no such precision.
    """
    if precision not in DTYPES:
        raise ValueError(
            f"The precision of a feature store is one of {', '.join(DTYPES)}; "
            f"it is {precision!r}."
        )
    return DTYPES[precision]
