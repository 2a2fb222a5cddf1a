"""The text encoder that the EmoQ-Former starts from: a BERT.

BERT, RoBERTa, XLM-R, CamemBERT and MiniLM have the same layers. They differ in
where they count positions from.
"""

import re

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig

from emoq_modules.lobes.backbones import (
    load_configuration,
    load_whole,
    local_folder,
)

# By the model_type in config.json (MiniLM's is bert); and those that count
# positions from the one after the padding's.
_FAMILY = ("bert", "camembert", "roberta", "xlm-roberta")
_COUNTED_AFTER_PADDING = ("camembert", "roberta", "xlm-roberta")
_NAME = re.compile(r"(?:layers\.(\d+)\.)?(?:(.+)\.)?(\w+)")
# Our modules' names and BERT's.
_BERT_MODULES = {
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


class TextEmbeddings(nn.Module):
    """Word, position and type embeddings, as in BERT.

    Arguments
    ---------
    config : transformers.PretrainedConfig
        The configuration of a BERT, as ``load_text_encoder`` gives it.

    Example
    -------
    >>> config, _ = load_text_encoder({"hidden_size": 16})
    >>> tokens = torch.tensor([[5, 7, 0]])
    >>> TextEmbeddings(config)(tokens, tokens > 0).shape
    torch.Size([1, 3, 16])
    """

    def __init__(self, config):
        super().__init__()
        dim = config.hidden_size
        self.first_position = 0
        if config.model_type in _COUNTED_AFTER_PADDING:
            self.first_position = config.pad_token_id + 1
        self.max_tokens = config.max_position_embeddings - self.first_position
        self.word = nn.Embedding(config.vocab_size, dim)
        self.position = nn.Embedding(config.max_position_embeddings, dim)
        self.token_type = nn.Embedding(config.type_vocab_size, dim)
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, tokens, mask):
        """Embeds tokens.

        Arguments
        ---------
        tokens : torch.Tensor
            Token ids, ``(B, L)``; a ``ValueError`` if they are more than there
            are positions.
        mask : torch.Tensor
            Which of them are no padding, ``(B, L)``, bool.

        Returns
        -------
        torch.Tensor
            Embeddings, ``(B, L, d_h)``.
        """
        length = tokens.shape[1]
        if length > self.max_tokens:
            raise ValueError(
                f"A transcript of {length} tokens is longer than the text "
                f"encoder's {self.max_tokens} positions; shorten it before "
                "(max_text_tokens)."
            )
        positions = torch.arange(length, device=tokens.device)
        positions = (positions + self.first_position).expand_as(tokens)
        unread = max(0, self.first_position - 1)
        positions = positions.masked_fill(~mask, unread)
        embeddings = self.word(tokens) + self.position(positions)
        return self.dropout(self.norm(embeddings + self.token_type.weight[0]))


def load_text_encoder(source, revision=None):
    """Loads a BERT's configuration, and its weights where there are some.

    Arguments
    ---------
    source : str | Path | dict | transformers.PretrainedConfig
        As ``EmoQFormer`` takes it, which raises the same errors.
    revision : str | None
        Branch, tag or commit on the hub.

    Returns
    -------
    config : transformers.PretrainedConfig
        The configuration.
    weights : dict | None
        The encoder's tensors by its own names; None for a configuration.

    Example
    -------
    >>> config, weights = load_text_encoder({"model_type": "bert"})
    >>> config.hidden_size, weights
    (768, None)
    """
    if isinstance(source, PretrainedConfig):
        _check_family(source, "The configuration")
        return source.__class__(**source.to_dict()), None
    if isinstance(source, dict):
        values = {"model_type": "roberta", **source}
        model_type = values.pop("model_type")
        _check_type(model_type, "The configuration")
        config = AutoConfig.for_model(model_type, **values)
        _check_family(config, "The configuration")
        return config, None
    folder = local_folder(source, revision)
    _check_family(load_configuration(folder), source)
    model = load_whole(folder, add_pooling_layer=False)
    return model.config, model.state_dict()


def bert_names(names):
    """Maps names of parameters of ``EmoQFormer`` to BERT's.

    Arguments
    ---------
    names : iterable of str
        Names of parameters of ``EmoQFormer``.

    Returns
    -------
    dict
        BERT's names of those that start from a weight of BERT.

    Example
    -------
    >>> bert_names(["queries", "layers.3.text_output.norm.bias"])
    {'layers.3.text_output.norm.bias': 'encoder.layer.3.output.LayerNorm.bias'}
    """
    mapping = {}
    for name in names:
        layer, module, parameter = _NAME.fullmatch(name).groups()
        if module in _BERT_MODULES:
            prefix = f"encoder.layer.{layer}." if layer else ""
            mapping[name] = f"{prefix}{_BERT_MODULES[module]}.{parameter}"
    return mapping


def _check_family(config, source):
    _check_type(config.model_type, source)
    kind = getattr(config, "position_embedding_type", None) or "absolute"
    if kind != "absolute":
        raise ValueError(
            f"{source} has position embeddings of the kind {kind!r}, which the "
            "EmoQ-Former does not have. Give one with absolute positions."
        )


def _check_type(model_type, source):
    if model_type not in _FAMILY:
        raise ValueError(
            f"{source} is of the type {model_type!r}, and the EmoQ-Former has "
            f"the layers of BERT alone ({', '.join(_FAMILY)}). Give one of "
            "these, for instance FacebookAI/roberta-base."
        )
