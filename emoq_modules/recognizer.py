"""The trained system at work: from a recording to posteriors of emotions."""

import os
from io import StringIO
from pathlib import Path

import torch
from ruamel.yaml import YAML
from speechbrain.inference.interfaces import Pretrained

from emoq_modules.audio_files import write_atomically
from emoq_modules.checkpoints import save_trainable
from emoq_modules.dataio import latest_turns, read_audio
from emoq_modules.feature_store import round_trip
from emoq_modules.prompt import without_speakers

# What of a training configuration recognition needs.
_KEYS = (
    "labels",
    "store_precision",
    "max_text_tokens",
    "speaker_in_prompt",
    "context_turns",
    "audio_encoder",
    "text_tokenizer",
    "fusion",
    "decoder",
)
_INFERENCE = """
modules:{modules}
pretrained_path: {folder}
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:{loadables}
    paths:{paths}
    custom_hooks:{hooks}
"""


class EmotionRecognizer(Pretrained):
    """Recognises emotion with a trained EmoQ, in SpeechBrain's conventions.

    Made by ``from_hparams``. Stage 2 leaves what it needs in the folder
    ``recognizer`` of its output folder.

    Example
    -------
    >>> recognizer = EmotionRecognizer.from_hparams(
    ...     "results/demo/emoq/fold1-seed1234/stage2/recognizer"
    ... )  # doctest: +SKIP
    >>> posteriors, score, index, label = recognizer.classify_file(
    ...     "hello.wav", text="Oh, hello!"
    ... )  # doctest: +SKIP
    """

    HPARAMS_NEEDED = ["labels", "text_tokenizer", "max_text_tokens"]
    MODULES_NEEDED = ["decoder"]

    @classmethod
    def from_hparams(cls, source, hparams_file="hyperparams.yaml", **kwargs):
        """Loads a trained system.

        The YAML in ``source`` is executed, as SpeechBrain does: load only
        from sources you trust.

        Arguments
        ---------
        source : str
            Folder that stage 2 has written.
        hparams_file : str
            Name of the YAML file in it.
        **kwargs : dict
            As ``speechbrain.inference.interfaces.Pretrained`` takes them, for
            instance ``run_opts={"device": "cuda"}``.

        Returns
        -------
        EmotionRecognizer
        """
        overrides = {**kwargs.pop("overrides", {}), "pretrained_path": source}
        return super().from_hparams(
            source, hparams_file, overrides=overrides, **kwargs
        )

    def classify_batch(
        self, wavs, wav_lens=None, texts=None, speakers=None, contexts=None
    ):
        """Recognises the emotion in a batch of recordings.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms at 16 kHz, ``(B, T)``.
        wav_lens : torch.Tensor | None
            Relative lengths, ``(B,)``; None if all are equally long.
        texts : list of str | None
            What was said, as far as it is known.
        speakers : list of str | None
            Who said it, as far as it is known.
        contexts : list of list of tuple | None
            Speaker and text of the turns before each recording, oldest first;
            the latest are read, as many as in training.

        Returns
        -------
        posteriors : torch.Tensor
            ``(B, C)``, in the order of ``hparams.labels``.
        score : torch.Tensor
            The highest posterior of each, ``(B,)``.
        index : torch.Tensor
            The class that has it, ``(B,)``.
        label : list of str
            The emotion word of that class.

        Raises
        ------
        ValueError
            If there are turns before, and the system was trained without.
        """
        if wav_lens is None:
            wav_lens = torch.ones(len(wavs))
        texts = texts or [""] * len(wavs)
        contexts = self._latest(contexts or [()] * len(wavs))
        if not self.hparams.speaker_in_prompt:
            speakers, contexts = None, without_speakers(contexts)
        with torch.inference_mode():
            embeddings = self._embeddings(wavs, wav_lens, texts)
            posteriors = self.mods.decoder.posteriors(
                embeddings, texts, speakers, contexts
            )
        score, index = posteriors.max(dim=-1)
        label = [self.hparams.labels[i] for i in index.tolist()]
        return posteriors, score, index, label

    def classify_file(self, path, text=None, speaker=None, context=None):
        """Recognises the emotion in an audio file.

        Arguments
        ---------
        path : str
            Any file that libsndfile reads, of any rate.
        text : str | None
            What was said, if it is known.
        speaker : str | None
            Who said it, if it is known.
        context : list of tuple | None
            Speaker and text of the turns before, oldest first.

        Returns
        -------
        tuple
            As of ``classify_batch``, of a batch of one.

        Raises
        ------
        AudioError
            If the file holds no audio that can be read.
        """
        return self.classify_batch(
            read_audio(path)[None],
            texts=[text or ""],
            speakers=[speaker],
            contexts=[context or ()],
        )

    def _latest(self, contexts):
        """Of the turns before each recording those that training would show."""
        if not any(contexts):
            return contexts
        if not self.hparams.context_turns:
            raise ValueError(
                "This system was trained without the turns before an utterance "
                "(context_turns: 0): give no context."
            )
        return [
            latest_turns(context, self.hparams.context_turns)
            for context in contexts
        ]

    def _embeddings(self, wavs, wav_lens, texts):
        if "fusion" not in self.mods:
            return None
        frames, frame_lens = self.mods.encoder(
            wavs.to(self.device), wav_lens.to(self.device)
        )
        # As in training: the frames were rounded on their way to the store.
        frames = round_trip(frames, self.hparams.store_precision)
        tokens = self.hparams.text_tokenizer(
            texts,
            truncation=True,
            max_length=self.hparams.max_text_tokens,
            padding=True,
            return_tensors="pt",
        ).to(self.device)
        token_lens = tokens.attention_mask.float().mean(dim=1)
        return self.mods.fusion(
            frames, frame_lens, tokens.input_ids, token_lens
        )


def save_recognizer(folder, resolved, hparams):
    """Writes what ``EmotionRecognizer`` needs of a trained stage 2.

    Arguments
    ---------
    folder : str or Path
        Where to.
    resolved : str
        The composed configuration of the stage.
    hparams : dict
        Its objects, with the weights to keep.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name, m in hparams["modules"].items() if m is not None]
    for name in names:
        partial = folder / f"{name}.partial"
        save_trainable(hparams[name], partial)
        os.replace(partial, folder / f"{name}.safetensors")

    training = YAML().load(resolved)
    tree = {key: training[key] for key in _KEYS}
    for key in ("text_encoder", "llm"):
        # A backbone built on the spot is there now, and not built again.
        if training[key] != hparams[key]:
            _replace(tree, training[key], hparams[key])
    text = StringIO()
    YAML().dump(tree, text)
    modules = {name: name for name in names}
    if "fusion" in names:
        modules["encoder"] = "audio_encoder"
    text.write(
        _INFERENCE.format(
            folder=folder,
            modules=_lines("{0}: !ref <{1}>", modules.items()),
            loadables=_lines("{0}: !ref <{0}>", zip(names)),
            paths=_lines(
                "{0}: !ref <pretrained_path>/{0}.safetensors", zip(names)
            ),
            hooks=_lines(
                "{0}: !name:emoq_modules.checkpoints.load_trainable", zip(names)
            ),
        )
    )
    write_atomically(folder / "hyperparams.yaml", text.getvalue().encode())


def _lines(pattern, rows):
    return "".join(f"\n        {pattern.format(*row)}" for row in rows)


def _replace(node, old, new):
    """Puts ``new`` wherever a tree refers to the node ``old``."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        if value is old:
            node[key] = new
        elif isinstance(value, dict | list):
            _replace(value, old, new)
