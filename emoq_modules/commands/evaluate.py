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
from emoq_modules.errors import AudioError, ConfigurationError, ResultsError

_MATRIX_FILE = "matrix.png"

_DESCRIPTION = """\
Measures a trained EmoQ on the labeled recordings of a table, or on the test set
of a corpus: WA, UA and WF1 with intervals, recalls, confusion and calibration.
Measured is over the classes that both have; what one side lacks is named, and
left out.

With --preset, any other option is one of train.py, for the corpus.
"""
_EXAMPLES = """\
examples:
  emoq evaluate --model RUN/recognizer --table test.csv
  emoq evaluate --model RUN/recognizer --table test.csv --data_folder wavs/ \\
      --columns "path=file_id, emotion=emo" --label_map "joy=happy, rage=angry"
  emoq evaluate --model RUN/recognizer --preset recipes/MELD/meld7.yaml \\
      --data_folder /data/MELD.Raw --label_map "joy=happy, sadness=sad"
      a corpus, as its recipe prepares it: the test sets of all its folds
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
        action="append",
        default=[],
        metavar="CSV",
        help="a row for each recording, or part of one: path and emotion, and "
        "where they are known text, speaker, dialogue, turn, session, start "
        "and end; repeatable",
    )
    command.add_argument(
        "--preset",
        action="append",
        default=[],
        metavar="YAML",
        help="that of a corpus, in the place of a table, and what else is to "
        "be laid over it; repeatable",
    )
    command.add_argument(
        "--fold",
        default="all",
        metavar="K",
        help="of a corpus only this fold, or several (1,2)",
    )
    command.add_argument(
        "--data_folder",
        metavar="FOLDER",
        help="what paths in the table are relative to, its own folder if not "
        "given; or the corpus",
    )
    command.add_argument(
        "--columns",
        metavar="PAIRS",
        help="columns of unusual names: 'path=file_id, emotion=emo'",
    )
    command.add_argument(
        "--label_map",
        metavar="PAIRS",
        help="the model's word for a label that is not its own: 'joy=happy'",
    )
    add_recognition_options(command)
    command.add_argument(
        "--split",
        metavar="NAME",
        help="only rows of this split of the table; of a corpus train, valid "
        "or test (test)",
    )
    command.add_argument(
        "--out",
        default="evaluation",
        metavar="FOLDER",
        help="where predictions.csv, results.json and pictures go "
        "(evaluation); of several models or tables, to a folder each in it",
    )


def _evaluate(own):
    from emoq_modules.commands.evaluate_inputs import find_sources
    from emoq_modules.evaluation.results import format_summary
    from emoq_modules.evaluation.run_page import PAGE_FILE

    out, failed, found = Path(own.out), False, []
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"--out {out} is a file: name a folder.")
    sources = find_sources(own)
    several = len(own.model) * len(sources) > 1
    folders = {
        (number, source.name): out / f"{number}-{source.name}"
        if several
        else out
        for number, _ in enumerate(own.model, start=1)
        for source in sources
    }
    _check(own, sources, folders)
    for number, model in enumerate(own.model, start=1):
        recognizer = load_recognizer(own, model)
        found.append([])
        for source in sources:
            name = source.name
            folder = folders[number, name]
            if several:
                print(f"{model} on {source}\n")
            stats, info = _measure(recognizer, source, own, folder, model)
            pages = [folder / PAGE_FILE]
            print(format_summary({name: {folder: stats}}, pages))
            print(_told(stats, info), end="\n\n" if several else "\n")
            for fault in info["not_recognized"]:
                print(f"not recognized: {fault}", file=sys.stderr)
            failed |= bool(info["not_recognized"])
            found[-1].append(info["UA"])
    if several:
        _compare(own, [source.name for source in sources], found, out)
    return 1 if failed else 0


def _check(own, sources, folders):
    """What can be known before the first of several is measured."""
    from emoq_modules.evaluation.results import PREDICTIONS_FILE, RESULTS_FILE
    from emoq_modules.evaluation.run_page import PAGE_FILE
    from emoq_modules.inference.fetching import open_source
    from emoq_modules.inference.recognizer_folder import SETTINGS_FILE

    written = RESULTS_FILE, PREDICTIONS_FILE, PAGE_FILE

    for folder in folders.values():
        if (folder / SETTINGS_FILE).exists():
            raise ConfigurationError(
                f"--out {folder} is the folder of a run, whose results would "
                "be overwritten: name another."
            )
        own_files = filter(Path.exists, (folder / name for name in written))
        for file in own_files if not _is_evaluation(folder) else ():
            raise ConfigurationError(
                f"--out {folder} holds {file.name}, which no evaluation has "
                "left there: name another folder."
            )
    if len(folders) < len(own.model) * len(sources):
        raise ConfigurationError(
            f"Two tables are called {sources[0].name}: rename one."
        )
    for source in sources:
        source.count_labels()
    for model in own.model[1:]:
        open_source(model, SETTINGS_FILE, trust_source=own.trust_source)


def _is_evaluation(folder):
    from emoq_modules.evaluation.results import read_results

    try:
        return "model" in read_results(folder)
    except ResultsError:
        return False


def _measure(recognizer, source, own, out, model):
    """Recognizes recordings: ``EmotionStats``, and ``results.json``."""
    # torch and the models' libraries take seconds to import.
    import torch

    from emoq_modules.commands.evaluate_inputs import as_recording
    from emoq_modules.dataio.audio import read_audio
    from emoq_modules.dataio.labeled import UNUSABLE
    from emoq_modules.evaluation.calibration import (
        apply_temperature,
        expected_calibration_error,
    )
    from emoq_modules.evaluation.plots import as_png, plot_reliability
    from emoq_modules.evaluation.results import CONFUSION_FILE, write_results
    from emoq_modules.evaluation.run_page import write_page

    started = time.time()
    labels = _common(recognizer.hparams.labels, source)
    rows, dialogues, skipped = source.read(labels)
    untold = sum(not row.utterance.text for row in rows)
    if untold and not own.asr:
        print(
            f"{untold} of {len(rows)} recordings have no text: --asr MODEL "
            "transcribes them.",
            file=sys.stderr,
        )
    stats, faults, temperatures = _recognize(
        recognizer, rows, dialogues, labels, own
    )
    posteriors = torch.stack(stats.posteriors).numpy()
    systems = {"as given": posteriors}
    if any(temperatures):
        scaled = [value or 1.0 for value in temperatures]
        systems["calibrated"] = apply_temperature(posteriors, scaled)
    info = {"corpus": source.name, "fold": None, "stage": None, "seed": None}
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
    figure = plot_reliability(systems, stats.targets, source.name)
    said = {row.utterance.id: row for row in rows}

    def listen(utterance):
        recording = as_recording(said[utterance], None)
        samples = recording.samples
        if samples is None:
            samples = read_audio(recording.path)
        words = recording.text, recording.speaker
        return samples, recognizer.prompt_text(*words)

    pictures = [
        ("Confusion.", (out / CONFUSION_FILE).read_bytes()),
        ("Accuracy over confidence.", as_png(figure)),
    ]
    write_page(out, f"{model} on {source.name}", stats, pictures, listen)
    return stats, info


def _compare(own, tables, found, out):
    """Prints and draws the UA of each model on each table."""
    from emoq_modules.dataio.files import write_atomically
    from emoq_modules.evaluation.plots import as_png, plot_matrix

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
    """``EmotionStats`` of the rows, faults, and the temperature for each.

    The posteriors are those of a run's test: as they are in training.
    """
    import torch
    from tqdm import tqdm

    from emoq_modules.commands.evaluate_inputs import as_recording
    from emoq_modules.evaluation.calibration import temperature_for
    from emoq_modules.evaluation.metrics import EmotionStats

    stats, faults, temperatures = EmotionStats(labels), [], []
    turns = recognizer.hparams.context_turns
    recordings = (as_recording(row, turns and dialogues) for row in rows)
    try:
        found = recognizer.recognize(
            recordings, own.batch_size, max_seconds=None, calibrate=False
        )
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    bar = tqdm(found, "utterances", len(rows), disable=None)
    for row, answer in zip(rows, bar, strict=True):
        said = row.utterance
        if answer.error or not answer.posteriors:
            faults.append(f"{said.id}: {answer.error or 'it is silent'}")
            continue
        fitted = recognizer.hparams.temperature
        temperatures.append(temperature_for(fitted, answer.text))
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
            [said.corpus],
        )
    if not stats.ids:
        raise AudioError(f"Nothing could be recognized: {faults[0]}")
    return stats, faults, temperatures


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
    lines.append(f"\nCalibration error: {errors}")
    lines += [f"left out, {why}: {n}" for why, n in info["left_out"].items()]
    return "\n".join(lines)


def _common(words, source):
    """The classes that the model and a source have, in the model's order."""
    strange = set(source.label_map.values()) - set(words)
    if strange:
        raise ConfigurationError(
            f"--label_map names {', '.join(sorted(strange))}, which is no word "
            f"of the model's: {', '.join(words)}."
        )
    counts = source.count_labels()
    labels = [word for word in words if word in counts]
    if len(labels) < 2:
        raise ConfigurationError(
            f"The model knows {', '.join(words)}, and {source} has "
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
            f"{source} has no {', '.join(absent)}: the model cannot choose "
            "that here.",
            file=sys.stderr,
        )
    return labels
