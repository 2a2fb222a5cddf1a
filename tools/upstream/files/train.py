#!/usr/bin/env python3
"""Recipe for training EmoQ, speech emotion recognition with an EmoQ-Former and
a large language model.

Stage 1 trains the EmoQ-Former with an auxiliary classifier; stage 2 starts from
its weights, and trains it, a projector and the LLM's LoRA adapter. To run this
recipe, do the following, with the YAML files of one corpus:
> python train.py hparams/..._stage1.yaml --data_folder /path/to/corpus
> python train.py hparams/..._stage2.yaml --data_folder /path/to/corpus

The same command goes on where a run was stopped.
"""

import csv
import os
import sys
from io import StringIO
from pathlib import Path

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML
from speechbrain.utils.distributed import (
    ddp_barrier,
    ddp_init_group,
    get_rank,
    infer_device,
    run_on_main,
)

from emoq_modules.checkpoints import save_trainable
from emoq_modules.dataio import build_datasets, read_audio
from emoq_modules.feature_extraction import extract_features
from emoq_modules.feature_store import FeatureStore
from emoq_modules.manifest import DIALOGUES_FILE, SPLITS
from emoq_modules.manifest_reader import read_dialogues, read_manifest
from emoq_modules.sharding import shard_llm
from emoq_modules.stages import Stage1Brain, Stage2Brain

BRAINS = {1: Stage1Brain, 2: Stage2Brain}


def prepare_corpus(hparams_file, overrides):
    """Makes the manifests, and looks whether all is there to begin with.

    Of the YAML only plain values are read: models take their time.

    Arguments
    ---------
    hparams_file : str
        The YAML file.
    overrides : str
        What the command line sets of it; ``--prepare null`` leaves the
        manifests as they are.

    Raises
    ------
    ValueError
        If there is no such fold.
    FileNotFoundError
        If stage 1 has not been trained, or there are no manifests.
    """
    with open(hparams_file, encoding="utf-8") as file:
        plain = YAML().load(resolve_references(file, overrides))
    if plain["fold"] not in plain["folds"]:
        raise ValueError(
            f"There is no fold {plain['fold']}; the folds are "
            f"{', '.join(map(str, plain['folds']))}."
        )
    if plain["pretrainer"] and not Path(plain["fusion_weights"]).exists():
        raise FileNotFoundError(
            f"There is no {plain['fusion_weights']}, from which stage 2 "
            "starts: train stage 1 first, with the same fold and seed."
        )
    step = StringIO()
    YAML().dump({"prepare": plain["prepare"]}, step)
    prepare = load_hyperpyyaml(step.getvalue())["prepare"]
    if prepare is not None:
        run_on_main(prepare)
    for split in SPLITS:
        manifest = Path(plain["manifest_folder"], f"{split}.json")
        if not manifest.exists():
            raise FileNotFoundError(
                f"There is no manifest {manifest}: leave out --prepare null."
            )


def dataio_prepare(hparams, device):
    """Reads the manifests, and computes the frames that are not stored yet.

    Arguments
    ---------
    hparams : dict
        The loaded YAML.
    device : str
        Where the audio encoder computes.

    Returns
    -------
    dict
        A ``DynamicItemDataset`` for each split.
    """
    manifests = {
        split: read_manifest(
            f"{hparams['manifest_folder']}/{split}.json",
            hparams["labels"],
            hparams["data_root"],
        )
        for split in SPLITS
    }
    context = {}
    if hparams["stage"] == 2 and hparams["context_turns"]:
        folder = Path(hparams["manifest_folder"])
        context["dialogues"] = read_dialogues(folder / DIALOGUES_FILE)
        context["context_turns"] = hparams["context_turns"]
    return build_datasets(
        manifests,
        hparams["labels"],
        audio_source(hparams, manifests, device),
        hparams["text_tokenizer"],
        hparams["max_text_tokens"],
        **context,
    )


