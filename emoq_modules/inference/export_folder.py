"""Where an export comes from and where it goes, with nothing lost there."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from emoq_modules.dataio.files import CONTENTS_FILE
from emoq_modules.errors import ExportError
from emoq_modules.evaluation.results import RESULTS_FILE
from emoq_modules.inference.recognizer_folder import (
    RECOGNIZER_FOLDER,
    SETTINGS_FILE,
)

CARD_FILE = "README.md"
INTERFACE_FILE = "custom_interface.py"
# All that an export has ever held: other things in a folder are somebody's.
_ENTRIES = {
    CARD_FILE,
    CONTENTS_FILE,
    SETTINGS_FILE,
    "adapter",
    "audio_encoder",
    "fusion.safetensors",
    INTERFACE_FILE,
    "labels.txt",
    "llm",
    "llm_tokenizer",
    "projector.safetensors",
    "prompt.txt",
    "text_encoder",
    "text_tokenizer",
}


def find_run(results_folder):
    """The finished stage 2 in a folder, or in its folder ``stage2``.

    Raises
    ------
    ExportError
        If there is none.
    """
    folder = Path(results_folder)
    for run in (folder, folder / "stage2"):
        if (run / RECOGNIZER_FOLDER / SETTINGS_FILE).is_file():
            if not (run / RESULTS_FILE).is_file():
                raise ExportError(
                    f"The run in {run} has no {RESULTS_FILE}: it is not "
                    "finished. Start it again; it goes on from where it was."
                )
            return run
    if not folder.is_dir():
        raise ExportError(f"There is no folder {folder}.")
    raise ExportError(
        f"There is no trained stage 2 in {folder}: it has no folder "
        f"{RECOGNIZER_FOLDER}. Give the output folder of a stage 2, such as "
        "results/demo/emoq/fold1-seed1234/stage2."
    )


def check_out(out):
    """The folder to export to, if nothing would be lost there.

    Raises
    ------
    ExportError
        If it is a file, or holds what no export has written.
    """
    out = Path(out).expanduser().resolve()
    if not out.exists():
        return out
    if not out.is_dir():
        raise ExportError(f"{out} is a file; give a folder.")
    names = {path.name for path in out.iterdir()}
    others = sorted(names - _ENTRIES)
    if names and not others and not _is_export(out):
        others = sorted(names)
    if others:
        raise ExportError(
            f"{out} holds {', '.join(others[:3])}"
            f"{' and more' if len(others) > 3 else ''}, which no export has "
            "written: give a folder that is empty, not there yet, or an "
            "earlier export."
        )
    return out


@contextmanager
def taking_the_place_of(out):
    """Gives a folder to fill beside ``out``, which replaces it at the end.

    If filling it fails, what was there before is as it was.
    """
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    earlier = out.with_name(f".{out.name}.{os.getpid()}.earlier")
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            os.rename(out, earlier)
        try:
            os.rename(partial, out)
        except OSError:
            if earlier.exists():
                os.rename(earlier, out)
            raise
        shutil.rmtree(earlier, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_export(folder):
    try:
        tree = YAML().load((folder / SETTINGS_FILE).read_text("utf-8"))
        return "format_version" in tree
    except (OSError, YAMLError, TypeError, UnicodeDecodeError):
        return False
