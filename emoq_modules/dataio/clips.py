"""The sound of video clips, extracted once, a WAV file each.

SpeechBrain's ``parallel_map`` has the processes. It keeps no account of what
is done: which sources were gone through, and which clips gave no audio. So
that a second label set needs no clips, and no archive is read twice, a record
beside the audio does.
"""

import io
import json
import logging
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import soundfile
from speechbrain.utils.parallel import parallel_map
from tqdm import tqdm

from emoq_modules.dataio.audio import SAMPLE_RATE, audio_duration, decode_sound
from emoq_modules.dataio.files import write_atomically
from emoq_modules.errors import AudioError, CorpusError

logger = logging.getLogger(__name__)

_RECORD = "clips.json"
_LOG_EVERY = 1000


class ClipStore:
    """A folder of ``<group>/<name>.wav`` files and a record of their sources.

    To be entered (``with``) for extraction, which takes several processes, one
    a core unless given. Longer clips are cut to ``max_duration_s``, of which a
    store has one: another is a ``CorpusError``.

    ``durations`` has the seconds of the clips with audio by their key
    (``group/name``), ``faults`` says why others gave none.
    """

    def __init__(self, folder, max_duration_s, num_workers=None):
        if not max_duration_s > 0:
            raise CorpusError(
                f"max_duration_s is {max_duration_s}: nothing would be kept."
            )
        self.folder = Path(folder)
        self.max_duration_s = max_duration_s
        self.num_workers = num_workers or os.cpu_count()
        self._sources = self._read_record()
        self.durations = self._measure()
        self.faults = {}
        for source in self._sources.values():
            self.faults |= source["faults"]

    def __enter__(self):
        # PyAV holds the interpreter's lock for most of its work, so threads
        # do not help; a fork would copy the locks of torch's threads, and a
        # spawned process would import all of this anew. None of the processes
        # starts before there is something to extract.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._processes = ProcessPoolExecutor(self.num_workers, context)
        return self

    def __exit__(self, *exception):
        self._processes.shutdown(cancel_futures=True)

    def path(self, key):
        """The WAV file of a clip, whether it is there yet or not."""
        return self.folder / f"{key}.wav"

    def add(self, name, stamp, clips, total=None):
        """Extracts the clips of a source that the store does not hold yet.

        A source that was gone through with the same ``stamp`` and all of whose
        audio is there is not opened again. ``clips`` are key, and path or file
        object, which is read before the next pair is asked for, or not at all.
        Raises ``CorpusError`` if PyAV is not installed, or a process died.
        """
        known = self._sources.get(name, {"stamp": None})
        if known["stamp"] == stamp and (
            self.durations.keys() | known["faults"] >= set(known["keys"])
        ):
            return
        if find_spec("av") is None:
            raise CorpusError(
                "Audio comes out of clips by PyAV, which is not installed: "
                "pip install 'av>=13'."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_record()  # from now on the store has its length
        keys, faults = [], {}
        outcomes = parallel_map(
            _extract,
            self._jobs(name, clips, total, keys),
            chunk_size=1,
            queue_size=4 * self.num_workers,  # archives do not fit in memory
            executor=self._processes,
            progress_bar=False,  # which would not show what is skipped
        )
        try:
            for key, damaged, fault in outcomes:
                if fault is None:
                    self.durations[key] = audio_duration(self.path(key))
                    self.faults.pop(key, None)
                else:
                    faults[key] = fault
                if damaged:
                    logger.warning(
                        f"{name}: {key} is kept, though {damaged} packets of "
                        "its sound are damaged."
                    )
        except BrokenProcessPool as error:
            raise CorpusError(
                f"A process that extracts audio was killed, at {keys[-1]} or "
                "just before: for want of memory, or by a clip that FFmpeg "
                "cannot bear. Try fewer num_workers; what is done is kept."
            ) from error
        self.faults |= faults
        self._sources[name] = {"stamp": stamp, "keys": keys, "faults": faults}
        self._write_record()

    def _jobs(self, name, clips, total, keys):
        """What ``_extract`` takes, of each clip without audio so far."""
        # A bar on a terminal, a line now and then elsewhere.
        bar = tqdm(clips, desc=name, total=total, unit="clip", disable=None)
        for number, (key, clip) in enumerate(bar, start=1):
            keys.append(key)
            if key not in self.durations:
                if not isinstance(clip, Path):
                    clip = io.BytesIO(clip.read())
                self.path(key).parent.mkdir(exist_ok=True)
                yield key, clip, self.path(key), self.max_duration_s
            if bar.disable and number % _LOG_EVERY == 0:
                logger.info(f"{name}: {number} of {total or 'the'} clips")

    def _measure(self):
        durations = {}
        for wav in sorted(self.folder.glob("*/*.wav")):
            try:
                duration = audio_duration(wav)
            except AudioError as error:
                logger.warning(f"Damaged audio will be made again: {error}.")
            else:
                durations[f"{wav.parent.name}/{wav.stem}"] = duration
        return durations

    def _read_record(self):
        """The sources gone through, after a check of the store's length."""
        path = self.folder / _RECORD
        if not path.is_file():
            return {}
        try:
            record = json.loads(path.read_bytes())
            length, sources = record["max_duration_s"], record["sources"]
        except (ValueError, KeyError, TypeError) as error:
            raise CorpusError(
                f"{path} is damaged: delete it, and the audio beside it is "
                "checked against the clips again."
            ) from error
        if length != self.max_duration_s:
            raise CorpusError(
                f"The audio in {self.folder} is cut to {length} s, not to "
                f"{self.max_duration_s} s: give another folder for it, or "
                "delete that one."
            )
        return sources

    def _write_record(self):
        record = {"max_duration_s": self.max_duration_s}
        record["sources"] = self._sources
        content = json.dumps(record, indent=1).encode()
        write_atomically(self.folder / _RECORD, content)


def extract_audio(clip, wav, max_duration_s):
    """Writes a video clip's sound as a 16 kHz mono 16-bit WAV file.

    Packets that do not decode are passed over, as the ``ffmpeg`` program does;
    returns their number. The WAV file appears whole or not at all.
    """
    wanted = round(max_duration_s * SAMPLE_RATE)
    pieces, kept, damaged = [], 0, 0
    for piece in decode_sound(clip):
        if piece is None:
            damaged += 1
            continue
        pieces.append(piece)
        kept += len(piece)
        if kept >= wanted:
            break
    buffer = io.BytesIO()
    samples = np.concatenate(pieces)[:wanted]
    soundfile.write(buffer, samples, SAMPLE_RATE, "PCM_16", format="WAV")
    write_atomically(wav, buffer.getvalue())
    return damaged


def _extract(job):
    """Key, damaged packets and fault of a clip; in a process of its own."""
    key, *rest = job
    try:
        return key, extract_audio(*rest), None
    except AudioError as error:
        return key, 0, str(error)
