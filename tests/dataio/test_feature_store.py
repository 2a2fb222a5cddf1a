"""The feature store: computed once, never mixed up, never half written."""

import contextlib
import errno
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from emoq_modules import FeatureStore
from emoq_modules.dataio import (
    digests as audio_digests,
    feature_extraction,
    feature_store,
)
from emoq_modules.dataio.feature_extraction import extract_features
from emoq_modules.errors import FeatureStoreError
from emoq_modules.lobes.audio_encoder import FrozenEncoder
from emoq_modules.lobes.pipeline import to_precision
from tests.conftest import flip_a_byte

DIM = 4
SHARD_BYTES = 2 * DIM * 50  # a few utterances


class CountingEncoder(FrozenEncoder):
    """Cuts waveforms into frames, and remembers how many it was given."""

    def __init__(self, scale=100.0, delay_s=0.0):
        super().__init__(DIM, {"class": "CountingEncoder", "scale": scale})
        self.scale = scale
        self.delay_s = delay_s
        self.batches = []

    def encode(self, wavs, samples):
        time.sleep(self.delay_s)
        self.batches.append(samples)
        return [
            self.scale * wav[: count // DIM * DIM].view(-1, DIM)
            for wav, count in zip(wavs, samples, strict=True)
        ]

    @property
    def count(self):
        return sum(map(len, self.batches))


def read_audio(path):
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0])


def frames_of(path, scale=100.0):
    """What the encoder makes of a file."""
    return scale * read_audio(path).view(-1, DIM)


@pytest.fixture
def rows(tmp_path):
    """Twenty utterances, none shorter than another twice over."""
    rng = np.random.default_rng(0)
    made = []
    for index in range(20):
        path = tmp_path / f"{index:02d}.wav"
        samples = DIM * (20 + index)
        soundfile.write(path, rng.uniform(-0.9, 0.9, samples), 16000)
        made.append({"wav": str(path), "duration": samples / 16000})
    return made


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def a_while_later(monkeypatch):
    """Audio files are not as new as they are in a test."""
    now = time.time_ns() + 10**10
    monkeypatch.setattr(audio_digests.time, "time_ns", lambda: now)


def fill(rows, store, encoder=None, **options):
    """Stores the frames of all rows; gives the encoder."""
    encoder = encoder or CountingEncoder()
    options = {
        "max_batch_seconds": 0.02,
        "shard_bytes": SHARD_BYTES,
        "progressbar": False,
        **options,
    }
    extract_features(rows, encoder, store, read_audio, **options)
    return encoder


def store_of(folder, scale=100.0, precision="fp16"):
    return FeatureStore(folder, CountingEncoder(scale).identity, precision)


def assert_holds(store, rows, scale=100.0):
    assert store.missing([row["wav"] for row in rows]) == []
    for row in rows:
        expected = to_precision(
            frames_of(row["wav"], scale), store.precision
        ).float()
        assert torch.equal(store.load(row["wav"]), expected)


# --- What is stored -----------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_stored_frames_are_those_on_the_fly_rounded(folder, rows, precision):
    store = store_of(folder, precision=precision)
    encoder = fill(rows, store)
    assert encoder.count == len(store) == len(rows)
    assert max(map(len, encoder.batches)) > 1
    assert len(list(store.folder.glob("shard-*"))) > 3
    assert_holds(store, rows)
    # The folder says what it holds.
    description = json.loads((store.folder / "encoder.json").read_text())
    assert description["encoder"] == encoder.identity
    assert description["precision"] == precision


def test_what_is_stored_is_not_computed_again(folder, rows):
    fill(rows[:5], store_of(folder))
    again = fill(rows, store_of(folder))
    assert again.count == 15
    assert fill(rows, store_of(folder)).count == 0
    assert_holds(store_of(folder), rows)


def test_a_change_of_encoder_or_precision_never_reads_old_frames(folder, rows):
    fill(rows, store_of(folder))
    for other in (store_of(folder, 7.0), store_of(folder, precision="bf16")):
        assert len(other) == 0
        assert len(other.missing([row["wav"] for row in rows])) == len(rows)
        with pytest.raises(FeatureStoreError, match="has no frames of"):
            other.load(rows[0]["wav"])
    fill(rows, store_of(folder, 7.0), CountingEncoder(7.0))
    assert_holds(store_of(folder, 7.0), rows, 7.0)
    assert_holds(store_of(folder), rows)


