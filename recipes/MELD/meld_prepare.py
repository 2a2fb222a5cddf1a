"""Makes manifests of MELD, from ``MELD.Raw`` as published.

``MELD.Raw`` holds ``train.tar.gz``, ``dev.tar.gz`` and ``test.tar.gz`` with
the clips, an mp4 file an utterance, and a CSV file a split; the one of the
training split is inside ``train.tar.gz``. Extracted, the clips lie in
``train_splits``, ``dev_splits_complete`` and ``output_repeated_splits_test``.
Both forms will do, split by split, and so will ``MELD.Raw.tar.gz`` itself.

``python recipes/MELD/meld_prepare.py DATA_FOLDER SAVE_FOLDER`` runs it alone.

Reference: S. Poria et al., "MELD: A multimodal multi-party dataset for emotion
recognition in conversations", ACL 2019.
"""

import hashlib
import logging
import sys
import tarfile
import zlib
from collections import defaultdict
from pathlib import Path, PurePosixPath

from emoq_modules.dataio.clips import ClipStore
from emoq_modules.dataio.files import write_atomically
from emoq_modules.dataio.prepare import (
    Turn,
    Utterance,
    check_choice,
    is_prepared,
    main,
    name_few,
    rooted,
    write_manifests,
)
from emoq_modules.errors import CorpusError

sys.path.append(str(Path(__file__).parents[2]))  # run alone, it is not there
from recipes.MELD.annotations import (  # noqa: E402
    LABELS,
    annotated_times,
    find_episode,
    find_repeats,
    read_annotations,
    repair,
)

logger = logging.getLogger(__name__)

# MELD's name of a split -> the manifest's, and the number of its utterances
# that have audio in a complete copy.
SPLITS = {"train": "train", "dev": "valid", "test": "test"}
COMPLETE = {"train": 9988, "dev": 1108, "test": 2610}

_WHOLE = ("MELD.Raw", set(SPLITS))


def prepare_meld(
    data_folder: str,
    save_folder: str,
    audio_folder: str | None = None,
    labels: tuple[str, ...] = LABELS,
    max_duration_s: float = 30.0,
    num_workers: int | None = None,
    without_clips: bool = False,
    without_repeats: bool = False,
):
    """Make MELD's manifests, on its own splits, and the audio they name.

    The audio of every clip is extracted, whichever classes are wanted: once
    it is in ``audio_folder``, other label sets need no clips any more.

    Arguments
    ---------
    data_folder : str
        ``MELD.Raw``, extracted or packed, or ``MELD.Raw.tar.gz``.
    save_folder : str
        Where the manifests go.
    audio_folder : str, optional
        Where the audio goes (16 kHz mono; about 1.4 GB), ``audio`` in
        ``save_folder`` unless given. ``{data_root}`` in the manifests is this
        folder.
    labels : tuple[str, ...]
        Emotion words to keep.
    max_duration_s : float
        Longer clips are cut to it: three are far longer than what is said.
    num_workers : int, optional
        Processes that extract audio; one a core unless given.
    without_clips : bool
        Whether the three CSV files alone will do, as where nothing hears the
        audio. Every row is an utterance then, of the length that its times
        tell. Where there are clips, they are taken all the same.
    without_repeats : bool
        Whether an utterance is left out of training whose sound validation or
        test has too, and one of validation whose sound test has. The splits as
        published have some, which are named either way.

    Raises
    ------
    CorpusError
        A split without clips or CSV file, a damaged archive, an unknown
        label, or an ``audio_folder`` cut to another length.
    """
    for label in labels:
        check_choice("label", label, LABELS)
    check_choice("without_repeats", without_repeats, (True, False))
    data_folder = Path(data_folder)
    if data_folder.suffix == ".csv":
        raise CorpusError(f"{data_folder} is a table: give its folder.")
    if not data_folder.exists():
        raise CorpusError(
            f"{data_folder} does not exist: give the folder MELD.Raw, or "
            "MELD.Raw.tar.gz."
        )
    audio_folder = Path(audio_folder or Path(save_folder) / "audio")
    with ClipStore(audio_folder, max_duration_s, num_workers) as store:
        _fill(store, data_folder, without_clips)
    tables = {s: _find_csv(s, data_folder, audio_folder) for s in SPLITS}
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in tables.values()))
    settings = {
        "corpus": "MELD",
        "data_folder": data_folder.resolve(),
        "audio_folder": audio_folder.resolve(),
        "clips_with_audio": len(store.durations),
        "annotations": digest.hexdigest(),
        "labels": labels,
        "max_duration_s": max_duration_s,
        "without_repeats": without_repeats,
    }
    if is_prepared(save_folder, settings):
        return
    rows = {
        key: row
        for split, path in tables.items()
        for key, row in read_annotations(split, path).items()
    }
    if store.durations or not without_clips:
        _report(store, rows)
    else:
        logger.info("There are no clips: the transcripts alone are prepared.")
        times = {key: annotated_times(row) for key, row in rows.items()}
        # In one row, of the test split, start and end are the same.
        store.durations = {k: max(e - s, 0.01) for k, (s, e) in times.items()}
    kept = {
        key: row
        for key, row in rows.items()
        if key in store.durations and row["Emotion"] in labels
    }
    repeats = find_repeats(kept)
    if repeats:
        names = ", ".join(f"{key} in {other}" for key, other in repeats)
        logger.info(f"the same sound in two splits: {len(repeats)} ({names})")
    left_out = {key for key, _ in repeats} if without_repeats else ()
    splits, skipped = _utterances(store, rows, labels, left_out)
    write_manifests(
        save_folder, splits, labels, settings, skipped, _dialogues(rows)
    )


