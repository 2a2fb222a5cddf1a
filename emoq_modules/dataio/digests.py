"""Digests of the content of audio files, remembered from run to run."""

import hashlib
import io
import os
import time
from pathlib import Path

import numpy as np
from speechbrain.utils.logger import get_logger

from emoq_modules.dataio.files import write_atomically

logger = get_logger(__name__)

# Beside the feature stores that share it.
DIGESTS_FILE = "audio_digests.npy"
_SIZE = 16  # bytes


def digest_of(content):
    """The digest of some bytes: 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=_SIZE).hexdigest()


class AudioDigests:
    """Digests of files, remembered as long as the files do not change.

    The ``file`` keeps them from process to process: path, size and times of
    each file, digested themselves, and the digest of its content, 32 bytes in
    all. Processes may lose each other's entries, which costs them reading some
    audio again.
    """

    def __init__(self, file):
        self._file = file
        self._known = self._read()  # stamp -> digest, as bytes
        self._unsaved = False

    def of(self, path):
        """Digest of what a file holds now; reads it only if it has changed."""
        stat = os.stat(path)
        known = self._known.get(_stamp(path, stat))
        if known is not None:
            return known.hex()
        digest = digest_of(Path(path).read_bytes())
        # What has changed a moment ago could change again within one tick of
        # the file system's clock.
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > 1e9:
            self.remember(path, stat, digest)
        return digest

    def known(self, path):
        """Digest of a file, without reading it.

        None if the file is missing, or new, or has changed.
        """
        try:
            known = self._known.get(_stamp(path, os.stat(path)))
        except OSError:
            return None
        return known and known.hex()

    def remember(self, path, stat, digest):
        """Notes a file's digest, and its ``os.stat`` before it was read."""
        self._known[_stamp(path, stat)] = bytes.fromhex(digest)
        self._unsaved = True

    def save(self):
        """Writes new digests to the file; if that fails, there is a warning."""
        if not self._unsaved:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            known = self._read() | self._known
            rows = b"".join([*known, *known.values()])
            content = io.BytesIO()
            np.save(content, np.frombuffer(rows, f"S{_SIZE}").reshape(2, -1))
            write_atomically(self._file, content.getvalue())
            self._unsaved = False
        except OSError as error:
            logger.warning(
                f"Cannot write {self._file} ({error}): the next run will read "
                "all audio again to see what has changed."
            )

    def _read(self):
        try:
            table = np.load(self._file)
        except (OSError, ValueError, EOFError):
            return {}
        if table.dtype != f"S{_SIZE}" or table.ndim != 2 or len(table) != 2:
            return {}
        content = table.tobytes()
        digests = [
            content[start : start + _SIZE]
            for start in range(0, len(content), _SIZE)
        ]
        number = table.shape[1]
        return dict(zip(digests[:number], digests[number:], strict=True))


def _stamp(path, stat):
    """Digest of a file's path, size and times, which tell if it has changed."""
    path = os.fspath(path)
    if not os.path.isabs(path):
        path = os.path.join(os.getcwd(), path)
    times = f"{stat.st_mtime_ns} {stat.st_ctime_ns}"
    # A name need not be UTF-8.
    state = f"{path}\0{stat.st_size} {times}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(state, digest_size=_SIZE).digest()
