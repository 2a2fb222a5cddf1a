"""How cost grows with the corpus: start-up, memory, time per hour of audio.

    python -m benchmarks.growth

Corpora of 10, 100 and 1,000 hours are simulated, the last a million utterances
of 3.6 s (MELD's are 3.2 s on average). What is real: the manifests, a file for
each utterance, the feature store, and the project's own code from reading the
manifests to the batches of a shuffled epoch. What is not: the files are empty,
as if an earlier run had read their content; and a frame has one value, as
HuBERT-large's 1,024 would take 370 GB. Everything has just been written, so it
is read from memory, not from a disk. A corpus is started on twice: the first
start parses its manifests, and what it keeps of them the second one maps.
Models and libraries are in no figure: what they take does not depend on the
corpus.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from speechbrain.dataio.dataloader import make_dataloader

from benchmarks.rows import at_most, format_table
from emoq_modules.dataio.datasets import training_labels
from emoq_modules.dataio.digests import (
    DIGESTS_FILE,
    AudioDigests,
    digest_of,
    stamp_of,
)
from emoq_modules.dataio.feature_store import FeatureStore
from emoq_modules.dataio.manifest import (
    DIALOGUES_FILE,
    SETTINGS_FILE,
    Utterance,
    digest_of_file,
    is_prepared,
    write_manifests,
)
from emoq_modules.dataio.sampler import ClassGroupSampler
from emoq_modules.lobes.audio_encoder import FrozenEncoder
from emoq_modules.training.run_data import make_datasets, read_manifests

_UTTERANCES = 1_000_000
_UTTERANCE_S = 3.6
_FRAMES = 180  # 50 a second, as HuBERT's
_A_SHARD = 100  # utterances, of which HuBERT-large's frames fill 32 MB
_A_FOLDER = 1000
_LABELS = ["neutral", "angry", "sadness", "joy", "surprise", "disgust", "fear"]
_TEXT = "You know what, I have never been there."  # as long as MELD's are
_SETTINGS = {"corpus": "simulated"}
_BATCHES = 1000  # of an epoch, that are timed
_WORKERS = 2
_START_METHOD = "fork"  # as in a process that has not been spawned itself
_START_LIMIT_S = 10.0
# 250 bytes an utterance, in the process and its workers together. A row of a
# manifest alone has more.
_GROWTH_LIMIT_MB = 250.0
_TIME_LIMIT = 1.1


class Cost(NamedTuple):
    """What a corpus takes: start-up, its data in an epoch, memory.

    Processor time is of this process, and other programs take nothing of it.
    Memory is what processes do not share with anything else nor with a file,
    in all data loader workers and the process itself.
    """

    start_s: float
    start_cpu_s: float
    cpu_s_per_hour: float
    memory_mb: float


def main(arguments=None):
    """Measures, and prints the rows as a table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--utterances", type=int, default=_UTTERANCES)
    own = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        print(format_table(measure_growth(Path(folder), own.utterances)))


