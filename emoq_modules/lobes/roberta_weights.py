"""The weights of a RoBERTa, from which the EmoQ-Former starts."""

import re
from pathlib import Path

from transformers import AutoConfig, RobertaConfig, RobertaModel

from emoq_modules.lobes.backbones import local_folder

_NAME = re.compile(r"(?:layers\.(\d+)\.)?(?:(.+)\.)?(\w+)")
# Our modules' names and RoBERTa's.
_ROBERTA_MODULES = {
    "text_embeddings.word": "embeddings.word_embeddings",
    "text_embeddings.position": "embeddings.position_embeddings",
    "text_embeddings.token_type": "embeddings.token_type_embeddings",
    "text_embeddings.norm": "embeddings.LayerNorm",
    "self_attention.query": "attention.self.query",
    "self_attention.key": "attention.self.key",
    "self_attention.value": "attention.self.value",
    "self_attention.output": "attention.output.dense",
    "self_attention.norm": "attention.output.LayerNorm",
    "text_output.intermediate": "intermediate.dense",
    "text_output.output": "output.dense",
    "text_output.norm": "output.LayerNorm",
    # The queries' feed-forward starts from the text's.
    "query_output.intermediate": "intermediate.dense",
    "query_output.output": "output.dense",
    "query_output.norm": "output.LayerNorm",
}


def load_roberta(source, revision):
    """Loads a RoBERTa's configuration, and its weights where there are some.

    Arguments
    ---------
    source : str | Path | dict | transformers.RobertaConfig
        As ``EmoQFormer`` takes it, which raises the same errors.
    revision : str | None
        Branch, tag or commit on the hub.

    Returns
    -------
    config : transformers.RobertaConfig
        The configuration.
    weights : dict | None
        RoBERTa's tensors by its own names; None for a configuration.
    """
    if not isinstance(source, str | Path):
        values = source if isinstance(source, dict) else source.to_dict()
        return RobertaConfig(**values), None
    folder = local_folder(source, revision)
    model_type = AutoConfig.from_pretrained(folder).model_type
    if model_type != "roberta":
        raise ValueError(
            f"{source} is no RoBERTa but a {model_type}. Give a RoBERTa, for "
            "instance FacebookAI/roberta-base."
        )
    model, report = RobertaModel.from_pretrained(
        folder, add_pooling_layer=False, output_loading_info=True
    )
    if report["missing_keys"]:
        raise ValueError(
            f"The weights in {folder} are not whole: "
            f"{len(report['missing_keys'])} are missing, "
            f"{min(report['missing_keys'])} for one. Fetch the model again."
        )
    return model.config, model.state_dict()


def roberta_names(names):
    """Maps names of parameters of ``EmoQFormer`` to RoBERTa's.

    Arguments
    ---------
    names : iterable of str
        Names of parameters of ``EmoQFormer``.

    Returns
    -------
    dict
        RoBERTa's names of those that start from a weight of RoBERTa.

    Example
    -------
    >>> roberta_names(["queries", "layers.3.text_output.norm.bias"])
    {'layers.3.text_output.norm.bias': 'encoder.layer.3.output.LayerNorm.bias'}
    """
    mapping = {}
    for name in names:
        layer, module, parameter = _NAME.fullmatch(name).groups()
        if module in _ROBERTA_MODULES:
            prefix = f"encoder.layer.{layer}." if layer else ""
            mapping[name] = f"{prefix}{_ROBERTA_MODULES[module]}.{parameter}"
    return mapping
