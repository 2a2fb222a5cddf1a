"""Shards an LLM that one GPU cannot hold over the GPUs of a node.

FSDP2 keeps a part of each layer's frozen weights on each rank, and brings a
layer together for as long as it computes. What trains is small and stays whole:
``DistributedDataParallel`` averages its gradients, and the optimizer, the
checkpoints and the recognizer see what they see in one process.
"""

import os

import torch
from speechbrain.utils.logger import get_logger
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_layers import GradientCheckpointingLayer

from emoq_modules.errors import ConfigurationError
from emoq_modules.training.distributed import world_size

logger = get_logger(__name__)


def shard_llm(decoder, device):
    """Keeps on each rank a part of the frozen weights of an LLM's layers.

    The word embeddings and the output layer stay whole: the decoder reads rows
    of them. Every node has all parts, so that layers come together within it
    alone. All its ranks have to run the LLM equally often, in the same order,
    and gradients reach a layer through what it returns: there can be none
    through keys and values that were kept. The decoder is the same on all
    ranks, on the CPU; what is kept of it goes to ``device``.
    """
    if world_size() == 1:
        raise ConfigurationError(
            "shard_llm shares the LLM out among processes, and there is one: "
            "start them with torchrun --nproc_per_node, or leave shard_llm out."
        )
    llm = decoder.llm
    kind = GradientCheckpointingLayer  # as transformers has layers
    layers = [part for part in llm.modules() if isinstance(part, kind)]
    shared_out = {p for layer in layers for p in layer.parameters()}
    shared_out = {p for p in shared_out if not p.requires_grad}
    if not all(parameter.is_floating_point() for parameter in shared_out):
        raise ConfigurationError(
            "shard_llm cannot share out quantized weights: leave it out, or "
            "the quantization."
        )
    if not shared_out:
        raise ConfigurationError(
            f"shard_llm finds no layers in {type(llm).__name__}: leave it out."
        )
    ignored = set(llm.parameters()) - shared_out
    whole = sum(parameter.nbytes for parameter in shared_out)
    mesh = _mesh_of_a_node(torch.device(device).type)
    # The model around the layers too, which fetches one while another computes.
    for module in [*layers, llm.base_model]:
        fully_shard(module, mesh=mesh, ignored_params=ignored)
    parts = {
        name: parameter.to_local().nbytes
        for name, parameter in decoder.named_parameters()
        if isinstance(parameter, DTensor)
    }
    # They differ from rank to rank, and are not to be made the same.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        decoder, list(parts)
    )
    kept = sum(parts.values())
    logger.info(
        f"The LLM's {len(layers)} layers are shared out among {mesh.size()} "
        f"ranks: this one keeps {kept / 1e9:.3g} of {whole / 1e9:.3g} GB."
    )


def _mesh_of_a_node(device_type):
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun sets it
    if ranks == 1:
        ranks = world_size()  # nodes of one GPU have but each other
    shape = world_size() // ranks, ranks
    names = "node", "rank"
    return init_device_mesh(device_type, shape, mesh_dim_names=names)["rank"]
