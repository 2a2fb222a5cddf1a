"""Hours and memory that a run of the paper's size is expected to take.

    python -m benchmarks.expected_cost --data ../shared/data

No GPU is needed, and none is measured. A step of each stage is run on the CPU,
at the models' true width and with random weights, on a batch with the
durations and transcripts of the corpora; torch counts the operations and the
bytes kept for the backward pass. One and two layers of the LLM are run, from
which follow as many as it has. The time on a GPU is that of the operations at
a share of its peak, which is an assumption and no measurement.
"""

import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from speechbrain.utils.data_utils import batch_pad_right
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import count_operations, kept_for_backward
from benchmarks.rows import markdown
from benchmarks.workload import STAGES, make_parser, read_csv
from emoq_modules.commands.options import exit_status
from emoq_modules.lobes.backbones import load_tokenizer
from emoq_modules.lobes.llm import BYTES_PER_WEIGHT
from emoq_modules.training.configuration import change
from emoq_modules.training.describe import build_untrained, model_parts

FRAMES_PER_SECOND = 50  # of HuBERT
# Memory in GB, and the dense bf16 peak in TFLOP/s: the makers' data sheets.
GPUS = {
    "RTX 4090": (24, 165),
    "A100": (80, 312),
    "H100 SXM": (80, 989),
    "H200": (141, 989),
}
SHARE_OF_PEAK = 0.3


@dataclass(frozen=True)
class Corpus:
    """How much is trained and validated on, and how long all utterances are."""

    train: int
    valid: int
    seconds: np.ndarray


def main(arguments=None):
    """Prints a table for each corpus."""
    parser = make_parser(__doc__)
    parser.add_argument("--preset", action="append", default=[])
    own = parser.parse_args(arguments)
    texts, corpora = _read_corpora(own.data)
    tokenizers = own.data / "tokenizers"
    audio = _count_encoder(own.preset)
    print(f"audio encoder: {audio / 1e9:.1f} GFLOP a second of audio")
    print(f"share of the peak that is assumed: {SHARE_OF_PEAK:.0%}")
    for name, corpus in corpora.items():
        work, memory = [audio * corpus.seconds.sum()], 0
        for stage, experiment in STAGES.items():
            plain = build_untrained(experiment, own.preset)
            size = plain["train_loader"]["batch_size"]
            batch = _typical_batch(texts, corpus.seconds, size)
            training, kept = _count_stage(stage, own, batch, tokenizers)
            evaluation, _ = _count_stage(
                stage, own, batch, tokenizers, train=False
            )
            print(
                f"{name}, stage {stage}: {training / 1e12:.2f} TFLOP a step, "
                f"{kept / 1e9:.1f} GB kept for the backward pass"
            )
            epoch = corpus.train * training + corpus.valid * evaluation
            work.append(plain["epoch_counter"].limit * epoch / size)
            memory = max(memory, _resident(stage, own.preset) + kept)
        _print_table(name, work, memory)


def _print_table(name, work, memory):
    rows = []
    for gpu, (size, peak) in GPUS.items():
        if memory > size * 1e9:
            cells = [f"{memory / 1e9:.0f} GB: too much", *["–"] * 3]
        else:
            rate = SHARE_OF_PEAK * peak * 1e12
            cells = [f"{max(1, part / rate / 60):.0f} min" for part in work]
            cells.insert(0, f"{memory / 1e9:.0f} GB")
        rows.append([gpu, *cells])
    header = name, "memory", "features", "stage 1", "stage 2"
    print(f"\n{markdown(header, rows, first=':--')}\n")


def _read_corpora(data):
    """MELD's transcripts, which serve for both corpora, and the corpora."""
    texts = [
        row["Utterance"] for row in read_csv(data / "MELD/train_sent_emo.csv")
    ]
    meld = _seconds(data / "MELD/clip_durations.csv").clip(max=30)
    iemocap = _seconds(data / "IEMOCAP/durations.csv")
    of_training = 0.8 * len(iemocap)  # one session of five is tested
    return texts, {
        "MELD, 7 classes": Corpus(9988, 1108, meld),
        "IEMOCAP, one fold of five": Corpus(
            round(0.9 * of_training), round(0.1 * of_training), iemocap
        ),
    }


