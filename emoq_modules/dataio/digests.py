"""Digests of the content of audio files, remembered from run to run."""

import hashlib
import io
import os
import time
from pathlib import Path

import numpy as np
from speechbrain.utils.logger import get_logger

from emoq_modules.dataio.digest_table import DigestTable, digest_array
from emoq_modules.dataio.files import write_atomically

logger = get_logger(__name__)

# Beside the feature stores that share it.
DIGESTS_FILE = "audio_digests.npy"
_UNKNOWN = b""
_PATH_CODEC = ("utf-8", "surrogateescape")  # a name need not be UTF-8


def digest_of(content):
    """Computes the digest of some bytes.

    Arguments
    ---------
    content : bytes
        What to digest.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class AudioDigests:
    """Digests of files, remembered as long as the files do not change.

    Arguments
    ---------
    file : Path
        Keeps them from process to process: path, size and times of each file,
        digested themselves, and the digest of its content, 32 bytes in all.
        Processes may lose each other's entries, which costs them reading some
        audio again.

    Example
    -------
    >>> wav = getfixture("tmp_path") / "a.wav"
    >>> _ = wav.write_bytes(b"any bytes")
    >>> len(AudioDigests(wav.parent / "digests.npy").of(wav))
    32
    """

    def __init__(self, file):
        self._file = file
        self._known = self._read()
        self._unsaved = False

    def of(self, path):
        """Digest of what a file holds now; reads it only if it has changed.

        Arguments
        ---------
        path : str or Path
            The file.

        Returns
        -------
        str
            32 hexadecimal digits.

        Raises
        ------
        OSError
            If the file is missing or cannot be read.
        """
        stat = os.stat(path)
        stamp = stamp_of(os.path.join(os.getcwd(), path), stat)
        known = self._known.get(stamp)
        if known is not None:
            return _in_full(known).hex()
        digest = digest_of(Path(path).read_bytes())
        # What has changed a moment ago could change again within one tick of
        # the file system's clock.
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > 1e9:
            self.remember([stamp], [digest])
        return digest

    def remember(self, stamps, digests):
        """Notes the digests of files.

        Arguments
        ---------
        stamps : list of bytes
            What ``stamp_of`` gives for each file.
        digests : list of str
            The digest of what each holds, 32 hexadecimal digits.
        """
        stamps = np.frombuffer(b"".join(stamps), "S16")
        self._known.update(stamps, digest_array(digests))
        self._unsaved = True

    def known(self, paths):
        """Looks up the digests of many files, without reading any.

        Arguments
        ---------
        paths : iterable of str
            Files; they need not exist.

        Returns
        -------
        np.ndarray
            Digests, ``(N,)``, S16; empty where a file is missing, or new, or
            has changed.
        """
        folder, stamps = os.getcwd(), bytearray()
        for path in paths:
            try:
                stat = os.stat(path)
            except OSError:
                stamps += bytes(16)
                continue
            if not path.startswith(os.sep):
                path = os.path.join(folder, path)
            stamps += stamp_of(path, stat)
        return self._known.get_all(np.frombuffer(stamps, "S16"), _UNKNOWN)

    def save(self):
        """Writes new digests to the file; if that fails, there is a warning."""
        if not self._unsaved:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._known.merge(self._read())
            content = io.BytesIO()
            np.save(content, np.stack([self._known.keys, self._known.values]))
            write_atomically(self._file, content.getvalue())
            self._unsaved = False
        except OSError as error:
            logger.warning(
                f"Cannot write {self._file} ({error}): the next run will read "
                "all audio again to see what has changed."
            )

    def _read(self):
        # Not mapped: another machine may replace the file, and then there is
        # nothing behind a mapping on a network's file system.
        try:
            known = np.load(self._file)
        except (OSError, ValueError, EOFError):
            return DigestTable.empty("S16")
        if known.dtype != "S16" or known.ndim != 2 or len(known) != 2:
            return DigestTable.empty("S16")
        return DigestTable(*known)


def stamp_of(path, stat):
    """Digest of a file's path, size and times, which tell if it has changed.

    Arguments
    ---------
    path : str
        The file, from the root on.
    stat : os.stat_result
        What ``os.stat`` says of it.

    Returns
    -------
    bytes
        16 bytes.
    """
    times = f"{stat.st_mtime_ns} {stat.st_ctime_ns}"
    state = f"{path}\0{stat.st_size} {times}".encode(*_PATH_CODEC)
    return hashlib.blake2b(state, digest_size=16).digest()


def _in_full(digest):
    """A digest as numpy gives it, with the zeros at its end."""
    return bytes(digest).ljust(16, b"\0")
