"""Makes of a trained stage 2 a folder that loads anywhere, and offline.

The folder is written beside its place and takes it when it is whole and gives
the posteriors of the run's own recognizer.
"""

import gc
import json
import shutil
from functools import partial
from pathlib import Path

import torch
from hyperpyyaml import resolve_references
from hyperpyyaml.core import RefTag
from ruamel.yaml import YAML
from speechbrain.utils.logger import get_logger

from emoq_modules.dataio.files import write_contents
from emoq_modules.errors import ExportError, UnsafeYAMLError
from emoq_modules.evaluation.results import RESULTS_FILE
from emoq_modules.evaluation.run_calibration import calibrate
from emoq_modules.inference.export_folder import (
    CARD_FILE,
    INTERFACE_FILE,
    check_out,
    find_run,
    taking_the_place_of,
)
from emoq_modules.inference.model_card import is_hub_name, model_card
from emoq_modules.inference.portable import bare, merge, take_along, take_llm
from emoq_modules.inference.recognizer import EmotionRecognizer
from emoq_modules.inference.recognizer_folder import (
    FORMAT_VERSION,
    RECOGNIZER_FOLDER,
    SETTINGS_FILE,
    Weights,
    settings_text,
)
from emoq_modules.inference.safe_yaml import is_safe
from emoq_modules.lobes.weights import (
    ADAPTER_FILE,
    save_adapter,
    save_trainable,
)

logger = get_logger(__name__)

_HOOKS = "emoq_modules.lobes.weights"
_HEADER = """\
# A trained EmoQ. Load it with
#   emoq_modules.EmotionRecognizer.from_hparams("this folder")
# which sets pretrained_path to where it is.
"""
# What SpeechBrain's foreign_class imports of a source.
_INTERFACE = "from emoq_modules import EmotionRecognizer  # noqa: F401"
# Posteriors of the same weights differ by less, whatever the machine.
_TOLERANCE = 1e-4


def export_recognizer(
    results_folder, out, merged=False, include_backbones=False, license="other"
):
    """Exports the recognizer of a run.

    Arguments
    ---------
    results_folder : str or Path
        The output folder of stage 2, or the one above it.
    out : str or Path
        The folder to make. An earlier export there is replaced, once the new
        one is whole.
    merged : bool
        Whether to merge the LoRA adapter into the LLM, and take that along.
    include_backbones : bool
        Whether to take along backbones that are on the hub too.
    license : str
        The hub's name of the license of the weights, for the model card.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ExportError
        If there is no finished run, ``out`` holds something else, or the run
        cannot be exported.
    BackboneError, CheckpointError, SourceError
        If a part of the run is missing or damaged.
    """
    run = find_run(results_folder)
    out = check_out(out)
    results = _read_results(run)
    calibration = calibrate(run)
    with taking_the_place_of(out) as folder:
        _write(
            folder,
            run,
            results,
            calibration,
            merged,
            include_backbones,
            license,
        )
    return out


def _read_results(run):
    path = run / RESULTS_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExportError(f"{path} is damaged ({error}).") from None


def _write(
    folder, run, results, calibration, merged, include_backbones, license
):
    source = run / RECOGNIZER_FOLDER
    settings = resolve_references(
        (source / SETTINGS_FILE).read_text(encoding="utf-8"),
        {"pretrained_path": str(source)},
    )
    tree = {
        key: bare(value)
        for key, value in YAML().load(settings).items()
        if key not in ("modules", "pretrained_path", "pretrainer")
    }
    tree = {
        "format_version": FORMAT_VERSION,
        "labels": tree.pop("labels"),
        "temperature": calibration.temperature,
        **tree,
    }
    tree["decoder"]["labels"] = RefTag("<labels>")
    parts = _parts(tree)
    prompt = _prompt_text(tree["decoder"]["prompt"])

    recognizer = _load_run(source)
    expected = _probe(recognizer)
    modules, decoder = dict(recognizer.mods), tree["decoder"]
    base = parts["LLM"] if is_hub_name(parts["LLM"]) else None
    weights = _write_weights(folder, modules, base)
    take_along(tree, modules, folder, include_backbones)
    # The LLM is loaded again to be merged, and to be tried.
    del recognizer, modules
    gc.collect()
    adapter = folder / "adapter"
    if merged and adapter.exists():
        merge(decoder, adapter, folder)
        shutil.rmtree(adapter)
        weights = [item for item in weights if item.name != "adapter"]
    else:
        take_llm(decoder, folder, include_backbones or merged)
    text = settings_text(tree, ".", weights)
    (folder / SETTINGS_FILE).write_text(_HEADER + text, encoding="utf-8")
    for name, content in (
        ("labels.txt", "\n".join(tree["labels"])),
        ("prompt.txt", prompt),
        (INTERFACE_FILE, _INTERFACE),
        (
            CARD_FILE,
            model_card(
                *(results, calibration, parts, prompt, license, merged),
                is_trusted=is_safe(text),
            ),
        ),
    ):
        (folder / name).write_text(f"{content}\n", encoding="utf-8")
    # The card and the YAML may be edited by hand; the interface is not fetched.
    others = (CARD_FILE, SETTINGS_FILE, INTERFACE_FILE)
    write_contents(
        folder,
        {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in others
        },
    )
    is_rounded = merged and decoder.get("dtype", "float32") != "float32"
    _try(folder, expected, is_rounded)


