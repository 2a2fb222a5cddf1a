"""
Creates data manifest files for MELD, and the WAV files that they name, from
MELD.Raw as distributed (https://affective-meld.github.io/).

Authors
 * EmoQ authors 2026
"""

import csv
import io
import json
import os
import re
import shutil
import subprocess

from speechbrain.dataio import audio_io
from speechbrain.utils.logger import get_logger
from speechbrain.utils.parallel import parallel_map

logger = get_logger(__name__)
SAMPLERATE = 16000
# Three clips hold far more than their utterance, two of them whole scenes of
# four and five minutes.
MAX_SECONDS = 30

# MELD's name of a split: the folder of its clips, the number of its utterances
SPLITS = {
    "train": ("train_splits", 9989),
    "dev": ("dev_splits_complete", 1109),
    "test": ("output_repeated_splits_test", 2610),
}
# The first clip is corrupt, the second was never distributed, see
# https://github.com/declare-lab/MELD/issues/39 and .../issues/27
UNUSABLE = ("train_dia125_utt3", "dev_dia110_utt7")

# Bytes as Windows-1252 has them; five of them have no letter there.
LETTERS = {
    byte: bytes([byte]).decode("cp1252", "ignore") or chr(byte)
    for byte in range(0x80, 0xC0)
}
BYTES = {letter: byte for byte, letter in LETTERS.items()}
# What UTF-8 makes of a letter of western Europe, a punctuation mark or an
# emoji, when each of its bytes is read as a letter of Windows-1252.
CONTINUATION = f"[{re.escape(''.join(BYTES))}]"
MISREAD = re.compile(
    f"[ÂÃÅ]{CONTINUATION}|â{CONTINUATION}{{2}}|ð{CONTINUATION}{{3}}"
)


def prepare_meld(
    data_folder,
    save_folder,
    train_annotation,
    valid_annotation,
    test_annotation,
    skip_prep=False,
):
    """
    Prepares the json files for the MELD dataset, on its own splits.

    The sound of every clip is converted to 16 kHz mono by ffmpeg, once, into
    `save_folder`, which is what {data_root} in the json files stands for.

    Arguments
    ---------
    data_folder : str
        Path to the folder MELD.Raw, with its archives extracted.
    save_folder : str
        Path where the folder audio, about 1.4 GB, will be saved.
    train_annotation : str
        Path where the train data specification file will be saved.
    valid_annotation : str
        Path where the validation data specification file will be saved.
    test_annotation : str
        Path where the test data specification file will be saved.
    skip_prep : bool
        If True, skip data preparation.

    Returns
    -------
    None

    Example
    -------
    >>> data_folder = "/path/to/MELD.Raw"
    >>> prepare_meld(
    ...     data_folder, "save", "train.json", "valid.json", "test.json"
    ... )
    """
    if skip_prep:
        return
    json_files = [train_annotation, valid_annotation, test_annotation]

    # Check if this phase is already done (if so, skip it)
    if all(os.path.isfile(json_file) for json_file in json_files):
        logger.info("Preparation completed in previous run, skipping.")
        return

    if shutil.which("ffmpeg") is None:
        raise OSError(
            "ffmpeg, which reads MELD's clips, was not found. Install it, "
            "e.g., by `apt install ffmpeg` or `conda install ffmpeg`."
        )

    # All splits are looked at before the long conversion begins
    splits = [load_split(data_folder, split) for split in SPLITS]
    left_out = [
        uttid
        for utterances in splits
        for uttid in UNUSABLE
        if utterances.pop(uttid, None)
    ]
    if left_out:
        logger.warning(
            f"{len(left_out)} utterances without a usable clip are left out: "
            f"{', '.join(left_out)}"
        )
    for utterances in splits:
        check_clips(utterances)
    for utterances, json_file in zip(splits, json_files):
        create_json(utterances, save_folder, json_file)


def load_split(data_folder, split):
    """
    Loads the annotations of a split.

    Arguments
    ---------
    data_folder : str
        Path to the folder MELD.Raw.
    split : str
        "train", "dev" or "test".

    Returns
    -------
    utterances : dict
        Map from utterance id to its clip, WAV file (in the folder of all WAV
        files), emotion, words and speaker.
    """
    clip_folder, number_utt = SPLITS[split]
    clip_folder = find(data_folder, split, clip_folder)
    csv_file = find(data_folder, split, f"{split}_sent_emo.csv")
    with open(csv_file, "rb") as f:
        content = f.read()
    try:
        content = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        # Some copies are as old spreadsheets have saved them
        content = content.decode("cp1252", errors="replace")

    utterances = {}
    for row in csv.DictReader(io.StringIO(content, newline="")):
        name = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
        # Dialogue ids repeat across the splits
        utterances[f"{split}_{name}"] = {
            "clip": os.path.join(clip_folder, f"{name}.mp4"),
            "wav": f"audio/{split}/{name}.wav",
            "emo": row["Emotion"],
            "words": repair(row["Utterance"]),
            "speaker": repair(row["Speaker"]),
        }
    if len(utterances) != number_utt:
        logger.warning(
            f"{csv_file} has {len(utterances)} utterances, while MELD has "
            f"{number_utt}: results will not compare with published ones."
        )
    return utterances


