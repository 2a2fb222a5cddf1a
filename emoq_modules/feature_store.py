"""Frames of a frozen encoder, computed once and kept on disk.

::

    folder/audio_digests.npy              so as not to read all audio each time
    folder/<hash of encoder and precision>/encoder.json      for people
    folder/<hash of encoder and precision>/shard-*.safetensors

A shard is written whole or not at all and never changed, and what the store
holds is what its shards' headers say. So it may be filled by several
processes at once, and goes on where one was killed. Frames are kept under a
digest of the audio file's content: folds, stages and runs share them, and a
changed file is not taken for what it was.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import time
import uuid
from collections import OrderedDict
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from speechbrain.utils.logger import get_logger

from emoq_modules.audio_digests import DIGESTS_FILE, AudioDigests, digest_of
from emoq_modules.audio_files import write_atomically
from emoq_modules.digest_table import DigestTable

logger = get_logger(__name__)

_DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
}
# Changes whenever what is stored gets another meaning.
_FORMAT = 1
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Nobody needs this long to write a shard: who left it is dead.
_ABANDONED_S = 3600
# An open shard keeps its header in memory, some 20 kB; MELD's training set has
# a hundred shards of HuBERT-large's frames.
_OPEN_SHARDS = 128
_NOWHERE = -1
# Of the time between two looks at the folder, which takes the longer the more
# shards there are.
_LISTING_SHARE = 0.02


class FeatureStoreError(OSError):
    """The store cannot give or take features; the message says why."""


class FeatureStore:
    """Frames by audio file, for one encoder in one precision.

    May be sent to data loader workers, forked or spawned.

    Arguments
    ---------
    folder : str or Path
        Where all stores are; may be shared by any experiments.
    encoder_identity : dict
        Plain values that determine the frames (``FrozenEncoder.identity``).
        Other values, other features: they are never mixed.
    precision : str
        What frames are rounded to: fp16, bf16 or fp32.

    Raises
    ------
    ValueError
        If the precision is none of these.

    Example
    -------
    >>> wav = getfixture("tmp_path") / "a.wav"
    >>> _ = wav.write_bytes(b"any bytes")
    >>> store = FeatureStore(wav.parent / "store", {"class": "Mine"})
    >>> store.missing([wav]) == [wav]
    True
    >>> store.save({store.key(wav): torch.ones(3, 2)})
    >>> wav in store, len(store), store.load(wav).shape
    (True, 1, torch.Size([3, 2]))
    """

    def __init__(self, folder, encoder_identity, precision="fp16"):
        _dtype(precision)
        self.precision = precision
        self._description = json.dumps(
            {
                "format": _FORMAT,
                "encoder": encoder_identity,
                "precision": precision,
            },
            indent=2,
            sort_keys=True,
        )
        self.folder = Path(folder) / digest_of(self._description.encode())
        self._digests = AudioDigests(Path(folder) / DIGESTS_FILE)
        self._next_look = 0.0
        self._forget()
        self._look()

    def _forget(self):
        self._names = []  # of shards
        self._shard_of = DigestTable.empty("int32")  # key -> place of its name
        self._opened = OrderedDict()  # the one used last is at the end

    def __len__(self):
        return len(self._shard_of)

    def __contains__(self, path):
        return self._name_of(self.key(path)) is not None

    def key(self, path):
        """Digest of an audio file's bytes, under which its frames are kept."""
        return self._digests.of(path)

    def missing(self, paths):
        """Finds what is still to be computed.

        Arguments
        ---------
        paths : iterable of str or Path
            Audio files.

        Returns
        -------
        list
            Those whose frames are not in the store, in the order given; of
            files with the same content only the first.
        """
        self._look()
        missing = {}
        for path in paths:
            key = self.key(path)
            if self._name_of(key) is None:
                missing.setdefault(key, path)
        self._digests.save()
        return list(missing.values())

    def holds(self, digests):
        """Which of many files' frames are there.

        Arguments
        ---------
        digests : np.ndarray
            What ``AudioDigests.known`` says of the files, ``(N,)``, S16.

        Returns
        -------
        np.ndarray
            ``(N,)``, bool; False for a file whose digest is not known.
        """
        return self._shard_of.get_all(digests, _NOWHERE) != _NOWHERE

    def load(self, path):
        """Reads the frames of an audio file.

        Arguments
        ---------
        path : str or Path
            The audio file.

        Returns
        -------
        torch.Tensor
            Frames ``(T', dim)``, float32.

        Raises
        ------
        FeatureStoreError
            If they are not in the store, or their shard is damaged.
        """
        key = self.key(path)
        name = self._name_of(key)
        if name is None:
            self._look()  # another process may have written them
            name = self._name_of(key)
        if name is None:
            raise FeatureStoreError(
                f"The feature store {self.folder} has no frames of {path}. "
                "Start the run again, which computes what is missing."
            )
        try:
            frames = self._opened_shard(name).get_tensor(key)
        except (safetensors.SafetensorError, FileNotFoundError) as error:
            self._set_aside(name, error)
            raise FeatureStoreError(
                f"The shard {self.folder / name} with the frames of {path} "
                f"cannot be read ({error}). Start the run again, which "
                "computes what is missing."
            ) from error
        # A copy: what is mapped from the file must not be written to.
        return frames.to(torch.float32, copy=True)

    def save(self, features, still_to_come=0):
        """Writes a shard: all of it, or nothing.

        Arguments
        ---------
        features : dict
            Frames ``(T', dim)`` by key.
        still_to_come : int
            Bytes that will be wanted after these, for the message when the
            disk is full.

        Raises
        ------
        FeatureStoreError
            If the disk is full; the shards before are unharmed.
        """
        content = safetensors.torch.save(
            {
                key: to_precision(frames, self.precision).cpu().contiguous()
                for key, frames in features.items()
            }
        )
        name = f"shard-{uuid.uuid4().hex}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "encoder.json").exists():
                write_atomically(
                    self.folder / "encoder.json", self._description.encode()
                )
            write_atomically(self.folder / name, content)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            needed = len(content) + still_to_come
            there = next(p for p in self.folder.parents if p.exists())
            free = shutil.disk_usage(there).free
            raise FeatureStoreError(
                f"No space left in {self.folder} ({error.strerror}): "
                f"{_megabytes(free)} are free, and the feature store needs "
                f"about {_megabytes(needed)} more. Make room and start the run "
                "again, which goes on from here; or give a --feature_store on "
                "another disk, or null to compute features on the fly."
            ) from error
        self._add([name], [len(features)], bytes.fromhex("".join(features)))

    def refresh(self):
        """Takes notice of shards that others have written or removed.

        Does nothing if it was done so lately that, done as often as this, it
        would take a share of the time that matters.
        """
        if time.monotonic() >= self._next_look:
            self._look()

    def _look(self):
        started = time.monotonic()
        names = set()
        if self.folder.exists():
            for name in os.listdir(self.folder):
                if re.fullmatch(r"shard-.*\.safetensors", name):
                    names.add(name)
                elif re.fullmatch(r"\.shard-.*\.partial", name):
                    self._tidy(name)
        if set(self._names) - names:
            self._forget()
        # One growing piece of memory: many small ones would leave holes.
        found, counts, digests = [], [], bytearray()
        for name in sorted(names.difference(self._names)):
            try:
                keys = _open(self.folder / name).keys()
                digests += bytes.fromhex("".join(keys))
            except FileNotFoundError:
                continue  # another process has just set it aside
            except (safetensors.SafetensorError, ValueError) as error:
                self._set_aside(name, error)
                continue
            found.append(name)
            counts.append(len(keys))
        self._add(found, counts, digests)
        now = time.monotonic()
        self._next_look = now + (now - started) / _LISTING_SHARE

    def _add(self, names, counts, digests):
        """Takes in shards: how much each holds, and the digests in a row."""
        places = len(self._names) + np.arange(len(names), dtype="int32")
        self._shard_of.update(
            np.frombuffer(digests, "S16"), np.repeat(places, counts)
        )
        self._names += names

    def _name_of(self, key):
        place = self._shard_of.get(bytes.fromhex(key))
        return None if place is None else self._names[place]

    def _opened_shard(self, name):
        """A shard, open; of those that were used long ago one is closed."""
        shard = self._opened.pop(name, None) or _open(self.folder / name)
        self._opened[name] = shard
        if len(self._opened) > _OPEN_SHARDS:
            self._opened.popitem(last=False)
        return shard

    def _set_aside(self, name, error):
        damaged = self.folder / f"{name}.damaged"
        try:
            os.replace(self.folder / name, damaged)
        except FileNotFoundError:
            return  # another process was faster
        logger.warning(
            f"A shard of the feature store is damaged ({error}). It is set "
            f"aside as {damaged}, which you may delete; its features are "
            "computed again."
        )

    def _tidy(self, name):
        """Removes what a process that was killed has left."""
        partial = self.folder / name
        # Another process may write it or remove it, or this one only read.
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > _ABANDONED_S:
                partial.unlink()

    def __getstate__(self):
        return {**self.__dict__, "_opened": OrderedDict()}


