"""What a large corpus takes: the time of a start, and memory.

    python -m benchmarks.scale

A corpus of 300,000 utterances is simulated, more than MSP-Podcast has. What is
real: the manifests, a file for each utterance, the feature store, and the
project's own code from reading the manifests to the batches of an epoch. What
is not: the files are empty, as if an earlier run had read their content; and a
frame has one value. Memory is the growth of PSS, of the process and two data
loader workers, which have gone over an epoch; libraries are not in it.
"""

import os
import time
from contextlib import suppress
from multiprocessing import Process, active_children
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from speechbrain.dataio.dataloader import make_dataloader

from benchmarks.rows import at_most, format_table
from emoq_modules.dataio.digests import DIGESTS_FILE, AudioDigests, digest_of
from emoq_modules.dataio.feature_store import FeatureStore
from emoq_modules.dataio.manifest import Utterance, write_manifests
from emoq_modules.lobes.audio_encoder import FrozenEncoder
from emoq_modules.training.run_data import make_datasets, read_manifests

_LABELS = ["neutral", "angry", "sadness", "joy", "surprise", "disgust", "fear"]
_SHARD = 100  # utterances; HuBERT-large's frames of them fill 32 MB


class _Encoder(FrozenEncoder):
    """Stands for one whose frames are all in the store."""

    def __init__(self):
        super().__init__(1, {"class": "simulated"})


def simulate_corpus(folder, utterances=300_000):
    """Writes manifests, audio files and a filled feature store."""
    store = FeatureStore(folder / "store", _Encoder().identity)
    digests = AudioDigests(folder / "store" / DIGESTS_FILE)
    rows, shard = [], {}
    for n in range(utterances):
        id_ = f"MSP-PODCAST_{n // 100:04d}_{n:07d}"
        path = folder / "audio" / f"{n // 1000:03d}" / f"{id_}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        shard[digest_of(id_.encode())] = torch.zeros(180, 1)
        digests.remember(path, path.stat(), digest_of(id_.encode()))
        if len(shard) == _SHARD or n == utterances - 1:
            store.save(shard)
            shard = {}
        wav = f"{{data_root}}/{path.relative_to(folder / 'audio')}"
        text = f"You know, number {n:07d} is what I have never seen up there."
        places = f"spk{n % 2000:04d}", f"{n // 100:04d}", f"show{n // 10:05d}"
        emotion = _LABELS[n % len(_LABELS)]
        rows.append(Utterance(id_, wav, 3.6, *places, n % 10, text, emotion))
    digests.save()
    tenth = utterances // 10
    splits = {"train": rows[2 * tenth :]}
    splits |= {"valid": rows[:tenth], "test": rows[tenth : 2 * tenth]}
    write_manifests(folder / "manifests", splits, _LABELS, {})
    os.sync()  # or it is still being written while something is measured


def measure(folder):
    """Rows of a start on a simulated corpus, as of a run, and of an epoch."""
    settings = {
        "stage": 1,
        "manifest_folder": folder / "manifests",
        "labels": _LABELS,
        "data_root": folder / "audio",
        "feature_store": folder / "store",
        "store_precision": "fp16",
        "audio_encoder": _Encoder(),
        "audio_dim": 1,
        **dict.fromkeys(("augment_audio", "text_tokenizer", "max_text_tokens")),
    }
    before, started = _pss_mb(), (time.perf_counter(), time.process_time())
    datasets = make_datasets(settings, read_manifests(settings), "cpu", False)
    start_s = time.perf_counter() - started[0]
    start_cpu_s, memory_mb = time.process_time() - started[1], 0
    options = {"batch_size": 64, "num_workers": 2, "shuffle": True}
    loader = make_dataloader(datasets["train"], **options)
    for number, _ in enumerate(loader, start=1):
        if number in (1, len(loader) // 2, len(loader) - 4):
            memory_mb = max(memory_mb, _pss_mb() - before)
    rows = sum(map(len, datasets.values()))
    return [
        at_most(f"start, {rows:,} rows", start_s, "s", 10),
        at_most("processor time of it", start_cpu_s, "s"),
        at_most("memory with two workers", memory_mb, "MB", 1000),
    ]


def _pss_mb():
    """Proportional set size of this process and its children."""
    kilobytes = 0
    for pid in [os.getpid(), *(child.pid for child in active_children())]:
        with suppress(FileNotFoundError, ProcessLookupError):  # just ended
            smaps = Path(f"/proc/{pid}/smaps_rollup").read_text()
            kilobytes += int(smaps.split("\nPss:")[1].split()[0])
    return kilobytes / 1000


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        # In a process of its own, whose memory must not be used again.
        simulation = Process(target=simulate_corpus, args=(Path(folder),))
        simulation.start()
        simulation.join()
        print(format_table(measure(Path(folder))))
