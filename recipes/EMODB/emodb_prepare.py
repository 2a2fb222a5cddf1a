"""EMO-DB, the Berlin database of emotional speech: from its files to manifests.

All that is known of an utterance is in the name of its file: ``03a01Fa.wav``
is speaker 03, sentence a01, emotion F (happy), version a. The files lie in
``wav/`` as published, or in ``flac/``.

``python recipes/EMODB/emodb_prepare.py DATA_FOLDER SAVE_FOLDER`` runs it
alone, with ``--download`` from the published archive.

Reference: F. Burkhardt et al., "A database of German emotional speech",
Interspeech 2005.
"""

import hashlib
import http.client
import logging
import re
import tempfile
import urllib.request
import zipfile
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from emoq_modules.dataio.audio import audio_duration
from emoq_modules.dataio.files import put_in_place
from emoq_modules.dataio.prepare import (
    Utterance,
    check_choice,
    is_prepared,
    main,
    rooted,
    split_by_dialogue,
    write_manifests,
)
from emoq_modules.errors import AudioError, CorpusError

logger = logging.getLogger(__name__)

LABELS = ("angry", "happy", "neutral", "sad")

# Test speakers of folds 1 to 5.
FOLDS = (("03", "08"), ("09", "10"), ("11", "12"), ("13", "14"), ("15", "16"))
# The share of a validation set without speakers of its own.
VALID_FRACTION = 0.1
VALID_SEED = 1234

# The letter of the German word -> the emotion word to predict.
EMOTIONS = {
    "W": "angry",  # Wut
    "L": "bored",  # Langeweile
    "E": "disgust",  # Ekel
    "A": "fear",  # Angst
    "F": "happy",  # Freude
    "N": "neutral",
    "T": "sad",  # Trauer
}
COMPLETE = {
    "angry": 127,
    "bored": 81,
    "disgust": 46,
    "fear": 69,
    "happy": 71,
    "neutral": 79,
    "sad": 62,
}

SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": (
        "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück."
    ),
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen.",
    "b02": (
        "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter."
    ),
    "b03": (
        "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe "
        "Agnes besucht."
    ),
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}

# Version 1.3.0 as audEERING publishes it, the 535 files in emodb/wav/. Size
# and MD5 are those that Zenodo states for record 7447302.
ARCHIVE_URL = "https://zenodo.org/records/7447302/files/emodb.zip"
ARCHIVE_SIZE = 39_981_818
ARCHIVE_MD5 = "9d21362dbc5676ef3ab4745d83ced0db"

_NAME = re.compile(rf"(\d\d)({'|'.join(SENTENCES)})([{''.join(EMOTIONS)}])\w")
_TIMEOUT_S = 30


def prepare_emodb(
    data_folder: str,
    save_folder: str,
    fold: int = 1,
    labels: tuple[str, ...] = LABELS,
    valid_speakers: int = 1,
    download: bool = False,
):
    """Make the manifests of one EMO-DB fold.

    The test set is a pair of speakers. Validation is the first one or both of
    the pair that the next fold tests (of the first fold, after the last), so
    that no speaker is in two sets and the choice depends on the number of the
    fold alone; or, with no validation speakers, a tenth of the utterances of
    the eight that train, chosen by a seeded hash. Every utterance was spoken by
    itself: each is a dialogue of one turn, and a speaker is a session.

    Arguments
    ---------
    data_folder : str
        Holds the audio files, or ``wav/`` or ``flac/`` with them.
    save_folder : str
        Where the manifests go. ``{data_root}`` in them is ``data_folder``.
    fold : int
        1 to 5: speakers 03+08, 09+10, 11+12, 13+14, 15+16.
    labels : tuple[str, ...]
        Emotion words to keep, of angry, bored, disgust, fear, happy, neutral
        and sad.
    valid_speakers : int
        Speakers to validate on: 0, 1 or 2.
    download : bool
        Get the corpus first if ``data_folder`` does not hold it.

    Raises
    ------
    CorpusError
        No EMO-DB there, or a fold or label that does not exist.
    """
    check_choice("fold", fold, range(1, len(FOLDS) + 1))
    check_choice("valid_speakers", valid_speakers, (0, 1, 2))
    for label in labels:
        check_choice("label", label, COMPLETE)
    data_folder = Path(data_folder)
    if download:
        download_emodb(data_folder)
    files, strange = _find_files(data_folder)
    settings = {
        "corpus": "EMO-DB",
        "data_folder": data_folder.resolve(),
        "files": len(files),
        "fold": fold,
        "labels": labels,
        "valid_speakers": valid_speakers,
    }
    if is_prepared(save_folder, settings):
        return
    utterances, skipped = _read(files, data_folder, labels)
    skipped["not a name of EMO-DB"] = strange
    tested = FOLDS[fold - 1]
    validated = FOLDS[fold % len(FOLDS)][:valid_speakers]
    splits = {"train": [], "valid": [], "test": []}
    for utterance in utterances:
        if utterance.speaker in tested:
            splits["test"].append(utterance)
        elif utterance.speaker in validated:
            splits["valid"].append(utterance)
        else:
            splits["train"].append(utterance)
    if not valid_speakers:
        splits["train"], splits["valid"] = split_by_dialogue(
            splits["train"], VALID_FRACTION, VALID_SEED
        )
    write_manifests(save_folder, splits, labels, settings, skipped)


