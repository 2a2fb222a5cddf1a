#!/usr/bin/env python3
"""Recipe for training EmoQ, which recognizes emotions from speech and its
transcript by a Q-Former and an LLM (https://arxiv.org/abs/2509.15775).

In stage 1 the EmoQ-Former, which fuses HuBERT's frames with the transcript, is
trained by a supervised contrastive and a focal loss. In stage 2 its embedding
stands in the prompt of an LLM with LoRA, which is trained to answer with the
emotion word. HuBERT's frames are computed once and kept in an HDF5 file.

To run this recipe, do the following, here or in recipes/MELD:
> python train_with_emoq.py hparams/emoq_stage1.yaml --data_folder /path/to/corpus
> python train_with_emoq.py hparams/emoq_stage2.yaml --data_folder /path/to/corpus

The folder of stage 2 is a recognizer:
>>> from speechbrain.inference.interfaces import foreign_class
>>> recognizer = foreign_class(
...     source="results/EmoQ_stage2/1/1993",
...     pymodule_file="train_with_emoq.py",
...     classname="EmotionRecognizer",
... )
>>> recognizer.classify_file("some.wav", "what was said")

Authors
 * EmoQ authors 2026
"""

import collections
import importlib
import json
import math
import os
import sys

import torch
from hyperpyyaml import load_hyperpyyaml
from tqdm import tqdm

import speechbrain as sb
from speechbrain.inference.interfaces import Pretrained
from speechbrain.integrations.hdf5.cached_item import CachedHDF5DynamicItem
from speechbrain.nnet.schedulers import LinearWarmupScheduler
from speechbrain.utils.distributed import (
    if_main_process,
    infer_device,
    run_on_main,
)


class EmoQFormerBrain(sb.Brain):
    """Stage 1: the EmoQ-Former and an auxiliary classifier."""

    def embed(self, batch):
        """Computes the embeddings of a batch, of shape (batch, hidden)."""
        frames, frame_lens = batch.frames
        tokens, token_lens = batch.tokens
        return self.modules.emoq_former(frames, frame_lens, tokens, token_lens)

    def compute_forward(self, batch, stage):
        """Computes embeddings, posteriors and the classifier's logits."""
        batch = batch.to(self.device)
        embeddings = self.embed(batch)
        # In half precision logits would tie, and ties go to the first class.
        with torch.autocast(embeddings.device.type, enabled=False):
            logits = self.modules.classifier(embeddings.float())
        return logits.softmax(dim=-1), (embeddings, logits)

    def compute_objectives(self, predictions, batch, stage):
        """Computes the contrastive and the focal loss."""
        posteriors, (embeddings, logits) = predictions
        loss = self.hparams.compute_cost(embeddings, logits, batch.emo_encoded)
        if stage != sb.Stage.TRAIN:
            self.append_stats(batch, posteriors)
        return loss

    def append_stats(self, batch, posteriors):
        """Keeps what was recognized for the statistics."""
        self.stats.append(
            batch.id,
            [self.hparams.emotions[i] for i in posteriors.argmax(-1).tolist()],
            batch.emo,
            posteriors=posteriors,
        )

    def on_stage_start(self, stage, epoch=None):
        """Starts new statistics."""
        self.stats = self.hparams.error_stats()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs an epoch and keeps it if it is the best, or logs a test."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        summary = self.stats.summarize()
        stats = {
            "loss": stage_loss,
            "WA": summary["accuracy"],
            "UA": summary["unweighted_accuracy"],
            "WF1": summary["weighted_f1"],
        }
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats(
                {"epoch": epoch, "lr": self.schedule.get_last_lr()[0]},
                train_stats={"loss": self.train_loss},
                valid_stats=stats,
            )
            self.hparams.epoch_counter.update_metric(stats["UA"])
            self.checkpointer.save_and_keep_only(meta=stats, max_keys=["UA"])
            return
        self.hparams.train_logger.log_stats(
            {"Epoch loaded": self.hparams.epoch_counter.current},
            test_stats=stats,
        )
        if if_main_process():
            with open(
                self.hparams.predictions_file, "w", encoding="utf-8"
            ) as w:
                self.stats.write_posteriors(w, self.hparams.emotions)

    def init_optimizers(self):
        """Has matrices alone decay, and the rate change after every step."""
        groups = {}
        for name, parameter in self.modules.named_parameters():
            if parameter.requires_grad:
                decays = parameter.ndim > 1 and name.endswith("weight")
                key = "scale" if name.endswith("projector.scale") else decays
                groups.setdefault(key, []).append(parameter)
        options = {False: {"weight_decay": 0.0}, True: {}}
        if "scale" in groups:
            # One number of about 1, which the rate of all would hardly move.
            options["scale"] = {
                "weight_decay": 0.0,
                "lr": self.hparams.lr_scale,
            }
        self.optimizer = self.opt_class(
            [
                {"params": parameters, **options[key]}
                for key, parameters in groups.items()
            ]
        )
        self.optimizers_dict = {"optimizer": self.optimizer}
        # Batches that are left at the end of an epoch make no step.
        steps = self.hparams.batches_per_epoch // self.grad_accumulation_factor
        steps *= self.hparams.number_of_epochs
        warmup = round(self.hparams.warmup_ratio * steps)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            LinearWarmupScheduler(1.0, warmup, steps).calculate_lr,
        )
        self.optimizer.register_step_post_hook(lambda *_: self.schedule.step())
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)
            self.checkpointer.add_recoverable("schedule", self.schedule)


