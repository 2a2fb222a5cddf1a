"""What ``emoq evaluate`` measures on: a table, or a corpus as prepared."""

import os
import sys
from collections import Counter
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from emoq_modules.dataio.audio import SAMPLE_RATE, read_audio
from emoq_modules.dataio.labeled import Labeled, count_labels, read_labeled
from emoq_modules.dataio.manifest import DIALOGUES_FILE, SPLITS
from emoq_modules.dataio.manifest_reader import (
    parse_manifest,
    read_dialogues,
    read_manifest,
)
from emoq_modules.dataio.recordings import Recording
from emoq_modules.dataio.splits import SPLITS as SPLIT_NAMES
from emoq_modules.dataio.tables import (
    columns_for,
    open_listing,
    parse_pairs,
    read_table,
)
from emoq_modules.errors import ConfigurationError
from emoq_modules.evaluation.results import RESULTS_FILE, read_results
from emoq_modules.inference.recognizer_folder import SETTINGS_FILE


def find_sources(own):
    """Each table of a command line, or the corpus of its presets."""
    if bool(own.table) == bool(own.preset):
        raise ConfigurationError(
            "What is to be measured is a --table, or the corpus of a --preset: "
            "give one of the two."
        )
    if own.columns and own.preset:
        raise ConfigurationError("--columns is for --table.")
    if own.preset:
        corpus = _Corpus(own)
        for model in own.model:
            corpus.check(model)
        return [corpus]
    # All are read before anything is measured.
    tables = [[*map(read_table, _paths(word))] for word in own.table]
    every = [table for several in tables for table in several]
    given, label_map = parse_pairs(own.columns), parse_pairs(own.label_map)
    sources = []
    for several in tables:
        columns = {}
        for table in several:
            columns |= columns_for(table, every, given)
        sources.append(_Table(open_listing(several, columns), own))
    known = set().union(*(source.labels for source in sources))
    strange = label_map.keys() - known
    if strange:
        raise ConfigurationError(
            f"--label_map names {', '.join(sorted(strange))}, which is no "
            f"label of {', '.join(own.table)}; there are "
            f"{', '.join(sorted(known))}."
        )
    for source in sources:
        source.label_map = {
            word: becomes
            for word, becomes in label_map.items()
            if word in source.labels
        }
    return sources


def _paths(word):
    """A table, or several with commas between, that are measured as one."""
    parts = [part.strip() for part in word.split(",") if part.strip()]
    return [word] if Path(word).exists() else parts or [word]


class _Table:
    """Labeled recordings of a table, or of several."""

    def __init__(self, listing, own):
        if own.split:
            listing = _of_split(listing, own.split)
        self._listing, self._own = listing, own
        self.labels = {row["emotion"] for row in listing.rows} - {""}
        self.label_map = {}

    @property
    def name(self):
        """That of its file, or of its files."""
        names = (Path(path).stem for path in str(self).split(", "))
        return "+".join(names)

    def __str__(self):
        return self._listing.name

    def count_labels(self):
        """How many there are of each label."""
        return count_labels(self._listing, None, self.label_map)

    def read(self, labels):
        """Rows of these labels, dialogues, and what is left out."""
        folder = self._own.data_folder
        if folder is None:
            folder = os.path.commonpath(self._listing.folders)
        rows, dialogues, skipped = read_labeled(
            self._listing, folder or ".", labels, None, self.label_map
        )
        if not rows:
            raise ConfigurationError(f"{self} has no row to recognize.")
        return rows, dialogues, skipped


def _of_split(listing, split):
    """The rows of a split, by whatever of its names the table calls it."""
    wanted = {split.casefold()}
    for names in map(str.split, SPLIT_NAMES.values()):
        wanted |= set(names) if wanted & set(names) else set()
    kept = [
        n
        for n, row in enumerate(listing.rows)
        if row["split"].casefold() in wanted
    ]
    if not kept:
        splits = dict.fromkeys(row["split"] for row in listing.rows)
        raise ConfigurationError(
            f"{listing.name} has no row of the split {split!r}; "
            + (
                f"its splits are {', '.join(map(repr, splits))}."
                if any(splits)
                else "it has no column of splits."
            )
        )
    return replace(
        listing,
        **{
            name: [getattr(listing, name)[n] for n in kept]
            for name in ("rows", "places", "folders")
        },
    )


