"""Files and folders that are whole, or not there."""

import codecs
import contextlib
import errno
import hashlib
import json
import os
import shutil
import time

CONTENTS_FILE = "contents.json"
# Within a tick of the file system's clock a file may change unseen.
_TICK_NS = 10**8
# Nobody needs this long to write a file: who left it is dead.
_ABANDONED_S = 3600
_known = {}  # what tells whether a file has changed -> its SHA-256


def find_fault(folder):
    """Says how a folder differs from its list of files, or None."""
    return next((fault for _, fault in find_faults(folder)), None)


def find_faults(folder, checksums=True):
    """Names each file that a folder's list tells otherwise, and says how.

    It is missing, of another size or, if ``checksums`` are looked at, of
    another content; or it is the list itself.
    """
    try:
        contents = {
            # An earlier version listed sizes alone.
            name: told if isinstance(told, dict) else {"bytes": told}
            for name, told in read_contents(folder).items()
        }
        sizes = {name: told["bytes"] for name, told in contents.items()}
    except FileNotFoundError:
        yield CONTENTS_FILE, f"{CONTENTS_FILE} is missing"
        return
    except (ValueError, KeyError, AttributeError, RecursionError):
        yield CONTENTS_FILE, f"{CONTENTS_FILE} is damaged"
        return
    for name, told in contents.items():
        file = folder / name
        if not file.is_file():
            yield name, f"{name} is missing"
        elif file.stat().st_size != sizes[name]:
            size = file.stat().st_size
            yield name, f"{name} has {size} bytes instead of {sizes[name]}"
        elif checksums and len(told) > 1 and told.get("sha256") != sha256(file):
            yield name, f"{name} is damaged (its SHA-256 is not the one listed)"


def read_contents(folder):
    """Reads a folder's list of files: what ``describe`` tells, by name."""
    file = folder / CONTENTS_FILE
    if not file.is_file():  # of a pipe nothing would ever come
        raise FileNotFoundError(file)
    return json.loads(file.read_text())


def write_contents(folder, contents):
    """Writes the list of a folder's files into it, for ``find_faults``."""
    write_atomically(
        folder / CONTENTS_FILE, json.dumps(contents, indent=1).encode()
    )


def describe(file):
    """What a list of files tells of one: its size and its checksum."""
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def sha256(file):
    """The SHA-256 of a file; one that has not changed is read once."""
    stat = os.stat(file)
    times = stat.st_mtime_ns, stat.st_ctime_ns
    stamp = stat.st_dev, stat.st_ino, stat.st_size, *times
    if stamp in _known:
        return _known[stamp]
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while part := content.read(2**20):
            digest.update(part)
    if time.time_ns() - max(times) > _TICK_NS:
        _known[stamp] = digest.hexdigest()
    return digest.hexdigest()


def decode(content):
    """Makes text of bytes in UTF-8, in marked UTF-16, or else Windows-1252.

    A byte order mark is left out. The corpora's files, and what spreadsheets
    save, are older than the agreement on UTF-8.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def write_atomically(path, content):
    """Writes bytes so that ``path`` holds the old or the new, never a part."""
    # Same folder, hence same file system: os.replace is then atomic.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        put_in_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_abandoned(folder, pattern="*.partial", seconds=_ABANDONED_S):
    """Removes what a process that was killed has left in a folder.

    Another may be at what is younger than so many seconds.
    """
    for partial in folder.glob(pattern):
        # Another process may remove it too, or this one may only read.
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime < seconds:
                continue
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink()


def put_in_place(partial, path):
    """Renames a file or folder, once all that it holds is on the disk.

    Else a power cut might leave the name, and nothing or zeros behind it.
    """
    flush(partial)
    os.replace(partial, path)
    _sync(path.parent)


def flush(path):
    """Waits until a file, or a folder and all in it, is on the disk."""
    for inside in path.rglob("*") if path.is_dir() else ():
        _sync(inside)
    _sync(path)


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # So say file systems that know no such thing, some network drives.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