class SoftPromptBrain(EmoQFormerBrain):
    """Stage 2: EmoQ-Former, projector and adapters learn the answer."""

    def compute_forward(self, batch, stage):
        """Computes posteriors, and the loss of the answer."""
        batch = batch.to(self.device)
        prompts = list(zip(batch.before, batch.after))
        return self.modules.decoder(
            self.embed(batch), prompts, batch.emo_encoded
        )

    def compute_objectives(self, predictions, batch, stage):
        """Passes the loss on."""
        posteriors, loss = predictions
        if stage != sb.Stage.TRAIN:
            self.append_stats(batch, posteriors)
        return loss


class EmotionRecognizer(Pretrained):
    """Recognizes emotions with the best epoch of stage 2.

    The arguments are those of Pretrained.
    """

    MODULES_NEEDED = ["emoq_former", "decoder"]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.hubert = self.hparams.hubert().to(self.device).eval()

    @torch.no_grad()
    def classify_batch(self, wavs, wav_lens, transcripts, speakers=None):
        """Recognizes the emotions of a batch.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms at 16 kHz, of shape (batch, time).
        wav_lens : torch.Tensor
            Their relative lengths, of shape (batch,).
        transcripts : list of str
            What was said.
        speakers : list of str
            The speakers' names, where the prompt has them.

        Returns
        -------
        posteriors : torch.Tensor
            Of shape (batch, classes).
        score : torch.Tensor
            The largest of each, of shape (batch,).
        emotions : list of str
            Whose it is.
        """
        speakers = speakers or [None] * len(transcripts)
        items = []
        for wav, wav_len, transcript, speaker in zip(
            wavs, wav_lens, transcripts, speakers
        ):
            wav = wav[: round(float(wav_len) * len(wav))].to(self.device)
            items.append(
                {
                    "frames": compute_frames(self.hubert, wav),
                    "tokens": encode_text(
                        self.mods.emoq_former.tokenizer,
                        transcript,
                        self.hparams.max_text_tokens,
                    ),
                    "prompt": self.mods.decoder.encode_prompt(
                        transcript, speaker
                    ),
                }
            )
        batch = sb.dataio.batch.PaddedBatch(items).to(self.device)
        with self.inference_ctx:
            embeddings = self.mods.emoq_former(*batch.frames, *batch.tokens)
            posteriors, _ = self.mods.decoder(embeddings, batch.prompt)
        score, best = posteriors.max(dim=-1)
        return (
            posteriors,
            score,
            [self.hparams.emotions[i] for i in best.tolist()],
        )

    def classify_file(self, path, transcript="", speaker=None, **kwargs):
        """Recognizes the emotion of an audio file.

        Arguments
        ---------
        path : str
            Path to the audio file.
        transcript : str
            What was said.
        speaker : str
            The speaker's name, where the prompt has it.
        **kwargs
            Arguments of `load_audio`.

        Returns
        -------
        posteriors, score, emotions
            As `classify_batch` gives them, for a batch of one.
        """
        wav = self.load_audio(path, **kwargs)[None]
        return self.classify_batch(wav, torch.ones(1), [transcript], [speaker])

    def forward(self, wavs, wav_lens, transcripts, speakers=None):
        """Calls `classify_batch`."""
        return self.classify_batch(wavs, wav_lens, transcripts, speakers)


