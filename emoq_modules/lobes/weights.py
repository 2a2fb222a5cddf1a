"""A decoder's trained weights as files that others read too.

The projector is a file of its own, and the LoRA adapter a folder in peft's
format, with which ``peft.PeftModel.from_pretrained`` takes it elsewhere.
"""

import copy
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from speechbrain.utils.distributed import main_process_only

from emoq_modules.errors import CheckpointError

ADAPTER_FILE = "adapter_model.safetensors"
# So peft names what it has put into a model.
_PREFIX = "base_model.model."


def load_projector(decoder, path, end_of_epoch=True):
    """Loads a projector's weights, as ``load_trainable`` does.

    Arguments
    ---------
    decoder : SoftPromptDecoder
        The decoder to load into.
    path : str
        What ``save_trainable`` has written of its projector.
    end_of_epoch : bool
        Unused; part of SpeechBrain's interface.
    """
    load_trainable(decoder.projector, path)


def load_adapter(decoder, path, end_of_epoch=True):
    """Loads a LoRA adapter's weights, as ``load_trainable`` does.

    Arguments
    ---------
    decoder : SoftPromptDecoder
        The decoder to load into, built with the same ``lora``.
    path : str
        ``adapter_model.safetensors``, in peft's format.
    end_of_epoch : bool
        Unused; part of SpeechBrain's interface.
    """
    _fill(_adapter_tensors(decoder.llm), _read(path), path)


def save_adapter(decoder, folder, base=None):
    """Writes a decoder's LoRA adapter in peft's format.

    Arguments
    ---------
    decoder : SoftPromptDecoder
        The decoder; it must have an adapter.
    folder : str or Path
        Where to; made if it is not there.
    base : str | None
        What the LLM is called, for whoever reads the configuration.
    """
    config = copy.copy(decoder.llm.peft_config["default"])
    config.task_type = "CAUSAL_LM"
    config.inference_mode = True
    config.base_model_name_or_path = base
    if isinstance(config.target_modules, set):
        # As a set it would be in another order each time.
        config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))
    weights = {
        name: tensor.contiguous()
        for name, tensor in _adapter_tensors(decoder.llm).items()
    }
    _write(weights, Path(folder, ADAPTER_FILE), metadata={"format": "pt"})


def _adapter_tensors(llm):
    """The adapter's tensors themselves, by their names in peft's format."""
    # Here, as an LLM with LoRA merged into it needs no peft.
    from peft import get_peft_model_state_dict

    # "auto" would ask the hub whether the vocabulary was resized; it never is.
    tensors = get_peft_model_state_dict(llm, save_embedding_layers=False)
    return {f"{_PREFIX}{name}": value for name, value in tensors.items()}


@main_process_only
def save_trainable(module, path):
    """Writes a module's trainable weights as safetensors.

    Arguments
    ---------
    module : torch.nn.Module
        The module; its frozen weights are left out.
    path : str
        Where to write.
    """
    weights = {
        name: parameter.detach().contiguous()
        for name, parameter in _trainable(module).items()
    }
    _write(weights, path)


def load_trainable(module, path, end_of_epoch=True):
    """Loads what ``save_trainable`` wrote, every key or none.

    Arguments
    ---------
    module : torch.nn.Module
        The module to load into.
    path : str
        The file to read.
    end_of_epoch : bool
        Unused; part of SpeechBrain's interface.

    Raises
    ------
    CheckpointError
        If the file is damaged, or its keys or shapes are another model's.
    """
    weights = _read(path)
    missing = _trainable(module).keys() - weights.keys()
    if missing == {"frame_norm.weight", "frame_norm.bias"}:
        module.frame_norm = None  # version 0.1 trained without one
    _fill(_trainable(module), weights, path)


def _trainable(module):
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def _read(path):
    """The tensors of a file, by name."""
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error})",
            ". Restore the file, or delete it: the same command then makes it "
            "again from what was before it.",
        ) from error
    for name, tensor in weights.items():
        # Else each recording that it hears would be blamed.
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{path} holds values that are no finite numbers, in {name}",
                ": restore the file, or train again, at a lower learning rate "
                "perhaps.",
            )
    return weights


def _fill(tensors, weights, path):
    """Fills tensors from a file's, which have these names and no others."""
    found, wanted = (
        {name: tuple(tensor.shape) for name, tensor in named.items()}
        for named in (weights, tensors)
    )
    differences = [f"{name} is missing" for name in wanted.keys() - found]
    differences += [f"{name} is not known" for name in found.keys() - wanted]
    differences += [
        f"{name} is {found[name]}, not {wanted[name]}"
        for name in found.keys() & wanted
        if found[name] != wanted[name]
    ]
    if differences:
        shown = "; ".join(sorted(differences)[:3])
        raise CheckpointError(
            f"{path} is a checkpoint of another model: {len(differences)} of "
            f"its weights do not fit ({shown})",
            ". Run with the settings it was trained with, or choose another "
            "--results_folder.",
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(weights[name])


def _write(weights, path, **options):
    try:
        save_file(weights, path, **options)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error}): is the disk full?"
        ) from error
