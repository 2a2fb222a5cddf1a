"""What each lever of speed and memory is worth by itself.

    python -m benchmarks.levers --data ../shared/data

Each row is the system with a lever off, as ``reference``, and with it on, as
``ours``: nothing else differs. Models and lengths are those of the bench.
"""

import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from speechbrain.dataio.batch import PaddedBatch

from benchmarks.machine import kept_for_backward
from benchmarks.rows import compare, format_table, smaller
from benchmarks.workload import (
    build_stage,
    make_parser,
    read_utterances,
    write_audio,
)
from emoq_modules.commands.options import exit_status

_TRAINED = 8  # utterances in a batch


def main(arguments=None):
    """Measures, and prints the rows as a table."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--preset",
        type=Path,
        default=Path("benchmarks/small.yaml"),
        help="the models' sizes",
    )
    parser.add_argument(
        "--utterances", type=int, default=32, help="that are predicted at once"
    )
    parser.add_argument("--repetitions", type=int, default=5)
    own = parser.parse_args(arguments)
    chosen, texts = read_utterances(own.data, own.utterances)
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        named = write_audio(chosen, folder / "audio")
        stage = build_stage(
            2, [own.preset], own.data, named, texts, folder / "2"
        )
        examples = [stage.stored[index] for index in range(own.utterances)]
    fusion, decoder = stage.hparams["fusion"], stage.hparams["decoder"]
    rows = [
        *_fusion_rows(fusion, examples, own.repetitions),
        *_decoder_rows(fusion, decoder, examples, own.repetitions),
        *_optimizer_rows(stage, own.repetitions),
        *_memory_rows(fusion, decoder, examples),
    ]
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(_what_there_is_to_gain(decoder, examples))
    print(f"\n{format_table(rows)}")


def _what_there_is_to_gain(decoder, examples):
    batches = [
        PaddedBatch(examples[start : start + _TRAINED])
        for start in range(0, len(examples), _TRAINED)
    ]
    inside = torch.cat([batch.audio[1] for batch in batches]).mean()
    lengths = [len(prompt) for batch in batches for prompt in _prompts(batch)]
    return (
        f"frames of a batch of {_TRAINED} that are padding: {1 - inside:.0%}\n"
        f"tokens of a prompt: {sum(lengths) / len(lengths):.0f}, of which "
        f"{len(decoder.prompt.prefix_ids)} are the same in all"
    )


def _fusion_rows(fusion, examples, repetitions):
    batch = PaddedBatch(examples[:_TRAINED])
    audio, lens = batch.audio
    whole = torch.ones_like(lens)

    def step(lens):
        fusion.train()
        fusion(audio, lens, *batch.tokens).sum().backward()
        fusion.zero_grad()

    return [
        compare(
            "EmoQ-Former, forward and backward: frames without padding",
            partial(step, lens),
            partial(step, whole),  # padding is computed as frames are
            repetitions,
        )
    ]


def _decoder_rows(fusion, decoder, examples, repetitions):
    few, many = PaddedBatch(examples[:_TRAINED]), PaddedBatch(examples)
    fusion.eval()
    decoder.eval()
    with torch.no_grad():
        of_few, of_many = (
            fusion(*batch.audio, *batch.tokens) for batch in (few, many)
        )

    def step(row_tokens):
        decoder.row_tokens = row_tokens
        _loss(decoder, of_few, few).backward()
        decoder.zero_grad()

    @torch.no_grad()
    def predict(embeddings, batch, row_tokens=1024, cache_prefix=False):
        decoder.row_tokens = row_tokens
        decoder.cache_prefix = cache_prefix
        decoder.posteriors(embeddings, batch.prompt)

    alone = PaddedBatch(examples[:1])
    one = partial(predict, of_few[:1], alone)
    return [
        compare(
            f"LLM, step on {_TRAINED}: prompts share rows and prefix",
            partial(step, 1024),
            partial(step, 0),
            repetitions,
        ),
        compare(
            f"LLM, prediction of {len(many)}: prompts share rows and prefix",
            partial(predict, of_many, many),
            partial(predict, of_many, many, row_tokens=0),
            repetitions,
        ),
        compare(
            "LLM, prediction of 1: prefix kept",
            partial(one, cache_prefix=True),
            one,
            repetitions,
        ),
        compare(
            f"output layer on {_TRAINED}: labeled positions only",
            partial(_project, decoder, 2 * _TRAINED),
            partial(_project, decoder, sum(map(len, _prompts(few)))),
            repetitions,
        ),
    ]


def _optimizer_rows(stage, repetitions):
    parameters = [
        parameter
        for module in stage.hparams["modules"].values()
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    fused, plain = (
        stage.hparams["opt_class"](parameters, lr=1e-5, fused=fused)
        for fused in (True, False)
    )
    return [compare("AdamW: fused", fused.step, plain.step, repetitions)]


def _memory_rows(fusion, decoder, examples):
    """Bytes that the LLM keeps for its backward pass, weights in bf16."""
    batch = PaddedBatch(examples[:_TRAINED])
    with torch.no_grad():
        embeddings = fusion(*batch.audio, *batch.tokens).requires_grad_()
    for parameter in decoder.llm.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()

    def kept(row_tokens, by_peft=False):
        decoder.row_tokens = row_tokens
        with (
            kept_for_backward({"decoder": decoder}) as count,
            torch.autocast("cpu", torch.bfloat16),
            _casts_by_peft(decoder) if by_peft else nullcontext(),
        ):
            _loss(decoder, embeddings, batch)
        return count() / 1e6

    on = kept(1024)
    return [
        smaller(f"kept by a step on {_TRAINED}: {what}", on, off, "MB")
        for what, off in (
            ("prompts share rows and prefix", kept(0)),
            ("casts left to autocast", kept(1024, by_peft=True)),
        )
    ]


def _casts_by_peft(decoder):
    for module in decoder._reader._adapted:
        module.cast_input_dtype_enabled = True
    return patch.object(decoder._reader, "_leave_casts_to_autocast")


def _loss(decoder, embeddings, batch):
    return decoder.loss(embeddings, batch.prompt, batch.label)


def _prompts(batch):
    """The prompts' token ids, with one for the voice and one to answer."""
    return [[*before, 0, *after, 0] for before, after in batch.prompt]


def _project(decoder, positions):
    layer = decoder.llm.get_output_embeddings()
    states = torch.randn(positions, layer.in_features, requires_grad=True)
    layer(states).float().logsumexp(dim=-1).sum().backward()


if __name__ == "__main__":
    sys.exit(exit_status(main, None))