def test_changed_audio_under_the_same_name_is_computed_again(
    folder, rows, a_while_later
):
    store = store_of(folder)
    fill(rows, store)
    path, stat = rows[3]["wav"], os.stat(rows[3]["wav"])
    soundfile.write(path, -soundfile.read(path)[0], 16000)
    # Not even size and modification time tell.
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert os.stat(path).st_size == stat.st_size
    for each in (store, store_of(folder)):
        assert each.missing([row["wav"] for row in rows]) == [path]
    assert fill(rows, store).count == 1
    assert_holds(store, rows)


def test_files_of_the_same_content_share_their_frames(folder, rows, tmp_path):
    copy = tmp_path / "copy.wav"
    copy.write_bytes((tmp_path / "00.wav").read_bytes())
    store = store_of(folder)
    rows = [rows[0], {"wav": str(copy), "duration": rows[0]["duration"]}]
    assert fill(rows, store).count == 1
    assert_holds(store, rows)


def test_unchanged_audio_is_not_read_again(
    folder, rows, a_while_later, monkeypatch
):
    paths = [row["wav"] for row in rows]
    store_of(folder).missing(paths)
    digest, reads = audio_digests.digest_of, []
    monkeypatch.setattr(
        audio_digests, "digest_of", lambda b: reads.append(b) or digest(b)
    )
    store = store_of(folder)
    store.missing(paths)
    assert not reads
    # Whatever has become of the file, at worst the audio is read once more.
    for content in ('{"', "[1]", json.dumps({paths[0]: 3})):
        (folder / "audio_digests.npy").write_text(content)
        reads.clear()
        keys = [store_of(folder).key(path) for path in paths]
        assert keys == [store.key(path) for path in paths]
        assert len(reads) == len(paths)


def test_digests_are_known_of_files_that_were_read(folder, rows, a_while_later):
    store = store_of(folder)
    fill(rows[:5], store)
    paths = [row["wav"] for row in rows[:7]]
    digests = audio_digests.AudioDigests(folder / "audio_digests.npy")
    digests.of(paths[5])  # read, but not stored
    known = [digests.known(path) for path in [*paths, "nowhere.wav"]]
    assert known[:6] == [store.key(path) for path in paths[:6]]
    assert known[6:] == [None, None]


def test_a_file_is_the_same_by_a_relative_path(
    folder, rows, a_while_later, monkeypatch
):
    path = Path(rows[0]["wav"])
    digests = audio_digests.AudioDigests(folder / "audio_digests.npy")
    digest = digests.of(path)
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(audio_digests, "digest_of", None)
    assert digests.of(path.name) == digest
    assert digests.known(path.name) == digest


def test_shards_are_such_as_safetensors_reads_and_none_stays_open(folder, rows):
    store = store_of(folder)
    fill(rows, store)
    assert_holds(store, rows)
    assert str(folder) not in Path("/proc/self/maps").read_text()
    links = Path("/proc/self/fd").iterdir()
    assert not [fd for fd in links if "shard-" in os.path.realpath(fd)]
    stored = {}
    for shard in store.folder.glob("shard-*"):
        stored |= load_file(shard)
    assert len(stored) == len(rows)
    for row in rows:
        frames = stored[store.key(row["wav"])]
        assert torch.equal(store.load(row["wav"]), frames.float())


