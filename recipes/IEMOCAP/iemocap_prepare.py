"""Makes manifests of IEMOCAP, from ``IEMOCAP_full_release`` as distributed.

What is read of each session, and nothing else::

    Session1/dialog/EmoEvaluation/Ses01F_impro01.txt   turns, times, emotions
    Session1/dialog/transcriptions/Ses01F_impro01.txt  what was said
    Session1/sentences/wav/Ses01F_impro01/*.wav        one file a turn

``python recipes/IEMOCAP/iemocap_prepare.py DATA_FOLDER SAVE_FOLDER`` runs it
alone.

Reference: C. Busso et al., "IEMOCAP: Interactive emotional dyadic motion
capture database", Language Resources and Evaluation 42 (2008).
"""

import logging
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Literal

from emoq_modules.dataio.audio import audio_duration
from emoq_modules.dataio.files import decode
from emoq_modules.dataio.prepare import (
    Turn,
    Utterance,
    check_choice,
    is_prepared,
    main,
    name_few,
    rooted,
    split_by_dialogue,
    write_manifests,
)
from emoq_modules.errors import AudioError, CorpusError

logger = logging.getLogger(__name__)

LABELS = ("angry", "happy", "neutral", "sad")
SESSIONS = range(1, 6)
SPEAKERS = [f"Ses{s:02d}{gender}" for s in SESSIONS for gender in "FM"]

# The annotators' majority, as EmoEvaluation writes it. The others, "xxx" (no
# majority) and "oth", name no emotion.
EMOTIONS = {
    "ang": "angry",
    "dis": "disgust",
    "exc": "excited",
    "fea": "fear",
    "fru": "frustrated",
    "hap": "happy",
    "neu": "neutral",
    "sad": "sad",
    "sur": "surprise",
}

# What the literature's four-class set has, of the complete release.
STANDARD_COUNTS = {
    "class": {"angry": 1103, "happy": 1636, "neutral": 1708, "sad": 1084},
    "session": {
        "Ses01": 1085,
        "Ses02": 1023,
        "Ses03": 1151,
        "Ses04": 1031,
        "Ses05": 1241,
    },
}

_REASONS = {"xxx": "no majority ('xxx')"}

# [6.2901 - 8.2357]	Ses01F_impro01_F000	neu	[2.5000, 2.5000, 2.5000]
_TURN = re.compile(
    r"^[ \t]*\[(\d+(?:\.\d+)?) - [\d.]+\]\s+(Ses\d\d\w+_[FM]\w+)\s+(\w+)",
    re.MULTILINE,
)
# Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.
_SPOKEN = re.compile(r"^(Ses\d\d\w+)\s*\[[\d.\s-]*\]:(.*)$", re.MULTILINE)


def prepare_iemocap(
    data_folder: str,
    save_folder: str,
    fold: int = 1,
    leave_out: Literal["session", "speaker"] = "session",
    labels: tuple[str, ...] = LABELS,
    validate_on: Literal["dialogues", "session"] = "dialogues",
    improvised_only: bool = False,
    valid_fraction: float = 0.1,
    seed: int = 1234,
):
    """Make the manifests of one IEMOCAP fold.

    The test set is one session or one speaker. Validation is about a tenth of
    the remaining utterances, in whole dialogues chosen by a seeded hash, by
    speakers whom training has too; or the session after the tested one (after
    the last the first), whose speakers it has not. No dialogue is in both
    training and validation, and neither is chosen by looking at the test set.
    With one speaker left out, the partner's side of the same dialogues stays
    in training. All sessions act the same plays, whose lines training then has
    read; ``improvised_only`` leaves them out.

    Arguments
    ---------
    data_folder : str
        ``IEMOCAP_full_release``, or the folder that holds it.
    save_folder : str
        Where the manifests go. ``{data_root}`` in them is ``data_folder``.
    fold : int
        Test session 1 to 5, or test speaker 1 to 10 in the order Ses01F,
        Ses01M, Ses02F, ...
    leave_out : {"session", "speaker"}
        What the test set is.
    labels : tuple[str, ...]
        Emotion words to keep. "excited" joins "happy" unless it is itself
        among them.
    validate_on : {"dialogues", "session"}
        What validation is.
    improvised_only : bool
        Whether the scripted dialogues are left out.
    valid_fraction : float
        Share of the training utterances to validate on, in dialogues.
    seed : int
        Seed of the choice of validation dialogues.

    Raises
    ------
    CorpusError
        The folder is not IEMOCAP, or the fold or a label does not exist.
    """
    folds = SESSIONS if leave_out == "session" else range(1, 11)
    check_choice("leave_out", leave_out, ("session", "speaker"))
    check_choice("fold", fold, folds)
    check_choice("validate_on", validate_on, ("dialogues", "session"))
    check_choice("improvised_only", improvised_only, (True, False))
    for label in labels:
        check_choice("label", label, sorted(EMOTIONS.values()))
    data_folder = Path(data_folder)
    release = _release_folder(data_folder)
    wavs = {
        path.stem: path
        for path in release.glob("Session[1-5]/sentences/wav/*/Ses*.wav")
    }
    settings = {
        "corpus": "IEMOCAP",
        "data_folder": data_folder.resolve(),
        "wavs": len(wavs),
        "fold": fold,
        "leave_out": leave_out,
        "labels": labels,
        "validate_on": validate_on,
        "improvised_only": improvised_only,
        "valid_fraction": valid_fraction,
        "seed": seed,
    }
    if is_prepared(save_folder, settings):
        return
    spoken = _transcripts(release)
    dialogues = _dialogues(release)
    utterances, skipped = _read(dialogues, spoken, wavs, data_folder, labels)
    known = {id_ for turns in dialogues.values() for _, id_, _ in turns}
    unknown = sorted(wavs.keys() - known)
    if unknown:
        skipped["of which EmoEvaluation says nothing"] = unknown
    if set(labels) == set(LABELS):
        _compare_with_standard(utterances)
    _report_scripted(utterances)
    if improvised_only:
        skipped["scripted"] = [u.id for u in utterances if not _improvised(u)]
        utterances = list(filter(_improvised, utterances))
    held_out = (
        f"Ses{fold:02d}" if leave_out == "session" else SPEAKERS[fold - 1]
    )
    test, rest = [], []
    for u in utterances:
        (test if held_out in (u.session, u.speaker) else rest).append(u)
    if validate_on == "session":
        session = f"Ses{int(held_out[3:5]) % len(SESSIONS) + 1:02d}"
        train = [u for u in rest if u.session != session]
        valid = [u for u in rest if u.session == session]
    else:
        train, valid = split_by_dialogue(rest, valid_fraction, seed)
    splits = {"train": train, "valid": valid, "test": test}
    turns = {
        name: [
            Turn(turn, _speaker(id_), spoken.get(id_, ""))
            for turn, (_, id_, _) in enumerate(dialogue)
        ]
        for name, dialogue in dialogues.items()
    }
    write_manifests(save_folder, splits, labels, settings, skipped, turns)


