"""``emoq predict``: the emotion in audio files, as a table, CSV or JSON."""

import csv
import json
import os
import signal
import sys
from dataclasses import asdict

from emoq_modules.commands.options import (
    add_command,
    add_model_options,
    add_recognition_options,
    load_recognizer,
)
from emoq_modules.commands.predict_inputs import Transcripts, find_recordings
from emoq_modules.errors import AudioError, ConfigurationError

_DESCRIPTION = """\
Recognizes the emotion in recordings with a trained EmoQ, and prints a row for
each, in the given order. Recordings may be of any rate and number of channels,
in whatever libsndfile reads (wav, flac, mp3, ogg, ...), and with PyAV installed
in whatever FFmpeg reads (m4a, mp4, webm, ...).
"""
_EXAMPLES = """\
examples:
  emoq predict --model RUN/recognizer hello.wav --text "Oh, hello!"
  emoq predict --model RUN/recognizer calls/ --format csv > emotions.csv
  emoq predict --model RUN/recognizer 'calls/*.mp3' --transcripts words.csv
  find . -name '*.flac' | emoq predict --model RUN/recognizer - --format jsonl
  emoq predict --model RUN/recognizer interview.mp4 --timeline --asr MODEL

exit status: 0; 1 if a recording could not be recognized, whose row then has an
error; 2 if the command is wrong.
"""


def add_predict(commands):
    """Adds ``predict`` to the commands of ``emoq``."""
    command = add_command(
        commands,
        "predict",
        _predict,
        "recognize the emotion in audio files",
        _DESCRIPTION,
        _EXAMPLES,
    )
    command.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a file, a folder (with those in it), a quoted pattern such as "
        "'**/*.wav', or - for a list of files on standard input",
    )
    add_model_options(command)
    words = command.add_mutually_exclusive_group()
    words.add_argument("--text", help="what is said, in all of the recordings")
    words.add_argument(
        "--transcripts",
        metavar="CSV",
        help="what is said in each: columns path (or id, the file's name "
        "without its ending), text and, if you like, speaker; or a manifest "
        "of a run",
    )
    add_recognition_options(command)
    command.add_argument("--speaker", help="who speaks, in all recordings")
    command.add_argument(
        "--format",
        choices=("table", "csv", "jsonl"),
        default="table",
        help="table (the default) is printed at the end, csv and jsonl as "
        "results come",
    )
    command.add_argument(
        "--timeline",
        action="store_true",
        help="recognize windows of each recording, which may be hours long",
    )
    command.add_argument(
        "--window_s",
        type=float,
        metavar="S",
        help="for --timeline: length of a window, in seconds (4)",
    )
    command.add_argument(
        "--hop_s",
        type=float,
        metavar="S",
        help="for --timeline: from one to the next, in seconds (2)",
    )
    command.add_argument(
        "--vad",
        metavar="MODEL",
        help="for --timeline: recognize what this SpeechBrain VAD takes for "
        "speech in the place of windows, e.g. speechbrain/vad-crdnn-libriparty",
    )
    command.add_argument(
        "--abstain_below",
        type=float,
        metavar="P",
        help="give no answer where the confidence is below, from 0 to 1",
    )


def _predict(own):
    try:
        return _run(own)
    except BrokenPipeError:
        # Nobody reads on, as after `| head`. Python would complain once more
        # when it flushes its output in the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 128 + signal.SIGINT


