"""What a step of stage 2 takes on several GPUs, as it is expected.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --measure

No GPU is needed, and none is measured. A step on one GPU takes t seconds. On n
GPUs each does the same, and a ring all-reduce moves 2 (n - 1) / n times the
gradients through the slowest link on the way, of bandwidth b. At worst that
comes after the step; at best it goes on during the backward pass. The
efficiency is t divided by what the step then takes. A link's latency, what
ranks wait for each other and what reads the data are not in it.

``--measure`` runs a step of an EmoQ-Former in one and in two processes on the
CPU, with gloo: without reducing, which is t of as many processes, and with it.
It counts the bytes that are reduced.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    allreduce_hook,
)
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_layers import GradientCheckpointingLayer

from benchmarks.expected_cost import GPUS, SHARE_OF_PEAK
from benchmarks.rows import markdown
from benchmarks.workload import STAGES, make_parser
from emoq_modules import EmoQFormer
from emoq_modules.commands.options import exit_status
from emoq_modules.training.describe import build_untrained

_GPUS_PER_NODE = 8
# The LLM's weights get no gradient: its backward pass costs what its forward
# pass does, half of the step.
_BACKWARD_SHARE = 0.5


@dataclass(frozen=True)
class Network:
    """GB/s in each direction: of a GPU in its node, and of a whole node."""

    name: str
    within: float
    between: float


# NVIDIA's data sheet of the DGX H100: 900 GB/s of NVLink in both directions
# together, and eight adapters of 400 Gbit/s. Ethernet's are its names.
NETWORKS = [
    Network("InfiniBand, 8 x 400 Gbit/s", 450, 400),
    Network("Ethernet, 100 Gbit/s", 450, 12.5),
    Network("Ethernet, 25 Gbit/s", 450, 3.125),
]


def main(arguments=None):
    """Prints the tables."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--step_tflop",
        type=float,
        default=7.75,
        help="operations of a step, as benchmarks.expected_cost counts them",
    )
    parser.add_argument("--gpu", choices=GPUS, default="H100 SXM")
    parser.add_argument(
        "--step_seconds",
        type=float,
        help="t where it is measured, in the place of both",
    )
    parser.add_argument("--grad_accumulation_factor", type=int, default=1)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--measure", action="store_true")
    parser.add_argument(
        "--hidden_size",
        type=int,
        default=256,
        help="of the EmoQ-Former that --measure runs",
    )
    own = parser.parse_args(arguments)
    if own.measure:
        _print_measured(own.hidden_size)
        return
    step_s = own.step_seconds
    if step_s is None:
        _, peak = GPUS[own.gpu]
        step_s = own.step_tflop / (SHARE_OF_PEAK * peak)
        print(
            f"t is not measured: {own.step_tflop:g} TFLOP at "
            f"{SHARE_OF_PEAK:.0%} of the peak of one {own.gpu}"
        )
    trained, layers = _model_bytes()
    print(f"t: {1000 * step_s:.0f} ms a batch of a GPU")
    print(f"gradients: {trained / 1e6:.0f} MB a step, in float32\n")
    rows = []
    for gpus in own.gpus:
        cells = [str(gpus)]
        for network in NETWORKS:
            reduce_s = all_reduce_seconds(trained, gpus, network)
            worst, best = efficiency(
                own.grad_accumulation_factor * step_s, reduce_s
            )
            cells.append(f"{1000 * reduce_s:.1f} ms: {worst:.0%} to {best:.0%}")
        rows.append(cells)
    print(markdown(["GPUs", *(network.name for network in NETWORKS)], rows))
    others = (_GPUS_PER_NODE - 1) / _GPUS_PER_NODE * layers
    gather_s = 2 * others / (NETWORKS[0].within * 1e9)
    print(
        f"\nshard_llm: of {layers / 1e9:.1f} GB of layers each of "
        f"{_GPUS_PER_NODE} GPUs keeps {(layers - others) / 1e9:.1f} GB, and "
        f"gets the rest twice a batch: {1000 * gather_s:.0f} ms by NVLink"
    )


