"""The folder of a run: one run, of one set of settings, by one process."""

import fcntl
import os
import socket
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import datetime
from io import StringIO

import speechbrain as sb
import torch.distributed as dist
from ruamel.yaml import YAML
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from speechbrain.utils.logger import get_logger

from emoq_modules import present_names
from emoq_modules.dataio.files import write_atomically
from emoq_modules.errors import BusyError, ConfigurationError
from emoq_modules.evaluation.results import RESULTS_FILE
from emoq_modules.inference.recognizer_folder import SETTINGS_FILE
from emoq_modules.training.distributed import world_size

logger = get_logger(__name__)

_LOCK_FILE = ".lock"
# Descriptors of the locks that whoever started this process holds for it.
LOCKS_VARIABLE = "EMOQ_LOCKS"

_SHOWN = 120  # characters of a value, in a message
# May change between two starts of a run: its result does not depend on them.
_FREE_TO_CHANGE = {
    "num_workers",
    "shard_llm",
    "ckpt_interval_minutes",
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
                locks = [stack.enter_context(_lock(f)) for f in folders]
            except BusyError as error:
                refusal = [str(error)]
        if world_size() > 1:
            dist.broadcast_object_list(refusal)
        if refusal[0] is not None:
            raise BusyError(refusal[0])
        yield locks


def _lock(folder):
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / _LOCK_FILE).open("a+")
    shared = filter(None, os.environ.get(LOCKS_VARIABLE, "").split(","))
    own = os.fstat(lock.fileno())
    if any(os.path.samestat(os.fstat(int(fd)), own) for fd in shared):
        lock.close()
        return nullcontext()
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with lock:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
        raise BusyError(
            f"{holder} is at the run in {folder}: wait until that ends, or "
            "choose another --variant or --results_folder."
        ) from None
    except OSError as error:
        logger.warning(
            f"{folder} cannot be locked ({error.strerror}): see to it that no "
            "other process runs there."
        )
    # Of a run that was killed, workers of its data loaders go on for seconds.
    os.register_at_fork(after_in_child=lock.close)
    lock.truncate(0)
    now = datetime.now().astimezone().isoformat(" ", "seconds")
    lock.write(f"Process {os.getpid()} on {socket.gethostname()}, since {now},")
    lock.flush()
    return lock


def enter_folder(run):
    """Makes a run's folder, or checks that it holds this very run."""
    folder = run.folder
    # A start that failed before its first checkpoint leaves nothing to keep.
    if any(folder.glob("save/*")) or (folder / RESULTS_FILE).exists():
        check_settings(run)
    sb.create_experiment_directory(folder)
    if if_main_process():
        write_atomically(folder / SETTINGS_FILE, run.hparams_yaml.encode())
    ddp_barrier()


def check_settings(run):
    """Refuses a folder that holds a run with other settings."""
    saved = run.folder / SETTINGS_FILE
    if not saved.exists():
        return
    earlier = present_names(saved.read_text(encoding="utf-8"))
    changed = differences(run.hparams_yaml, earlier)
    fixed = {k: v for k, v in changed.items() if k not in _FREE_TO_CHANGE}
    if fixed:
        key, values = next(iter(fixed.items()))
        before, now = (
            value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
            for value in (" ".join(value.split()) for value in values)
        )
        others = f" (and {', '.join([*fixed][1:])})" if len(fixed) > 1 else ""
        raise ConfigurationError(
            f"{run.folder} holds a run with other settings: {key} was "
            f"{before!r} and is now {now!r}{others}. Choose another "
            "--results_folder (or, for a run by itself, another --variant), or "
            "delete that folder."
        )


def differences(now, earlier):
    """Keys whose values differ between two YAMLs: the value before and now.

    Example
    -------
    >>> differences("a: 1\\nb: 2", "a: 1\\nb: 3")
    {'b': ('3', '2')}
    """
    ours, theirs = _texts(now), _texts(earlier)
    return {
        key: (theirs.get(key, "null"), ours.get(key, "null"))
        for key in ours | theirs
        if theirs.get(key, "null") != ours.get(key, "null")
    }


def _texts(hparams_yaml):
    """Each key's value as YAML; this parser drops the comments."""
    texts = {}
    for key, node in _parser().compose(hparams_yaml).value:
        text = StringIO()
        _parser().serialize(node, text)
        texts[key.value] = text.getvalue().removesuffix("...\n").strip()
    return texts


def _parser():
    return YAML(typ="safe", pure=True)