def _run(own):
    # torch and the models' libraries take seconds to import.
    from emoq_modules.dataio.recordings import sliding_windows
    from emoq_modules.inference.vad import load_vad

    if sys.stdout is None:
        raise ConfigurationError("There is no standard output to print to.")
    for name in ("vad", "window_s", "hop_s"):
        if getattr(own, name) is not None and not own.timeline:
            raise ConfigurationError(f"--{name} is for --timeline: give both.")
    if own.timeline and (own.text or own.transcripts):
        raise ConfigurationError(
            "What is said in a recording is not said in each of its windows: "
            "give --asr with --timeline, or no text."
        )
    transcripts = Transcripts(own.transcripts) if own.transcripts else None
    recognizer = load_recognizer(own)
    paths, total = find_recordings(own.sources), None
    if sys.stderr.isatty() and "-" not in own.sources and not own.timeline:
        paths = list(paths)  # how many there are is for the progress bar
        total = len(paths)
    recordings = _recordings(paths, own, transcripts)
    options = {"batch_size": own.batch_size, "abstain_below": own.abstain_below}
    try:
        if own.timeline:
            for name, usual in (("window_s", 4.0), ("hop_s", 2.0)):
                given = getattr(own, name)
                options[name] = usual if given is None else given
            sliding_windows(options["window_s"], options["hop_s"])
            if own.vad:
                options["vad"] = load_vad(own.vad, recognizer.device)
            results = _timelines(recognizer, recordings, options)
        else:
            results = recognizer.recognize(recordings, **options)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    results = _with_progress(results, total)
    failed = _write(results, own.format, recognizer.hparams.labels)
    if transcripts and transcripts.missing:
        print(transcripts.complaint(), file=sys.stderr)
    return 1 if failed else 0


def _recordings(paths, own, transcripts):
    from emoq_modules.dataio.recordings import Recording

    for path in paths:
        text, speaker = own.text or "", None
        if transcripts is not None:
            text, speaker = transcripts.find(path)
        yield Recording(path, text, speaker or own.speaker)


def _timelines(recognizer, recordings, options):
    from emoq_modules.inference.batching import Recognition

    for recording in recordings:
        try:
            yield from recognizer.timeline(recording, **options)
        except (AudioError, OSError) as error:
            yield Recognition(str(recording.path), error=str(error))


def _with_progress(results, total):
    from tqdm import tqdm

    # A bar on a terminal, and nothing elsewhere.
    with tqdm(total=total, unit=" rows", disable=None) as bar:
        for found in results:
            with tqdm.external_write_mode(sys.stdout):
                yield found
            bar.update()


def _write(results, form, labels):
    """Prints the results; returns how many are errors."""
    # A path may hold bytes that are no text; they come out as they were.
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    failed, table = 0, []
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if form == "csv":
        writer.writerow(csv_header(labels))
    for found in results:
        failed += found.error is not None
        if form == "jsonl":
            print(json.dumps(asdict(found)))
        elif form == "csv":
            writer.writerow(csv_row(found, labels))
        else:
            table.append(_table_row(found, labels))
        sys.stdout.flush()
    if form == "table":
        _print_table(table, labels)
    return failed


def csv_header(labels):
    """The columns of ``csv_row``."""
    first = ["path", "start", "end", "label", "confidence", "abstained"]
    return [*first, *labels, "text", "error"]


def csv_row(found, labels):
    """The cells that tell of a ``Recognition`` all there is."""

    def digits(value):
        return None if value is None else f"{value:.9g}"

    return [
        *(found.path, digits(found.start), digits(found.end), found.label),
        *(digits(found.confidence), found.abstained),
        *(digits(found.posteriors.get(label)) for label in labels),
        *(found.text, found.error),
    ]


def _table_row(found, labels):
    def short(value):
        return "" if value is None else f"{value:.2f}"

    row = [found.path, short(found.start), short(found.end)]
    if found.error:
        return [*row, found.error]
    if found.abstained and not found.posteriors:
        return [*row, "(silence)"]
    values = [found.confidence, *map(found.posteriors.get, labels)]
    return [*row, found.label or "?", *map(short, values)]


def _print_table(rows, labels):
    header = ["recording", "from", "to", "emotion", "confidence", *labels]
    rows = [header, *rows]
    # What is said of an error may be long, and stands last.
    whole = [row for row in rows if len(row) > 4]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    for n in range(3):
        widths[n] = max(len(row[n]) for row in rows)
    for row in rows:
        cells = [
            cell.ljust(width) if n in (0, 3) else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        print("  ".join(cells).rstrip())
