"""How many times faster the project is than what people would use instead.

    python -m benchmarks.bench --data ../shared/data
    python -m benchmarks.bench --data ../shared/data --scale paper

Measures the project and a plain reference that computes the same, by turns and
in one process, and takes the ratio of their medians. In stage 2 the reference
is benchmarks/reference.py; in stage 1 it is the same training loop with the
frozen encoder inside the step; of the features, and wherever that encoder is,
benchmarks/reference_audio.py. Weights are random; lengths are MELD's, or with
--lengths IEMOCAP that corpus's.

With --scale small the models are small and run on the CPU; what a ratio is at
this size it need not be at the paper's: beside so narrow an LLM the vocabulary
weighs more. With --scale paper they are those of the paper, from their
configurations, on a GPU; --preset hparams/presets/qwen_1_5b.yaml lays another
LLM over them.

Rows with a goal say whether it is met. The others tell where a ratio comes
from: "frames given to both" leaves the store out of it, and "encoder in both"
is a prediction from recordings that nobody has seen before. The rows of
operations say how near to the fastest product of matrices on this machine a
computation comes. Filling the feature store has rows of its own, and is in no
other, as it is done once and not in each epoch.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.extraction_rows import extraction_rows
from benchmarks.machine import matmul_rate
from benchmarks.rows import format_table
from benchmarks.stage_rows import stage1_rows, stage2_rows
from benchmarks.workload import (
    build_stage,
    make_parser,
    read_utterances,
    with_lengths_of_iemocap,
    write_audio,
)
from emoq_modules.commands.options import exit_status
from emoq_modules.errors import ConfigurationError


@dataclass(frozen=True)
class _Scale:
    preset: str
    device: str
    utterances: int


_SCALES = {
    "small": _Scale("benchmarks/small.yaml", "cpu", 32),
    "paper": _Scale("benchmarks/paper.yaml", "cuda", 1024),
}


def main(arguments=None):
    """Measures, writes the rows as JSON, and prints them as a table."""
    parser = make_parser(__doc__)
    parser.add_argument("--scale", choices=_SCALES, default="small")
    parser.add_argument(
        "--preset",
        type=Path,
        action="append",
        default=[],
        help="what to change of the models; several, laid over each other",
    )
    parser.add_argument(
        "--lengths", choices=("MELD", "IEMOCAP"), default="MELD"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:1, say")
    parser.add_argument("--utterances", type=int, help="in an epoch")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("bench.json"))
    own = parser.parse_args(arguments)
    scale = _SCALES[own.scale]
    if own.utterances is None:
        own.utterances = scale.utterances
    if min(own.utterances, own.repetitions) < 1:
        raise ConfigurationError(
            "--utterances and --repetitions have to be 1 or more."
        )
    device = own.device or scale.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigurationError(
            f"--scale {own.scale} needs a GPU, and torch sees none here. "
            "Models that a CPU bears are those of --scale small."
        )
    rows = []
    with TemporaryDirectory() as folder:
        for row in _measure(own, scale.preset, Path(folder), device):
            print(row.summary, file=sys.stderr)
            rows.append(row)
    content = json.dumps([asdict(row) for row in rows], indent=2)
    own.output.write_text(content + "\n", encoding="utf-8")
    print(
        f"{own.utterances} utterances of {own.lengths}'s lengths, medians of "
        f"{own.repetitions} repetitions, {_machine(device)}, "
        f"torch {torch.__version__}\n\n{format_table(rows)}"
    )


def _machine(device):
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads"


def _measure(own, preset, folder, device):
    """All rows, as they are measured."""
    data, repetitions = own.data, own.repetitions
    chosen, texts = read_utterances(data, own.utterances)
    if own.lengths == "IEMOCAP":
        chosen = with_lengths_of_iemocap(chosen, data)
    named = write_audio(chosen, folder / "audio")

    def build(number):
        path, presets = folder / f"stage{number}", [preset, *own.preset]
        return build_stage(number, presets, data, named, texts, path, device)

    stage = build(1)
    dtype = stage.encoder.model.dtype
    ceiling = matmul_rate(device, dtype)
    yield from extraction_rows(stage, named, repetitions, ceiling)
    yield from stage1_rows(stage, repetitions)
    del stage  # its memory is wanted
    stage = build(2)
    bf16 = stage.hparams["precision"] == "bf16"
    ceiling = matmul_rate(device, torch.bfloat16 if bf16 else torch.float32)
    yield from stage2_rows(stage, repetitions, ceiling)


if __name__ == "__main__":
    sys.exit(exit_status(main, None))
