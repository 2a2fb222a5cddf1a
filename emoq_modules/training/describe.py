"""What a configuration builds: each part, its size, and what trains.

The model is built on torch's meta device, so that neither weights nor data
are needed: of the backbones only the configuration counts. Those of the
models that the presets name are in ``architectures/``.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from emoq_modules.errors import ConfigurationError
from emoq_modules.lobes.small_backbones import build_llm
from emoq_modules.training.configuration import (
    change,
    load_hparams,
    merge_presets,
    plan_runs,
)

_ARCHITECTURES = Path(__file__).with_name("architectures")


def describe(experiment, presets=(), options=""):
    """A table of an experiment's parts: parameters, and how many train."""
    parts = model_parts(experiment, presets, options)
    parts["total"] = sum(parts.values(), [])
    lines = [f"{'part':<16}{'parameters':>16}{'training':>16}"]
    for name, parameters in parts.items():
        size = sum(p.numel() for p in parameters)
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        lines.append(f"{name:<16}{size:>16,}{trained:>16,}")
    return "\n".join(lines) + (
        f"\n\nA checkpoint holds {trained * 4 / 1e6:,.0f} MB of weights "
        f"(float32) and {trained * 8 / 1e6:,.0f} MB of AdamW's state."
    )


def model_parts(experiment, presets=(), options=""):
    """Parameters of each part of a model, on the meta device."""
    hparams = build_untrained(experiment, presets, options)
    modules = dict(hparams["modules"])
    decoder = modules.pop("decoder", None)
    parts = {"audio encoder": hparams["audio_encoder"], **modules}
    parts = {
        name: list(module.parameters())
        for name, module in parts.items()
        if module is not None
    }
    if decoder is not None:
        for name, parameter in decoder.named_parameters():
            part = "LoRA" if "lora_" in name else name.split(".")[0]
            parts.setdefault(part, []).append(parameter)
    return parts


def build_untrained(
    experiment,
    presets=(),
    options="",
    device="meta",
    llm_tokenizer=None,
    **of_llm,
):
    """Makes an experiment's objects without data, on untrained backbones.

    On the device ``meta`` there are no weights, elsewhere random ones. The
    LLM's tokenizer is one that knows few words, as the model's size does not
    depend on it, or that in the folder ``llm_tokenizer``; further values are
    laid over the LLM's configuration.
    """
    [run] = plan_runs(experiment, presets, change(options, data_folder=""))
    hparams = run.hparams
    with TemporaryDirectory() as folder:
        changes = {
            "data_folder": "",
            "audio_source": _configuration(hparams.get("audio_source")),
            "augment_audio": None,  # may hold tensors
            "augment_frames": None,
            "text_tokenizer": None,
            "checkpointer": None,  # would make a folder
            "train_logger": None,  # might log in somewhere
        }
        changes |= {"class_weights": None, "training_labels": []}
        if hparams["stage"] == 2:
            changes["llm_tokenizer"] = llm_tokenizer or build_llm(
                folder, [], hparams["labels"]
            )
            changes["pretrainer"] = None
        if "text_encoder" in hparams:
            changes["text_encoder"] = _configuration(hparams["text_encoder"])
        else:  # small, built on the spot, and loaded from there
            device = "cpu" if device == "meta" else device
        if "llm" in hparams:
            changes["llm"] = _configuration(hparams["llm"]) | of_llm
        options = change(options, **changes)
        with torch.device(device):
            return load_hparams(merge_presets(experiment, presets, options))


def _configuration(source):
    """The configuration of a backbone, as its values."""
    if source is None or isinstance(source, dict):
        return source
    known = _ARCHITECTURES / f"{source.replace('/', '--')}.json"
    for file in (known, Path(source) / "config.json"):
        if file.exists():
            return json.loads(file.read_text(encoding="utf-8"))
    raise ConfigurationError(
        f"The architecture of {source} is not known here: give a local folder "
        "with its config.json."
    )
