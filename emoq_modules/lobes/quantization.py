"""Quantization of an LLM's frozen weights to four bits, as in QLoRA.

NF4 with double quantization (Dettmers et al. 2023), by bitsandbytes. Word
embeddings, norms and the output layer keep their precision, and a product is
computed in it too: weights are unfolded when they are used.
"""

from importlib.util import find_spec

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from emoq_modules.errors import BackboneError

# Of a weight in memory: itself, an 8-bit scale for each 64 of them, and a
# 32-bit one for each 256 of those.
BYTES_PER_WEIGHT = (4 + 8 / 64 + 32 / (64 * 256)) / 8


def nf4_config(quantization, dtype):
    """Makes the quantization settings that ``from_pretrained`` takes.

    Arguments
    ---------
    quantization : str | None
        ``nf4``, or None for weights as they are.
    dtype : torch.dtype
        What to compute in.

    Returns
    -------
    transformers.BitsAndBytesConfig | None
        The settings; None where there is nothing to quantize.

    Raises
    ------
    BackboneError
        If bitsandbytes is not installed.
    ValueError
        If there is no such quantization.

    Example
    -------
    >>> nf4_config("nf4", torch.bfloat16).bnb_4bit_quant_type
    'nf4'
    """
    if quantization is None:
        return None
    if quantization != "nf4":
        raise ValueError(
            f"The quantization of an LLM is nf4 or null; it is "
            f"{quantization!r}."
        )
    if find_spec("bitsandbytes") is None:
        raise BackboneError(
            "An LLM in 4 bits needs bitsandbytes, which is not installed: "
            "pip install bitsandbytes, or set llm_quantization to null."
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def quantize(llm, config):
    """Quantizes an LLM's linear layers, so that LoRA can be trained on them.

    Arguments
    ---------
    llm : transformers.PreTrainedModel
        Is changed: read by ``from_pretrained`` with ``config``, or in memory
        as it is. On the meta device weights stay as large as they are.
    config : transformers.BitsAndBytesConfig
        From ``nf4_config``.

    Returns
    -------
    transformers.PreTrainedModel
        The same LLM.
    """
    from bitsandbytes.nn import Linear4bit

    for name, layer in list(llm.named_modules()):
        if (
            type(layer) is nn.Linear
            and layer is not llm.get_output_embeddings()
        ):
            llm.set_submodule(name, _packed(layer, config))
    for layer in llm.modules():
        if isinstance(layer, Linear4bit):
            # On a CPU with bfloat16 the first evaluation would rearrange the
            # weights for a product that has no gradient, and training after
            # it would not reach the layers below.
            layer.support_avx512bf16_for_cpu = False
    llm.is_loaded_in_4bit = True  # as peft asks
    return llm


def _packed(layer, config):
    from bitsandbytes.nn import Linear4bit, Params4bit

    with torch.device("meta"):
        packed = Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=False,
            compute_dtype=config.bnb_4bit_compute_dtype,
        )
    packed.weight = Params4bit(
        layer.weight.detach(),
        compress_statistics=config.bnb_4bit_use_double_quant,
        quant_type=config.bnb_4bit_quant_type,
        module=packed,
    )
    packed.bias = layer.bias
    # What quantizes is the move to where the weights are anyway.
    return packed.to(layer.weight.device)
