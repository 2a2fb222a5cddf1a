"""``emoq evaluate``: a trained recognizer on other labeled recordings."""

import sys
import time
from pathlib import Path

from emoq_modules.commands.options import (
    add_command,
    add_model_options,
    add_recognition_options,
    load_recognizer,
)
from emoq_modules.errors import AudioError, ConfigurationError

_MATRIX_FILE = "matrix.png"

_DESCRIPTION = """\
Measures a trained EmoQ on the labeled recordings of a table: WA, UA and WF1
with intervals, recalls, confusion and calibration. Measured is over the classes
that both have; what one side lacks is named, and left out.
"""
_EXAMPLES = """\
examples:
  emoq evaluate --model RUN/recognizer --table test.csv
  emoq evaluate --model RUN/recognizer --table test.csv --data_folder wavs/ \\
      --columns "path=file_id, emotion=emo" --label_map "joy=happy, rage=angry"
  emoq evaluate --model A/recognizer --model B/recognizer --table a.csv \\
      --table b.csv
      each model on each table, and one matrix of UA

exit status: 0; 1 if some recordings could not be recognized, which are named
and not measured; 2 if the command is wrong.
"""


def add_evaluate(commands):
    """Adds ``evaluate`` to the commands of ``emoq``."""
    command = add_command(
        commands,
        "evaluate",
        _evaluate,
        "measure a trained system on labeled recordings",
        _DESCRIPTION,
        _EXAMPLES,
    )
    add_model_options(command, several=True)
    command.add_argument(
        "--table",
        required=True,
        action="append",
        metavar="CSV",
        help="a row for each recording, or part of one: path and emotion, and "
        "where they are known text, speaker, dialogue, turn, session, start "
        "and end; repeatable",
    )
    command.add_argument(
        "--data_folder",
        metavar="FOLDER",
        help="what paths in the table are relative to; its own folder if not "
        "given",
    )
    command.add_argument(
        "--columns",
        metavar="PAIRS",
        help="columns of unusual names: 'path=file_id, emotion=emo'",
    )
    command.add_argument(
        "--label_map",
        metavar="PAIRS",
        help="the model's word for a label of the table: 'joy=happy'",
    )
    add_recognition_options(command)
    command.add_argument(
        "--split",
        metavar="NAME",
        help="only rows of this split of the table, as it is written there",
    )
    command.add_argument(
        "--out",
        default="evaluation",
        metavar="FOLDER",
        help="where predictions.csv, results.json and pictures go "
        "(evaluation); of several models or tables, to a folder each in it",
    )


def _evaluate(own):
    from emoq_modules.evaluation.results import format_summary
    from emoq_modules.evaluation.run_page import PAGE_FILE

    out, failed, found = Path(own.out), False, []
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"--out {out} is a file: name a folder.")
    several = len(own.model) * len(own.table) > 1
    for number, model in enumerate(own.model, start=1):
        recognizer = load_recognizer(own, model)
        found.append([])
        for table in own.table:
            name = Path(table).stem
            folder = out / f"{number}-{name}" if several else out
            if several:
                print(f"{model} on {table}\n")
            stats, info = _measure(recognizer, table, own, folder, model)
            pages = [folder / PAGE_FILE]
            print(format_summary({name: {folder: stats}}, pages))
            print(_told(stats, info), end="\n\n" if several else "\n")
            for fault in info["not_recognized"]:
                print(f"not recognized: {fault}", file=sys.stderr)
            failed |= bool(info["not_recognized"])
            found[-1].append(info["UA"])
    if several:
        _compare(own, found, out)
    return 1 if failed else 0


def _measure(recognizer, table, own, out, model):
    """Recognizes a table: its ``EmotionStats``, and ``results.json``."""
    # torch and the models' libraries take seconds to import.
    import torch

    from emoq_modules.dataio.audio import read_audio
    from emoq_modules.dataio.labeled import (
        UNUSABLE,
        count_labels,
        parse_pairs,
        read_labeled,
    )
    from emoq_modules.evaluation.calibration import (
        apply_temperature,
        expected_calibration_error,
    )
    from emoq_modules.evaluation.plots import as_png, plot_reliability
    from emoq_modules.evaluation.results import CONFUSION_FILE, write_results
    from emoq_modules.evaluation.run_page import write_page

    started = time.time()
    counts = count_labels(table, own.columns, own.label_map)
    words = recognizer.hparams.labels
    strange = set(parse_pairs(own.label_map).values()) - set(words)
    if strange:
        raise ConfigurationError(
            f"--label_map names {', '.join(sorted(strange))}, which is no word "
            f"of the model's: {', '.join(words)}."
        )
    labels = _common(words, counts)
    folder = own.data_folder or Path(table).parent
    rows, dialogues, skipped = read_labeled(
        table, folder, labels, own.columns, own.label_map
    )
    if own.split:
        splits = dict.fromkeys(row.split for row in rows)
        rows = [row for row in rows if row.split == own.split]
        if not rows:
            raise ConfigurationError(
                f"{table} has no row of the split {own.split!r} to recognize; "
                f"its splits are {', '.join(map(repr, splits))}."
            )
    if not rows:
        raise ConfigurationError(f"{table} has no row to recognize.")
    untold = sum(not row.utterance.text for row in rows)
    if untold and not own.asr:
        print(
            f"{untold} of {len(rows)} recordings have no text: --asr MODEL "
            "transcribes them.",
            file=sys.stderr,
        )
    stats, faults = _recognize(recognizer, rows, dialogues, labels, own)
    temperature = recognizer.hparams.temperature
    posteriors = torch.stack(stats.posteriors).numpy()
    systems = {"as given": posteriors}
    if temperature != 1:
        scaled = apply_temperature(posteriors, temperature)
        systems[f"T = {temperature:.2f}"] = scaled
    corpus = Path(table).stem
    info = {"corpus": corpus, "fold": None, "stage": None, "seed": None}
    info |= {
        "model": str(model),
        "left_out": {why: len(ids) for why, ids in skipped.items()},
        "not_recognized": faults + skipped.get(UNUSABLE, []),
        "calibration_errors": {
            name: expected_calibration_error(given, stats.targets)
            for name, given in systems.items()
        },
        "seconds": round(time.time() - started, 1),
    }
    info = write_results(out, stats, info)
    figure = plot_reliability(systems, stats.targets, corpus)
    said = {row.utterance.id: row for row in rows}

    def listen(utterance):
        recording = _recording(said[utterance], None)
        samples = recording.samples
        if samples is None:
            samples = read_audio(recording.path)
        words = recording.text, recording.speaker
        return samples, recognizer.prompt_text(*words)

    pictures = [
        ("Confusion.", (out / CONFUSION_FILE).read_bytes()),
        ("Accuracy over confidence.", as_png(figure)),
    ]
    write_page(out, f"{model} on {corpus}", stats, pictures, listen)
    return stats, info


