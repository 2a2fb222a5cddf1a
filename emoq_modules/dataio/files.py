"""Files and folders that are whole, or not there."""

import json
import os

CONTENTS_FILE = "contents.json"


def find_fault(folder):
    """Compares a folder with the list of files that is in it.

    Arguments
    ---------
    folder : Path
        A folder that ``write_contents`` has listed.

    Returns
    -------
    str | None
        What is wrong: a file is missing or of another size, or the list is
        missing or damaged. None if nothing is.
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
    """Reads the list that ``write_contents`` has written.

    Arguments
    ---------
    folder : Path
        The folder.

    Returns
    -------
    dict[str, int]
        The size in bytes of each file that should be there, by its name.
    """
    return json.loads((folder / CONTENTS_FILE).read_text())


def write_contents(folder, sizes):
    """Writes the list of a folder's files into it, for ``find_fault``.

    Arguments
    ---------
    folder : Path
        The folder.
    sizes : dict[str, int]
        The size in bytes of each file, by its name.
    """
    write_atomically(
        folder / CONTENTS_FILE, json.dumps(sizes, indent=1).encode()
    )


def write_atomically(path, content):
    """Write bytes so that ``path`` holds the old or the new, never a part.

    Arguments
    ---------
    path : Path
        Its folder must exist.
    content : bytes
        The whole new content.
    """
    # Same folder, hence same file system: os.replace is then atomic.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
