"""Tables that people have: CSV in any of its dialects, or Parquet.

The separator, the encoding and the line ends are found; what cannot be meant,
such as a row of more cells than the header or a quote that is never closed, is
named with its line. Values stay text.
"""

import codecs
import csv
import hashlib
import io
import json
import logging
import os
import re
import string
import unicodedata
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from emoq_modules.dataio.files import decode
from emoq_modules.dataio.manifest import list_faults
from emoq_modules.errors import CorpusError

logger = logging.getLogger(__name__)

# What a column is usually called, the commonest first, in small letters and
# without what lies between words: StartTime and start_time are one.
USUAL_NAMES = {
    "path": "path file filename filepath wav audio fileid id",
    "emotion": "emotion label emo class category",
    "text": "text transcript transcription sentence utterance rawtext words",
    "speaker": "speaker speakerid spk actor",
    "dialogue": "dialogue dialogueid dialog dialogid conversation call",
    "turn": "turn turnid utteranceid",
    "session": "session sessionid",
    "split": "split set subset partition",
    "start": "start starttime begin onset",
    "end": "end endtime stop offset",
}
_NEEDED = ("path", "emotion")
_SEPARATORS = ",;\t|"
# What stands around a cell unseen.
_BLANKS = string.whitespace + "\u00a0\u200b\u2060\u3000\ufeff"
_UTF_16 = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE
_PARQUET = b"PAR1"
_ZIP = b"PK\x03\x04"  # what a file of Excel begins with


@dataclass(frozen=True)
class Table:
    """A table in memory: ``rows`` map a column to a text."""

    path: Path
    columns: list
    rows: list
    lines: list  # where each row begins in the file, from 1 on

    def find_columns(self, names, given=None):
        """Which column holds each of ``names``, as far as there is one.

        ``given`` are those that a person has named; the others are looked for
        by their ``USUAL_NAMES``. CorpusError where a given one is not there.
        """
        found = {}
        for name in names:
            wanted = USUAL_NAMES[name].split()
            if name in (given or {}):
                wanted = [given[name]]
                if not self.called(given[name]):
                    raise CorpusError(
                        f"{self.path} has no column {given[name]!r} for "
                        f"{name}; it has {', '.join(self.columns)}."
                    )
            columns = next(filter(None, map(self.called, wanted)), [])
            if len(columns) > 1:
                raise CorpusError(
                    f"{self.path} has several columns for {name}, "
                    f"{', '.join(columns)}: say which by --columns "
                    f"{name}=COLUMN."
                )
            if columns:
                found[name] = columns[0]
        return found

    def called(self, name):
        """The columns of a name, and if there are none those much like it."""
        same = [column for column in self.columns if column == name]
        bare = _bare(name)
        like = [x for x in self.columns if bare and _bare(x) == bare]
        return same or like


@dataclass(frozen=True)
class Listing:
    """Recordings that one table lists, or several.

    ``rows`` map each of ``USUAL_NAMES``, and ``corpus``, to a text, empty where
    it is not told: ``corpus`` is the table that a row is from, where there are
    several. Beside each row is its place, for a message, and the folder of its
    table.
    """

    name: str
    rows: list
    places: list
    folders: list

    @property
    def digest(self):
        """By which it is known if what is listed has changed."""
        rows = json.dumps(self.rows, ensure_ascii=False)
        return hashlib.sha256(rows.encode()).hexdigest()


