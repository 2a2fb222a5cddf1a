"""Files and folders that are whole, or not there."""

import errno
import json
import os

CONTENTS_FILE = "contents.json"


def find_fault(folder):
    """Says what a folder lacks of its list of files, or None.

    That is a file that is missing or of another size, or the list itself.
    """
    try:
        sizes = read_contents(folder)
    except FileNotFoundError:
        return f"{CONTENTS_FILE} is missing"
    except ValueError:
        return f"{CONTENTS_FILE} is damaged"
    for name, size in sizes.items():
        file = folder / name
        if not file.exists():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
    return None


def read_contents(folder):
    """Reads a folder's list of files: the bytes of each, by its name."""
    return json.loads((folder / CONTENTS_FILE).read_text())


def write_contents(folder, sizes):
    """Writes the list of a folder's files into it, for ``find_fault``."""
    write_atomically(
        folder / CONTENTS_FILE, json.dumps(sizes, indent=1).encode()
    )


def write_atomically(path, content):
    """Writes bytes so that ``path`` holds the old or the new, never a part."""
    # Same folder, hence same file system: os.replace is then atomic.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        put_in_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
