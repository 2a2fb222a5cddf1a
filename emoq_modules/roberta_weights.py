"""What the EmoQ-Former starts from: the weights of a RoBERTa."""

from transformers import AutoConfig, RobertaConfig, RobertaModel

from emoq_modules.backbones import local_folder

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
    """The configuration, and the weights where there are some.

    Arguments and errors are those of ``EmoQFormer``.
    """
    if not isinstance(source, str):
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
    """Maps our parameters that start from RoBERTa's to their names there."""
    mapping = {}
    for name in names:
        path, _, parameter = name.rpartition(".")
        prefix, origin_prefix = "", ""
        if path.startswith("layers."):
            index, path = path.split(".", 2)[1:]
            prefix = f"layers.{index}."
            origin_prefix = f"encoder.layer.{index}."
        if path in _ROBERTA_MODULES:
            origin = f"{origin_prefix}{_ROBERTA_MODULES[path]}.{parameter}"
            mapping[f"{prefix}{path}.{parameter}"] = origin
    return mapping