def open_listing(tables, columns=None):
    """Reads the table, or the several, that list recordings.

    Arguments
    ---------
    tables : str | Path | list | Table
        A table, or several: as a list, or with commas between.
    columns : str | dict
        As of ``parse_pairs``, which column holds what, where it has no usual
        name; ``session=`` has a column not looked at.

    Returns
    -------
    Listing
        One that is opened already is returned.

    Raises
    ------
    CorpusError
        A table that cannot be read, or columns that are not to be found.
    """
    if isinstance(tables, Listing):
        return tables
    if isinstance(tables, str) and not Path(tables).exists():
        tables = [part.strip() for part in tables.split(",") if part.strip()]
    if not isinstance(tables, list):
        tables = [tables]
    if len(set(map(str, tables))) < len(tables):
        raise CorpusError(
            f"A table is named twice: {', '.join(map(str, tables))}."
        )
    tables = [read_table(table) for table in tables]
    given = parse_pairs(columns)
    unknown = [name for name in given if name not in USUAL_NAMES]
    if unknown:
        raise CorpusError(
            f"columns names {unknown[0]!r}, which is none of "
            f"{', '.join(USUAL_NAMES)}."
        )
    paths = [table.path for table in tables]
    corpora = _tell_apart(paths) if len(tables) > 1 else [""]
    rows, places = [], []
    for table, corpus in zip(tables, corpora, strict=True):
        found = _columns_of(table, columns_for(table, tables, given))
        for line, row in zip(table.lines, table.rows, strict=True):
            cells = {
                name: row[found[name]] if name in found else ""
                for name in USUAL_NAMES
            }
            # One letter may be written in two ways; a path is as the disk has
            # it.
            cells |= {
                name: unicodedata.normalize("NFC", cell)
                for name, cell in cells.items()
                if name != "path"
            }
            rows.append(cells | {"corpus": corpus})
            places.append(f"line {line}" + f" of {table.path}" * bool(corpus))
    folders = [[table.path.parent] * len(table.rows) for table in tables]
    return Listing(
        ", ".join(map(str, paths)), rows, places, list(chain(*folders))
    )


def columns_for(table, tables, given):
    """Those of the ``given`` columns that are meant for one of the tables.

    Of several one may lack what another has by a strange name.
    """
    others = [x for x in tables if x is not table]
    return {
        name: column
        for name, column in given.items()
        if table.called(column) or not any(x.called(column) for x in others)
    }


def _columns_of(table, given):
    """Which column of a table holds what; told in the log."""
    wanted = [name for name in USUAL_NAMES if given.get(name) != ""]
    found = table.find_columns(wanted, given)
    if "dialogue" not in found:
        found.pop("turn", None)  # a turn of nothing
    for name in _NEEDED:
        if name not in found:
            raise CorpusError(
                f"{table.path} has no column that is called as the {name} "
                f"usually is; it has {', '.join(table.columns)}. Name it by "
                f"--columns {name}=COLUMN."
            )
    told = [f"{name} = {found.get(name, 'none')}" for name in USUAL_NAMES]
    logger.info(f"Columns of {table.path}: {', '.join(told)}.")
    return found


def _tell_apart(paths):
    """Names of tables: that of the file, with folders where those are equal."""
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        full = [path.absolute().with_suffix("") for path in paths]
        shared = os.path.commonpath(full)
        names = [path.relative_to(shared).as_posix() for path in full]
    return names


def parse_pairs(pairs):
    """A mapping, given as one or as ``"ang=angry, exc=happy"``.

    Example
    -------
    >>> parse_pairs("ang=angry, exc = happy")
    {'ang': 'angry', 'exc': 'happy'}
    """
    if not isinstance(pairs, str):
        return dict(pairs or {})
    pairs = unicodedata.normalize("NFC", pairs)
    parts = [part for part in pairs.split(",") if part.strip()]
    split = [[x.strip() for x in part.split("=", 1)] for part in parts]
    keys = [pair[0] for pair in split]
    if any(len(pair) != 2 or not pair[0] for pair in split):
        raise CorpusError(
            f"{pairs!r} has to be like 'ang=angry, exc=happy' (of --label_map) "
            "or 'path=file_id, emotion=emo' (of --columns)."
        )
    if len(set(keys)) < len(keys):
        raise CorpusError(f"{pairs!r} names one thing twice.")
    return dict(split)


def make_table(name, rows):
    """Makes a ``Table`` of dicts, of which each has some of the columns."""
    rows = list(rows)
    if not rows:
        raise CorpusError(f"No recording of the corpus is in {name}.")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    rows = [{column: row.get(column, "") for column in columns} for row in rows]
    return Table(Path(name), columns, rows, list(range(1, len(rows) + 1)))


