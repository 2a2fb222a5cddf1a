"""The demo corpus: synthesized dialogues, and their manifests.

``python recipes/demo/demo_prepare.py DATA_FOLDER SAVE_FOLDER`` runs it alone.
What the corpus holds is decided in ``recipes.demo.dialogues``; here it
becomes files.
"""

import hashlib
import io
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile
from tqdm import tqdm

from emoq_modules.dataio.audio import audio_duration
from emoq_modules.dataio.files import write_atomically
from emoq_modules.dataio.prepare import (
    Utterance,
    is_prepared,
    main,
    rooted,
    write_manifests,
)
from emoq_modules.errors import CorpusError
from recipes.demo.dialogues import plan_corpus
from recipes.demo.voices import SAMPLE_RATE, VERSION

logger = logging.getLogger(__name__)

LABELS = ("angry", "happy", "neutral", "sad")

# NumPy lets go of the interpreter in its long loops only: more do not help.
_NUM_THREADS = 2


def prepare_demo(
    data_folder: str,
    save_folder: str,
    seed: int = 1234,
    num_speakers: int = 24,
    num_dialogues: int = 72,
    num_turns: int = 10,
):
    """Synthesize the demo corpus where it is not there yet, make manifests.

    Each seed and size has a folder of its own in ``data_folder``, so that
    none overwrites another. A corpus that was left half-made is completed; one
    that has changed since it was made is made again.

    Arguments
    ---------
    data_folder : str
        Where the corpus is, or will be.
    save_folder : str
        Where the manifests go. ``{data_root}`` in them is ``data_folder``.
    seed : int
        Another seed, other voices and other dialogues.
    num_speakers : int
        Voices; even. A sixth of them, at least two, is for validation, and as
        many are for testing.
    num_dialogues : int
        Dialogues, each of two speakers.
    num_turns : int
        Utterances of a dialogue.

    Raises
    ------
    CorpusError
        Sizes of which no corpus can be made, or a folder that cannot be
        written to.
    """
    try:
        plan = plan_corpus(seed, num_speakers, num_dialogues, num_turns)
    except ValueError as error:
        raise CorpusError(f"No demo corpus can be made: {error}.") from error
    data_folder = Path(data_folder)
    settings = {
        "corpus": "demo",
        "version": VERSION,
        "seed": seed,
        "num_speakers": num_speakers,
        "num_dialogues": num_dialogues,
        "num_turns": num_turns,
    }
    wavs = _wav_paths(plan, data_folder, settings)
    digest = _make_corpus(plan, wavs, settings)
    settings |= {"data_folder": data_folder.resolve(), "audio": digest}
    if is_prepared(save_folder, settings):
        return
    splits = {"train": [], "valid": [], "test": []}
    for planned, wav in zip(plan.utterances, wavs, strict=True):
        splits[planned.split].append(
            Utterance(
                id=planned.id,
                wav=rooted(wav, data_folder),
                duration=audio_duration(wav),
                speaker=planned.speaker,
                session=planned.session,
                dialogue=planned.dialogue,
                turn=planned.turn,
                text=planned.text,
                emotion=planned.emotion,
            )
        )
    write_manifests(save_folder, splits, LABELS, settings)


def _wav_paths(plan, data_folder, settings):
    """Where the utterances lie; the folder's name tells all settings."""
    name = (
        "demo-v{version}-seed{seed}-"
        "{num_speakers}x{num_dialogues}x{num_turns}".format(**settings)
    )
    return [
        data_folder / name / utterance.dialogue / f"{utterance.id}.wav"
        for utterance in plan.utterances
    ]


def _make_corpus(plan, wavs, settings):
    """Make what is missing; returns a digest of all the audio.

    ``corpus.json`` is written last, with the digest. Without it the corpus is
    half-made: each file that is there is whole, for it was put there in one
    step. With it, the files must be those that were made.
    """
    folder = wavs[0].parents[1]
    record = folder / "corpus.json"
    if record.exists():
        digest = _digest(wavs)
        if _read_json(record) == {**settings, "digest": digest}:
            logger.info(f"The demo corpus in {folder} is up to date.")
            return digest
        logger.warning(f"{folder} has changed since it was made: remaking it.")
        for path in [record, *wavs]:
            path.unlink(missing_ok=True)
    try:
        for dialogue in {wav.parent for wav in wavs}:
            dialogue.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CorpusError(
            f"Cannot make the folder {error.filename} for the demo corpus "
            f"({error.strerror}): name a data folder that can be written to."
        ) from error
    missing = [
        (utterance, wav)
        for utterance, wav in zip(plan.utterances, wavs, strict=True)
        if not wav.exists()
    ]
    logger.info(
        f"Synthesizing {len(missing)} of {len(wavs)} utterances of "
        f"{len(plan.voices)} voices into {folder}."
    )
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        made = pool.map(lambda job: _write_wav(plan, *job), missing)
        # disable=None: a progress bar on a terminal, nothing elsewhere.
        for _ in tqdm(made, "Synthesis", len(missing), disable=None):
            pass
    digest = _digest(wavs)
    content = json.dumps({**settings, "digest": digest}, indent=1)
    write_atomically(record, content.encode())
    return digest


def _write_wav(plan, utterance, wav):
    buffer = io.BytesIO()
    signal = plan.speak(utterance)
    soundfile.write(buffer, signal, SAMPLE_RATE, "PCM_16", format="WAV")
    write_atomically(wav, buffer.getvalue())


def _digest(wavs):
    """Digest of all files' content, in their order; a missing one counts."""
    digest = hashlib.blake2b(digest_size=16)
    for wav in wavs:
        content = wav.read_bytes() if wav.exists() else b""
        digest.update(hashlib.blake2b(content, digest_size=16).digest())
    return digest.hexdigest()


def _read_json(path):
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None  # damaged, so unlike any settings


if __name__ == "__main__":
    raise SystemExit(main(prepare_demo))