def _fill(store, data_folder, without_clips):
    """Put the audio of all the clips at hand into the store."""
    clips, archives = _find_clips(data_folder)
    in_store = {key.split("/")[0] for key in store.durations}
    at_hand = in_store.union(clips, *archives.values())
    if without_clips and not at_hand:
        return
    for split in SPLITS:
        if split not in at_hand:
            raise CorpusError(
                f"There are no clips of MELD's {split} split in "
                f"{data_folder}: looked for *.mp4 in folders with '{split}' "
                f"in their name, for {split}.tar.gz and for MELD.Raw.tar.gz."
            )
    for split, paths in clips.items():
        pairs = ((f"{split}/{path.stem}", path) for path in paths)
        store.add(split, _stamp(paths), pairs, len(paths))
    for archive, splits in archives.items():
        pairs = _unpack(archive, splits, store.folder)
        try:
            store.add(archive.name, _stamp([archive]), pairs)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise CorpusError(
                f"{archive} is truncated or damaged ({error}): get it again. "
                f"The audio that came out of it is kept in {store.folder}."
            ) from error


def _stamp(paths):
    """Values that change when a file is added, removed or replaced."""
    states = [path.stat() for path in paths]
    return [
        len(states),
        sum(state.st_size for state in states),
        max(state.st_mtime_ns for state in states),
    ]


def _find_clips(data_folder):
    """Split -> clips, and archive -> the splits it has to provide."""
    if data_folder.is_file():
        return {}, {data_folder: set(SPLITS)}
    clips = defaultdict(list)
    # macOS has left "._dia0_utt0.mp4" and the like, which are no clips.
    for path in sorted(data_folder.rglob("[!.]*.mp4")):
        split = _split_of(path.relative_to(data_folder))
        if split is not None:
            clips[split].append(path)
    archives, wanted = {}, SPLITS.keys() - clips.keys()
    for name, holds in (*((split, {split}) for split in SPLITS), _WHOLE):
        found = sorted(data_folder.rglob(f"{name}.tar.gz"))
        if found and holds & wanted:
            archives[found[0]] = holds & wanted
            wanted -= holds
    return clips, archives