def _load_run(source):
    """The recognizer of a run, with what trains told from what does not."""
    try:
        # It is the run's own, and may name classes of the person's own.
        return EmotionRecognizer.from_hparams(
            source,
            trust_source=True,
            run_opts={"device": "cpu"},
            freeze_params=False,
        ).eval()
    except ImportError as error:
        raise ExportError(
            f"{source / SETTINGS_FILE} names what is not installed here: "
            f"{error}. Export where it was trained."
        ) from error


def _write_weights(folder, modules, base):
    """Writes what was trained, and tells what loads it."""
    weights, fusion, decoder = [], modules.get("fusion"), modules["decoder"]
    if fusion is not None and any(True for _ in fusion.parameters()):
        save_trainable(fusion, folder / "fusion.safetensors")
        weights.append(Weights("fusion", "fusion", "fusion.safetensors"))
    if decoder.projector is not None:
        save_trainable(decoder.projector, folder / "projector.safetensors")
        weights.append(
            Weights(
                "projector",
                "decoder",
                "projector.safetensors",
                f"{_HOOKS}.load_projector",
            )
        )
    if getattr(decoder.llm, "peft_config", None):
        save_adapter(decoder, folder / "adapter", base)
        weights.append(
            Weights(
                "adapter",
                "decoder",
                f"adapter/{ADAPTER_FILE}",
                f"{_HOOKS}.load_adapter",
            )
        )
    return weights


def _parts(tree):
    """What the frozen parts are, for the model card."""
    parts = {
        "audio encoder": tree["audio_encoder"],
        "text encoder": tree["fusion"],
        "LLM": tree["decoder"],
    }
    return {name: _described(node) for name, node in parts.items() if node}


def _described(node):
    source = node.get("source")
    if not isinstance(source, str):
        return f"{str(node.tag.value).rpartition('.')[2]}, with no download"
    if Path(source).expanduser().is_dir():
        return f"{Path(source).name}, a folder that was copied"
    return source


def _prompt_text(prompt):
    return "\n\n".join(
        f"{turn}:\n{prompt[key]}"
        for turn, key in (
            ("System", "system"),
            ("User", "user"),
            ("Assistant", "answer"),
        )
        if key in prompt
    )


def _probe(recognizer):
    """Posteriors of a second of noise, to compare recognizers by."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(1, 16000, generator=generator)
    return recognizer.classify_batch(noise, texts=["I do not know."])[0]


def _try(folder, expected, is_rounded):
    """Loads an export as others will, and compares it with the run."""
    load = partial(
        EmotionRecognizer.from_hparams, folder, run_opts={"device": "cpu"}
    )
    try:
        recognizer = load()
    except UnsafeYAMLError as error:
        # By the name that the export gets, which is not yet its own.
        message = str(error).replace(str(folder), "this export")
        logger.warning(f"Others will be told: {message}")
        recognizer = load(trust_source=True)
    difference = (_probe(recognizer) - expected).abs().max().item()
    logger.info(f"Posteriors differ by {difference:.1e} from those of the run.")
    if difference > _TOLERANCE and not is_rounded:
        raise ExportError(
            f"The export gives other posteriors than the run, by "
            f"{difference:.1e}, and was not kept. Has a backbone that the run "
            "names been changed since?"
        )
    if difference > _TOLERANCE:
        logger.warning(
            "The merged LLM is rounded to half precision: posteriors differ by "
            f"{difference:.1e} from those of the run. Without --merge they are "
            "the same."
        )
