"""The folder of a run: one run, of one set of settings, by one process."""

import fcntl
import hashlib
import json
import os
import re
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from io import StringIO
from pathlib import Path

import speechbrain as sb
import torch.distributed as dist
from ruamel.yaml import YAML, YAMLError
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from speechbrain.utils.logger import get_logger

from emoq_modules import present_names
from emoq_modules.dataio.files import remove_abandoned, write_atomically
from emoq_modules.errors import BusyError, ConfigurationError
from emoq_modules.evaluation.results import RESULTS_FILE
from emoq_modules.inference.recognizer_folder import SETTINGS_FILE
from emoq_modules.training.distributed import world_size

logger = get_logger(__name__)

# The settings of the stage 1 that a run of stage 2 has started from.
STAGE_1_FILE = "stage1.yaml"
_CORPUS_FILE = "corpus.json"  # digests of what a run trains and tests on
_LOCK_FILE = ".lock"
# Descriptors of the locks that whoever started this process holds for it.
LOCKS_VARIABLE = "EMOQ_LOCKS"

_SHOWN = 120  # characters of a value, in a message
_FOLDERS = "data_folder audio_source text_encoder llm llm_tokenizer".split()
# May change between two starts of a run: its result does not depend on them.
_FREE_TO_CHANGE = {
    "results_folder",  # in which everything lies that it names
    "num_workers",
    "shard_llm",
    "ckpt_interval_minutes",
    "max_utterance_s",  # refuses data, and changes none
    "feature_store",
    "logger",  # of version 0.1
    "train_logger",
}


@contextmanager
def claimed(*folders):
    """Holds the folders of runs, to which no other process then writes.

    Yields their locks, to pass on to a process that does the work; the ranks of
    a run share those of the first. The kernel lets go of a lock when the last
    process that holds it ends, however it ends: no lock is ever stale.

    BusyError, on all ranks, if another process has one of the folders, on this
    machine or on another that shares them.
    """
    locks, refusal = [], [None]
    with ExitStack() as stack:
        if if_main_process():
            try:
                locks = [stack.enter_context(_locked(f)) for f in folders]
            except BusyError as error:
                refusal = [str(error)]
        if world_size() > 1:
            dist.broadcast_object_list(refusal)
        if refusal[0] is not None:
            raise BusyError(refusal[0])
        yield locks


@contextmanager
def _locked(folder):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK_FILE).open("a+") as lock:
        shared = filter(None, os.environ.get(LOCKS_VARIABLE, "").split(","))
        own = os.fstat(lock.fileno())
        if any(os.path.samestat(os.fstat(int(fd)), own) for fd in shared):
            yield lock
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "Another process"
            raise BusyError(
                f"{holder} is at the run in {folder}: wait until that ends, or "
                "choose another --variant or --results_folder."
            ) from None
        except OSError as error:
            logger.warning(
                f"{folder} cannot be locked ({error.strerror}): see to it that "
                "no other process runs there."
            )
        # Workers of data loaders outlive a run that is killed, by seconds.
        os.register_at_fork(after_in_child=lock.close)
        lock.truncate(0)
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        who = f"Process {os.getpid()} on {socket.gethostname()}"
        lock.write(f"{who}, since {now},")
        lock.flush()
        try:
            yield lock
        finally:
            lock.truncate(0)


def enter_folder(run):
    """Makes a run's folder, or checks that it holds this very run."""
    folder, kept = run.folder, _holds_a_run(run)
    check_settings(run)
    sb.create_experiment_directory(folder)
    if if_main_process():
        remove_abandoned(folder, "**/*.partial", 0)  # nobody else is here
        write_atomically(folder / SETTINGS_FILE, run.hparams_yaml.encode())
        if run.weights and not kept:
            _keep_settings_of_stage_1(run)
    ddp_barrier()


def check_settings(run):
    """Refuses other settings than a run's own, and those of its stage 1.

    That is in what its folder holds, in the stage 1 that it is about to start
    from, and in the one that it did start from. Weights of a person's own
    choice are started from as they are.
    """
    if run.has_own_stage_1:
        changed = _changed(run.first, run.weights.parent / SETTINGS_FILE)
        if run.weights.exists() and changed:
            raise ConfigurationError(
                f"{run.weights.parent} holds a stage 1 with other settings: "
                f"{changed}. Choose another --variant or --results_folder to "
                "train both stages anew. To start from it all the same, give "
                f"--fusion_weights {run.weights} with another --variant; or "
                "put what is meant for stage 2 alone into a preset's section "
                "stage2."
            )
    if not _holds_a_run(run):
        return
    advice = (
        "Choose another --results_folder (or, for a run by itself, another "
        "--variant), or delete that folder."
    )
    changed = _changed(run, run.folder / SETTINGS_FILE)
    if changed:
        raise ConfigurationError(
            f"{run.folder} holds a run with other settings: {changed}. {advice}"
        )
    if run.has_own_stage_1:
        changed = _changed(run.first, run.folder / STAGE_1_FILE)
        if changed:
            raise ConfigurationError(
                f"{run.folder} holds a run that started from a stage 1 with "
                f"other settings: {changed}. {advice}"
            )


