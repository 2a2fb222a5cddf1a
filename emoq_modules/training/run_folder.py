"""The folder of a run: it holds one run, of one set of hyperparameters."""

from io import StringIO

import speechbrain as sb
from ruamel.yaml import YAML
from speechbrain.utils.distributed import ddp_barrier, if_main_process

from emoq_modules import present_names
from emoq_modules.dataio.files import write_atomically
from emoq_modules.errors import ConfigurationError
from emoq_modules.evaluation.results import RESULTS_FILE
from emoq_modules.inference.recognizer_folder import SETTINGS_FILE

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