def encode_text(tokenizer, words, max_text_tokens):
    """Tokenizes a transcript for the EmoQ-Former.

    Arguments
    ---------
    tokenizer : transformers.PreTrainedTokenizer
        The tokenizer.
    words : str
        What was said.
    max_text_tokens : int
        Longer transcripts are cut.

    Returns
    -------
    tokens : torch.Tensor
        Token ids, of shape (length,).
    """
    tokens = tokenizer(words, truncation=True, max_length=max_text_tokens)
    return torch.tensor(tokens["input_ids"])


def compute_frames(hubert, wav):
    """HuBERT's frames of a waveform, by itself, of shape (time, dim)."""
    # Its first frame hears 400 samples.
    wav = torch.nn.functional.pad(wav, (0, max(0, 400 - len(wav))))
    return hubert(wav[None])[0]


def cached_frames(hparams, file_mode, hubert=None, device="cpu"):
    """The pipeline from a recording to HuBERT's frames, kept in a file."""

    @CachedHDF5DynamicItem.cache(hparams["frames_folder"], file_mode)
    @sb.utils.data_pipeline.takes("id", "wav")
    @sb.utils.data_pipeline.provides("frames")
    def frames_pipeline(id, wav):
        """Computes the frames of an utterance by itself."""
        sig = sb.dataio.dataio.read_audio(wav)
        return compute_frames(hubert, sig.to(device)).cpu().numpy()

    return frames_pipeline


def extract_frames(hparams, device):
    """Computes the frames of all utterances that have none yet.

    Arguments
    ---------
    hparams : dict
        This dictionary is loaded from the yaml file.
    device : str
        Where HuBERT works.
    """
    wavs = {}
    for split in ("train", "valid", "test"):
        annotation = hparams[f"{split}_annotation"]
        with open(annotation, encoding="utf-8") as f:
            entries = json.load(f)
        for key, entry in entries.items():
            # Now, as hours may go by until it is trained on.
            if "words" not in entry or entry["emo"] not in hparams["emotions"]:
                raise ValueError(
                    f"{key} in {annotation} needs words, and one of the "
                    f"emotions {hparams['emotions']}: prepare the data anew."
                )
            wavs[key] = entry["wav"].format(data_root=hparams["data_root"])
    path = os.path.join(hparams["frames_folder"], "cache.hdf5")
    if os.path.exists(path):
        # Not for writing: other runs may read it.
        with cached_frames(hparams, "r").hdf5file as known:
            wavs = {key: wav for key, wav in wavs.items() if key not in known}
    if not wavs:
        return
    hubert = hparams["hubert"]().to(device).eval()
    pipeline = cached_frames(hparams, "a", hubert, device)
    for key, wav in tqdm(wavs.items(), desc="frames of HuBERT"):
        try:
            pipeline(key, wav)
        except RuntimeError as error:
            raise RuntimeError(f"{wav} has no frames: {error}") from error
        # What is not on disk when a job is killed makes the file unreadable.
        pipeline.hdf5file.flush()
    pipeline.hdf5file.close()


def dataio_prepare(hparams):
    """Prepares the datasets to be used in the brain class.

    Arguments
    ---------
    hparams : dict
        This dictionary is loaded from the yaml file, and it includes all the
        hyperparameters needed for dataset construction and loading.

    Returns
    -------
    datasets : dict
        The DynamicItemDataset of "train", "valid" and "test".
    """
    tokenizer = hparams["emoq_former"].tokenizer

    @sb.utils.data_pipeline.takes("words")
    @sb.utils.data_pipeline.provides("tokens")
    def text_pipeline(words):
        """Tokenizes the transcript for the EmoQ-Former."""
        return encode_text(tokenizer, words, hparams["max_text_tokens"])

    @sb.utils.data_pipeline.takes("emo")
    @sb.utils.data_pipeline.provides("emo_encoded")
    def label_pipeline(emo):
        """Gives the index of the emotion."""
        return hparams["emotions"].index(emo)

    items = [cached_frames(hparams, "r"), text_pipeline, label_pipeline]
    keys = ["id", "emo", "frames", "tokens", "emo_encoded"]
    if hparams["stage"] == 2:
        takes = ["words", "speaker"] if hparams["use_speaker"] else ["words"]

        @sb.utils.data_pipeline.takes(*takes)
        @sb.utils.data_pipeline.provides("before", "after")
        def prompt_pipeline(*values):
            """Makes the prompt of the LLM."""
            yield from hparams["decoder"].encode_prompt(*values)

        items.append(prompt_pipeline)
        keys += ["before", "after"]
    return {
        split: sb.dataio.dataset.DynamicItemDataset.from_json(
            json_path=hparams[f"{split}_annotation"],
            replacements={"data_root": hparams["data_root"]},
            dynamic_items=items,
            output_keys=keys,
        )
        for split in ("train", "valid", "test")
    }