def _seconds(path):
    return np.array([float(row["seconds"]) for row in read_csv(path)])


def _typical_batch(texts, seconds, size):
    """Transcripts and durations spread evenly over those of the corpus."""
    shares = (np.arange(size) + 0.5) / size
    by_length = sorted(texts, key=len)
    return [
        (by_length[int(share * len(texts))], length)
        for share, length in zip(
            shares, np.quantile(seconds, shares), strict=True
        )
    ]


def _count_encoder(presets, seconds=10):
    """Operations for a second of audio."""
    hparams = build_untrained(STAGES[1], presets, device="cpu")
    audio = torch.randn(1, seconds * 16000), torch.ones(1)
    return count_operations(partial(hparams["audio_encoder"], *audio)) / seconds


def _count_stage(stage, own, batch, tokenizers, train=True):
    """Operations of a step, and bytes kept for its backward pass."""
    if stage == 1:
        hparams = build_untrained(STAGES[1], own.preset, device="cpu")
        step = _step(hparams, batch, tokenizers)
        return _count(step, hparams["modules"], train)
    found = []
    for layers in (1, 2):
        hparams = build_untrained(
            STAGES[2],
            own.preset,
            # Torch counts no product of quantized weights; they keep nothing
            # more for the backward pass, and no fewer operations.
            change("", llm_quantization=None),
            device="cpu",
            llm_tokenizer=str(tokenizers / "qwen2.5"),
            num_hidden_layers=layers,
        )
        step = _step(hparams, batch, tokenizers)
        found.append(_count(step, hparams["modules"], train))
    whole = build_untrained(STAGES[2], own.preset)["decoder"].llm.config
    return tuple(
        one + (whole.num_hidden_layers - 1) * (two - one)
        for one, two in zip(*found, strict=True)
    )


def _step(hparams, batch, tokenizers):
    """A function that computes the loss of a batch."""
    inputs, labels = _inputs(hparams, batch, tokenizers)
    prompts = None
    if hparams["stage"] == 2:
        texts = [text for text, _ in batch]
        prompts = hparams["decoder"].prompt.encode_batch(texts)

    def step():
        embeddings = hparams["fusion"](*inputs)
        if prompts is not None:
            return hparams["decoder"].loss(embeddings, prompts, labels)
        return hparams["mal"](embeddings, hparams["head"](embeddings), labels)

    return step


def _inputs(hparams, batch, tokenizers):
    """Random frames, and the transcripts' tokens, with their lengths."""
    tokenizer = load_tokenizer(tokenizers / "roberta-base")
    frames, frame_lens = batch_pad_right(
        [
            torch.randn(
                round(seconds * FRAMES_PER_SECOND), hparams["audio_dim"]
            )
            for _, seconds in batch
        ]
    )
    tokens, token_lens = batch_pad_right(
        [torch.tensor(tokenizer(text).input_ids) for text, _ in batch]
    )
    labels = torch.arange(len(batch)) % len(hparams["labels"])
    return (frames, frame_lens, tokens, token_lens), labels


def _count(step, modules, train):
    with (
        FlopCounterMode(display=False) as counter,
        kept_for_backward(modules) as kept,
        torch.autocast("cpu", torch.bfloat16),
        torch.set_grad_enabled(train),
    ):
        loss = step()
        size = kept()
        if train:
            loss.backward()
    return counter.get_total_flops(), size


def _resident(stage, presets):
    """Weights, and the gradients and AdamW's state of what trains, in bytes."""
    parts = model_parts(STAGES[stage], presets)
    del parts["audio encoder"]  # its frames are in the store
    parameters = [p for part in parts.values() for p in part]
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return sum(map(_bytes, parameters)) + 12 * trained


def _bytes(parameter):
    # What quantizes a weight is that it comes to be; here it has no numbers.
    packed = hasattr(parameter, "bnb_quantized")
    width = BYTES_PER_WEIGHT if packed else parameter.element_size()
    return parameter.numel() * width


if __name__ == "__main__":
    sys.exit(exit_status(main, None))
