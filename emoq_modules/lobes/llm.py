"""Loads the LLM: a causal language model of Hugging Face.

Its frozen weights can be quantized to four bits, as in QLoRA: NF4 with double
quantization (Dettmers et al. 2023), by bitsandbytes. Word embeddings, norms and
the output layer keep their precision, and a product is computed in it too:
weights are unfolded when they are used.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    __version__ as transformers_version,
)

from emoq_modules.errors import BackboneError
from emoq_modules.lobes.backbones import load_whole, local_folder

# A weight of four bits comes with an 8-bit scale for each 64 of them, and a
# 32-bit one for each 256 of those.
BYTES_PER_WEIGHT = (4 + 8 / 64 + 32 / (64 * 256)) / 8

# Values of a configuration by which an LLM does more than the decoder follows.
_AFTERWARDS = "changes its logits after the output layer"
_CHANGES = {
    "final_logit_softcapping": _AFTERWARDS,  # Gemma 2
    "logit_scale": _AFTERWARDS,  # Cohere
    "logits_scaling": _AFTERWARDS,  # Granite
    "lm_head_multiplier": _AFTERWARDS,  # Falcon-H1
    "hidden_size_per_layer_input": "gives tokens to every layer",  # Gemma 3n
}


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
        If the source is not to be had, is none that transformers has a class
        for, or no causal LM for text alone; or for ``nf4`` bitsandbytes is not.
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
    nf4 = _nf4_config(quantization, dtype)
    config = _configuration(source, revision)
    if isinstance(source, str | Path):
        llm = load_whole(
            local_folder(source, revision),
            kind=AutoModelForCausalLM,
            dtype=dtype,
            quantization_config=nf4,
        )
    else:
        llm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return llm if nf4 is None else _quantize(llm, nf4)


def _configuration(source, revision):
    """An LLM's configuration, if it is one that the decoder can follow."""
    values, config, shown = source, source, "of that configuration"
    try:
        if isinstance(source, str | Path):
            shown, folder = source, local_folder(source, revision, False)
            values = json.loads(Path(folder, "config.json").read_text("utf-8"))
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        elif isinstance(source, dict):
            config = AutoConfig.for_model(**source)
    except (TypeError, ValueError) as error:
        kind = values.get("model_type")
        if "auto_map" in values:
            reason = "runs code of its own (auto_map in its config.json)"
        elif kind is None or kind in CONFIG_MAPPING:
            reason = f"is no LLM ({' '.join(str(error).split())[:200]})"
        else:
            reason = (
                f"is a {kind}, which transformers {transformers_version} does "
                "not know"
            )
        raise BackboneError(
            f"The LLM {shown} {reason}: choose one that has a class in "
            "transformers, or a later version of that."
        ) from error
    name = type(config).__name__.removesuffix("Config")
    reason = None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        reason = "is no causal language model"
    elif config.get_text_config() is not config:
        reason = "has parts for more than text, which nothing would use"
    if reason is not None:
        raise BackboneError(
            f"The LLM {shown} is a {name}, which {reason}: choose one for text "
            "alone, such as Qwen2.5."
        )
    for key, change in _CHANGES.items():
        if getattr(config, key, None) not in (None, 0, 1.0):
            raise ValueError(
                f"{name} {change} ({key} in its configuration), which the "
                "decoder does not follow. Choose another LLM, such as Qwen2.5."
            )
    return config


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
