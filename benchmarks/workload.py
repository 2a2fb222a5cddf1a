"""What the bench works on: true lengths, and models to run on them.

The transcripts, speakers and emotions are MELD's, the durations MELD's or
IEMOCAP's; their sound is not to be had freely, and noise takes as long to
compute.
"""

import argparse
import csv
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from speechbrain.utils.autocast import AMPConfig, TorchAutocast
from transformers.utils import logging as transformers_logging

from emoq_modules.dataio.audio import SAMPLE_RATE, read_audio
from emoq_modules.dataio.datasets import TextInputs, build_datasets
from emoq_modules.dataio.feature_extraction import extract_features
from emoq_modules.dataio.feature_store import FeatureStore
from emoq_modules.dataio.sampler import ClassGroupSampler
from emoq_modules.errors import ConfigurationError
from emoq_modules.lobes.backbones import load_tokenizer
from emoq_modules.lobes.small_backbones import build_llm, build_text_encoder
from emoq_modules.training.checkpoints import TrainableCheckpointer
from emoq_modules.training.configuration import change, plan_runs
from emoq_modules.training.describe import build_untrained

STAGES = {1: "hparams/emoq_stage1.yaml", 2: "hparams/emoq_stage2.yaml"}
_LONGEST_S = 30  # a few of MELD's clips have the length of a scene
# MELD's names of the emotions, where the experiment's words are others.
_WORDS = {"anger": "angry"}
# A sixteenth of RoBERTa's, as its other parameters are: AdamW goes through
# them all in every step.
_TEXT_VOCABULARY = 3142


def make_parser(description):
    """A parser of a benchmark's options, of which all have ``--data``."""
    transformers_logging.disable_progress_bar()
    # Between libraries; who measures can do nothing about them.
    warnings.simplefilter("ignore", FutureWarning)
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    return parser