def inverse_frequencies(annotation, emotions):
    """Weights of the classes in the focal loss; the rarest has 1.

    Arguments
    ---------
    annotation : str
        The manifest of the training set.
    emotions : list of str
        The classes, in their order.

    Returns
    -------
    weights : torch.Tensor
        Of shape (classes,).
    """
    with open(annotation, encoding="utf-8") as f:
        counts = collections.Counter(e["emo"] for e in json.load(f).values())
    rarest = min(counts.values())
    # A class without examples has the weight of the rarest.
    return torch.tensor([rarest / counts.get(e, rarest) for e in emotions])


# RECIPE BEGINS!
if __name__ == "__main__":
    # Reading command line arguments.
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])

    # Initialize ddp (useful only for multi-GPU DDP training).
    sb.utils.distributed.ddp_init_group(run_opts)

    # Load hyperparameters file with command-line overrides.
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)

    stage1 = hparams["emoq_former_file"]
    if hparams["stage"] == 2:
        if not os.path.isfile(stage1):
            raise FileNotFoundError(f"There is no {stage1}: train stage 1.")
        if len(hparams["emotion_words"]) != len(hparams["emotions"]):
            raise ValueError("There has to be a word for each emotion.")

    # Create experiment directory
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )

    # Data preparation, to be run on only one process.
    if not hparams["skip_prep"]:
        # The script beside the recipe, also where the recipe is a link.
        sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
        script, function = hparams["prepare_function"].split(".")
        prepare = getattr(importlib.import_module(script), function)
        run_on_main(prepare, kwargs=hparams["prepare_options"])
    device = run_opts.get("device") or infer_device()
    run_on_main(extract_frames, args=[hparams, device])

    # Create dataset objects "train", "valid", and "test".
    datasets = dataio_prepare(hparams)

    if hparams["stage"] == 1:
        brain_class = EmoQFormerBrain
        hparams["focal_loss"].class_weights = inverse_frequencies(
            hparams["train_annotation"], hparams["emotions"]
        )
    else:
        brain_class = SoftPromptBrain
        hparams["emoq_former"].load_state_dict(
            torch.load(stage1, map_location="cpu", weights_only=True)
        )

    # Initialize the Brain object to prepare for training.
    batches = len(datasets["train"]) / hparams["batch_size"]
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    hparams["batches_per_epoch"] = math.ceil(batches / ranks)
    brain = brain_class(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )

    # The `fit()` method iterates the training loop, calling the methods
    # necessary to update the parameters of the model. Since all objects
    # with changing state are managed by the Checkpointer, training can be
    # stopped at any point, and will be resumed on next call.
    brain.fit(
        epoch_counter=brain.hparams.epoch_counter,
        train_set=datasets["train"],
        valid_set=datasets["valid"],
        train_loader_kwargs=hparams["train_dataloader_opts"],
        valid_loader_kwargs=hparams["test_dataloader_opts"],
    )

    # Load the best checkpoint for evaluation
    brain.evaluate(
        test_set=datasets["test"],
        max_key="UA",
        test_loader_kwargs=hparams["test_dataloader_opts"],
    )
    # Its weights: stage 2 starts from the first, and all three recognize.
    if if_main_process():
        folder = hparams["output_folder"]
        stage2 = os.path.join(folder, "emoq_former.ckpt")
        torch.save(
            hparams["emoq_former"].state_dict(),
            stage1 if hparams["stage"] == 1 else stage2,
        )
        if hparams["stage"] == 2:
            projector = hparams["projector"].state_dict()
            torch.save(projector, os.path.join(folder, "projector.ckpt"))
            hparams["adapted_llm"].saver(os.path.join(folder, "llm.ckpt"))
