"""Makes of a trained stage 2 a folder that loads anywhere, and offline.

The folder is written beside its place and takes it when it is whole and gives
the posteriors of the run's own recognizer.
"""

import gc
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from hyperpyyaml import resolve_references
from hyperpyyaml.core import RefTag
from ruamel.yaml import YAML, YAMLError
from speechbrain.utils.logger import get_logger

from emoq_modules.dataio.files import (
    CONTENTS_FILE,
    describe,
    flush,
    put_in_place,
    remove_abandoned,
    write_contents,
)
from emoq_modules.errors import ExportError, UnsafeYAMLError
from emoq_modules.evaluation.calibration import calibrate
from emoq_modules.evaluation.results import (
    RESULTS_FILE,
    read_predictions,
    read_results,
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
_INTERFACE_FILE = "custom_interface.py"
_CARD_FILE = "README.md"
# All that an export has ever held: other things in a folder are somebody's.
_ENTRIES = {
    _CARD_FILE,
    CONTENTS_FILE,
    SETTINGS_FILE,
    _INTERFACE_FILE,
    *("adapter", "audio_encoder", "llm", "llm_tokenizer"),
    *("text_encoder", "text_tokenizer"),
    *("fusion.safetensors", "projector.safetensors"),
    *("labels.txt", "prompt.txt"),
}
# Posteriors of the same weights differ by less, whatever the machine.
_TOLERANCE = 1e-4


def export_recognizer(
    results_folder, out, merged=False, include_backbones=False, license="other"
):
    """Exports the recognizer of a run to the folder ``out``, and returns that.

    The run's folder is that of stage 2, or the one above it. An earlier export
    in ``out`` is replaced, once the new one is whole. ``merged`` merges the
    LoRA adapter into the LLM, and takes that along; ``include_backbones`` takes
    those along that are on the hub too. The model card states the ``license``
    of the weights, by the hub's name.

    Raises ``ExportError`` if there is no finished run, ``out`` holds something
    else, or the run cannot be exported; ``BackboneError``, ``CheckpointError``
    or ``SourceError`` if a part of the run is missing or damaged.
    """
    run = _find_run(results_folder)
    out = _check_out(out)
    results = read_results(run)
    tree = _read_tree(run / RECOGNIZER_FOLDER)
    calibration = _calibration(run, tree)
    parts = _parts(tree)
    prompt = _prompt_text(tree["decoder"]["prompt"])
    with _taking_the_place_of(out) as folder:
        expected, weights = _write_parts(
            folder, run, tree, parts["LLM"], merged, include_backbones
        )
        settings = settings_text(tree, ".", weights)
        card = model_card(
            *(results, calibration, parts, prompt, license, merged),
            is_trusted=is_safe(settings),
        )
        for name, text in (
            (SETTINGS_FILE, _HEADER + settings),
            ("labels.txt", "\n".join([*tree["labels"], ""])),
            ("prompt.txt", f"{prompt}\n"),
            (_INTERFACE_FILE, f"{_INTERFACE}\n"),
            (_CARD_FILE, str(card)),
        ):
            (folder / name).write_text(text, encoding="utf-8")
        # The card may be edited by hand; the interface is not fetched.
        others = (_CARD_FILE, _INTERFACE_FILE)
        write_contents(
            folder,
            {
                path.relative_to(folder).as_posix(): describe(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file() and path.name not in others
            },
        )
        dtype = tree["decoder"].get("dtype", "float32")
        _try(folder, expected, is_rounded=merged and dtype != "float32")
    return out


def read_card(folder):
    """The model card of an export, or of a run's recognizer, as Markdown.

    A run has none: it is made of its results. None if there are none either.
    """
    card, run = Path(folder, _CARD_FILE), Path(folder).parent
    if card.exists():
        return ModelCard.load(card).text
    if not (run / RESULTS_FILE).exists():
        return None
    tree = _read_tree(Path(folder))
    found = _calibration(run, tree)
    prompt = _prompt_text(tree["decoder"]["prompt"])
    return model_card(read_results(run), found, _parts(tree), prompt).text


def _find_run(results_folder):
    """The finished stage 2 in a folder, or in its folder ``stage2``."""
    folder = Path(results_folder)
    for run in (folder, folder / "stage2"):
        if (run / RECOGNIZER_FOLDER / SETTINGS_FILE).is_file():
            if not (run / RESULTS_FILE).is_file():
                raise ExportError(
                    f"The run in {run} has no {RESULTS_FILE}: it is not "
                    "finished. Start it again; it goes on from where it was."
                )
            return run
    if not folder.is_dir():
        raise ExportError(f"There is no folder {folder}.")
    raise ExportError(
        f"There is no trained stage 2 in {folder}: it has no folder "
        f"{RECOGNIZER_FOLDER}. Give the output folder of a stage 2, such as "
        "results/demo/emoq/fold1-seed1234/stage2."
    )


def _check_out(out):
    """The folder to export to, if nothing would be lost there."""
    out = Path(out).expanduser().resolve()
    if not out.exists():
        return out
    if not out.is_dir():
        raise ExportError(f"{out} is a file; give a folder.")
    names = {path.name for path in out.iterdir()}
    others = sorted(names - _ENTRIES)
    if not others and CONTENTS_FILE not in names:  # an export has a list
        others = sorted(names)
    if others:
        raise ExportError(
            f"{out} holds {', '.join(others[:3])}"
            f"{' and more' if len(others) > 3 else ''}, which no export has "
            "written: give a folder that is empty, not there yet, or an "
            "earlier export."
        )
    return out


@contextmanager
def _taking_the_place_of(out):
    """Gives a folder to fill beside ``out``, which replaces it at the end.

    If filling it fails, what was there before is as it was.
    """
    new = out.with_name(f".{out.name}.{os.getpid()}.partial")
    earlier = out.with_name(f".{out.name}.{os.getpid()}.earlier")
    new.mkdir(parents=True)
    remove_abandoned(out.parent, f".{out.name}.*.partial")
    try:
        yield new
        flush(new)  # which may take a while, in which the earlier one is there
        if out.exists():
            os.rename(out, earlier)
        try:
            put_in_place(new, out)
        except OSError:
            if earlier.exists():
                os.rename(earlier, out)
            raise
        shutil.rmtree(earlier, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _calibration(run, tree):
    """How a run's confidence is corrected, with a warning if it is not."""
    found = calibrate(tree.get("temperature"), read_predictions(run))
    if found.note:
        logger.warning(f"The confidence is not calibrated: {found.note}.")
    return found


def _read_tree(source):
    """The YAML of a run's recognizer as that of an export, with its paths."""
    file = source / SETTINGS_FILE
    try:
        settings = resolve_references(
            file.read_text(encoding="utf-8"), {"pretrained_path": str(source)}
        )
        tree = {
            key: bare(value)
            for key, value in YAML().load(settings).items()
            if key not in ("modules", "pretrained_path", "pretrainer")
        }
        tree["decoder"]["labels"] = RefTag("<labels>")
    except (YAMLError, ValueError, AttributeError, KeyError) as error:
        raise ExportError(
            f"{file} is damaged: start the run again, which writes it anew "
            "from its checkpoint."
        ) from error
    return {
        "format_version": FORMAT_VERSION,
        "labels": tree.pop("labels"),
        **tree,
    }


def _write_parts(folder, run, tree, llm, merged, include_backbones):
    """Writes weights and backbones, and makes the YAML name them there.

    Returns the run's own posteriors of the probe, and what is to be loaded.
    """
    recognizer = _load_run(run / RECOGNIZER_FOLDER)
    expected = _probe(recognizer)
    modules, decoder = dict(recognizer.mods), tree["decoder"]
    weights = _write_weights(folder, modules, llm if is_hub_name(llm) else None)
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
    return expected, weights


def _load_run(source):
    """The recognizer of a run, with what trains told from what does not."""
    # It is the run's own, and may name classes of the person's own.
    return EmotionRecognizer.from_hparams(
        source,
        trust_source=True,
        run_opts={"device": "cpu"},
        freeze_params=False,
    ).eval()


def _write_weights(folder, modules, base):
    """Writes what was trained, and tells what loads it."""
    weights, fusion, decoder = [], modules.get("fusion"), modules["decoder"]
    if fusion is not None and any(True for _ in fusion.parameters()):
        file = "fusion.safetensors"
        save_trainable(fusion, folder / file)
        weights.append(Weights("fusion", "fusion", file))
    if decoder.projector is not None:
        file, hook = "projector.safetensors", f"{_HOOKS}.load_projector"
        save_trainable(decoder.projector, folder / file)
        weights.append(Weights("projector", "decoder", file, hook))
    if getattr(decoder.llm, "peft_config", None):
        file, hook = f"adapter/{ADAPTER_FILE}", f"{_HOOKS}.load_adapter"
        save_adapter(decoder, folder / "adapter", base)
        weights.append(Weights("adapter", "decoder", file, hook))
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
    turns = {"System": "system", "User": "user", "Assistant": "answer"}
    return "\n\n".join(
        f"{turn}:\n{prompt[key]}"
        for turn, key in turns.items()
        if key in prompt
    )


def _probe(recognizer):
    """Posteriors of a second of noise, to compare recognizers by."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(1, 16000, generator=generator)
    return recognizer.classify_batch(noise, texts=["I do not know."])[0]


def _try(folder, expected, is_rounded):
    """Loads an export as others will, and compares it with the run."""
    load, on_cpu = EmotionRecognizer.from_hparams, {"device": "cpu"}
    try:
        recognizer = load(folder, run_opts=on_cpu)
    except UnsafeYAMLError as error:
        # By the name that the export gets, which is not yet its own.
        message = str(error).replace(str(folder), "this export")
        logger.warning(f"Others will be told: {message}")
        recognizer = load(folder, run_opts=on_cpu, trust_source=True)
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
