"""Makes a recognizer's YAML independent of the machine it was trained on.

Whatever it names in local folders is copied beside it. What it names on the
hub stays a name, at the commit that training used, or is copied too.
"""

import shutil
from pathlib import Path

import torch
from hyperpyyaml.core import RefTag
from peft import PeftModel
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import LiteralScalarString
from ruamel.yaml.tag import Tag
from transformers import AutoModel, AutoModelForCausalLM

from emoq_modules.errors import ExportError
from emoq_modules.lobes.audio_encoder import HuggingFaceEncoder
from emoq_modules.lobes.backbones import TEXT_FILES, local_folder, weight_files
from emoq_modules.lobes.qformer import EmoQFormer

_TOKENIZER = ("tokenizer_config.json",)
_LICENSES = ("LICENSE", "LICENCE", "NOTICE")  # as their authors spell it


def bare(node):
    """A YAML node without its comments and anchors."""
    if isinstance(node, CommentedMap):
        copy = CommentedMap((key, bare(value)) for key, value in node.items())
    elif isinstance(node, CommentedSeq):
        copy = CommentedSeq(map(bare, node))
    elif isinstance(node, str):
        return LiteralScalarString(node) if "\n" in node else str(node)
    else:
        return node
    copy.yaml_set_ctag(node.tag)
    if node.fa.flow_style():
        copy.fa.set_flow_style()
    return copy


def take_along(tree, modules, folder, include_backbones=False):
    """Copies what stands before the LLM, and makes a YAML name it there.

    Nodes of the ``tree`` are changed; ``modules`` has the objects ``fusion``
    and ``encoder``, as far as there are some. Backbones on the hub are copied
    only if they are to be included. ``ExportError`` if weights that never train
    are random, hence in no file.
    """
    fusion = tree["fusion"] if "fusion" in modules else {}
    tokenizer = _tokenizer_source(tree["text_tokenizer"])
    place = "text_encoder" if fusion.get("source") == tokenizer[0] else None
    if isinstance(modules.get("fusion"), EmoQFormer):
        # The configuration alone: all weights are the EmoQ-Former's own.
        if isinstance(fusion["source"], str):
            target = folder / "text_encoder"
            copy_backbone(fusion["source"], target, fusion.get("revision"))
            fusion["source"] = _apply("load_configuration", target)
        fusion.pop("revision", None)
    if tree["text_tokenizer"] is not None:
        target = folder / (place or "text_tokenizer")
        copy_backbone(tokenizer[0], target, tokenizer[1], needs=_TOKENIZER)
        tree["text_tokenizer"] = _apply("load_tokenizer", target)
    if isinstance(modules.get("encoder"), HuggingFaceEncoder):
        encoder = tree["audio_encoder"]
        encoder["source"], encoder["revision"] = _placed(
            encoder["source"],
            encoder.get("revision"),
            folder / "audio_encoder",
            include_backbones,
            cache_dir=encoder.pop("save_path", None),
            needs=("config.json", "preprocessor_config.json"),
            auto_class=AutoModel,
        )


def take_llm(decoder, folder, include_backbones=False):
    """Copies the LLM and its tokenizer; the decoder's node then names them."""
    source, revision = decoder["source"], decoder.get("revision")
    tokenizer = decoder.get("tokenizer") or source
    decoder["source"], decoder["revision"] = _placed(
        source,
        revision,
        folder / "llm",
        include_backbones,
        auto_class=AutoModelForCausalLM,
    )
    if tokenizer == source:
        decoder["tokenizer"] = None  # the source has it
    else:
        # One revision serves both, so two names cannot each be pinned.
        decoder["revision"] = revision
        decoder["tokenizer"], _ = _placed(
            tokenizer,
            revision,
            folder / "llm_tokenizer",
            include_backbones,
            needs=_TOKENIZER,
        )


def merge(decoder, adapter, folder):
    """Writes an LLM with its LoRA adapter merged into it, and its tokenizer.

    The decoder's YAML node then names the folder ``llm`` below ``folder``, and
    no LoRA. ``ExportError`` if the adapter was trained on weights in 4 bits.
    """
    if decoder.get("quantization"):
        raise ExportError(
            "The LoRA adapter was trained on an LLM in 4 bits: merged into the "
            "LLM as it is, it would be another system. Export without --merge."
        )
    source, revision = decoder["source"], decoder.get("revision")
    base = AutoModelForCausalLM.from_pretrained(
        local_folder(source, revision),
        dtype=getattr(torch, decoder.get("dtype", "float32")),
        trust_remote_code=False,
    )
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload(
        safe_merge=True
    )
    target = folder / "llm"
    # The tokenizer first: the LLM's own configuration is to stand.
    copy_backbone(
        decoder.get("tokenizer") or source, target, revision, needs=_TOKENIZER
    )
    merged.save_pretrained(target)
    decoder["source"] = _reference(target)
    decoder["tokenizer"] = decoder["revision"] = decoder["lora"] = None


def copy_backbone(source, target, revision=None, auto_class=None, **where):
    """Copies what ``from_pretrained`` loads; weights as safetensors.

    Without an ``auto_class``, which loads weights to be converted, the weights
    are left out. ``where`` are ``needs`` and ``cache_dir`` of ``local_folder``.
    """
    has_weights = auto_class is not None
    folder = Path(local_folder(source, revision, has_weights, **where))
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.iterdir()):
        is_text = file.name.endswith(TEXT_FILES)
        if file.name.startswith(_LICENSES) or (
            is_text and not file.name.endswith(".index.json")
        ):
            shutil.copyfile(file, target / file.name)
    weights = weight_files(folder) if has_weights else []
    if all(file.suffix == ".safetensors" for file in weights):
        index = folder / "model.safetensors.index.json"
        for file in [*weights, *([index] if len(weights) > 1 else [])]:
            shutil.copyfile(file, target / file.name)
    else:
        auto_class.from_pretrained(
            folder, dtype="auto", trust_remote_code=False
        ).save_pretrained(target)


def _tokenizer_source(node):
    """What ``load_tokenizer`` is called with: source and revision."""
    if isinstance(node, dict):
        return node["source"], node.get("revision")
    return (*(node or [None]), None)[:2]


def _placed(source, revision, target, include, auto_class=None, **where):
    """Where a backbone is for the export, and its revision there."""
    if not isinstance(source, str):
        raise ExportError(
            f"The weights of the {target.name.replace('_', ' ')} are random: "
            "its source is a configuration. They are in no file, so the run "
            "cannot be exported."
        )
    if include or Path(source).expanduser().is_dir():
        copy_backbone(source, target, revision, auto_class=auto_class, **where)
        return _reference(target), None
    folder = Path(local_folder(source, revision, weights=False, **where))
    # The cache names a folder by the commit that the revision stands for.
    is_commit = folder.parent.name == "snapshots"
    return source, folder.name if is_commit else revision


def _reference(target):
    return RefTag(f"<pretrained_path>/{target.name}")


def _apply(function, target):
    """A node that calls a function of ``backbones.py`` with a folder."""
    node = CommentedSeq([_reference(target)])
    node.yaml_set_ctag(
        Tag(suffix=f"!apply:emoq_modules.lobes.backbones.{function}")
    )
    return node
