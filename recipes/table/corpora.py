"""Corpora that may be had freely, by their published layouts, as tables.

Each function takes the corpus' folder, and gives a dict for each recording with
the columns of a table; what is no recording of the corpus it passes over.
"""

import re
from pathlib import Path

from emoq_modules.dataio.files import decode
from emoq_modules.dataio.tables import read_table

_CREMA_D_SENTENCES = {
    "DFA": "Don't forget a jacket.",
    "IEO": "It's eleven o'clock.",
    "IOM": "I'm on my way to the meeting.",
    "ITH": "I think I have a doctor's appointment.",
    "ITS": "I think I've seen this before.",
    "IWL": "I would like a new alarm clock.",
    "IWW": "I wonder what this is about.",
    "MTI": "Maybe tomorrow it will be cold.",
    "TAI": "The airplane is almost full.",
    "TIE": "That is exactly what happened.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}


def ravdess(folder):
    """``Actor_12/03-01-06-01-02-01-12.wav``, of the speech recordings.

    Livingstone and Russo, 2018, https://zenodo.org/records/1188976: modality,
    channel, emotion, intensity, statement, repetition and actor.
    """
    emotions = "neutral calm happy sad angry fear disgust surprise".split()
    statements = {"01": "Kids are talking", "02": "Dogs are sitting"}
    name = r"03-01-0([1-8])-\d\d-(0[12])-\d\d-(\d\d)"
    for path, (emotion, statement, actor) in _named(folder, name):
        yield {
            "path": path,
            "emotion": emotions[int(emotion) - 1],
            "text": f"{statements[statement]} by the door.",
            "speaker": actor,
        }


def crema_d(folder):
    """``AudioWAV/1001_DFA_ANG_XX.wav``: actor, sentence, emotion, level.

    Cao et al., 2014, https://github.com/CheyneyComputerScience/CREMA-D.
    """
    emotions = {
        "ANG": "angry",
        "DIS": "disgust",
        "FEA": "fear",
        "HAP": "happy",
        "NEU": "neutral",
        "SAD": "sad",
    }
    name = rf"(1\d{{3}})_(\w{{3}})_({'|'.join(emotions)})_\w\w"
    for path, (actor, sentence, emotion) in _named(folder, name):
        yield {
            "path": path,
            "emotion": emotions[emotion],
            "text": _CREMA_D_SENTENCES.get(sentence, ""),
            "speaker": actor,
        }


def tess(folder):
    """``OAF_back_angry.wav``, in any folder: speaker, word, emotion.

    Pichora-Fuller and Dupuis, 2020, https://doi.org/10.5683/SP2/E8H2MF. Of one
    file the published name lacks the third letter.
    """
    words = "angry disgust fear happy neutral ps sad".split()
    name = rf"([OY]A)F?_([a-z]+)_({'|'.join(words)})"
    for path, (speaker, word, emotion) in _named(folder, name, re.IGNORECASE):
        emotion = emotion.lower()
        yield {
            "path": path,
            "emotion": "surprise" if emotion == "ps" else emotion,
            "text": f"Say the word {word.lower()}.",
            "speaker": speaker.upper(),
        }


def savee(folder):
    """``DC/a01.wav`` or ``DC_a01.wav``: speaker, emotion, sentence.

    Jackson and Haq, 2014, http://kahlan.eps.surrey.ac.uk/savee.
    """
    emotions = {
        "a": "angry",
        "d": "disgust",
        "f": "fear",
        "h": "happy",
        "n": "neutral",
        "sa": "sad",
        "su": "surprise",
    }
    name = r"(?:(DC|JE|JK|KL)_)?(sa|su|a|d|f|h|n)\d\d"
    for path, (speaker, emotion) in _named(folder, name):
        yield {
            "path": path,
            "emotion": emotions[emotion],
            "speaker": speaker or Path(path).parent.name,
        }


def nemo(folder):
    """``data.tsv`` with what is known of ``samples/AB1_anger_01.wav``.

    Christop, 2024, https://github.com/amu-cai/nEMO; in Polish.
    """
    for row in read_table(Path(folder, "data.tsv")).rows:
        yield {
            "path": f"samples/{row['file_id']}",
            "emotion": row["emotion"],
            "text": row["raw_text"],
            "speaker": row["speaker_id"],
        }


def msp_podcast(folder):
    """``Labels/labels_consensus.csv``, ``Audios/`` and ``Transcripts/``.

    Lotfian and Busso, 2019. The test set is Test1; segments without agreement
    (X) or of another emotion (O) are left out, and so are Test2 and Test3.
    """
    words = {
        "A": "angry",
        "S": "sad",
        "H": "happy",
        "U": "surprise",
        "F": "fear",
        "D": "disgust",
        "C": "contempt",
        "N": "neutral",
    }
    splits = {"Train": "train", "Development": "valid", "Test1": "test"}
    folder = Path(folder)
    for row in read_table(folder / "Labels/labels_consensus.csv").rows:
        if row["EmoClass"] not in words or row["Split_Set"] not in splits:
            continue
        said = folder / "Transcripts" / f"{Path(row['FileName']).stem}.txt"
        unknown = row["SpkrID"].lower() == "unknown"
        yield {
            "path": f"Audios/{row['FileName']}",
            "emotion": words[row["EmoClass"]],
            "text": decode(said.read_bytes()).strip() if said.exists() else "",
            "speaker": "" if unknown else row["SpkrID"],
            "split": splits[row["Split_Set"]],
        }


def esd(folder):
    """``0011/Angry/0011_000351.wav``, or in a folder of a split; ``0011.txt``.

    Zhou et al., 2021, https://github.com/HLTSingapore/Emotional-Speech-Data:
    ten speakers of Mandarin, then ten of English. All speak in every split;
    ``--columns split=`` makes folds of speakers.
    """
    texts = {}
    for path in Path(folder).rglob("00[0-2][0-9].txt"):
        content = path.read_bytes()
        # Of the Mandarin speakers some are in GB 18030.
        try:
            text = decode(content) if path.stem > "0010" else content.decode()
        except UnicodeDecodeError:
            marked = content[:2] in (b"\xff\xfe", b"\xfe\xff")
            text = content.decode("utf-16" if marked else "gb18030", "replace")
        for line in text.lstrip("\ufeff").splitlines():
            name, *said = line.split("\t")
            texts[name.strip()] = said[0].strip() if said else ""
    for path, (name, speaker) in _named(folder, r"((\d{4})_\d{6})"):
        emotion, split = Path(path).parent.name, ""
        if emotion in ("train", "evaluation", "test"):
            emotion, split = Path(path).parents[1].name, emotion
        yield {
            "path": path,
            "emotion": emotion.lower(),
            "text": texts.get(name, ""),
            "speaker": speaker,
            "split": {"evaluation": "valid"}.get(split, split),
        }


def _named(folder, name, flags=0):
    """Path and groups of each WAV file below whose stem is such a name."""
    for path in sorted(Path(folder).rglob("*.[wW][aA][vV]")):
        if found := re.fullmatch(name, path.stem, flags):
            yield path.relative_to(folder).as_posix(), found.groups()
