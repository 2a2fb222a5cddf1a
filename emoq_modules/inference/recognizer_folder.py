"""What a folder holds that ``EmotionRecognizer`` is loaded from.

Stage 2 leaves one, ``recognizer``, that refers to backbones in its output
folder, or wherever they are on this machine; ``emoq export`` makes one that is
whole.
"""

import os
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from hyperpyyaml import dump_hyperpyyaml
from hyperpyyaml.core import RefTag
from jinja2 import Template
from ruamel.yaml import YAML
from speechbrain.utils.logger import get_logger

from emoq_modules.dataio.files import (
    CONTENTS_FILE,
    describe,
    put_in_place,
    write_atomically,
    write_contents,
)
from emoq_modules.lobes.weights import save_trainable

logger = get_logger(__name__)

RECOGNIZER_FOLDER = "recognizer"  # in stage 2's output folder
SETTINGS_FILE = "hyperparams.yaml"
# The key format_version of an export; what later ones hold is unknown. From 2
# on its list of files has checksums, and its temperature is one for each way of
# asking.
FORMAT_VERSION = 2

# What of a training configuration recognition needs.
_KEYS = (
    "labels",
    "store_precision",
    "eval_precision",
    "max_text_tokens",
    "speaker_in_prompt",
    "context_turns",
    "audio_encoder",
    "text_tokenizer",
    "fusion",
    "decoder",
)
_INFERENCE = Template(
    """
modules:
{% for name, key in modules.items() %}
    {{ name }}: !ref <{{ key }}>
{% endfor %}
pretrained_path: {{ folder }}
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
{% for part in weights %}
        {{ part.name }}: !ref <{{ part.module }}>
{% endfor %}
    paths:
{% for part in weights %}
        {{ part.name }}: !ref <pretrained_path>/{{ part.file }}
{% endfor %}
    custom_hooks:
{% for part in weights %}
        {{ part.name }}: !name:{{ part.hook }}
{% endfor %}
""",
    trim_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class Weights:
    """A file of weights, and what it is loaded into.

    ``module`` is the key of that object, ``file`` relative to the folder, and
    ``hook`` the function that loads it, as ``hook(object, path)``.
    """

    name: str
    module: str
    file: str
    hook: str = "emoq_modules.lobes.weights.load_trainable"


def save_recognizer(folder, resolved, hparams, temperatures):
    """Writes what ``EmotionRecognizer`` needs of a trained stage 2.

    That is the composed configuration, its objects' trained weights, and the
    temperatures that ``fit_temperatures`` gives. Where a
    frozen part was given as a configuration, its weights are random and in no
    file: nothing is written then, and a warning says so.
    """
    folder = Path(folder)
    training = YAML().load(resolved)
    tree = {key: training[key] for key in _KEYS}
    tree["temperature"] = temperatures
    tree["decoder"].pop("check", None)  # it was, before training
    backbones = []
    for key in ("text_encoder", "llm", "llm_tokenizer"):
        # A backbone built on the spot is there now, and not built again.
        if training[key] != hparams[key]:
            # Named from here, so that the run may be moved.
            built = os.path.relpath(hparams[key], folder)
            names = (path.name for path in Path(hparams[key]).iterdir())
            backbones += [f"{built}/{name}" for name in sorted(names)]
            _replace(tree, training[key], RefTag(f"<pretrained_path>/{built}"))
    # Counted once: elsewhere the source may have another name.
    _replace(tree, training.get("audio_layers"), hparams.get("audio_layers"))
    for key in ("decoder", "audio_encoder"):
        source = (tree[key] or {}).get("source")
        # A node with a tag is a call, whose value may well be a folder.
        if isinstance(source, dict) and source.tag.value is None:
            logger.warning(
                f"No recognizer is written to {folder}: the {key} has a "
                "configuration in the place of a source, so that its weights "
                "are random, and in no file."
            )
            return

    folder.mkdir(parents=True, exist_ok=True)
    # Of an earlier evaluation of this run: what it lists is about to change.
    (folder / CONTENTS_FILE).unlink(missing_ok=True)
    names = [name for name, m in hparams["modules"].items() if m is not None]
    for name in names:
        partial = folder / f"{name}.partial"
        save_trainable(hparams[name], partial)
        put_in_place(partial, folder / f"{name}.safetensors")
    weights = [Weights(name, name, f"{name}.safetensors") for name in names]
    text = settings_text(tree, folder, weights)
    write_atomically(folder / SETTINGS_FILE, text.encode())
    files = [*(part.file for part in weights), SETTINGS_FILE]
    files += dict.fromkeys(backbones)
    write_contents(folder, {name: describe(folder / name) for name in files})


def settings_text(tree, folder, weights):
    """The YAML that SpeechBrain's ``Pretrained`` loads.

    ``folder`` is what ``pretrained_path`` is until ``from_hparams`` sets it.
    """
    text = StringIO()
    dump_hyperpyyaml(tree, text)
    modules = {"decoder": "decoder"}
    if tree["fusion"] is not None:
        modules = {"fusion": "fusion", **modules, "encoder": "audio_encoder"}
    return text.getvalue() + _INFERENCE.render(
        modules=modules, folder=folder, weights=weights
    )


def _replace(node, old, new):
    """Puts ``new`` wherever a tree refers to the node ``old``."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        if value is old:
            node[key] = new
        elif isinstance(value, dict | list):
            _replace(value, old, new)