def round_trip(frames, precision):
    """Rounds frames as storing and loading them does.

    What is computed on the fly goes through this, and so gives the same
    results as what comes from a store.

    Arguments
    ---------
    frames : torch.Tensor
        Frames of any shape.
    precision : str
        fp16, bf16 or fp32.

    Returns
    -------
    torch.Tensor
        float32, of the same shape.

    Raises
    ------
    ValueError
        If a value does not fit the precision.

    Example
    -------
    >>> round_trip(torch.tensor([1 / 3]), "fp16")
    tensor([0.3333])
    >>> round_trip(torch.tensor([1e6]), "fp16")
    Traceback (most recent call last):
    ...
    ValueError: Frames of the audio encoder do not fit fp16...
    """
    return to_precision(frames, precision).float()


def to_precision(frames, precision):
    """Rounds frames to what the store keeps.

    Arguments
    ---------
    frames : torch.Tensor
        Frames of any shape.
    precision : str
        fp16, bf16 or fp32.

    Returns
    -------
    torch.Tensor
        Of that type.

    Raises
    ------
    ValueError
        If a value does not fit the precision.
    """
    frames = frames.to(_dtype(precision))
    if not torch.isfinite(frames).all():
        raise ValueError(
            f"Frames of the audio encoder do not fit {precision}: some are "
            "infinite in it, or not numbers. Try store_precision bf16."
        )
    return frames


def _dtype(precision):
    if precision not in _DTYPES:
        raise ValueError(
            f"The precision of a feature store is one of {', '.join(_DTYPES)}; "
            f"it is {precision!r}."
        )
    return _DTYPES[precision]


def _open(path):
    # What keeps a file from being opened (too many open files, say) must not
    # look like a missing or a damaged shard, as it does in safe_open.
    with path.open("rb"):
        pass
    return safetensors.safe_open(path, framework="pt")


def _megabytes(size):
    return f"{size / 1e6:.1f} MB"