def find(data_folder, split, name):
    """
    Finds a file or folder, which may lie in a folder named by the split.

    Arguments
    ---------
    data_folder : str
        Path to the folder MELD.Raw.
    split : str
        "train", "dev" or "test".
    name : str
        Name of the file or folder.

    Returns
    -------
    path : str
        Path to it.
    """
    for folder in (data_folder, os.path.join(data_folder, split)):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return path
    raise FileNotFoundError(
        f"There is no {name} in {data_folder}, nor in its folder {split}. "
        f"Extract MELD.Raw.tar.gz, and in MELD.Raw {split}.tar.gz."
    )


def check_clips(utterances):
    """
    Checks that the clips are there.

    Arguments
    ---------
    utterances : dict
        Map from utterance id to, among others, its clip.
    """
    clips = [utterance["clip"] for utterance in utterances.values()]
    missing = [clip for clip in clips if not os.path.isfile(clip)]
    if missing:
        names = ", ".join(os.path.basename(clip) for clip in missing[:3])
        raise FileNotFoundError(
            f"{len(missing)} clips are missing in "
            f"{os.path.dirname(missing[0])}, such as {names}. "
            "Is the archive incomplete?"
        )


def create_json(utterances, save_folder, json_file):
    """
    Converts the clips of a split and creates its json file.

    Arguments
    ---------
    utterances : dict
        Map from utterance id to what load_split tells about it.
    save_folder : str
        Path where the folder audio will be saved.
    json_file : str
        The path of the output json file.
    """
    conversions = [
        (utterance["clip"], os.path.join(save_folder, utterance["wav"]))
        for utterance in utterances.values()
    ]
    durations = list(parallel_map(convert, conversions))

    json_dict = {}
    for (uttid, utterance), duration in zip(utterances.items(), durations):
        json_dict[uttid] = {
            "wav": "{data_root}/" + utterance["wav"],
            "length": duration,
            "emo": utterance["emo"],
            "words": utterance["words"],
            "speaker": utterance["speaker"],
        }

    # Writing the dictionary to the json file
    with open(json_file, mode="w", encoding="utf-8") as json_f:
        json.dump(json_dict, json_f, indent=2, ensure_ascii=False)

    logger.info(f"{json_file} successfully created!")


def convert(conversion):
    """
    Converts the sound of a clip to a WAV file, unless it is there.

    Arguments
    ---------
    conversion : tuple
        Paths to the clip and to the WAV file.

    Returns
    -------
    duration : float
        Seconds of the WAV file.
    """
    clip, wav = conversion
    if not os.path.isfile(wav):
        os.makedirs(os.path.dirname(wav), exist_ok=True)
        # An interrupted conversion should not look like a finished one
        partial = f"{wav}.partial"
        command = ["ffmpeg", "-nostdin", "-y", "-loglevel", "error", "-i", clip]
        command += ["-vn", "-ac", "1", "-ar", str(SAMPLERATE)]
        command += ["-t", str(MAX_SECONDS), "-f", "wav", partial]
        result = subprocess.run(command, stderr=subprocess.PIPE)
        if result.returncode != 0:
            reason = result.stderr.decode(errors="replace").strip()
            raise RuntimeError(f"ffmpeg cannot convert {clip}: {reason}")
        os.replace(partial, wav)
    return audio_io.info(wav).duration


def repair(text):
    """
    Undoes wrong encodings and line breaks.

    Some copies of MELD hold bytes of Windows-1252 as control characters,
    some UTF-8 that was read as Windows-1252.

    Arguments
    ---------
    text : str
        Text of a cell.

    Returns
    -------
    text : str
        The text as it was meant, on one line.

    Example
    -------
    >>> repair("It\\x92s me, you  know. Youâ€™re late.")
    'It’s me, you know. You’re late.'
    """
    return " ".join(MISREAD.sub(reread, text.translate(LETTERS)).split())


def reread(match):
    """
    Reads misread letters as UTF-8.

    Arguments
    ---------
    match : re.Match
        Letters of Windows-1252.

    Returns
    -------
    letters : str
        The letter that was meant, or those that were found if it is none.
    """
    content = bytes(BYTES.get(letter, ord(letter)) for letter in match[0])
    return content.decode("utf-8", "ignore") or match[0]
