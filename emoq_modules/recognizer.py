"""The trained system at work: from a recording to posteriors of emotions."""

import torch
from speechbrain.inference.interfaces import Pretrained

from emoq_modules.dataio import latest_turns, read_audio
from emoq_modules.feature_store import round_trip
from emoq_modules.prompt import without_speakers
from emoq_modules.sources import open_source


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
    def from_hparams(
        cls,
        source,
        hparams_file="hyperparams.yaml",
        overrides=None,
        trust_source=False,
        **kwargs,
    ):
        """Loads a trained system.

        SpeechBrain executes the YAML in ``source``. It is read first, and
        refused if it names code that no trained EmoQ needs.

        Arguments
        ---------
        source : str
            Folder that stage 2 or ``emoq export`` has written, or its name on
            the Hugging Face hub.
        hparams_file : str
            Name of the YAML file in it.
        overrides : dict | str | None
            Values that replace those of the YAML.
        trust_source : bool
            Whether the YAML may name any code.
        **kwargs : dict
            As ``speechbrain.inference.interfaces.Pretrained`` takes them, for
            instance ``run_opts={"device": "cuda"}``.

        Returns
        -------
        EmotionRecognizer

        Raises
        ------
        BackboneError, CheckpointError, SourceError
            If the source, or something in it, is missing or damaged.
        UnsafeYAMLError
            If the YAML names other code, and the source is not trusted.
        """
        fetching = ("savedir", "local_strategy", "fetch_config")
        folder, overrides = open_source(
            source,
            hparams_file,
            overrides,
            trust_source,
            **{key: kwargs[key] for key in fetching if key in kwargs},
        )
        return super().from_hparams(
            folder, hparams_file, overrides=overrides, **kwargs
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
        return self.mods.fusion(frames, frame_lens, *self._tokens(texts))

    def _tokens(self, texts):
        """Token ids ``(B, L)`` of the text encoder, and relative lengths."""
        if self.hparams.text_tokenizer is None:
            # Nothing reads them, or nobody knows the words: as in training.
            tokens = torch.zeros(len(texts), 1, dtype=torch.long)
            return tokens.to(self.device), torch.ones(len(texts)).to(
                self.device
            )
        tokens = self.hparams.text_tokenizer(
            texts,
            truncation=True,
            max_length=self.hparams.max_text_tokens,
            padding=True,
            return_tensors="pt",
        ).to(self.device)
        return tokens.input_ids, tokens.attention_mask.float().mean(dim=1)