def check_corpus(run, manifests, dialogues=None):
    """Refuses a corpus that has changed since a run, or its stage 1, began.

    Else it would go on with other utterances than it was trained on, and test
    what it has trained on. Where files lie is no part of the corpus.
    """
    corpus = {split: _digest(rows) for split, rows in manifests.items()}
    if dialogues is not None:
        corpus["dialogues"] = _digest(dialogues)
    folders = [run.folder] if _holds_a_run(run) else []
    if run.has_own_stage_1 and run.weights.exists():
        folders.append(run.weights.parent)
    for folder in folders:
        file = folder / _CORPUS_FILE
        try:
            # Earlier versions kept none.
            kept = json.loads(file.read_bytes()) if file.exists() else corpus
            kept = dict(kept)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{file} is damaged ({error}): delete it, if the corpus is the "
                "one that the run began with."
            ) from error
        changed = [x for x in corpus if x in kept and kept[x] != corpus[x]]
        if changed:
            raise ConfigurationError(
                f"The corpus has changed since the run in {folder} began "
                f"({', '.join(changed)} of {run.hparams['manifest_folder']}): "
                "restore it, or choose another --variant or --results_folder "
                "to train anew."
            )
    if if_main_process():
        text = json.dumps(corpus, indent=2)
        write_atomically(run.folder / _CORPUS_FILE, text.encode())
    ddp_barrier()


def _digest(rows):
    """That of utterances by their id, or of turns, whatever their files."""
    digest = hashlib.sha256()
    for name, row in rows.items():
        if isinstance(row, Mapping):
            row = {key: row[key] for key in row if key != "wav"}
        line = json.dumps([name, row], ensure_ascii=False)
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _holds_a_run(run):
    """Whether there is more than a start that failed leaves."""
    weights = run.hparams["fusion_weights"]
    return (
        any(run.folder.glob("save/*"))
        or (run.folder / RESULTS_FILE).exists()
        or (run.hparams["stage"] == 1 and Path(weights).exists())
    )


def _keep_settings_of_stage_1(run):
    """Keeps and logs what stage 2 starts from; its settings have but a path."""
    kept = run.folder / STAGE_1_FILE
    kept.unlink(missing_ok=True)
    settings = run.weights.parent / SETTINGS_FILE
    if not settings.exists():
        logger.warning(f"Nothing beside {run.weights} says how it was trained.")
        return
    known = _read_texts(settings)
    write_atomically(kept, settings.read_bytes())
    corpus, variant, fold, seed = (
        known.get(key, "?") for key in ("corpus", "variant", "fold", "seed")
    )
    logger.info(
        f"Stage 2 starts from {run.weights}, trained on {corpus} ({variant}, "
        f"fold {fold}, seed {seed})."
    )
    own = run.hparams
    if corpus == own["corpus"] and fold != str(own["fold"]):
        logger.warning(
            f"{run.weights} is of another fold, {fold}, and may have heard "
            f"test utterances of fold {own['fold']}."
        )


def _changed(run, saved):
    """What differs from saved settings, in words; None where nothing does."""
    if not saved.exists():
        return None
    changed = _differences(_texts(run.hparams_yaml), _read_texts(saved))
    fixed = {k: v for k, v in changed.items() if k not in _FREE_TO_CHANGE}
    if not fixed:
        return None
    # A plain value says more than the object that it is an argument of.
    key, values = min(fixed.items(), key=lambda item: len(max(item[1])))
    before, now = (
        value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
        for value in (" ".join(value.split()) for value in values)
    )
    others = [name for name in fixed if name != key]
    others = f" (and {', '.join(others)})" if others else ""
    return f"{key} was {before!r} and is now {now!r}{others}"


def differences(now, earlier):
    """Keys whose values differ between two YAMLs: the value before and now.

    Example
    -------
    >>> differences("a: 1\\nb: 2", "a: 1\\nb: 3")
    {'b': ('3', '2')}
    """
    return _differences(_texts(now), _texts(earlier))


def _differences(ours, theirs):
    return {
        key: (theirs.get(key, "null"), ours.get(key, "null"))
        for key in ours | theirs
        if theirs.get(key, "null") != ours.get(key, "null")
    }


def _read_texts(saved):
    """``_texts`` of what a run has kept, by the names of today."""
    try:
        return _texts(present_names(saved.read_text(encoding="utf-8")))
    except (YAMLError, ValueError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{saved} is damaged: restore it from a backup, or delete the "
            f"folder {saved.parent} to train anew."
        ) from error


def _texts(hparams_yaml):
    """Each key's value as YAML; this parser drops the comments.

    Paths in the results folder are relative to it, as it may be moved; other
    folders are those that they are, by whatever path they are named.
    """
    texts = {}
    nodes = {k.value: v for k, v in _parser().compose(hparams_yaml).value}
    known = {key: getattr(node, "value", "") for key, node in nodes.items()}
    places = {known.get("results_folder"): ""}
    for key in _FOLDERS:
        folder = known.get(key)
        if isinstance(folder, str) and os.path.isdir(folder):
            places[folder] = os.path.realpath(folder)
    for key, node in nodes.items():
        text = StringIO()
        _parser().serialize(node, text)
        text = text.getvalue().removesuffix("...\n").strip()
        for place, name in places.items():
            if place:
                path = rf"(?<![^\s'\"\[{{]){re.escape(place)}(?![^\s'\"\]}},/])"
                text = re.sub(path, name, text)
        texts[key] = text
    return texts


def _parser():
    parser = YAML(typ="safe", pure=True)
    parser.width = sys.maxsize  # where lines break tells lengths of paths
    return parser