def download_emodb(folder, url=ARCHIVE_URL, size=ARCHIVE_SIZE, md5=ARCHIVE_MD5):
    """Get EMO-DB into ``folder/wav``, unless it is there.

    Arguments
    ---------
    folder : str or Path
        Made if it is not there; touched only once the archive is checked.
    url : str
        A zip file with ``.../wav/*.wav`` in it.
    size : int
        Its size in bytes.
    md5 : str
        Its MD5 checksum, in hexadecimal.

    Raises
    ------
    CorpusError
        The archive cannot be had, or is not the one expected.
    """
    folder = Path(folder)
    if (folder / "wav").is_dir():
        logger.info(f"{folder / 'wav'} is there: nothing to download.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as work:
        archive, wavs = Path(work, "emodb.zip"), Path(work, "wav")
        _download(url, archive, size, md5)
        wavs.mkdir()
        with zipfile.ZipFile(archive) as members:
            for name in members.namelist():
                # The file's name alone: a path in it may lead anywhere.
                path = PurePosixPath(name)
                if path.parent.name == "wav" and _NAME.fullmatch(path.stem):
                    (wavs / path.name).write_bytes(members.read(name))
        put_in_place(wavs, folder / "wav")


def _download(url, path, size, md5):
    digest = hashlib.md5(usedforsecurity=False)
    by_hand = (
        f"Where there is a network, get {url} and unpack it so that the files "
        "lie in a folder wav."
    )
    try:
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response,
            path.open("wb") as target,
            tqdm(total=size, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while block := response.read(1 << 16):
                target.write(block)
                digest.update(block)
                bar.update(len(block))
    except (OSError, http.client.HTTPException) as error:
        raise CorpusError(
            f"EMO-DB cannot be downloaded from {url} ({error}). {by_hand}"
        ) from error
    if path.stat().st_size != size or digest.hexdigest() != md5:
        raise CorpusError(
            f"{url} gave {path.stat().st_size} bytes with MD5 "
            f"{digest.hexdigest()}, not {size} with {md5}: the download was "
            f"cut short, or the archive has changed. Nothing was kept. "
            f"{by_hand}"
        )


def _find_files(data_folder):
    """The corpus's audio files, and the names of others beside them."""
    places = [
        (data_folder / "wav", "*.[wW][aA][vV]"),
        (data_folder / "flac", "*.[fF][lL][aA][cC]"),
        (data_folder, "*.[wW][aA][vV]"),
        (data_folder, "*.[fF][lL][aA][cC]"),
    ]
    for folder, pattern in places:
        named, strange = [], []
        for path in sorted(folder.glob(pattern)):
            (named if _NAME.fullmatch(path.stem) else strange).append(path)
        if named:
            return named, [path.name for path in strange]
    raise CorpusError(
        f"There is no EMO-DB in {data_folder}: looked for files such as "
        "03a01Fa.wav there and in wav, or 03a01Fa.flac there and in flac. "
        "recipes/EMODB/README.md says how to get it."
    )


def _read(files, data_folder, labels):
    """The utterances of the wanted classes, and the others by reason."""
    utterances, skipped, found = [], defaultdict(list), Counter()
    for path in files:
        speaker, sentence, letter = _NAME.fullmatch(path.stem).groups()
        emotion = EMOTIONS[letter]
        found[emotion] += 1
        if emotion not in labels:
            skipped[f"labeled '{emotion}'"].append(path.stem)
            continue
        try:
            duration = audio_duration(path)
        except AudioError as error:
            logger.warning(f"{path.stem} is left out: {error}.")
            skipped["unusable audio file"].append(path.stem)
            continue
        utterances.append(
            Utterance(
                id=path.stem,
                wav=rooted(path, data_folder),
                duration=duration,
                speaker=speaker,
                session=speaker,
                dialogue=path.stem,
                turn=0,
                text=SENTENCES[sentence],
                emotion=emotion,
            )
        )
    if found != COMPLETE:
        logger.warning(
            f"This is not all of EMO-DB: {sum(COMPLETE.values())} files are "
            f"expected, {found.total()} found ({dict(found)})."
        )
    return utterances, skipped


if __name__ == "__main__":
    raise SystemExit(main(prepare_emodb))
