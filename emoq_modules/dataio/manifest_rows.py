"""A manifest's rows, stored by columns in a file that is mapped.

As ``dict`` objects the rows of a large corpus take much memory, of which each
data loader worker comes to hold a copy: to read an object is to count a
reference to it. Mapped from a file they take none that anything else wants, and
need not be parsed at each start.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
import safetensors
import safetensors.numpy

from emoq_modules.dataio.files import write_atomically

DATA_ROOT = "{data_root}"
_NUMBERS = {"duration": "float64", "turn": "int64"}
# JSON may hold half a character, which UTF-8 knows not.
_CODEC = ("utf-8", "surrogatepass")
_CHUNK = 10_000
# Raise it when the files' meaning changes, so that old ones are not read.
_FORMAT = "1"


class ManifestRows(Sequence):
    """Rows in the order of the manifest, each a ``dict`` that has its ``id``.

    Arguments
    ---------
    columns : Sequence[str]
        Their columns, in order.
    arrays : dict[str, np.ndarray]
        Of a column of numbers its values, ``(N,)``; of one of texts their
        bytes, one after the other, and under ``<column> bounds`` where each
        begins and ends, ``(N + 1,)``.
    data_root : str or Path, optional
        What ``{data_root}`` in ``wav`` stands for.

    Example
    -------
    >>> columns = "id", "wav", "duration"
    >>> row = {"wav": "{data_root}/a1.wav", "duration": 1.5}
    >>> rows = ManifestRows(columns, pack_rows(columns, {"a1": row}), "data")
    >>> rows[0], len(rows), list(rows.column("duration"))
    ({'id': 'a1', 'wav': 'data/a1.wav', 'duration': 1.5}, 1, [1.5])
    """

    def __init__(self, columns, arrays, data_root=None):
        self.columns = columns
        self._arrays = arrays
        self._data_root = DATA_ROOT if data_root is None else str(data_root)

    def __len__(self):
        return len(self._arrays["id bounds"]) - 1

    def __getitem__(self, place):
        place = range(len(self))[place]  # of -1 the last; an IndexError
        return {
            column: next(self._values(column, place, place + 1))
            for column in self.columns
        }

    def column(self, name):
        """Reads one column, row after row.

        Arguments
        ---------
        name : str
            One of ``columns``.

        Yields
        ------
        str | float | int
            The value of each row; ``{data_root}`` in ``wav`` is resolved.
        """
        for start in range(0, len(self), _CHUNK):
            yield from self._values(name, start, start + _CHUNK)

    def _values(self, column, start, stop):
        array = self._arrays[column]
        if column in _NUMBERS:
            yield from array[start:stop].tolist()
            return
        bounds = self._arrays[f"{column} bounds"][start : stop + 1].tolist()
        first = bounds[0]
        content = array[first : bounds[-1]].tobytes()
        if content.isascii():  # then a place among bytes is one among letters
            content = content.decode()
        for begin, end in pairwise(bounds):
            text = content[begin - first : end - first]
            if isinstance(text, bytes):
                text = text.decode(*_CODEC)
            if column == "wav":
                text = text.replace(DATA_ROOT, self._data_root)
            yield text


class Manifest(Mapping):
    """A manifest as ``DynamicItemDataset`` takes it: id -> the other columns.

    Arguments
    ---------
    rows : ManifestRows
        Its rows.
    digests : np.ndarray
        Digests of their audio, ``(N,)``, S16; empty where not known.
    """

    def __init__(self, rows, digests):
        self.rows = rows
        self.digests = digests

    @cached_property
    def _places(self):
        """Made for who looks rows up by id; no run does."""
        return {id_: place for place, id_ in enumerate(self)}

    def __getitem__(self, id_):
        row = self.rows[self._places[id_]]
        del row["id"]
        return row

    def __iter__(self):
        return self.rows.column("id")

    def __len__(self):
        return len(self.rows)


def pack_rows(columns, rows):
    """Makes the arrays of ``ManifestRows``.

    Arguments
    ---------
    columns : Sequence[str]
        ``id``, and those of each row.
    rows : Mapping[str, Mapping]
        Id -> the other columns.

    Returns
    -------
    dict[str, np.ndarray]
        Names -> arrays, as ``ManifestRows`` takes them.
    """
    arrays = {}
    for column in columns:
        if column == "id":
            values = list(rows)
        else:
            values = [row[column] for row in rows.values()]
        if column in _NUMBERS:
            arrays[column] = np.array(values, _NUMBERS[column])
            continue
        texts = [value.encode(*_CODEC) for value in values]
        bounds = np.cumsum([0, *map(len, texts)], dtype="int64")
        arrays[column] = np.array(bytearray(b"".join(texts)), "uint8")
        arrays[f"{column} bounds"] = bounds
    return arrays


def load_rows(file, manifest_digest):
    """Maps the arrays of ``ManifestRows`` from where they were saved.

    Arguments
    ---------
    file : str or Path
        Where ``save_rows`` has written, if it has.
    manifest_digest : str | None
        What ``digest_of_file`` says of the manifest; None finds nothing.

    Returns
    -------
    dict[str, np.ndarray] | None
        Names -> arrays; None if there are none, or those of a manifest of
        other content.
    """
    try:
        with safetensors.safe_open(file, framework="pt") as stored:
            if stored.metadata() != _metadata(manifest_digest):
                return None
            # torch maps the file, where numpy would read it.
            return {
                name: stored.get_tensor(name).numpy() for name in stored.keys()
            }
    except (OSError, safetensors.SafetensorError):
        return None


def save_rows(file, manifest_digest, arrays):
    """Saves the arrays of ``ManifestRows`` for ``load_rows``.

    Arguments
    ---------
    file : Path
        Where to write.
    manifest_digest : str
        What ``digest_of_file`` says of the manifest.
    arrays : dict[str, np.ndarray]
        What ``pack_rows`` gives.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    metadata = _metadata(manifest_digest)
    write_atomically(file, safetensors.numpy.save(arrays, metadata))


def _metadata(manifest_digest):
    return {"format": _FORMAT, "manifest": manifest_digest}