def _unpack(archive, splits, csv_folder):
    """Key and clip, in the order of the archive; CSV files are set down."""
    with archive.open("rb") as file:
        for path, content in _members(file, PurePosixPath(archive.name)):
            split = _split_of(path)
            if path.name in {f"{split}_sent_emo.csv" for split in SPLITS}:
                write_atomically(csv_folder / path.name, content.read())
            elif path.suffix == ".mp4" and split in splits:
                yield f"{split}/{path.stem}", content


def _members(file, path):
    """The files of a tar stream, and of the tar files in it."""
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            inner = path / member.name
            if not member.isfile() or inner.name.startswith("."):
                continue
            content = archive.extractfile(member)
            if inner.name.endswith(".tar.gz"):
                yield from _members(content, inner)
            else:
                yield inner, content


def _split_of(path):
    """The split a clip is of, by the innermost folder that names one."""
    for folder in reversed(path.parts[:-1]):
        for split in SPLITS:
            if split in folder:
                return split
    return None


def _find_csv(split, data_folder, audio_folder):
    """A split's annotations: as published, or as found in an archive."""
    name = f"{split}_sent_emo.csv"
    found = sorted(data_folder.rglob(name), key=lambda p: len(p.parts))
    found.append(audio_folder / name)
    if not found[0].is_file():
        raise CorpusError(
            f"There is no {name} in {data_folder} or the archives in it. "
            "It can be had from https://github.com/declare-lab/MELD."
        )
    return found[0]


def _utterances(store, rows, labels, left_out):
    """The manifests' rows by split, and what was left out by reason."""
    splits = {split: [] for split in SPLITS.values()}
    skipped = defaultdict(list)
    for key, row in rows.items():
        if key not in store.durations:
            skipped[store.faults.get(key, "the clip is missing")].append(key)
        elif row["Emotion"] not in labels:
            skipped[f"labeled '{row['Emotion']}'"].append(key)
        elif key in left_out:
            skipped["its sound is in a later split"].append(key)
        else:
            dialogue, turn = _place(key)
            season, episode = find_episode(row)
            splits[SPLITS[key.split("/")[0]]].append(
                Utterance(
                    id=key.replace("/", "_"),
                    wav=rooted(store.path(key), store.folder),
                    duration=store.durations[key],
                    speaker=repair(row["Speaker"]),
                    session=f"S{season:02d}E{episode:02d}",
                    dialogue=dialogue,
                    turn=turn,
                    text=repair(row["Utterance"]),
                    emotion=row["Emotion"],
                )
            )
    return splits, skipped


def _dialogues(rows):
    """Dialogue -> its turns, those without a clip or a wanted class too."""
    dialogues = defaultdict(list)
    for key, row in rows.items():
        dialogue, turn = _place(key)
        speaker, text = repair(row["Speaker"]), repair(row["Utterance"])
        dialogues[dialogue].append(Turn(turn, speaker, text))
    return dialogues


def _place(key):
    """The dialogue, named with its split as ids repeat, and the turn."""
    dialogue, turn = key.replace("/", "_").split("_utt")
    return dialogue, int(turn)


def _report(store, rows):
    """Log what was cut, what has no annotation, and what a copy lacks."""
    with_audio = [key for key in rows if key in store.durations]
    cut = [k for k in with_audio if store.durations[k] >= store.max_duration_s]
    unannotated = sorted((store.durations | store.faults).keys() - rows)
    if cut:
        logger.info(f"cut to {store.max_duration_s:g} s: {name_few(cut)}")
    if unannotated:
        logger.info(f"clips without annotation: {name_few(unannotated)}")
    for split, expected in COMPLETE.items():
        found = sum(key.startswith(f"{split}/") for key in with_audio)
        if found != expected:
            logger.warning(
                f"This is not all of MELD: of {split} {expected} utterances "
                f"with audio are expected, {found} found."
            )


if __name__ == "__main__":
    raise SystemExit(main(prepare_meld))