def test_the_folder_is_not_listed_all_the_time(folder, rows, monkeypatch):
    store, now, listed = store_of(folder), 0.0, []
    fill(rows, store)
    monkeypatch.setattr(feature_store.time, "monotonic", lambda: now)
    listdir = os.listdir

    def list_slowly(path):
        nonlocal now
        now += 1.0
        listed.append(path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", list_slowly)
    store.missing([])
    for _ in range(490):
        store.refresh()
        now += 0.1
    assert len(listed) == 1
    for _ in range(20):
        store.refresh()
        now += 0.1
    assert len(listed) == 2


def test_values_that_do_not_fit_the_precision_are_refused(folder, rows):
    store = store_of(folder, 1e6)
    with pytest.raises(ValueError, match="do not fit fp16.* bf16"):
        fill(rows, store, CountingEncoder(1e6))
    with pytest.raises(ValueError, match="do not fit fp16"):
        to_precision(torch.tensor([float("nan")]), "fp16")
    with pytest.raises(ValueError, match="one of fp16, bf16, fp32.* 'half'"):
        store_of(folder, precision="half")


def test_work_before_a_bad_file_is_kept(folder, rows, tmp_path, monkeypatch):
    # The order of batches is random, and the bad one might be the first.
    order = random.Random(1)
    monkeypatch.setattr(feature_extraction.random, "Random", lambda: order)
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no audio")
    rows = [*rows, {"wav": str(bad), "duration": 1e-6}]
    store = store_of(folder)
    with pytest.raises(soundfile.LibsndfileError, match="bad.wav"):
        # In one batch each, so that the bad one is not in the first.
        fill(rows, store, max_batch_seconds=0, shard_bytes=2**25)
    assert 0 < len(store_of(folder)) < len(rows)
    fill(rows[:-1], store)
    assert_holds(store, rows[:-1])


def test_batches_keep_to_their_budget_of_seconds(folder, rows):
    longest = max(row["duration"] for row in rows)
    encoder = fill(rows, store_of(folder), max_batch_seconds=3.5 * longest)
    sizes = [len(batch) * max(batch) / 16000 for batch in encoder.batches]
    assert max(sizes) <= 3.5 * longest
    assert len(encoder.batches) < 8


def test_no_audio_is_decoded_by_the_thread_that_computes(folder, rows):
    readers = set()

    def read(path):
        readers.add(threading.get_ident())
        return read_audio(path)

    encoder = CountingEncoder()
    extract_features(rows, encoder, store_of(folder), read, progressbar=False)
    assert encoder.count == len(rows)
    assert readers and threading.get_ident() not in readers


# --- Several processes --------------------------------------------------------


def test_ranks_share_the_work_without_overlap(folder, rows):
    counts = []
    for rank in range(3):
        encoder = CountingEncoder()
        store = store_of(folder)
        fill(rows, store, encoder, rank=rank, world_size=3)
        counts.append(encoder.count)
    assert sum(counts) == len(rows)
    assert all(counts)
    assert_holds(store_of(folder), rows)
    # Who comes late, of as many ranks or by itself, finds nothing left.
    for late in ({"rank": 1, "world_size": 3}, {}):
        assert fill(rows, store_of(folder), **late).count == 0


def _load_all(store, paths):
    return [store.load(path).sum().item() for path in paths]


def test_data_loader_workers_read_the_store(folder, rows):
    store = store_of(folder)
    fill(rows, store)
    paths = [row["wav"] for row in rows]
    expected = _load_all(store, paths)  # shards are open when it forks
    with multiprocessing.get_context("fork").Pool(2) as pool:
        sums = pool.starmap_async(_load_all, [(store, paths)] * 2)
        assert sums.get(timeout=60) == [expected] * 2
    assert_holds(pickle.loads(pickle.dumps(store)), rows)  # spawned ones


def test_a_store_notices_what_another_process_writes_and_deletes(folder, rows):
    store, other = store_of(folder), store_of(folder)
    fill(rows, other)
    assert torch.equal(store.load(rows[0]["wav"]), other.load(rows[0]["wav"]))
    for shard in store.folder.glob("shard-*"):
        shard.unlink()
    assert len(store.missing([row["wav"] for row in rows])) == len(rows)


def _fill_slowly(rows, folder, delay_s, start, counts):
    """Fills the store in a process, and tells how much it computed."""
    encoder = CountingEncoder(delay_s=delay_s)
    start.wait()
    # An utterance a batch, and one a shard.
    fill(rows, store_of(folder), encoder, max_batch_seconds=0, shard_bytes=1)
    counts.put(encoder.count)


@pytest.fixture
def start_filling(rows, folder):
    """Starts processes that fill the store, all at the same moment."""
    context = multiprocessing.get_context("fork")
    processes = []

    def start(number, delay_s):
        begin, counts = context.Event(), context.SimpleQueue()
        args = (rows, folder, delay_s, begin, counts)
        for _ in range(number):
            processes.append(context.Process(target=_fill_slowly, args=args))
            processes[-1].start()
        begin.set()
        return processes, counts

    yield start
    for process in processes:
        process.kill()


def test_two_processes_fill_the_store_at_once(folder, rows, start_filling):
    processes, counts = start_filling(2, delay_s=0.02)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    # They see what the other has done, and rarely do it twice.
    assert len(rows) <= counts.get() + counts.get() < 2 * len(rows)
    store = store_of(folder)
    assert len(store) == len(rows)
    assert_holds(store, rows)


def test_after_a_kill_only_what_is_missing_is_computed(
    folder, rows, start_filling
):
    (process,), _ = start_filling(1, delay_s=0.05)
    deadline = time.monotonic() + 30
    while len(store_of(folder)) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    store = store_of(folder)
    stored = len(store)
    assert 5 <= stored < len(rows)
    assert fill(rows, store).count == len(rows) - stored
    assert_holds(store, rows)


# --- Damage and full disks ----------------------------------------------------


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_shard_is_set_aside_and_made_again(
    folder, rows, keep, caplog
):
    fill(rows, store_of(folder))
    shard = sorted(store_of(folder).folder.glob("shard-*"))[0]
    shard.write_bytes(shard.read_bytes()[:keep])
    with caplog.at_level("WARNING"):
        store = store_of(folder)
    assert shard.name in caplog.text and "computed again" in caplog.text
    left = len(store)
    assert 0 < left < len(rows)
    assert fill(rows, store).count == len(rows) - left
    assert_holds(store, rows)
    assert (store.folder / f"{shard.name}.damaged").exists()


def test_a_shard_damaged_during_a_run_is_named(folder, rows):
    store = store_of(folder)
    fill(rows, store)
    for shard in store.folder.glob("shard-*"):
        shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(FeatureStoreError, match="shard-.*Start the run again"):
        store.load(rows[0]["wav"])
    fill(rows, store)
    assert_holds(store, rows)


def shards_of(store):
    return sorted(store.folder.glob("shard-*.safetensors"))


def without_checksums(store, change=dict):
    """Makes its shards what an earlier version has written."""
    for shard in shards_of(store):
        save_file(change(load_file(shard)), shard)


def test_a_flipped_byte_in_stored_frames_is_named_and_made_again(folder, rows):
    store = store_of(folder)
    fill(rows, store)
    shards = shards_of(store)
    flip_a_byte(shards[0])
    harmed = 0
    for row in rows:
        try:
            store_of(folder).load(row["wav"])
        except FeatureStoreError as error:
            harmed += shards[0].name in str(error) and row["wav"] in str(error)
            assert re.search("checksum.*Start the run again", str(error))
            break
    assert harmed == 1
    store = store_of(folder)
    assert fill(rows, store).count > 0
    assert_holds(store, rows)


def test_no_flipped_byte_anywhere_in_a_shard_gives_other_frames(folder, rows):
    store = store_of(folder)
    fill(rows[:1], store)
    (shard,) = shards_of(store)
    whole, wav = shard.read_bytes(), rows[0]["wav"]
    expected = store.load(wav)
    for place in range(len(whole)):
        shard.write_bytes(whole)
        flip_a_byte(shard, place)
        store = store_of(folder)
        if wav in store:
            with contextlib.suppress(FeatureStoreError):
                assert torch.equal(store.load(wav), expected), place


def test_a_store_without_checksums_goes_on_being_read(folder, rows):
    store = store_of(folder)
    fill(rows, store)
    without_checksums(store)
    store = store_of(folder)
    assert fill(rows, store).count == 0
    assert_holds(store, rows)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_when_read(folder, rows, value):
    store, wav = store_of(folder), rows[0]["wav"]
    fill(rows, store)

    def change(frames):
        for each in frames.values():
            each[1, 2] = value
        return frames

    without_checksums(store, change)
    with pytest.raises(
        FeatureStoreError, match="infinite, or not numbers.*aga"
    ):
        store_of(folder).load(wav)


def test_values_whose_sum_would_be_infinite_are_read(folder, rows):
    store, wav = store_of(folder, precision="fp32"), rows[0]["wav"]
    frames = torch.full((3, DIM), 3e38)
    store.save({store.key(wav): frames})
    assert torch.equal(store.load(wav), frames)


def test_a_shard_is_on_the_disk_before_its_name_is(folder, rows, disk):
    store = store_of(folder)
    store.save({store.key(rows[0]["wav"]): torch.ones(3, DIM)})
    (shard,) = shards_of(store)
    assert not disk.unsafe_at(shard)
    assert store.folder in disk.synced


@pytest.fixture
def small_disk():
    """Files larger than a limit cannot be written, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_no_part_and_harms_nothing(folder, rows, small_disk):
    store = store_of(folder)
    fill(rows[:5], store)
    before = {p: p.read_bytes() for p in sorted(store.folder.iterdir())}
    small_disk(1000)
    with pytest.raises(FeatureStoreError) as caught:
        fill(rows, store, shard_bytes=2**20)
    message = str(caught.value)
    for part in (str(store.folder), "MB are free", "needs about", "Make room"):
        assert part in message
    after = {p: p.read_bytes() for p in sorted(store.folder.iterdir())}
    assert after == before
    small_disk(resource.RLIM_INFINITY)
    assert fill(rows, store).count == 15
    assert_holds(store, rows)


@pytest.mark.parametrize(
    "number, error, message",
    [
        (errno.ENOSPC, FeatureStoreError, "about 3000.4 MB more"),
        (errno.EDQUOT, FeatureStoreError, "about 3000.4 MB more"),
        (errno.EACCES, PermissionError, "denied"),  # is no full disk
    ],
)
def test_no_space_left_says_how_much_is_needed(
    folder, number, error, message, monkeypatch
):
    def replace(source, target):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", replace)
    store = store_of(folder)
    with pytest.raises(error, match=message):
        store.save({"key": torch.zeros(200_000)}, still_to_come=3_000_000_000)
    assert not [path for path in folder.rglob("*") if path.is_file()]


def test_what_is_still_to_come_is_estimated(folder, rows, monkeypatch):
    store, sizes, estimates = store_of(folder), [], []

    def save(features, still_to_come):
        sizes.append(sum(frames.nbytes for frames in features.values()))
        estimates.append(still_to_come)

    monkeypatch.setattr(store, "save", save)
    fill(rows, store)
    for index, estimate in enumerate(estimates):
        assert estimate == pytest.approx(sum(sizes[index + 1 :]), abs=2)


def test_what_a_store_will_take_is_said_before_and_refused_without_room(
    folder, rows, monkeypatch, caplog
):
    store, encoder = store_of(folder), CountingEncoder()
    encoder.hop_s = DIM / 16000
    sizes = []
    monkeypatch.setattr(store, "check_room", sizes.append)
    fill(rows, store, encoder)
    stored = sum(store.load(row["wav"]).numel() for row in rows) * 2
    assert sizes == [pytest.approx(stored)]

    store, encoder = store_of(folder.parent / "other"), CountingEncoder()
    encoder.hop_s = DIM / 16000
    room = shutil.disk_usage(folder)._replace(free=2_303_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    hours = [{**row, "duration": 3600.0} for row in rows]
    with (
        caplog.at_level("INFO"),
        pytest.raises(FeatureStoreError, match="needs about 2304.0 .*_layer"),
    ):
        fill(hours, store, encoder)
    assert encoder.count == 0
    assert re.search("20 utterances, 20.0 hours.* about 2304.0 MB", caplog.text)


def test_what_a_dead_process_left_is_tidied_up(folder, rows):
    store = store_of(folder)
    fill(rows[:1], store)
    left, in_work = (
        store.folder / f".shard-{name}.safetensors.1.partial" for name in "ab"
    )
    for path in (left, in_work):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    fill(rows, store)
    assert not left.exists()
    assert in_work.exists()
