"""Loads the LLM: a causal language model of Hugging Face."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from emoq_modules.lobes.backbones import local_folder
from emoq_modules.lobes.quantization import nf4_config, quantize


def load_llm(source, revision=None, dtype=torch.float32, quantization=None):
    """Loads an LLM, or builds one of random weights.

    Arguments
    ---------
    source : str | Path | dict | transformers.PretrainedConfig
        Any causal LM: its name on the Hugging Face hub or a local folder, whose
        weights are loaded; or a configuration (its values in a dict, with
        ``model_type``), which gives random weights.
    revision : str | None
        Git revision of a source on the hub.
    dtype : torch.dtype
        Precision of the weights.
    quantization : str | None
        ``nf4`` for linear layers of 4 bits, which needs bitsandbytes; None
        for weights as they are.

    Returns
    -------
    transformers.PreTrainedModel
        The LLM, with its output layer.

    Raises
    ------
    BackboneError
        If the source is neither a folder, nor cached, nor reachable; if
        bitsandbytes is needed and not installed.
    ValueError
        If there is no such quantization.

    Example
    -------
    >>> tiny = {"model_type": "qwen2", "vocab_size": 50, "hidden_size": 16}
    >>> tiny |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    >>> tiny |= {"num_key_value_heads": 1, "intermediate_size": 32}
    >>> load_llm(tiny).get_input_embeddings().weight.shape
    torch.Size([50, 16])
    """
    config = nf4_config(quantization, dtype)
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
    return llm if config is None else quantize(llm, config)


def check_output_layer(llm, vocabulary):
    """Refuses an LLM whose logits are not those of its output layer alone.

    Arguments
    ---------
    llm : transformers.PreTrainedModel
        The LLM.
    vocabulary : int
        Number of tokens that its tokenizer has.

    Raises
    ------
    ValueError
        If the tokenizer is of another LLM, or logits are changed after the
        output layer.
    """
    rows = llm.get_input_embeddings().weight.shape[0]
    if vocabulary > rows:
        raise ValueError(
            f"The tokenizer has {vocabulary} tokens and the LLM {rows}: they "
            "do not belong together."
        )
    # Gemma 2 caps its logits, Cohere's and Granite scale them.
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(llm.config, key, None) not in (None, 1.0):
            raise ValueError(
                f"{type(llm).__name__} changes its logits after the output "
                f"layer ({key} in its configuration), which the decoder does "
                "not follow. Choose another LLM, such as Qwen2.5."
            )
