"""What a kill, a full disk and a flipped byte do to a run.

    python -m benchmarks.faults

trains a small system again and again: killed in twelve phases, on ten disks
that are too small (which takes root, for a tmpfs), and with one bit changed in
a file of each kind. Each time the same command follows. It has to end with
what a run ends with that nothing has happened to, to the byte, or to say in a
line what is wrong. Prints three tables; the exit status is 1 if anything was
passed over.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

import torch

import train
from emoq_modules.commands.cli import main as emoq

KILLS, DISKS = 12, 10
_RUN = "tiny/emoq/fold1-seed1234"
# A kind of file, and where one is.
KINDS = {
    "manifest": "tiny/manifests/fold1/train.json",
    "turns of the dialogues": "tiny/manifests/fold1/dialogues.json",
    "stored frames": "feature_store/*/*.safetensors",
    "settings of a run": f"{_RUN}/stage2/hyperparams.yaml",
    "digests of the corpus": f"{_RUN}/stage2/corpus.json",
    "checkpoint: weights": f"{_RUN}/stage2/save/CKPT*/decoder.ckpt",
    "checkpoint: list": f"{_RUN}/stage2/save/CKPT*/CKPT.yaml",
    "checkpoint: history": f"{_RUN}/stage2/save/CKPT*/history.ckpt",
    "weights of stage 1": f"{_RUN}/stage1/emoq_former.safetensors",
    "list of stage 1": f"{_RUN}/stage1/contents.json",
    "recognizer: weights": f"{_RUN}/stage2/recognizer/decoder.safetensors",
    "recognizer: list": f"{_RUN}/stage2/recognizer/contents.json",
    "backbone: weights": f"{_RUN}/stage2/backbones/llm/model.safetensors",
    "backbone: tokenizer": f"{_RUN}/stage2/backbones/llm/tokenizer.json",
    "predictions": f"{_RUN}/stage2/predictions.csv",
    "results": f"{_RUN}/stage2/results.json",
}


def main():
    """Tries all of it, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--folder", help="where to; a temporary one if not given"
    )
    own = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=own.folder) as folder:
        folder = Path(folder)
        started = time.monotonic()
        status, told = start(folder / "whole", folder)
        taken = time.monotonic() - started
        if status:
            sys.exit(f"The run that nothing happens to ends with {told}")
        expected = what_is_left(folder / "whole")
        passed_over = [
            *kill(folder, expected, taken),
            *fill(folder, expected),
            *flip(folder, expected),
        ]
    print(f"\npassed over: {', '.join(passed_over) or 'nothing'}")
    return 1 if passed_over else 0


def start(results, folder, kill_after=None):
    """Trains; gives the status, and the last line that it says."""
    words = ["hparams/emoq_stage2.yaml", "--preset", "tests/tiny.yaml"]
    words += ["--results_folder", str(results)]
    words += ["--ckpt_interval_minutes", "0", "--ckpt_interval_steps", "1"]
    return _run(folder, train.run, words, kill_after)


def ask(results, folder, sound):
    """Has the recognizer of a run answer; gives the same."""
    model = str(results / _RUN / "stage2/recognizer")
    words = ["predict", "--model", model, str(sound), "--format", "csv"]
    return _run(folder, emoq, words)


def _run(folder, command, words, kill_after=None):
    log = folder / "log.txt"
    process = multiprocessing.get_context("fork").Process(
        target=_work, args=(log, command, words)
    )
    process.start()
    process.join(kill_after)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    lines = log.read_text(errors="replace").splitlines() or [""]
    if any(line.startswith("Traceback") for line in lines):
        return process.exitcode, f"a traceback: {lines[-1]}"
    return process.exitcode, lines[-1]


def _work(log, command, words):
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    status = command(words)
    sys.stdout.flush()
    os._exit(status)


def what_is_left(results):
    """The bytes of what both stages have made, by name."""
    run = results / _RUN
    files = [
        *run.glob("stage*/*predictions.csv"),
        *run.glob("stage1/*.safetensors"),
    ]
    files += (run / "stage2/recognizer").glob("*.safetensors")
    return {path.relative_to(run): path.read_bytes() for path in files}


