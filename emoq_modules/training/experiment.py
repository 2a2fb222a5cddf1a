"""Runs an experiment: data, features, training, evaluation, results."""

import os
import sys
import time
from pathlib import Path
from statistics import median
from textwrap import shorten

import speechbrain as sb
import torch
from speechbrain.utils.distributed import (
    ddp_barrier,
    if_main_process,
    infer_device,
    run_on_main,
)
from speechbrain.utils.logger import get_logger

from emoq_modules.dataio.files import write_atomically
from emoq_modules.errors import ConfigurationError
from emoq_modules.evaluation.results import (
    CONFUSION_FILE,
    CURVES_FILE,
    RESULTS_FILE,
    format_summary,
    pool_results,
    write_results,
)
from emoq_modules.inference.recognizer_folder import (
    RECOGNIZER_FOLDER,
    save_recognizer,
)
from emoq_modules.lobes.weights import save_trainable
from emoq_modules.training.configuration import (
    change,
    compose,
    differences,
    known_options,
    load,
)
from emoq_modules.training.run_data import (
    make_datasets,
    read_context,
    read_manifests,
)
from emoq_modules.training.sharding import shard_llm

logger = get_logger(__name__)

_SETTINGS_FILE = "hyperparams.yaml"

# May change between two starts of a run: its result does not depend on them.
_FREE_TO_CHANGE = {
    "num_workers",
    "shard_llm",
    "ckpt_interval_minutes",
    "feature_store",
    "logger",  # of version 0.1
    "train_logger",
}


def run_folds(experiment, presets=(), options="", folds=None, run_opts=None):
    """Runs an experiment on one fold or several.

    A run of a few batches (``debug``) is a variant of its own, so that it does
    not take the place of a whole one.

    Arguments
    ---------
    experiment : str or Path
        The experiment's YAML file.
    presets : list of str or Path
        Presets to lay over it.
    options : str
        YAML of top-level keys that win over all.
    folds : str | None
        A fold, several (``1,2,5``) or ``all``; None is the experiment's own.
    run_opts : dict | None
        SpeechBrain's run options (device, debug, ...).

    Returns
    -------
    str
        The results of each stage, over the folds together.

    Raises
    ------
    ConfigurationError
        If there is no such fold, or the configuration is wrong.
    """
    plain = load(compose(experiment, presets, options), keys=[])
    if (run_opts or {}).get("debug"):
        options = change(options, variant=f"{plain['variant']}-debug")
    runs = {}
    for fold in chosen_folds(folds, plain):
        for stage, folder in _run_fold(
            experiment, presets, change(options, fold=int(fold)), run_opts
        ):
            runs.setdefault(f"stage {stage}", []).append(folder)
    last = list(runs.values())[-1]
    plots = [
        folder / name
        for folder in last
        for name in (CONFUSION_FILE, CURVES_FILE)
    ]
    return format_summary(
        {stage: pool_results(folders) for stage, folders in runs.items()},
        plots,
    )


def chosen_folds(folds, plain):
    """The folds that ``--fold`` means, of an experiment's plain values.

    Raises
    ------
    ConfigurationError
        If there is no such fold.

    Example
    -------
    >>> chosen_folds("1,3", {"corpus": "toy", "fold": 1, "folds": [1, 2, 3]})
    ['1', '3']
    """
    if folds is None:
        chosen = [str(plain["fold"])]
    elif folds == "all":
        chosen = [str(fold) for fold in plain["folds"]]
    else:
        chosen = list(dict.fromkeys(folds.replace(" ", "").split(",")))
    for fold in chosen:
        if fold not in map(str, plain["folds"]):
            raise ConfigurationError(
                f"There is no fold {fold} in {plain['corpus']}; its folds are "
                f"{', '.join(map(str, plain['folds']))}."
            )
    return chosen


def stage_1_of(experiment):
    """The experiment that stage 2 starts from, which lies beside its own."""
    return Path(experiment).with_name("emoq_stage1.yaml")


def check_settings(folder, resolved):
    """Whether the run in a folder is this very run.

    Raises
    ------
    ConfigurationError
        If it was made with other settings, of those that its result depends on.
    """
    saved = Path(folder, _SETTINGS_FILE)
    if not saved.exists():
        return
    changed = differences(resolved, saved.read_text(encoding="utf-8"))
    fixed = {k: v for k, v in changed.items() if k not in _FREE_TO_CHANGE}
    if fixed:
        key, (before, now) = next(iter(fixed.items()))
        others = f" (and {len(fixed) - 1} more)" if len(fixed) > 1 else ""
        raise ConfigurationError(
            f"{folder} holds a run with other settings: {key} was "
            f"{shorten(before, 60)!r} and is now {shorten(now, 60)!r}"
            f"{others}. Choose another --results_folder (or, for a run by "
            "itself, another --variant), or delete that folder."
        )


