"""Fills a feature store: computes the frames that it does not hold yet."""

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import torch
from speechbrain.utils.logger import get_logger
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from emoq_modules.dataio.feature_store import megabytes
from emoq_modules.lobes.pipeline import dtype_of, to_precision

logger = get_logger(__name__)

# A CPU is fastest where a batch stays near its caches; another device wants
# more than a few utterances to be busy (how many, has not been measured).
_BATCH_SECONDS_ON_CPU = 5.0
_BATCH_SECONDS_ELSEWHERE = 240.0


def extract_features(
    rows,
    encoder,
    store,
    read_audio,
    device="cpu",
    max_batch_seconds=None,
    progressbar=True,
    rank=0,
    world_size=1,
    shard_bytes=2**25,
):
    """Computes the frames that a store does not hold yet; gives their number.

    Utterances of similar length are batched: the longest of a batch times
    their number is at most ``max_batch_seconds``, by default what suits the
    device. A shard is written whenever there is enough for one, and when an
    error or an interrupt ends the work; called again, it computes only what is
    still missing. ``world_size`` processes share the work, and it is safe for
    others to fill the store at the same time.

    Rows have ``wav`` and ``duration``; ``read_audio`` gives the samples at
    16 kHz of a path, ``(T,)``, and is called from several threads. How much
    there is to compute and to store is logged first. Raises
    ``FeatureStoreError`` if the disk has no room for it, or is full, and
    ``ValueError`` if frames do not fit the store's precision.
    """
    durations = {row["wav"]: row["duration"] for row in rows}
    missing = store.missing(durations)
    if missing:
        _announce([durations[path] for path in missing], encoder, store)
    todo = [
        path
        for path in missing
        if int(store.key(path), 16) % world_size == rank
    ]
    if not todo:
        return 0
    encoder.to(device)
    if max_batch_seconds is None:
        on_cpu = torch.device(device).type == "cpu"
        max_batch_seconds = (
            _BATCH_SECONDS_ON_CPU if on_cpu else _BATCH_SECONDS_ELSEWHERE
        )
    seconds = sum(durations[path] for path in todo)
    batches = _batches(todo, durations, max_batch_seconds)
    bar = tqdm(
        total=round(seconds),
        desc="audio features",
        unit="s",
        disable=not progressbar,
    )
    shard, size = {}, 0
    count, bytes_done, seconds_done = 0, 0, 0.0

    def write():
        nonlocal shard, size
        # Not kept for another try, should this one fail.
        full, shard, size = shard, {}, 0
        if full:
            share_left = max(0, seconds / seconds_done - 1)
            store.save(full, round(bytes_done * share_left))

    try:
        for batch, wavs in _read_ahead(_unclaimed(batches, store), read_audio):
            for path, frames in _encode(
                encoder, batch, wavs, device, store.precision
            ):
                shard[store.key(path)] = frames
                count += 1
                size += frames.nbytes
                bytes_done += frames.nbytes
                seconds_done += durations[path]
                if size >= shard_bytes:
                    write()
            bar.update(round(seconds_done) - bar.n)
    finally:
        # After an error too: what is computed need not be computed again.
        write()
        bar.close()
    return count


def _announce(durations, encoder, store):
    """Says what is to be computed and stored; refuses what has no room."""
    frames = 0
    if encoder.num_layers is not None:
        frames = encoder.num_layers * len(durations)
    elif encoder.hop_s is not None:
        frames = sum(durations) / encoder.hop_s
    size = frames * encoder.dim * dtype_of(store.precision).itemsize
    takes = f"about {megabytes(size)}" if size else "a size that is not known"
    logger.info(
        f"Audio features of {len(durations)} utterances, "
        f"{sum(durations) / 3600:.1f} hours, are computed; they take {takes} "
        f"in {store.folder}."
    )
    store.check_room(size)


def _batches(paths, durations, max_batch_seconds):
    """Groups paths by length, within a budget of padded seconds."""
    batches = []
    for path in sorted(paths, key=lambda path: durations[path], reverse=True):
        # The first of a batch is its longest.
        if batches and max_batch_seconds >= durations[batches[-1][0]] * (
            len(batches[-1]) + 1
        ):
            batches[-1].append(path)
        else:
            batches.append([path])
    return batches


def _unclaimed(batches, store):
    """Leaves out what other processes have stored in the meantime."""
    # Each process goes its own way, or they would meet and stay together.
    for batch in random.Random().sample(batches, len(batches)):
        store.refresh()
        batch = [path for path in batch if path not in store]
        if batch:
            yield batch


def _read_ahead(batches, read_audio):
    """Reads the audio of the next batch while this one is computed."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        ready = None
        for batch in chain(batches, [None]):
            coming = [pool.submit(read_audio, path) for path in batch or ()]
            if ready:
                yield ready[0], [wav.result() for wav in ready[1]]
            ready = batch, coming


def _encode(encoder, batch, wavs, device, precision):
    lengths = torch.tensor([len(wav) for wav in wavs])
    frames, lens = encoder(
        pad_sequence(wavs, batch_first=True).to(device),
        (lengths / lengths.max()).to(device),
    )
    counts = (lens * frames.shape[1]).round().long().tolist()
    # All at once: a GPU would be waited for with each utterance.
    frames = to_precision(frames, precision).cpu()
    for path, utterance, count in zip(batch, frames, counts, strict=True):
        yield path, utterance[:count]