def read_utterances(data, number):
    """Takes utterances spread evenly over MELD's training set.

    It returns rows as a manifest has them, without ``wav``, and all
    transcripts there are, to train tokenizers on. A ``ConfigurationError``
    tells of a file that is missing, or of fewer utterances.
    """
    durations = {
        (row["dialogue_id"], row["utterance_id"]): float(row["seconds"])
        for row in read_csv(data / "MELD/clip_durations.csv")
        if row["split"] == "train"
    }
    found = [
        {
            "text": row["Utterance"],
            "speaker": row["Speaker"],
            "dialogue": row["Dialogue_ID"],
            "turn": int(row["Utterance_ID"]),
            "emotion": _WORDS.get(row["Emotion"], row["Emotion"]),
            "duration": min(durations[clip], _LONGEST_S),
        }
        for row in read_csv(data / "MELD/train_sent_emo.csv")
        if (clip := (row["Dialogue_ID"], row["Utterance_ID"])) in durations
    ]
    if len(found) < number:
        raise ConfigurationError(
            f"{data / 'MELD'} has {len(found)} utterances with a duration, and "
            f"--utterances is {number}: ask for fewer."
        )
    chosen = [found[index * len(found) // number] for index in range(number)]
    return chosen, [row["text"] for row in found]


def with_lengths_of_iemocap(rows, data):
    """Gives utterances the durations that IEMOCAP's have, in the same order.

    The longer one of MELD is, the longer it is now.
    """
    seconds = [
        float(row["seconds"])
        for row in read_csv(data / "IEMOCAP/durations.csv")
    ]
    ranks = np.argsort(np.argsort([row["duration"] for row in rows]))
    lengths = np.quantile(seconds, (ranks + 0.5) / len(rows))
    return [
        {**row, "duration": length}
        for row, length in zip(rows, lengths.tolist(), strict=True)
    ]


def read_csv(path):
    """The rows of a table; a ConfigurationError says where it belongs."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path} is not there: give --data the folder that has MELD's "
            "annotation and clip durations in MELD/, and IEMOCAP's durations "
            "in IEMOCAP/."
        ) from None


def write_audio(rows, folder):
    """Writes noise of each utterance's length; gives rows with it, by name."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    named = {}
    for index, row in enumerate(rows):
        path = folder / f"{index:05d}.wav"
        samples = round(row["duration"] * SAMPLE_RATE)
        noise = 0.1 * torch.randn(samples, generator=generator)
        soundfile.write(path, noise.numpy(), SAMPLE_RATE)
        named[path.stem] = {**row, "wav": str(path)}
    return named


@dataclass(frozen=True)
class Stage:
    """A stage of the system, of random weights, and what it trains on."""

    hparams: dict
    stored: object  # the data set whose ``audio`` is frames, from a store
    recorded: object  # the same, whose ``audio`` is the waveform
    folder: Path  # where it may write
    device: str

    @property
    def encoder(self):
        """The frozen audio encoder."""
        return self.hparams["audio_encoder"]

    def brain(self, modules=None):
        """A brain that trains the stage's modules, or these in their place.

        With an ``encoder`` among them the frames are computed on the fly.
        """
        return self.hparams["brain"](
            modules=modules or self.hparams["modules"],
            opt_class=self.hparams["opt_class"],
            hparams=self.hparams,
            run_opts={"device": self.device},
            checkpointer=TrainableCheckpointer(self.folder / "save", {}),
        )

    def train_epoch(self, brain, dataset):
        """An epoch as train.py runs it, without the validation after it."""
        brain.fit(
            [1],
            dataset,
            progressbar=False,
            train_loader_kwargs=dict(self.hparams["train_loader"]),
        )

    def autocast(self):
        """The precision that a brain trains in, for the reference."""
        return TorchAutocast(
            device_type=torch.device(self.device).type,
            dtype=AMPConfig.from_name(self.hparams["precision"]).dtype,
        )


def build_stage(stage, presets, data, rows, texts, folder, device="cpu"):
    """Builds a stage's models and data sets, and fills its feature store.

    A preset's ``text_encoder`` may be the values of a configuration, as in
    benchmarks/small.yaml; one that is given by its name needs ``roberta-base``
    in the folder ``tokenizers`` of the data. Where there is no ``qwen2.5``
    beside it, a tokenizer is built of the texts.
    """
    folder.mkdir()
    torch.manual_seed(1234)
    experiment = STAGES[stage]
    [run] = plan_runs(experiment, presets, change("", data_folder=""))
    plain = run.hparams
    options, text_tokenizer = "", data / "tokenizers/roberta-base"
    if isinstance(plain["text_encoder"], dict):
        text_tokenizer = build_text_encoder(
            folder / "text_encoder",
            texts,
            **{"vocab_size": _TEXT_VOCABULARY, **plain["text_encoder"]},
        )
        options = change("", text_encoder=text_tokenizer)
    tokenizer = data / "tokenizers/qwen2.5"
    if stage == 2 and not tokenizer.is_dir():
        tokenizer = build_llm(folder / "llm", texts, plain["labels"])
    hparams = build_untrained(
        experiment,
        presets,
        options,
        device=device,
        llm_tokenizer=str(tokenizer),
    )
    if stage == 1:
        # What shuffles was made before there was a corpus.
        hparams["train_loader"]["sampler"] = ClassGroupSampler(
            [hparams["labels"].index(row["emotion"]) for row in rows.values()],
            hparams["class_group"],
            hparams["seed"],
        )
    encoder = hparams["audio_encoder"]
    store = FeatureStore(
        folder / "store", encoder.identity, hparams["store_precision"]
    )
    extract_features(
        *(rows.values(), encoder, store, read_audio),
        device=device,
        progressbar=False,
    )
    inputs = TextInputs(
        load_tokenizer(text_tokenizer),
        hparams["max_text_tokens"],
        hparams["decoder"].prompt if stage == 2 else None,
    )
    stored, recorded = (
        build_datasets({"train": rows}, hparams["labels"], audio, inputs)[
            "train"
        ]
        for audio in (store.load, read_audio)
    )
    return Stage(hparams, stored, recorded, folder, device)