def kill(folder, expected, taken):
    """SIGKILL in phases of a run, and the same command again."""
    print(
        f"\n| killed after, of {taken:.0f} s | there was | the same command |"
    )
    print("| --- | --- | --- |")
    for number in range(KILLS):
        after = (number + 0.5) / KILLS * taken
        results = folder / f"kill{number}"
        start(results, folder, after)
        there = _reached(results)
        status, told = start(results, folder)
        fine = status == 0 and what_is_left(results) == expected
        print(f"| {after:.1f} s | {there} | {'same bytes' if fine else told} |")
        shutil.rmtree(results)
        if not fine:
            yield f"kill after {after:.1f} s"


def _reached(results):
    """The last of what a run leaves, one after another."""
    names = {
        "manifests": "tiny/manifests/fold1/train.json",
        "frames": "feature_store/*/*",
        "a checkpoint of stage 1": f"{_RUN}/stage1/save/CKPT*/CKPT.yaml",
        "stage 1": f"{_RUN}/stage1/emoq_former.safetensors",
        "a checkpoint of stage 2": f"{_RUN}/stage2/save/CKPT*/CKPT.yaml",
        "the recognizer": f"{_RUN}/stage2/recognizer/contents.json",
        "the results": f"{_RUN}/stage2/results.json",
    }
    there = [name for name, where in names.items() if any(results.glob(where))]
    return there[-1] if there else "nothing"


def fill(folder, expected):
    """Disks of too small a size, which are then made large enough."""
    whole = sum(
        path.stat().st_size
        for path in (folder / "whole").rglob("*")
        if path.is_file()
    )
    print(f"\n| disk, of {whole / 1e6:.1f} MB | the command | with room |")
    print("| --- | --- | --- |")
    for number in range(DISKS):
        size = round((number + 0.5) / DISKS * whole)
        try:
            with _disk(folder / "disk", size) as (disk, enlarge):
                first = start(disk / "results", folder)
                enlarge()
                status, told = start(disk / "results", folder)
                left = what_is_left(disk / "results")
        except subprocess.CalledProcessError:
            print("| not tried | no tmpfs can be made here | |")
            return
        fine = status == 0 and left == expected
        full = "No space left", "disk is full", "disk full"
        named = first[0] == 0 or any(words in first[1] for words in full)
        named &= "traceback" not in first[1]
        said = first[1] if first[0] else "has room enough"
        said = shorten(said.replace(str(folder), "…"), 100, placeholder=" …")
        end = "same bytes" if fine else told
        print(f"| {size / 1e6:.1f} MB | {said} | {end} |", flush=True)
        if not (fine and named):
            yield f"a disk of {size / 1e6:.1f} MB"


@contextmanager
def _disk(place, size):
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o"]
    subprocess.run([*mount, f"size={size}", "tmpfs", place], check=True)
    try:
        yield (
            place,
            lambda: subprocess.run(
                [*mount, "remount,size=1g", "tmpfs", place], check=True
            ),
        )
    finally:
        subprocess.run(["umount", place], check=True)


def flip(folder, expected):
    """One bit in a file of each kind, which is then read."""
    print("\n| one bit in | the same command | `emoq predict` |")
    print("| --- | --- | --- |")
    sound = folder / "whole/data/test00.wav"
    answer = ask(folder / "whole", folder, sound)
    for kind, where in KINDS.items():
        results = folder / "flipped"
        shutil.copytree(folder / "whole", results, symlinks=True)
        path = next(iter(sorted(results.glob(where))))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        predicted = ask(results, folder, sound)
        status, told = start(results, folder)
        same = what_is_left(results) == expected
        outcomes = [
            _outcome(status, told, same, path),
            _outcome(*predicted, predicted == answer, path),
        ]
        print(f"| {kind} | {outcomes[0]} | {outcomes[1]} |", flush=True)
        shutil.rmtree(results)
        if "PASSED OVER" in outcomes:
            yield kind


def _outcome(status, told, same, path):
    if status == 0:
        return "the same" if same else "PASSED OVER"
    names = path.name, path.parent.name
    is_named = status == 2 and any(name in told for name in names)
    return "named" if is_named else "PASSED OVER"


if __name__ == "__main__":
    sys.exit(main())