def audio_source(hparams, manifests, device):
    """Chooses what the data sets read: stored frames, or waveforms.

    Frames that are not in the store yet are computed first.

    Arguments
    ---------
    hparams : dict
        The loaded YAML.
    manifests : dict
        The ``Manifest`` of each split.
    device : str
        Where the audio encoder computes.

    Returns
    -------
    callable
        Gives an utterance's frames, ``(T, audio_dim)``, or its waveform at
        16 kHz, ``(T,)``, from the path of its audio.

    Raises
    ------
    ValueError
        If ``audio_dim`` is not the encoder's, or waveforms are to be
        augmented and frames are to come from a store.
    """
    encoder = hparams["audio_encoder"]
    if encoder.dim != hparams["audio_dim"]:
        raise ValueError(
            f"audio_dim is {hparams['audio_dim']}, but a frame of "
            f"audio_encoder has {encoder.dim} values."
        )
    if hparams["feature_store"] is None:
        return read_audio
    if hparams["augment_audio"] is not None:
        raise ValueError(
            "augment_audio changes waveforms, but frames come from the feature "
            "store: set feature_store to null, or augment_audio."
        )
    store = FeatureStore(
        hparams["feature_store"], encoder.identity, hparams["store_precision"]
    )
    extract_features(
        [row for manifest in manifests.values() for row in manifest.rows],
        encoder,
        store,
        read_audio,
        device=device,
        rank=get_rank() or 0,
        world_size=int(os.environ.get("WORLD_SIZE", 1)),
    )
    ddp_barrier()  # the other ranks' share is there too
    encoder.to("cpu")
    return store.load


def write_results(folder, stats):
    """Writes ``test_stats.txt`` and ``predictions.csv``.

    Arguments
    ---------
    folder : str
        The run's folder.
    stats : EmotionStats
        Of the test set.
    """
    with open(Path(folder, "test_stats.txt"), "w", encoding="utf-8") as file:
        stats.write_stats(file)
    path = Path(folder, "predictions.csv")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["id", "dialogue", "label", "prediction", *stats.labels]
        )
        for row in zip(
            stats.ids,
            stats.dialogues,
            stats.targets,
            stats.predictions,
            stats.posteriors,
            strict=True,
        ):
            id_, dialogue, target, prediction, posteriors = row
            names = stats.labels[target], stats.labels[prediction]
            scores = [f"{score:.6f}" for score in posteriors.tolist()]
            writer.writerow([id_, dialogue, *names, *scores])


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    ddp_init_group(run_opts)
    # Data first: what is wrong there shows before models take their time.
    prepare_corpus(hparams_file, overrides)
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )

    modules, checkpointer = hparams["modules"], hparams["checkpointer"]
    for name, module in modules.items():
        checkpointer.add_recoverable(name, module)
    if hparams["feature_store"] is None:
        modules = {**modules, "encoder": hparams["audio_encoder"]}
    if hparams["stage"] == 2 and hparams["shard_llm"]:
        # First, as the brain takes all modules to the device.
        shard_llm(hparams["decoder"], run_opts.get("device") or infer_device())
    brain = BRAINS[hparams["stage"]](
        modules=modules,
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=checkpointer,
    )
    datasets = dataio_prepare(hparams, brain.device)
    if hparams["pretrainer"] is not None:
        hparams["pretrainer"].collect_files()
        hparams["pretrainer"].load_collected()

    brain.fit(
        hparams["epoch_counter"],
        datasets["train"],
        datasets["valid"],
        train_loader_kwargs=dict(hparams["train_loader"]),
        valid_loader_kwargs=dict(hparams["eval_loader"]),
    )
    for split in ("valid", "test"):
        brain.evaluate(
            datasets[split],
            split=split,
            test_loader_kwargs=dict(hparams["eval_loader"]),
        )
    if brain.debug:
        sys.exit()  # a few batches are not to take the place of a whole run
    run_on_main(write_results, args=[hparams["output_folder"], brain.stats])
    if hparams["stage"] == 1:
        # The classifier is discarded, the EmoQ-Former goes on to stage 2. All
        # ranks call this, and the first one writes.
        save_trainable(hparams["fusion"], hparams["fusion_weights"])
