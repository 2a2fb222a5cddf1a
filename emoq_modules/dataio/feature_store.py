"""Frames of a frozen encoder, computed once and kept on disk.

::

    folder/audio_digests.npy              so as not to read all audio each time
    folder/<hash of encoder and precision>/encoder.json      for people
    folder/<hash of encoder and precision>/shard-*.safetensors

A shard is written whole or not at all and never changed, and what the store
holds is what its shards' headers say. So it may be filled by several
processes at once, and goes on where one was killed. Frames are kept under a
digest of the audio file's content: folds, stages and runs share them, and a
changed file is not taken for what it was. Their own checksum is in the
metadata of the shard.
"""

import errno
import json
import math
import os
import re
import shutil
import time
import uuid
import zlib
from pathlib import Path

import safetensors.torch
import torch
from speechbrain.utils.logger import get_logger

from emoq_modules.dataio.digests import DIGESTS_FILE, AudioDigests, digest_of
from emoq_modules.dataio.files import remove_abandoned, write_atomically
from emoq_modules.errors import FeatureStoreError
from emoq_modules.lobes.pipeline import DTYPES, dtype_of, to_precision

logger = get_logger(__name__)

# Changes whenever what is stored gets another meaning.
_FORMAT = 1
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# The share of time that looks at the folder may take: more shards take longer.
_LISTING_SHARE = 0.02


class FeatureStore:
    """A store of the frames of audio files, for one encoder and precision.

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
        dtype_of(precision)
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
        self._shards = {}  # name -> bytes
        # Digest -> shard, first byte, checksum and shape of frames.
        self._places = {}

    def __len__(self):
        return len(self._places)

    def __contains__(self, path):
        return bytes.fromhex(self.key(path)) in self._places

    def key(self, path):
        """Digest of an audio file's bytes, under which its frames are kept.

        Arguments
        ---------
        path : str or Path
            The audio file.

        Returns
        -------
        str
            32 hexadecimal digits.

        Raises
        ------
        OSError
            If the file is missing or cannot be read.
        """
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
            key = bytes.fromhex(self.key(path))
            if key not in self._places:
                missing.setdefault(key, path)
        self._digests.save()
        return list(missing.values())

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
        key = bytes.fromhex(self.key(path))
        if key not in self._places:
            self._look()  # another process may have written them
        if key not in self._places:
            raise FeatureStoreError(
                f"The feature store {self.folder} has no frames of {path}. "
                "Start the run again, which computes what is missing."
            )
        name, begin, checksum, *shape = self._places[key]
        dtype = DTYPES[self.precision]
        frames = bytearray(math.prod(shape) * dtype.itemsize)
        try:
            with (self.folder / name).open("rb") as file:
                _check_size(file, self._shards[name])
                file.seek(begin)
                file.readinto(frames)
            stored = torch.frombuffer(frames, dtype=dtype).view(shape).float()
            _check_frames(stored, frames, checksum)
        except (ValueError, FileNotFoundError) as error:
            self._set_aside(name, error)
            raise FeatureStoreError(
                f"The shard {self.folder / name} with the frames of {path} "
                f"cannot be read ({error}). Start the run again, which "
                "computes what is missing."
            ) from error
        return stored

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
        rounded = {
            key: to_precision(frames, self.precision).cpu().contiguous()
            for key, frames in features.items()
        }
        sums = {
            key: _checksum(frames.view(torch.uint8).numpy())
            for key, frames in rounded.items()
        }
        content = safetensors.torch.save(rounded, metadata=sums)
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
            raise self._no_room(needed, error.strerror) from error
        self._add([name])

    def check_room(self, size):
        """Refuses what the disk has no room for, before it is computed.

        Arguments
        ---------
        size : float
            Bytes that are to be stored.

        Raises
        ------
        FeatureStoreError
            If fewer are free.
        """
        if size > self._free():
            raise self._no_room(size, "told before anything is computed")

    def _free(self):
        there = next(p for p in self.folder.parents if p.exists())
        return shutil.disk_usage(there).free

    def _no_room(self, needed, reason):
        return FeatureStoreError(
            f"No space left in {self.folder} ({reason}): "
            f"{megabytes(self._free())} are free, and the feature store needs "
            f"about {megabytes(needed)} more. Make room and start the run "
            "again, which goes on from here; or take fewer layers "
            "(--audio_layer), or half precision (--store_precision fp16), or "
            "give a --feature_store on another disk, or null to compute "
            "features on the fly."
        )

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
            remove_abandoned(self.folder, ".shard-*.partial")
            for name in os.listdir(self.folder):
                if re.fullmatch(r"shard-.*\.safetensors", name):
                    names.add(name)
        if self._shards.keys() - names:
            self._forget()
        self._add(sorted(names - self._shards.keys()))
        now = time.monotonic()
        self._next_look = now + (now - started) / _LISTING_SHARE

    def _add(self, names):
        """Takes in shards."""
        for name in names:
            try:
                size, places = _index(self.folder / name, self.precision)
            except FileNotFoundError:
                continue  # another process has just set it aside
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                self._set_aside(name, error)
                continue
            self._shards[name] = size
            for key, place in places.items():
                self._places[key] = (name, *place)

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


def _index(path, precision):
    """Bytes of a shard; and digest -> where its frames are, and what they are.

    By its header, which safetensors would read anew for each utterance. Raises
    ValueError, TypeError, KeyError or AttributeError if the shard is damaged.
    """
    itemsize = DTYPES[precision].itemsize
    with path.open("rb") as file:
        size = start = 8 + int.from_bytes(file.read(8), "little")
        _check_size(file, start, or_more=True)
        places, header = {}, json.loads(file.read(start - 8))
        sums = header.pop("__metadata__", None)  # an earlier version had none
        for key, entry in header.items():
            (frames, dim), (begin, stop) = entry["shape"], entry["data_offsets"]
            if stop - begin != frames * dim * itemsize:
                raise ValueError("its header contradicts itself")
            checksum = sums and sums[key]
            places[bytes.fromhex(key)] = start + begin, checksum, frames, dim
            size = max(size, start + stop)
        _check_size(file, size)
    return size, places


def _checksum(content):
    """Tells of accidents, as a digest would, and takes less time."""
    return f"{zlib.crc32(content):08x}"


def _check_frames(frames, content, checksum):
    if checksum and _checksum(content) != checksum:
        raise ValueError("they have another checksum than when they were made")
    # A sum is quick, and finite only if all is; if not, it may be too large.
    if not frames.sum().isfinite() and not frames.isfinite().all():
        raise ValueError("some are infinite, or not numbers")


def _check_size(file, size, or_more=False):
    there = os.fstat(file.fileno()).st_size
    if there < size or (there > size and not or_more):
        raise ValueError(f"it has {there} bytes instead of {size}")


def megabytes(size):
    """A number of bytes for people.

    Example
    -------
    >>> megabytes(1_500_000)
    '1.5 MB'
    """
    return f"{size / 1e6:.1f} MB"
