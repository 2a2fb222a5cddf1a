"""Which recordings are meant, and what is said in them, from lists of files."""

import codecs
import glob
import os
import sys
import unicodedata
from collections import defaultdict
from pathlib import Path

from emoq_modules.dataio.tables import make_table, read_table
from emoq_modules.errors import ConfigurationError

# What is taken for audio in a folder; a file that is named may be anything.
_AUDIO_SUFFIXES = tuple(
    ".3gp .aac .aif .aifc .aiff .amr .au .avi .caf .flac .flv .m4a .mkv .mov "
    ".mp3 .mp4 .oga .ogg .opus .sph .w64 .wav .webm .wma .wmv".split()
)


def find_recordings(sources):
    """Paths of the audio files that the sources of ``emoq predict`` mean.

    A source that stands for nothing is passed on as it is, for whoever reads it
    to say what is wrong.
    """
    if "" in sources:
        raise ConfigurationError("A source is empty: it names no file.")
    for source in sources:
        if source == "-":
            yield from _listed()
            continue
        if os.path.isdir(source):
            paths = _in_folder(source)
        elif glob.has_magic(source) and not os.path.exists(source):
            found = glob.glob(source, recursive=True)
            # A link that leads back gives each file dozens of names.
            known = {
                os.path.realpath(path): path
                for path in sorted(found, key=len, reverse=True)
                if not os.path.isdir(path)
            }
            paths = iter(sorted(known.values()))
        else:
            paths = iter([source])
        yield next(paths, source)
        yield from paths


def _listed():
    """Paths on standard input, one a line."""
    if sys.stdin is None:
        raise ConfigurationError("- is standard input, and there is none.")
    for number, line in enumerate(sys.stdin.buffer):
        if number == 0:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield os.fsdecode(line.rstrip(b"\r\n"))


class Transcripts:
    """What is said in recordings, from a table, or a manifest of a run.

    A table has a path (or id), a text and, where the speakers are known, a
    speaker, in columns as of ``Table.find_columns``. A recording is looked for
    by its path, as it is given, in full or from the folder of this file, by its
    file's name, whatever folder the table has it in, and by that without its
    ending; ``missing`` are those asked for that have no row. ConfigurationError
    if the file lacks a column, or has two rows of a recording that differ.
    """

    def __init__(self, file):
        self.file, self.missing, self._rows = file, [], {}
        table = _as_table(file)
        columns = table.find_columns(("path", "text", "speaker"))
        if not {"path", "text"} <= columns.keys():
            raise ConfigurationError(
                f"The transcripts in {file} need the columns path and text, "
                f"and perhaps speaker; there are {', '.join(table.columns)}."
            )
        names = defaultdict(set)
        for row in table.rows:
            path, text = _same(row[columns["path"]]), row[columns["text"]]
            found = text, row.get(columns.get("speaker")) or None
            if self._rows.setdefault(path, found) != found:
                raise ConfigurationError(
                    f"{file} has two different rows for {path}."
                )
            beside = _same(os.path.abspath(Path(file).parent / path))
            self._rows.setdefault(beside, found)
            names[os.path.basename(path)].add(found)
        for name, of_files in names.items():
            # Two files of one name in two folders are told apart by path alone.
            if len(of_files) == 1:
                self._rows.setdefault(name, *of_files)

    def find(self, path):
        """Text and speaker of a recording, ``("", None)`` if it has no row."""
        name = Path(path)
        for key in (path, os.path.abspath(path), name.name, name.stem):
            if _same(key) in self._rows:
                return self._rows[_same(key)]
        self.missing.append(path)
        return "", None

    def complaint(self):
        """What to tell of the recordings without a row."""
        dots = ", ..." if len(self.missing) > 3 else ""
        return (
            f"{len(self.missing)} of the recordings have no row in "
            f"{self.file}: {', '.join(self.missing[:3])}{dots}"
        )


def _as_table(file):
    if Path(file).suffix != ".json":
        return read_table(file)
    # It opens audio, too, and with it torch, which takes seconds.
    from emoq_modules.dataio.manifest_reader import parse_manifest

    rows = parse_manifest(file).values()
    return make_table(
        file,
        ({"path": x.wav, "text": x.text, "speaker": x.speaker} for x in rows),
    )


def _same(path):
    """One writing of a path: macOS takes letters apart, Windows has ``\\``."""
    return unicodedata.normalize("NFC", str(path)).replace("\\", "/")


def _in_folder(folder):
    """Audio files below a folder, through links; the rest is counted."""
    unread, others, entered = [], 0, set()
    for where, folders, names in os.walk(
        folder,
        onerror=lambda error: unread.append(error.filename),
        followlinks=True,
    ):
        inside = os.path.realpath(where)
        if inside in entered:  # a link that leads back, or twice to a folder
            folders.clear()
            continue
        entered.add(inside)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in sorted(names):
            # macOS puts a hidden "._a.wav" beside many an "a.wav".
            if name[0] == ".":
                continue
            if name.lower().endswith(_AUDIO_SUFFIXES):
                yield os.path.join(where, name)
            else:
                others += 1
    yield from unread
    if others:
        print(
            f"{others} of the files in {folder} are not called like audio or "
            "video, and were left out; what is named by itself is read "
            "whatever it is called.",
            file=sys.stderr,
        )