def _run_fold(experiment, presets, options, run_opts):
    """Runs a stage, and before it the one it builds on if that is missing.

    Returns
    -------
    list of tuple
        Number and output folder of each stage, in order.
    """
    resolved = compose(experiment, presets, options)
    plain = load(resolved, keys=["prompt"])
    if plain["stage"] == 2:
        _check_context(plain["context_turns"], plain["prompt"])
    runs = [(plain["stage"], Path(plain["output_folder"]))]
    if plain["stage"] == 2 and plain["fusion_weights"] is not None:
        weights = Path(plain["fusion_weights"])
        runs.insert(0, (1, weights.parent))
        if not weights.exists():
            first = stage_1_of(experiment)
            if not first.exists():
                raise ConfigurationError(
                    f"{weights} is not there, nor {first} to make it with: run "
                    "stage 1 first."
                )
            logger.info(f"{weights} is not there yet: stage 1 comes first.")
            _run_fold(first, presets, known_options(first, options), run_opts)
    _run_stage(resolved, run_opts)
    return runs


def _check_context(context_turns, prompt):
    if type(context_turns) is not int or context_turns < 0:
        raise ConfigurationError(
            f"context_turns is {context_turns!r}; it has to be a number of "
            "turns, 0 or more."
        )
    if context_turns and not prompt.has_context:
        raise ConfigurationError(
            f"context_turns is {context_turns}, but the prompt has no place "
            "for what was said before: give its user turn a line with "
            f"{{context}}, or set context_turns to 0. It is {prompt.user!r}."
        )


def _run_stage(resolved, run_opts):
    """Runs one stage, or goes on where it was stopped."""
    started = time.time()
    # Data first: what is wrong there shows before models take their time.
    plain = load(resolved, keys=["prepare"])
    _enter_output_folder(plain["output_folder"], resolved)
    run_on_main(plain["prepare"])
    manifests = read_manifests(plain)
    context = read_context(plain, manifests)

    hparams = _load_in_turn(resolved)
    modules = {k: m for k, m in hparams["modules"].items() if m is not None}
    for name, module in modules.items():
        hparams["checkpointer"].add_recoverable(name, module)
    encoder = hparams["audio_encoder"]
    if hparams["feature_store"] is None and encoder is not None:
        modules["encoder"] = encoder
    if hparams["stage"] == 2 and hparams["shard_llm"]:
        # First, as the brain takes all modules to the device.
        device = (run_opts or {}).get("device") or infer_device()
        shard_llm(hparams["decoder"], device)
    brain = hparams["brain"](
        modules=modules,
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    progressbar = sys.stderr.isatty() and not brain.noprogressbar
    datasets = make_datasets(
        hparams, manifests, brain.device, progressbar, **context
    )
    if hparams["pretrainer"] is not None:
        hparams["pretrainer"].collect_files()
        hparams["pretrainer"].load_collected()
    brain.fit(
        hparams["epoch_counter"],
        datasets["train"],
        datasets["valid"],
        progressbar=progressbar,
        train_loader_kwargs=dict(hparams["train_loader"]),
        valid_loader_kwargs=dict(hparams["eval_loader"]),
    )
    measured = {}
    for split in ("valid", "test"):
        brain.evaluate(
            datasets[split],
            split=split,
            progressbar=progressbar,
            test_loader_kwargs=dict(hparams["eval_loader"]),
        )
        measured[split] = brain.stats
    # Of the test set, which is measured last.
    embeddings = brain.tested_embeddings
    history = hparams["history"]
    costs = {
        "seconds": round(time.time() - started, 1),
        "train_utterances": len(datasets["train"]),
        "epochs": len(history),
        "epoch_seconds": round(median(row["seconds"] for row in history), 3),
    }
    run_on_main(
        _write_results,
        args=[
            resolved,
            hparams,
            brain.loaded_epoch,
            measured,
            torch.stack(embeddings) if embeddings else None,
            costs,
        ],
    )


def _load_in_turn(resolved):
    """Makes the experiment's objects on the main process, then on the others.

    What the first builds or fetches, the others find on disk.
    """
    if not if_main_process():
        ddp_barrier()
    hparams = load(resolved)
    if if_main_process():
        ddp_barrier()
    return hparams


def _enter_output_folder(folder, resolved):
    """Makes the run's folder, or checks that it holds this very run."""
    folder = Path(folder)
    # A start that failed before its first checkpoint leaves nothing to keep.
    if any(folder.glob("save/*")) or (folder / RESULTS_FILE).exists():
        check_settings(folder, resolved)
    sb.create_experiment_directory(folder)
    if if_main_process():
        write_atomically(folder / _SETTINGS_FILE, resolved.encode())
    ddp_barrier()


def _write_results(resolved, hparams, best_epoch, measured, embeddings, costs):
    folder = Path(hparams["output_folder"])
    if hparams["stage"] == 2:
        # Before the results, which tell that the run is done.
        save_recognizer(folder / RECOGNIZER_FOLDER, resolved, hparams)
    described = ("corpus", "variant", "fold", "stage", "seed")
    write_results(
        folder,
        measured["test"],
        {key: hparams[key] for key in described} | costs,
        hparams["history"],
        best_epoch,
        measured["valid"],
        embeddings,
    )
    if hparams["stage"] == 1:
        # The classifier is discarded, the EmoQ-Former goes on to stage 2. After
        # the results: where these weights are, stage 2 looks no further.
        weights = Path(hparams["fusion_weights"])
        partial = weights.with_suffix(".partial")
        save_trainable(hparams["fusion"], partial)
        os.replace(partial, weights)
    logger.info(f"Results are in {folder}")
