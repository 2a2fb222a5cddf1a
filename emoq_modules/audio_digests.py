"""Content digests of audio files, without reading them all at each start."""

import hashlib
import json
import os
import time
from pathlib import Path

from speechbrain.utils.logger import get_logger

from emoq_modules.audio_files import write_atomically

logger = get_logger(__name__)


def digest_of(content):
    """Digest of bytes: 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class AudioDigests:
    """Digests of files, remembered as long as the files do not change.

    Arguments
    ---------
    file : Path
        JSON that keeps them from process to process. Processes may lose each
        other's entries, which costs them reading some audio again.

    Example
    -------
    >>> wav = getfixture("tmp_path") / "a.wav"
    >>> _ = wav.write_bytes(b"any bytes")
    >>> len(AudioDigests(wav.parent / "digests.json").of(wav))
    32
    """

    def __init__(self, file):
        self._file = file
        self._known = self._read()
        self._unsaved = False

    def of(self, path):
        """Digest of the bytes of the file that is at ``path`` now."""
        path = os.path.abspath(path)
        stat = os.stat(path)
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        known = self._known.get(path)
        if known and known[1:] == stamp:
            return known[0]
        digest = digest_of(Path(path).read_bytes())
        # What has changed a moment ago could change again within one tick of
        # the file system's clock.
        if time.time_ns() - max(stamp[1:]) > 1e9:
            self._known[path] = [digest, *stamp]
            self._unsaved = True
        return digest

    def save(self):
        """Writes what is new; that it cannot is no reason to stop."""
        if not self._unsaved:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            known = {**self._read(), **self._known}
            write_atomically(self._file, json.dumps(known).encode())
            self._unsaved = False
        except OSError as error:
            logger.warning(
                f"Cannot write {self._file} ({error}): the next run will read "
                "all audio again to see what has changed."
            )

    def _read(self):
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(known, dict):
            return {}
        return {
            path: entry
            for path, entry in known.items()
            if isinstance(entry, list) and len(entry) == 4
        }