def _compare(own, found, out):
    """Prints and draws the UA of each model on each table."""
    from emoq_modules.dataio.files import write_atomically
    from emoq_modules.evaluation.plots import as_png, plot_matrix

    tables = [Path(table).stem for table in own.table]
    width = max(map(len, own.model))
    wide = max(8, *(2 + len(name) for name in tables))
    print("UA".ljust(width) + "".join(f"{name:>{wide}}" for name in tables))
    for model, values in zip(own.model, found, strict=True):
        cells = "".join(f"{value:>{wide}.1f}" for value in values)
        print(f"{model:<{width}}{cells}")
    figure = plot_matrix(found, own.model, tables, "UA in percent")
    write_atomically(out / _MATRIX_FILE, as_png(figure))
    print(f"\nPlot\n  {out / _MATRIX_FILE}")


def _recognize(recognizer, rows, dialogues, labels, own):
    """``EmotionStats`` of the rows, and what could not be recognized."""
    import torch
    from tqdm import tqdm

    from emoq_modules.evaluation.metrics import EmotionStats

    stats, faults = EmotionStats(labels), []
    turns = recognizer.hparams.context_turns
    recordings = (_recording(row, turns and dialogues) for row in rows)
    try:
        found = recognizer.recognize(
            recordings, own.batch_size, max_seconds=None
        )
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    bar = tqdm(found, "utterances", len(rows), disable=None)
    for row, answer in zip(rows, bar, strict=True):
        said = row.utterance
        if answer.error:
            faults.append(f"{said.id}: {answer.error}")
            continue
        posteriors = torch.tensor([[answer.posteriors[x] for x in labels]])
        if len(labels) < len(answer.posteriors):
            posteriors /= posteriors.sum()
        stats.append(
            [said.id],
            posteriors,
            torch.tensor([labels.index(said.emotion)]),
            [said.dialogue],
            [said.speaker],
            [said.session],
        )
    if not stats.ids:
        raise AudioError(f"Nothing could be recognized: {faults[0]}")
    return stats, faults


def _recording(row, dialogues):
    """A row as the recognizer takes it, with the turns before if wanted."""
    from emoq_modules.dataio.audio import SAMPLE_RATE, read_audio
    from emoq_modules.dataio.recordings import Recording

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


def _told(stats, info):
    """Intervals and calibration, in lines."""
    from emoq_modules.evaluation.bootstrap import (
        bootstrap_interval,
        find_clusters,
    )
    from emoq_modules.evaluation.metrics import MEASURES

    clusters = find_clusters(stats)
    lines = [f"\n95 % intervals (bootstrap of {clusters})"]
    if clusters.count < 2:
        lines = [f"\nThere are no intervals of {clusters}."]
    for name in MEASURES if clusters.count > 1 else ():
        found = bootstrap_interval(stats, name)
        lines.append(f"  {name:4}{found.low:.1f} to {found.high:.1f}")
    errors = ", ".join(
        f"{error:.3f} {name}"
        for name, error in info["calibration_errors"].items()
    )
    return "\n".join([*lines, f"\nCalibration error: {errors}"])


def _common(words, counts):
    """The classes that the model and the table have, in the model's order."""
    labels = [word for word in words if word in counts]
    if len(labels) < 2:
        raise ConfigurationError(
            f"The model knows {', '.join(words)}, and the table has "
            f"{', '.join(counts)}: fewer than two are the same. Say which are "
            'by --label_map "joy=happy".'
        )
    unknown = {word: n for word, n in counts.items() if word not in words}
    if unknown:
        told = ", ".join(f"{word} ({n})" for word, n in unknown.items())
        print(f"The model has no word for {told}: left out.", file=sys.stderr)
    absent = [word for word in words if word not in counts]
    if absent:
        print(
            f"The table has no {', '.join(absent)}: the model cannot choose "
            "that here.",
            file=sys.stderr,
        )
    return labels