def all_reduce_seconds(size, gpus, network):
    """Seconds that a ring all-reduce of so many bytes a GPU takes.

    >>> fast = Network("fast inside", within=100, between=10)
    >>> [all_reduce_seconds(1e9, gpus, fast) for gpus in (1, 2, 16)]
    [0.0, 0.01, 0.1875]
    """
    bandwidth = network.within
    if gpus > _GPUS_PER_NODE:
        bandwidth = min(network.within, network.between)
    return 2 * (gpus - 1) / gpus * size / (bandwidth * 1e9)


def efficiency(step_s, reduce_s):
    """Efficiency of a step on several GPUs, at worst and at best.

    The gradients are reduced after the step, or begin to be with its backward
    pass.

    >>> efficiency(1.0, 1.0)
    (0.5, 0.6666666666666666)
    """
    forward_s = (1 - _BACKWARD_SHARE) * step_s
    return (
        step_s / (step_s + reduce_s),
        step_s / max(step_s, forward_s + reduce_s),
    )


@cache
def _model_bytes():
    """Bytes of the gradients of stage 2, and of the LLM's frozen layers."""
    modules = build_untrained(STAGES[2])["modules"]
    trained = sum(
        parameter.nbytes
        for module in modules.values()
        for parameter in module.parameters()
        if parameter.requires_grad
    )
    layers = sum(
        parameter.nbytes
        for layer in modules["decoder"].llm.modules()
        if isinstance(layer, GradientCheckpointingLayer)
        for parameter in layer.parameters()
        if not parameter.requires_grad
    )
    return trained, layers


def _print_measured(hidden_size):
    rows = []
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            start_processes(
                _measure,
                (processes, hidden_size, folder),
                processes,
                start_method="fork",
            )
            measured = torch.load(f"{folder}/measured")
        seconds = [f"{1000 * measured[k]:.0f} ms" for k in (0, 1, 4)]
        size, reduced = (f"{measured[k] / 1e6:.2f} MB" for k in (2, 3))
        alone, step, reduce = seconds
        rows.append([str(processes), alone, step, size, reduced, reduce])
    header = "processes", "t", "step", "gradients", "reduced"
    print(markdown([*header, "all-reduce alone"], rows))


def _measure(rank, processes, hidden_size, folder):
    """Times a step of the EmoQ-Former on 8 utterances of 3 seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=processes,
    )
    fusion = EmoQFormer(
        {
            "vocab_size": 1000,
            "hidden_size": hidden_size,
            "intermediate_size": 4 * hidden_size,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
        },
        audio_dim=128,
    )
    model = DistributedDataParallel(fusion)
    reduced = []

    def count(group, bucket):
        reduced.append(bucket.buffer().nbytes)
        return allreduce_hook(group, bucket)

    model.register_comm_hook(None, count)
    frames, tokens = torch.randn(8, 150, 128), torch.full((8, 12), 7)

    def step():
        model.zero_grad()
        model(frames, torch.ones(8), tokens, torch.ones(8)).sum().backward()

    def step_alone():
        with model.no_sync():
            step()

    alone_s, step_s = _median_seconds(step_alone, step)
    reduced.clear()
    step()
    gradients = torch.zeros(
        sum(p.numel() for p in fusion.parameters() if p.requires_grad)
    )
    (reduce_s,) = _median_seconds(partial(dist.all_reduce, gradients))
    if rank == 0:
        torch.save(
            (alone_s, step_s, gradients.nbytes, sum(reduced), reduce_s),
            f"{folder}/measured",
        )
    # The group goes with the process: where the model, which holds it too, is
    # the last to let go of it, torch 2.11 may wait for itself.


def _median_seconds(*functions, repetitions=9):
    """Times functions by turns, on all ranks together."""
    seconds = [[] for _ in functions]
    for _ in range(1 + repetitions):
        for function, taken in zip(functions, seconds, strict=True):
            dist.barrier()
            started = time.perf_counter()
            function()
            dist.barrier()
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken[1:]) for taken in seconds]  # warm


if __name__ == "__main__":
    sys.exit(exit_status(main, None))
