"""Runs an experiment: data, features, training, evaluation, results.

Each stage of each fold goes one way: its corpus is prepared, its manifests are
read, its objects are made, it trains, is evaluated, and leaves its results.
"""

import gc
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
from ruamel.yaml import YAML
from speechbrain.utils.distributed import (
    ddp_barrier,
    if_main_process,
    infer_device,
    run_on_main,
)
from speechbrain.utils.logger import get_logger

from emoq_modules.dataio.audio import read_audio
from emoq_modules.dataio.files import (
    CONTENTS_FILE,
    describe,
    find_faults,
    put_in_place,
    write_contents,
)
from emoq_modules.dataio.manifest import read_notes
from emoq_modules.errors import CheckpointError, ConfigurationError
from emoq_modules.evaluation.calibration import (
    TOLD,
    UNTOLD,
    WAYS,
    fit_temperatures,
)
from emoq_modules.evaluation.embeddings import to_plane
from emoq_modules.evaluation.plots import as_png, plot_map
from emoq_modules.evaluation.results import (
    CONFUSION_FILE,
    CURVES_FILE,
    format_summary,
    read_predictions,
    read_results,
    write_results,
)
from emoq_modules.evaluation.run_page import (
    PAGE_FILE,
    find_probes,
    write_page,
)
from emoq_modules.inference.recognizer_folder import (
    RECOGNIZER_FOLDER,
    save_recognizer,
)
from emoq_modules.lobes.weights import save_trainable
from emoq_modules.training.run_data import make_datasets, read_corpus
from emoq_modules.training.run_folder import (
    check_corpus,
    check_settings,
    claimed,
    enter_folder,
)
from emoq_modules.training.sharding import shard_llm

logger = get_logger(__name__)


def run_folds(runs, run_opts=None):
    """Runs stages, each after the one that it starts from if that is missing.

    Takes what ``plan_runs`` returned, and returns the results of each stage,
    over the folds together, as text.
    """
    folders, tried = {}, []
    for run in runs:
        check_settings(run)
    for run in runs:
        _refuse_half_precision(run, run_opts)
        due = _due(run)
        with claimed(*(stage.folder for stage in due)):
            for stage in due:
                check = stage is not run and partial(_try_llm, run, tried)
                run_stage(stage, run_opts, check)
        if run.has_own_stage_1:
            folders.setdefault("stage 1", []).append(run.first.folder)
        key = f"stage {run.hparams['stage']}"
        folders.setdefault(key, []).append(run.folder)
    pages = [folder / PAGE_FILE for folder in folders[key]]
    results = map(read_results, folders[key])
    notes = {n: None for found in results for n in found.get("notes", ())}
    return format_summary(
        {
            stage: {folder: read_predictions(folder) for folder in those}
            for stage, those in folders.items()
        },
        pages,
        notes,
    )


def _due(run):
    """A run, and before it the one that it starts from if that is missing."""
    weights = run.hparams["fusion_weights"]
    if run.hparams["stage"] == 1 or weights is None:
        return [run]
    if Path(weights).exists():
        _check_weights(Path(weights))
        return [run]
    if run.first is not None and not run.has_own_stage_1:
        raise ConfigurationError(
            f"fusion_weights is {weights}, and there is no such file."
        )
    if run.first is None:
        raise ConfigurationError(
            f"{weights} is not there, nor an emoq_stage1.yaml beside the "
            "experiment to make it with: run stage 1 first."
        )
    logger.info(f"{weights} is not there yet: stage 1 comes first.")
    return [run.first, run]


def _check_weights(path):
    """Refuses weights of stage 1 that are not those which it has written."""
    if not (path.parent / CONTENTS_FILE).exists():
        return  # of an earlier version, or from elsewhere
    for name, fault in find_faults(path.parent):
        if name in (path.name, CONTENTS_FILE):
            raise CheckpointError(
                f"{path} is not as it was written: {fault}. Restore it from a "
                "backup, or delete it: the same command then makes it again "
                "from the checkpoints of stage 1."
            )


def _refuse_half_precision(run, run_opts):
    kinds = {
        "llm_dtype": "float32, or to bfloat16",
        "precision": "fp32 or bf16",
    }
    for key, instead in kinds.items():
        value = run.hparams.get(key)
        if value in ("float16", "fp16") and "cpu" in str(
            (run_opts or {}).get("device") or infer_device()
        ):
            raise ConfigurationError(
                f"{key} is {value}, which is for a GPU, and this run is on a "
                f"CPU: set it to {instead}."
            )


def _try_llm(run, tried):
    """Builds the decoder of a stage 2, which tries the LLM, and drops it.

    What is wrong with it shows before stage 1 takes its hours; once for all
    folds. An LLM that is built on the spot fits.
    """
    decoder = YAML().load(run.hparams_yaml)["decoder"]
    wanted = decoder.get("check") and isinstance(decoder["source"], str)
    if wanted and decoder not in tried:
        logger.info(f"Trying the LLM {decoder['source']} first.")
        run.load("decoder")
        gc.collect()  # before the next is there
        tried.append(decoder)