def measure_growth(folder, utterances=_UTTERANCES, batches=_BATCHES):
    """Measures three corpora, each ten times the one before.

    Arguments
    ---------
    folder : Path
        Where the corpora are written; an absolute path.
    utterances : int
        In the largest corpus.
    batches : int
        How many of an epoch are timed, at most.

    Returns
    -------
    list of Row
    """
    firsts, costs = [], []
    for number in (utterances // 100, utterances // 10, utterances):
        corpus = folder / str(number)
        simulate_corpus(corpus, number)
        for starts in (firsts, costs):
            starts.append(_in_new_process(measure_corpus, corpus, batches))
            print(f"{number:,} utterances: {starts[-1]}", file=sys.stderr)
    smallest, middle, largest = costs
    hours = utterances * _UTTERANCE_S / 3600
    return [
        at_most(
            f"start-up, {utterances:,} rows",
            largest.start_s,
            "s",
            _START_LIMIT_S,
        ),
        at_most(
            "the same, the first time after the manifests have changed",
            firsts[-1].start_s,
            "s",
        ),
        at_most(
            f"memory, {hours:,.0f} h of audio beyond {hours / 100:g} h",
            largest.memory_mb - smallest.memory_mb,
            "MB",
            _GROWTH_LIMIT_MB,
        ),
        at_most(
            f"data of an epoch, an hour of {hours:,.0f} / of {hours / 10:g}",
            largest.cpu_s_per_hour / middle.cpu_s_per_hour,
            "times",
            _TIME_LIMIT,
        ),
    ]


def simulate_corpus(folder, utterances):
    """Writes a corpus, and the feature store that a run has filled.

    Arguments
    ---------
    folder : Path
        Gets ``manifests``, ``audio`` and ``store``.
    utterances : int
        A hundredth of them, one at least, is for validation, and as many for
        testing.
    """
    _write_manifests(folder / "manifests", utterances)
    store = FeatureStore(folder / "store", _Encoder().identity)
    digests = AudioDigests(folder / "store" / DIGESTS_FILE)
    frames = torch.zeros(_FRAMES, 1)
    for start in range(0, utterances, _A_SHARD):
        stamps, shard = [], {}
        for index in range(start, min(start + _A_SHARD, utterances)):
            path = folder / "audio" / _wav(index)
            if index % _A_FOLDER == 0:
                path.parent.mkdir(parents=True)
            path.touch()
            stamps.append(stamp_of(str(path), path.stat()))
            shard[digest_of(path.name.encode())] = frames
        digests.remember(stamps, shard)
        store.save(shard)
    digests.save()
    os.sync()  # or it is still being written while something is measured


def measure_corpus(folder, batches):
    """Starts on a simulated corpus as a run does, and reads of an epoch.

    Returns
    -------
    Cost
    """
    before = _private_mb()
    started, started_cpu = time.perf_counter(), time.process_time()
    if not is_prepared(folder / "manifests", _SETTINGS):
        raise AssertionError(f"{folder} is not what was simulated")
    settings = {
        "manifest_folder": folder / "manifests",
        "labels": _LABELS,
        "data_root": folder / "audio",
        "feature_store": folder / "store",
        "store_precision": "fp16",
        "audio_encoder": _Encoder(),
        "audio_dim": 1,
        "augment_audio": None,
        "text_tokenizer": None,
        "max_text_tokens": None,
    }
    manifests = read_manifests(settings)
    train = settings["manifest_folder"] / "train.json"
    sampler = ClassGroupSampler(training_labels(train, _LABELS), 1, seed=0)
    datasets = make_datasets(settings, manifests, "cpu", progressbar=False)
    loader, in_process = (
        make_dataloader(
            datasets["train"],
            batch_size=8,
            sampler=sampler,
            num_workers=workers,
            multiprocessing_context=_START_METHOD if workers else None,
        )
        for workers in (_WORKERS, 0)
    )
    # At the end of an epoch the workers go.
    batches = min(batches, len(loader) - 2)
    epoch = iter(loader)
    next(epoch)
    start_s = time.perf_counter() - started
    start_cpu_s = time.process_time() - started_cpu
    for _ in islice(epoch, batches):
        pass
    memory_mb = _private_mb() - before
    epoch = iter(in_process)
    next(epoch)
    started = time.process_time()
    seconds = sum(
        len(batch.id) * _UTTERANCE_S for batch in islice(epoch, batches)
    )
    taken = time.process_time() - started
    return Cost(start_s, start_cpu_s, taken / (seconds / 3600), memory_mb)


class _Encoder(FrozenEncoder):
    """Stands for one whose frames are all in the store."""

    def __init__(self):
        super().__init__(1, {"class": "simulated"})


def _write_manifests(folder, utterances):
    """Manifests as of ``write_manifests``, which would take a minute.

    It writes those of a few utterances, and then their files are replaced.
    """
    held_out = max(1, utterances // 100)
    places = {
        "train": range(2 * held_out, utterances),
        "valid": range(held_out),
        "test": range(held_out, 2 * held_out),
    }
    write_manifests(
        folder,
        {
            split: [_utterance(index) for index in where[: len(_LABELS)]]
            for split, where in places.items()
        },
        _LABELS,
        _SETTINGS,
    )
    record = json.loads((folder / SETTINGS_FILE).read_bytes())
    for split, where in places.items():
        rows = (vars(_utterance(index)) for index in where)
        members = ((row.pop("id"), row) for row in rows)
        _write(folder / f"{split}.json", members, record)
    dialogues = (
        (f"dialogue{start}", [[turn, "Rachel", _TEXT] for turn in range(10)])
        for start in range(0, utterances, 10)
    )
    _write(folder / DIALOGUES_FILE, dialogues, record)
    (folder / SETTINGS_FILE).write_text(json.dumps(record), encoding="utf-8")


def _write(path, members, record):
    """A JSON object of keys and values, and its digest into the record."""
    lines = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(value)}" for key, value in members
    )
    path.write_text(f"{{{lines}}}\n", encoding="utf-8")
    record["digests"][path.name] = digest_of_file(path)


def _utterance(index):
    return Utterance(
        id=f"utterance{index}",
        wav=f"{{data_root}}/{_wav(index)}",
        duration=_UTTERANCE_S,
        speaker="Rachel",
        session="S01E02",
        dialogue=f"dialogue{index // 10 * 10}",
        turn=index % 10,
        text=_TEXT,
        emotion=_LABELS[index % len(_LABELS)],
    )


def _wav(index):
    return f"{index // _A_FOLDER:04d}/{index:07d}.wav"


def _private_mb():
    """Memory of this process and its workers, but for what maps a file."""
    pids = [os.getpid()]
    pids += [child.pid for child in multiprocessing.active_children()]
    kilobytes = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                kilobytes += int(line.split()[1])
    return kilobytes / 1000


def _in_new_process(function, *arguments):
    """What has been allocated before must not be counted, nor be used again."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


if __name__ == "__main__":
    main()
