"""How many times faster the project is than what people would use instead.

    python -m benchmarks.bench --data ../shared/data

Measures the project and a plain reference that computes the same, by turns and
in one process, and takes the ratio of their medians. In stage 2 the reference
is benchmarks/reference.py; in stage 1 it is the same training loop with the
frozen encoder inside the step. The models are small, have random weights and
run on the CPU; lengths are MELD's. What a ratio is at this size it need not be
at the paper's: beside so narrow an LLM the vocabulary weighs more.

Rows with a goal say whether it is met. The others tell where a ratio comes
from. Filling the feature store is in no row, as it is done once and not in
each epoch.
"""

import argparse
import copy
import json
import sys
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from speechbrain.dataio.batch import PaddedBatch
from torch.utils.data import DataLoader
from transformers.utils import logging as transformers_logging

from benchmarks.reference import PlainStage2
from benchmarks.rows import compare, format_table
from benchmarks.workload import build_stage, read_utterances, write_audio
from emoq_modules.command_line import exit_status
from emoq_modules.configuration import ConfigurationError

_PREDICTED = 32  # utterances in a batch
_STEPS = 2  # of stage 2, at most, that are timed together
# The store keeps frames in half precision, which the reference does not.
_TOLERANCE = 0.001


def main(arguments=None):
    """Measures, writes the rows as JSON, and prints them as a table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--preset",
        type=Path,
        default=Path("benchmarks/small.yaml"),
        help="the models' sizes",
    )
    parser.add_argument(
        "--utterances", type=int, default=_PREDICTED, help="in an epoch"
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("bench.json"))
    own = parser.parse_args(arguments)
    if min(own.utterances, own.repetitions) < 1:
        raise ConfigurationError(
            "--utterances and --repetitions have to be 1 or more."
        )
    transformers_logging.disable_progress_bar()
    # Between libraries; who measures can do nothing about them.
    warnings.simplefilter("ignore", FutureWarning)
    rows = measure(own.data, own.preset, own.utterances, own.repetitions)
    content = json.dumps([asdict(row) for row in rows], indent=2)
    own.output.write_text(content + "\n", encoding="utf-8")
    print(
        f"{own.utterances} utterances of MELD's lengths, medians of "
        f"{own.repetitions} repetitions, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}\n\n{format_table(rows)}"
    )


def measure(data, preset, utterances, repetitions):
    """Runs all comparisons.

    Arguments
    ---------
    data : Path
        The folder with ``MELD/`` and perhaps ``tokenizers/qwen2.5``.
    preset : Path
        The models' sizes.
    utterances : int
        How many make an epoch.
    repetitions : int
        How often each side is timed, after one time that does not count.

    Returns
    -------
    list of Row

    Raises
    ------
    ConfigurationError
        If the data are not there.
    """
    chosen, texts = read_utterances(data, utterances)
    rows = []
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        named = write_audio(chosen, folder / "audio")
        for number, compare_stage in enumerate((_stage_1, _stage_2), start=1):
            stage = build_stage(
                number, preset, data, named, texts, folder / f"stage{number}"
            )
            for row in compare_stage(stage, repetitions):
                print(row.summary, file=sys.stderr)
                rows.append(row)
    return rows


def _stage_1(stage, repetitions):
    modules = stage.hparams["modules"]
    plain = {**copy.deepcopy(modules), "encoder": stage.encoder}
    return [
        compare(
            "stage-1 epoch: from the store / encoder in the step",
            partial(_train_epoch, stage, stage.brain(), stage.stored),
            partial(_train_epoch, stage, stage.brain(plain), stage.recorded),
            repetitions,
            goal=10.0,
        )
    ]


def _stage_2(stage, repetitions):
    modules = stage.hparams["modules"]
    # Each side trains weights of its own, which are the same at first.
    copied = copy.deepcopy(modules)
    plain = PlainStage2(stage.encoder, **copied)
    on_frames = PlainStage2(None, **copied)
    _check_same(stage, modules, plain)
    brain = stage.brain()
    return [
        *_compare_steps(stage, brain, plain, on_frames, repetitions),
        *_compare_predictions(stage, modules, plain, on_frames, repetitions),
    ]


def _compare_steps(stage, brain, plain, on_frames, repetitions):
    size = stage.hparams["train_loader"]["batch_size"]
    stored, recorded = (
        dataset.filtered_sorted(select_n=_STEPS * size)
        for dataset in (stage.stored, stage.recorded)
    )
    steps = -(-len(stored) // size)
    ours = partial(_train_epoch, stage, brain, stored)
    return [
        compare(
            f"stage-2 step, batch {size}: from the store / encoder in the step",
            ours,
            partial(_train_plainly, stage, plain, recorded),
            repetitions,
            goal=3.0,
            parts=steps,
        ),
        compare(
            f"stage-2 step, batch {size}: frames given to both",
            ours,
            partial(_train_plainly, stage, on_frames, stored),
            repetitions,
            parts=steps,
        ),
    ]


def _compare_predictions(stage, modules, plain, on_frames, repetitions):
    recorded, stored = _batch(stage.recorded), _batch(stage.stored)
    return [
        compare(
            f"prediction, batch {len(stored)}: frames given to both",
            partial(_posteriors, modules, stored),
            partial(_generate, on_frames, stored),
            repetitions,
            goal=10.0,
        ),
        compare(
            f"prediction, batch {len(stored)}: encoder in both",
            partial(_posteriors, modules, recorded, stage.encoder),
            partial(_generate, plain, recorded),
            repetitions,
        ),
    ]


def _train_epoch(stage, brain, dataset):
    """An epoch as train.py runs it, without the validation after it."""
    brain.fit(
        [1],
        dataset,
        progressbar=False,
        train_loader_kwargs=dict(stage.hparams["train_loader"]),
    )


def _train_plainly(stage, system, dataset):
    """An epoch of the plain loop, in the order of the file."""
    parameters = [p for p in system.parameters() if p.requires_grad]
    optimizer = stage.hparams["opt_class"](parameters, lr=stage.hparams["lr"])
    system.train()
    size = stage.hparams["train_loader"]["batch_size"]
    for batch in DataLoader(dataset, size, collate_fn=PaddedBatch):
        loss = system(*_inputs(batch), batch.label)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(
            parameters, stage.hparams["max_grad_norm"]
        )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _batch(dataset):
    size = min(_PREDICTED, len(dataset))
    return PaddedBatch([dataset[index] for index in range(size)])


def _inputs(batch):
    return batch.audio, batch.tokens, batch.text, batch.speaker


@torch.no_grad()
def _posteriors(modules, batch, encoder=None):
    audio, tokens, texts, speakers = _inputs(batch)
    for module in modules.values():
        module.eval()
    if encoder is not None:
        audio = encoder(*audio)
    embeddings = modules["fusion"](*audio, *tokens)
    return modules["decoder"].posteriors(embeddings, texts, speakers)


def _generate(system, batch):
    return system.eval().predict(*_inputs(batch))[0]


def _check_same(stage, modules, plain):
    """Both sides have to compute the same, or the ratio means nothing."""
    torch.testing.assert_close(
        _posteriors(modules, _batch(stage.stored)),
        _generate(plain, _batch(stage.recorded)),
        atol=_TOLERANCE,
        rtol=0,
    )


if __name__ == "__main__":
    sys.exit(exit_status(main, None))