class _Corpus:
    """A split of a corpus as its recipe prepares it, of all folds together."""

    def __init__(self, own):
        self._own, self._split = own, own.split or "test"
        if self._split not in SPLITS:
            raise ConfigurationError(
                f"--split {own.split} is none of a corpus': "
                f"{', '.join(SPLITS)}."
            )
        self.label_map = parse_pairs(own.label_map)

    def __str__(self):
        return self.name

    @cached_property
    def _runs(self):
        # SpeechBrain takes a second to import, and tables need none of it.
        from emoq_modules.commands.reproduce_runs import PROJECT, check_clone
        from emoq_modules.training.configuration import (
            plan_runs,
            read_options,
        )

        check_clone("evaluate --preset")
        sys.path.append(str(PROJECT))  # where recipes are
        words = list(self._own.rest)
        if self._own.data_folder:
            words += ["--data_folder", self._own.data_folder]
        experiment = PROJECT / "hparams/emoq_stage1.yaml"
        options, _ = read_options(experiment, words)
        return plan_runs(experiment, self._own.preset, options, self._own.fold)

    @cached_property
    def name(self):
        """What the preset calls it."""
        return self._runs[0].hparams["corpus"]

    @cached_property
    def _read(self):
        """Rows by their id, and dialogues."""
        rows, dialogues = {}, {}
        labels = set(self._runs[0].hparams["labels"])
        strange = self.label_map.keys() - labels
        if strange:
            raise ConfigurationError(
                f"--label_map names {', '.join(sorted(strange))}, which is no "
                f"label of {self}: {', '.join(sorted(labels))}."
            )
        for run in self._runs:
            values = run.hparams
            values["prepare"]()
            folder = Path(values["manifest_folder"])
            dialogues |= read_dialogues(folder / DIALOGUES_FILE)
            found = read_manifest(
                folder / f"{self._split}.json",
                values["labels"],
                values["data_root"],
            )
            for name, row in found.items():
                emotion = self.label_map.get(row.emotion, row.emotion)
                said = replace(row, emotion=emotion)
                path = Path(row.wav)
                rows[name] = Labeled(said, path, None, None, self._split)
        return rows, dialogues

    def count_labels(self):
        """How many there are of each label."""
        rows, _ = self._read
        return Counter(row.utterance.emotion for row in rows.values())

    def check(self, model):
        """Refuses what a run's model has trained on."""
        run = Path(model).parent
        if not (run / RESULTS_FILE).exists():
            return
        trained = read_results(run)
        folds = [run.hparams["fold"] for run in self._runs]
        if trained["corpus"] == self.name and folds != [trained["fold"]]:
            raise ConfigurationError(
                f"{model} has trained on what other folds of {self} test: give "
                f"--fold {trained['fold']}."
            )
        # Another preset, or split, may have the same recordings.
        heard = _trained_on(run) & self._read[0].keys()
        if heard:
            raise ConfigurationError(
                f"{model} has trained on {len(heard)} of the "
                f"{len(self._read[0])} recordings of {self}: choose folds, or "
                "a split, of which it has heard none."
            )

    def read(self, labels):
        """Rows of these labels, dialogues, and what is left out."""
        rows, dialogues = self._read
        kept = [row for row in rows.values() if row.utterance.emotion in labels]
        return kept, dialogues, {}


def _trained_on(run):
    """Ids of the utterances that a run has trained on, where it is known."""
    from emoq_modules.training.configuration import StageRun

    if not (run / SETTINGS_FILE).exists():
        return set()
    text = (run / SETTINGS_FILE).read_text(encoding="utf-8")
    manifest = Path(StageRun(text).hparams["manifest_folder"], "train.json")
    return parse_manifest(manifest).keys() if manifest.exists() else set()


def as_recording(row, dialogues):
    """A row as the recognizer takes it, with the turns before if wanted."""
    said, samples, before = row.utterance, None, ()
    if dialogues:
        before = tuple(
            (turn.speaker, turn.text)
            for turn in sorted(dialogues[said.dialogue])
            if turn.turn < said.turn
        )
    if row.start is not None:
        first, last = (round(x * SAMPLE_RATE) for x in (row.start, row.end))
        samples = read_audio(row.recording)[first:last]
    return Recording(
        row.recording, said.text, said.speaker or None, before, samples
    )
