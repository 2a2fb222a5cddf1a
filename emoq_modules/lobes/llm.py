"""Loads the LLM: a causal language model of Hugging Face.

Its frozen weights can be quantized to four bits, as in QLoRA: NF4 with double
quantization (Dettmers et al. 2023), by bitsandbytes. Word embeddings, norms and
the output layer keep their precision, and a product is computed in it too:
weights are unfolded when they are used.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from emoq_modules.errors import BackboneError
from emoq_modules.lobes.backbones import local_folder

# A weight of four bits comes with an 8-bit scale for each 64 of them, and a
# 32-bit one for each 256 of those.
BYTES_PER_WEIGHT = (4 + 8 / 64 + 32 / (64 * 256)) / 8


def load_llm(source, revision=None, dtype=torch.float32, quantization=None):
    """Loads an LLM, or builds one of random weights.

    Arguments
    ---------
    source : str | Path | dict | transformers.PretrainedConfig
        Any causal LM: its name on the Hugging Face hub or a local folder; or a
        configuration (its values in a dict, with ``model_type``), which gives
        random weights.
    revision : str | None
        Branch, tag or commit on the hub.
    dtype : torch.dtype
        Precision of the weights.
    quantization : str | None
        ``nf4`` for linear layers of 4 bits; None for weights as they are.

    Returns
    -------
    transformers.PreTrainedModel
        The LLM, with its output layer.

    Raises
    ------
    BackboneError
        If the source, or bitsandbytes for ``nf4``, is not to be had.
    ValueError
        If there is no such quantization, or the LLM changes its logits after
        the output layer, so that rows of it are not enough.

    Example
    -------
    >>> tiny = {"model_type": "qwen2", "vocab_size": 50, "hidden_size": 16}
    >>> tiny |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    >>> tiny |= {"num_key_value_heads": 1, "intermediate_size": 32}
    >>> load_llm(tiny).get_input_embeddings().weight.shape
    torch.Size([50, 16])
    """
    config = _nf4_config(quantization, dtype)
    if isinstance(source, str | Path):
        llm = AutoModelForCausalLM.from_pretrained(
            local_folder(source, revision),
            dtype=dtype,
            quantization_config=config,
            trust_remote_code=False,
        )
    else:
        if isinstance(source, dict):
            values = dict(source)
            source = AutoConfig.for_model(values.pop("model_type"), **values)
        llm = AutoModelForCausalLM.from_config(source, dtype=dtype)
    _check_logits(llm)
    return llm if config is None else _quantize(llm, config)


def _check_logits(llm):
    """Refuses an LLM whose logits are not those of its output layer alone."""
    # Gemma 2 caps its logits, Cohere's and Granite scale them.
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(llm.config, key, None) not in (None, 1.0):
            raise ValueError(
                f"{type(llm).__name__} changes its logits after the output "
                f"layer ({key} in its configuration), which the decoder does "
                "not follow. Choose another LLM, such as Qwen2.5."
            )


def _nf4_config(quantization, dtype):
    """Makes the quantization settings that ``from_pretrained`` takes."""
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


def _quantize(llm, config):
    """Quantizes linear layers, in the file or in memory, so that LoRA trains.

    On the meta device weights stay as large as they are.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    output = llm.get_output_embeddings()
    for name, layer in list(llm.named_modules()):
        if type(layer) is nn.Linear and layer is not output:
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
            llm.set_submodule(name, packed.to(layer.weight.device))
    for layer in llm.modules():
        if isinstance(layer, Linear4bit):
            # On a CPU with bfloat16 the first evaluation would rearrange the
            # weights for a product that has no gradient, and training after
            # it would not reach the layers below.
            layer.support_avx512bf16_for_cpu = False
    llm.is_loaded_in_4bit = True  # as peft asks
    return llm