def run_stage(run, run_opts=None, check=None):
    """Runs one stage, or goes on where it was stopped.

    ``check`` is called once the data is there, and before anything trains.
    """
    started = time.time()
    # Data first: what is wrong there shows before models take their time.
    enter_folder(run)
    manifests, dialogues = read_corpus(run.hparams)
    check_corpus(run, manifests, dialogues)
    if check:
        run_on_main(check)
    hparams = _load_in_turn(run)
    brain = _make_brain(hparams, run_opts)
    progressbar = sys.stderr.isatty() and not brain.noprogressbar
    datasets = make_datasets(
        hparams, manifests, brain.device, progressbar, dialogues
    )
    if hparams["pretrainer"] is not None:
        _load_weights(run, hparams["pretrainer"])
    try:
        brain.fit(
            hparams["epoch_counter"],
            datasets["train"],
            datasets["valid"],
            progressbar=progressbar,
            train_loader_kwargs=dict(hparams["train_loader"]),
            valid_loader_kwargs=dict(hparams["eval_loader"]),
        )
    except ValueError as error:
        if "Loss is not finite" not in str(error):
            raise
        raise ConfigurationError(
            "The loss is no finite number any more: set lower learning rates "
            f"than {hparams['learning_rates']}, and begin anew."
        ) from error
    measured = {}
    for split in ("valid", *(way for way in WAYS if way in datasets), "test"):
        brain.evaluate(
            datasets[split],
            split=split,
            progressbar=progressbar,
            test_loader_kwargs=dict(hparams["eval_loader"]),
        )
        brain.stats.locate(manifests["test" if split == "test" else "valid"])
        measured[split] = brain.stats
    told = any(row.text for row in manifests["valid"].values())
    asked = {TOLD if told else UNTOLD: measured["valid"]}
    asked |= {way: measured[way] for way in WAYS if way in measured}
    # Those of the test set, which is measured last.
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
            run,
            hparams,
            brain.loaded_epoch,
            measured,
            asked,
            torch.stack(embeddings) if embeddings else None,
            costs,
            partial(_listen, hparams, datasets["test"]),
        ],
    )


def _load_weights(run, pretrainer):
    """Loads what stage 2 starts from."""
    try:
        pretrainer.collect_files()
        pretrainer.load_collected()
    except CheckpointError as error:
        if run.has_own_stage_1:
            raise
        raise ConfigurationError(
            f"{error.fault}: fusion_weights has to be what a stage 1 of these "
            "settings has left, emoq_former.safetensors."
        ) from error


def _listen(hparams, dataset, utterance):
    """Samples and words, or prompt, of a test utterance."""
    row, samples = dataset.data[utterance], None
    if hparams["audio_encoder"] is not None:
        samples = read_audio(row["wav"])
    if hparams["stage"] == 1:
        return samples, row["text"]
    item = dataset[dataset.data_ids.index(utterance)]
    return samples, hparams["decoder"].prompt.as_text(item["prompt"])


def _load_in_turn(run):
    """Makes a run's objects on the main process, then on the others.

    What the first builds or fetches, the others find on disk.
    """
    if not if_main_process():
        ddp_barrier()
    hparams = run.load()
    fusion, dim = hparams["fusion"], hparams["embedding_dim"]
    given = getattr(fusion, "output_dim", dim)  # one's own may not tell
    if given != dim:
        raise ConfigurationError(
            f"embedding_dim is {dim}, but the embeddings of "
            f"{type(fusion).__name__} have {given} values: set embedding_dim "
            f"to {given}."
        )
    if if_main_process():
        ddp_barrier()
    return hparams


def _make_brain(hparams, run_opts):
    """The brain of a run, on the modules that it has."""
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
    return hparams["brain"](
        modules=modules,
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )


def _write_results(
    run, hparams, best_epoch, measured, asked, embeddings, costs, listen
):
    folder = run.folder
    if hparams["stage"] == 2:
        # Before the results, which tell that the run is done.
        save_recognizer(
            folder / RECOGNIZER_FOLDER,
            run.hparams_yaml,
            hparams,
            fit_temperatures(asked),
        )
    described = ["corpus", "variant", "fold", "stage", "seed"]
    if run.weights:
        described.append("fusion_weights")
    write_results(
        folder,
        measured["test"],
        {key: hparams[key] for key in described}
        | costs
        | {"notes": read_notes(run.hparams["manifest_folder"])},
        hparams["history"],
        best_epoch,
        measured["valid"],
        embeddings,
    )
    _write_page(run, measured["test"], embeddings, listen)
    if hparams["stage"] == 1:
        # The classifier is discarded, the EmoQ-Former goes on to stage 2. After
        # the results: where these weights are, stage 2 looks no further.
        weights = Path(hparams["fusion_weights"])
        partial = weights.with_suffix(".partial")
        save_trainable(hparams["fusion"], partial)
        # Never a list of other weights than those that are there.
        weights.unlink(missing_ok=True)
        write_contents(weights.parent, {weights.name: describe(partial)})
        put_in_place(partial, weights)
    logger.info(f"Results are in {folder}")


def _write_page(run, stats, embeddings, listen):
    known, folder = run.hparams, run.folder
    pictures = [
        (caption, (folder / name).read_bytes())
        for caption, name in (
            ("Confusion of the test set.", CONFUSION_FILE),
            ("Training.", CURVES_FILE),
        )
    ]
    points = None if embeddings is None else to_plane(embeddings)
    if points is not None:
        figure = plot_map(points, stats.targets, stats.labels, "Embeddings")
        pictures.append(("Embeddings of the test set.", as_png(figure)))
    words = [f"{key} {known[key]}" for key in ("stage", "fold", "seed")]
    write_page(
        folder,
        f"{known['variant']} on {known['corpus']}: {', '.join(words)}",
        stats,
        pictures,
        listen,
        find_probes(folder.parents[2], known["fold"], known["seed"]),
        read_notes(known["manifest_folder"]),
    )