def _release_folder(data_folder):
    """The folder that holds Session1 ... Session5."""
    for folder in (data_folder, data_folder / "IEMOCAP_full_release"):
        if any(folder.glob("Session[1-5]/dialog/EmoEvaluation")):
            return folder
    raise CorpusError(
        f"{data_folder} is not IEMOCAP: neither it nor an "
        "IEMOCAP_full_release in it holds Session1/dialog/EmoEvaluation. "
        "Give the folder that holds Session1 to Session5."
    )


def _read(dialogues, spoken, wavs, data_folder, labels):
    """The utterances of the wanted classes, and the others by reason."""
    joined = {} if "excited" in labels else {"exc": "happy"}
    utterances, skipped = [], defaultdict(list)
    for dialogue, turns in dialogues.items():
        # Left-out turns count too, so that gaps in a dialogue stay visible.
        for turn, (_, id_, code) in enumerate(turns):
            emotion = joined.get(code) or EMOTIONS.get(code)
            if emotion not in labels:
                skipped[_REASONS.get(code, f"labeled '{code}'")].append(id_)
                continue
            try:
                duration = audio_duration(wavs[id_])
            except KeyError:
                skipped["no wav file"].append(id_)
                continue
            except AudioError as error:
                logger.warning(f"{id_} is left out: {error}.")
                skipped["unusable wav file"].append(id_)
                continue
            utterances.append(
                Utterance(
                    id=id_,
                    wav=rooted(wavs[id_], data_folder),
                    duration=duration,
                    speaker=_speaker(id_),
                    session=id_[:5],
                    dialogue=dialogue,
                    turn=turn,
                    text=spoken.get(id_, ""),
                    emotion=emotion,
                )
            )
    untold = [u.id for u in utterances if u.id not in spoken]
    if untold:
        logger.warning(f"Kept without a transcript: {name_few(untold)}.")
    return utterances, skipped


def _dialogues(release):
    """Each dialogue's name and its (start, id, emotion code), in time."""
    # The pattern passes over "._*" files and the raters' subfolders.
    return {
        path.stem: sorted(
            (float(start), id_, code)
            for start, id_, code in _TURN.findall(decode(path.read_bytes()))
        )
        for path in sorted(
            release.glob("Session[1-5]/dialog/EmoEvaluation/Ses*.txt")
        )
    }


def _speaker(id_):
    """The session, and the gender letter in the last part of the id."""
    return id_[:5] + id_.rsplit("_", 1)[1][0]


def _transcripts(release):
    """Id -> what was said; lines of no turn (``F: ...``) have no id."""
    spoken = {}
    for path in release.glob("Session[1-5]/dialog/transcriptions/Ses*.txt"):
        for id_, text in _SPOKEN.findall(decode(path.read_bytes())):
            spoken[id_] = " ".join(text.split())
    return spoken


def _improvised(utterance):
    """Whether it is of ``Ses01F_impro01``, not of ``Ses01F_script01_1``."""
    return "_impro" in utterance.dialogue


def _report_scripted(utterances):
    """Log how many utterances of each session are of the plays."""
    improvised = Counter(u.session for u in filter(_improvised, utterances))
    counts = [
        f"{session} {improvised[session]} + {count - improvised[session]}"
        for session, count in Counter(u.session for u in utterances).items()
    ]
    logger.info(f"improvised + scripted: {', '.join(counts)}")


def _compare_with_standard(utterances):
    """Say so where the copy at hand is not the complete release."""
    found = {
        "class": Counter(u.emotion for u in utterances),
        "session": Counter(u.session for u in utterances),
    }
    differences = [
        f"{name} {expected} expected, {found[kind][name]} found"
        for kind, counts in STANDARD_COUNTS.items()
        for name, expected in counts.items()
        if found[kind][name] != expected
    ]
    if differences:
        total = sum(STANDARD_COUNTS["class"].values())
        logger.warning(
            f"This is not the complete release: {total} utterances expected, "
            f"{len(utterances)} found ({'; '.join(differences)})."
        )


if __name__ == "__main__":
    raise SystemExit(main(prepare_iemocap))
