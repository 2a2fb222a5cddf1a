"""The folder of a run: it holds one run, of one set of hyperparameters."""

import copy
from io import StringIO
from textwrap import shorten

import speechbrain as sb
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from speechbrain.utils.distributed import ddp_barrier, if_main_process

from emoq_modules import present_names
from emoq_modules.dataio.files import write_atomically
from emoq_modules.errors import ConfigurationError
from emoq_modules.evaluation.results import RESULTS_FILE
from emoq_modules.inference.recognizer_folder import SETTINGS_FILE

# May change between two starts of a run: its result does not depend on them.
_FREE_TO_CHANGE = {
    "num_workers",
    "shard_llm",
    "ckpt_interval_minutes",
    "feature_store",
    "logger",  # of version 0.1
    "train_logger",
}


def enter_folder(run):
    """Makes a run's folder, or checks that it holds this very run.

    Arguments
    ---------
    run : StageRun
        What is to be run.

    Raises
    ------
    ConfigurationError
        If the folder holds a run with other settings.
    """
    folder = run.folder
    # A start that failed before its first checkpoint leaves nothing to keep.
    if any(folder.glob("save/*")) or (folder / RESULTS_FILE).exists():
        check_settings(run)
    sb.create_experiment_directory(folder)
    if if_main_process():
        write_atomically(folder / SETTINGS_FILE, run.hparams_yaml.encode())
    ddp_barrier()


def check_settings(run):
    """Checks that what is in a run's folder is this very run.

    Arguments
    ---------
    run : StageRun
        What would be run.

    Raises
    ------
    ConfigurationError
        If it was made with other settings, of those that its result depends on.
    """
    saved = run.folder / SETTINGS_FILE
    if not saved.exists():
        return
    earlier = present_names(saved.read_text(encoding="utf-8"))
    changed = differences(run.hparams_yaml, earlier)
    fixed = {k: v for k, v in changed.items() if k not in _FREE_TO_CHANGE}
    if fixed:
        key, (before, now) = next(iter(fixed.items()))
        others = f" (and {len(fixed) - 1} more)" if len(fixed) > 1 else ""
        raise ConfigurationError(
            f"{run.folder} holds a run with other settings: {key} was "
            f"{shorten(before, 60)!r} and is now {shorten(now, 60)!r}"
            f"{others}. Choose another --results_folder (or, for a run by "
            "itself, another --variant), or delete that folder."
        )


def differences(now, earlier):
    """Finds the keys whose values differ between two composed experiments.

    Returns
    -------
    dict
        Each such key with its value before and now, as YAML.

    Example
    -------
    >>> differences("a: 1\\nb: 2", "a: 1\\nb: 3")
    {'b': ('3', '2')}
    """
    ours, theirs = YAML().load(now), YAML().load(earlier)
    return {
        key: (_text(theirs.get(key)), _text(ours.get(key)))
        for key in [*ours, *(key for key in theirs if key not in ours)]
        if _text(ours.get(key)) != _text(theirs.get(key))
    }


def _text(node):
    """A node as YAML, without the comments."""
    node = copy.deepcopy(node)
    for part in _parts(node):
        part.ca.items.clear()
        part.ca.comment = None
    text = StringIO()
    YAML().dump({"value": node}, text)
    return text.getvalue().removeprefix("value:").strip()


def _parts(node):
    """All mappings and sequences of a tree."""
    if isinstance(node, CommentedMap | CommentedSeq):
        yield node
        values = node.values() if isinstance(node, CommentedMap) else node
        for value in values:
            yield from _parts(value)