def read_table(path):
    """Reads a table, in UTF-8, UTF-16 or Windows-1252, or in Parquet.

    One that is read already is returned. ``CorpusError`` says what is wrong
    with it, of all its rows at once.
    """
    if isinstance(path, Table):
        return path
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror.lower()
        raise CorpusError(
            f"The table {path} cannot be read: {reason}."
        ) from None
    if content.startswith(_ZIP):
        raise CorpusError(
            f"{path} is a file of Excel, or an archive: save the table as CSV."
        )
    if content.startswith(_PARQUET):
        cells = _parquet_cells(path, content)
    else:
        cells = _csv_cells(path, content)
    if not cells:
        raise CorpusError(f"The table {path} is empty.")
    (_, columns), *rows = cells
    columns = [name.strip(_BLANKS) for name in columns]
    if len(columns) == 1 and rows and all(len(row) > 1 for _, row in rows):
        raise CorpusError(
            f"The first line of {path}, {columns[0][:60]!r}, is no header: it "
            "has to name the columns, with commas, semicolons or tabs between."
        )
    repeated = [name for name, n in Counter(columns).items() if n > 1]
    if repeated:
        raise CorpusError(
            f"{path} has several columns {repeated[0]!r}: give each its own "
            "name."
        )
    if not rows:
        raise CorpusError(
            f"{path} has a header ({', '.join(columns)}), and no rows."
        )
    faults = [
        f"line {line}: {len(row)} cells, where the header has {len(columns)}; "
        "a text that holds the separator has to be in quotes"
        for line, row in rows
        if len(row) != len(columns)
    ]
    if faults:
        raise CorpusError(f"The table {path} has {list_faults(faults)}")
    lines, values = zip(*rows, strict=True)
    values = [[cell.strip(_BLANKS) for cell in row] for row in values]
    rows = [dict(zip(columns, row, strict=True)) for row in values]
    return Table(path, columns, rows, list(lines))


def _bare(name):
    return "".join(filter(str.isalnum, name.casefold()))


def _csv_cells(path, content):
    """Line and cells of the header and of each row that is not empty."""
    _check_encoding(path, content)
    text = decode(content)
    if "\0" in text:
        raise CorpusError(
            f"{path} is no text that can be read: save the table as CSV, in "
            "UTF-8."
        )
    # Excel can be told the separator by a first line, "sep=;".
    text = re.sub(r"\A\W*sep=(.)(?=\r?\n)", "", text)
    # A header is what says how the table is written: a text may hold anything.
    header = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(
        _SEPARATORS,
        key=lambda mark: len(next(csv.reader([header], delimiter=mark), ())),
    )
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, strict=True
    )
    cells, line = [], 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                cells.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise CorpusError(
            f"{path} is no CSV from line {line} on ({error}): is a quote there "
            "that is not closed, or not doubled?"
        ) from None
    return cells


def _check_encoding(path, content):
    """Refuses a table of which some lines are in UTF-8, and others not."""
    told, strange = None, None
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            if not line.decode("utf-8").isascii():
                told = told or number
        except UnicodeDecodeError:
            strange = strange or number
        if told and strange and not content.startswith(_UTF_16):
            raise CorpusError(
                f"{path} is in two encodings: line {told} is in UTF-8, and "
                f"line {strange} is not. Save it in UTF-8."
            )


def _parquet_cells(path, content):
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError:
        raise CorpusError(
            f"{path} is in Parquet: `pip install pyarrow` reads it."
        ) from None
    try:
        table = parquet.read_table(io.BytesIO(content))
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CorpusError(f"{path} is damaged: {reason}") from None
    # What is nested or binary, such as sound itself, is no cell of a table.
    known = [
        (field.name, column.to_pylist())
        for field, column in zip(table.schema, table.columns, strict=True)
        if not (types.is_nested(field.type) or types.is_binary(field.type))
    ]
    names, columns = zip(*known, strict=True) if known else ((), ())
    rows = zip(*(map(_cell, column) for column in columns), strict=True)
    return [(1, list(names)), *enumerate(map(list, rows), start=2)]


def _cell(value):
    """A value as text; None, and what is not a number, is an empty cell."""
    return "" if value is None or value != value else str(value)
