"""The trained system at work: from a recording to posteriors of emotions."""

from dataclasses import replace

import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.autocast import AMPConfig, TorchAutocast

from emoq_modules.dataio.audio import SAMPLE_RATE, read_audio
from emoq_modules.dataio.datasets import TextInputs
from emoq_modules.dataio.recordings import (
    SHORTEST_S,
    SILENCE_DBFS,
    WINDOW_S,
    Recording,
    as_recording,
    as_recordings,
    check_batch,
    heard,
    iter_segments,
    read_samples,
    sliding_windows,
)
from emoq_modules.errors import AudioError, SourceError
from emoq_modules.evaluation.calibration import temperature_for
from emoq_modules.inference.asr import load_transcriber, with_texts
from emoq_modules.inference.batching import Recognizing, Segment, calibrated
from emoq_modules.inference.fetching import (
    DAMAGED,
    check_values,
    damaged_named,
    open_source,
)
from emoq_modules.inference.vad import speech_spans
from emoq_modules.lobes.pipeline import decode


class EmotionRecognizer(Pretrained):
    """Recognizes emotion with a trained EmoQ, in SpeechBrain's conventions.

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

    def __init__(self, modules, hparams, asr=None, asr_language=None, **kwargs):
        # A system that has not been calibrated is taken at its word.
        defaults = {"temperature": {}, "abstain_below": 0.0}
        hparams = {**defaults, "eval_precision": "fp32", **hparams}
        check_values(modules, hparams)
        super().__init__(modules, hparams, **kwargs)
        self.mods.decoder.cache_prefix = True
        self._inputs = TextInputs(
            self.hparams.text_tokenizer,
            self.hparams.max_text_tokens,
            self.mods.decoder.prompt,
            self.hparams.speaker_in_prompt,
            self.hparams.context_turns,
        )
        # As in the evaluation of the training run.
        self.precision = TorchAutocast(
            device_type=torch.device(self.device).type,
            dtype=AMPConfig.from_name(self.hparams.eval_precision).dtype,
        )
        self.asr = asr
        if asr is not None:
            self.asr = load_transcriber(asr, self.device, asr_language)

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

        SpeechBrain executes the YAML in ``source``, with all that you are
        allowed to do on this machine. It is read first, and refused if it names
        code that no trained EmoQ needs.

        Arguments
        ---------
        source : str or Path
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
            instance ``run_opts={"device": "cuda"}``; ``asr`` and its
            ``asr_language``, as of ``load_transcriber``, for what has no text.

        Returns
        -------
        EmotionRecognizer

        Raises
        ------
        EmoQError
            If the source, or something in it, is missing or damaged, or its
            YAML names other code and is not trusted.
        """
        fetching = ("savedir", "local_strategy", "fetch_config")
        folder, overrides = open_source(
            source,
            hparams_file,
            overrides,
            trust_source,
            **{key: kwargs[key] for key in fetching if key in kwargs},
        )
        with damaged_named(folder):
            return super().from_hparams(
                folder, hparams_file, overrides=overrides, **kwargs
            )

    def classify_batch(
        self, wavs, wav_lens=None, texts=None, speakers=None, contexts=None
    ):
        """Recognizes the emotion in a batch of recordings.

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
            Calibrated, ``(B, C)``, in the order of ``hparams.labels``.
        score : torch.Tensor
            The confidence in each, ``(B,)``: the highest posterior.
        index : torch.Tensor
            The class that has it, ``(B,)``.
        label : list of str
            The emotion word of that class.

        Raises
        ------
        ValueError
            If there are turns before, and the system was trained without; or
            as of ``check_batch``.
        """
        number = len(wavs)
        if wav_lens is None:
            wav_lens = torch.ones(number)
        check_batch(wavs, wav_lens)
        counts = (wav_lens * wavs.shape[1]).round().long().tolist()
        rows = zip(
            wavs,
            counts,
            texts or [""] * number,
            speakers or [None] * number,
            contexts or [()] * number,
            strict=True,
        )
        posteriors = self._calibrated(
            [
                Segment(Recording(None, *words).readable(), samples=wav[:count])
                for wav, count, *words in rows
            ]
        )
        score, index = posteriors.max(dim=-1)
        label = [self.hparams.labels[i] for i in index.tolist()]
        return posteriors, score, index, label

    def classify_file(self, path, text=None, speaker=None, context=None):
        """Recognizes the emotion in an audio file.

        Arguments
        ---------
        path : str
            Any file that libsndfile reads, of any rate, and with PyAV
            installed any that FFmpeg reads.
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
            read_audio(path, min_seconds=SHORTEST_S)[None],
            texts=[text or ""],
            speakers=[speaker],
            contexts=[context or ()],
        )

    def recognize(
        self,
        recordings,
        batch_size=8,
        asr=None,
        abstain_below=None,
        max_seconds=60.0,
        calibrate=True,
    ):
        """Recognizes the emotion in any number of recordings.

        Posteriors are those that ``classify_file`` gives. Recordings of
        similar length are batched, a few batches ahead, so that memory does
        not grow with their number and results come while others are read.

        Arguments
        ---------
        recordings : iterable of Recording
            Paths will do too, of recordings of which nothing else is known.
        batch_size : int
            Recordings that are recognized together, at most.
        asr : str | callable | None
            As of ``load_transcriber``; transcribes the recordings without a
            text. None is the one that the recognizer was made with, if any.
        abstain_below : float | None
            Confidence below which no answer is given; None is
            ``hparams.abstain_below``.
        max_seconds : float
            Longer recordings are not recognized.
        calibrate : bool
            Whether posteriors are calibrated; without, they are those that a
            run's test gives.

        Returns
        -------
        iterator of Recognition
            In the given order. What is wrong with a recording is in its
            ``error``, and the rest goes on; silence is abstained from.

        Raises
        ------
        ValueError
            If an argument is out of its range.
        BackboneError
            If the ``asr`` is not to be had.

        Example
        -------
        >>> for found in recognizer.recognize(
        ...     [Recording("hello.wav", "Oh, hello!")]
        ... ):  # doctest: +SKIP
        ...     print(found.path, found.label, found.confidence)
        """
        segments = (
            self._read(item, max_seconds) for item in as_recordings(recordings)
        )
        classify = self._calibrated if calibrate else self._posteriors
        return self._stream(segments, batch_size, asr, abstain_below, classify)

    def timeline(
        self,
        path,
        window_s=WINDOW_S,
        hop_s=2.0,
        speaker=None,
        vad=None,
        asr=None,
        batch_size=8,
        abstain_below=None,
        silence_dbfs=SILENCE_DBFS,
    ):
        """Recognizes the emotion over the course of a recording of any length.

        The recording is read as a stream. The last window ends where the
        recording does, and is as long as the others if the recording is.

        Arguments
        ---------
        path : Recording | str | Path
            As of ``recognize``. Its text and the turns before are left out:
            what is said in a recording is not said in each of its windows.
        window_s : float
            Length of a window, in seconds.
        hop_s : float
            From the start of a window to the start of the next.
        speaker : str | None
            Who speaks, if it is one and is known.
        vad : str | speechbrain.inference.VAD.VAD | None
            As of ``speech_spans``: what SpeechBrain's VAD takes for speech is
            recognized, in the place of windows.
        asr : str | callable | None
            As of ``recognize``; transcribes each window.
        batch_size : int
            Windows that are recognized together, at most.
        abstain_below : float | None
            As of ``recognize``.
        silence_dbfs : float
            A window whose root mean square is below, in dB of full scale, is
            without sound: it is not recognized, but abstained from.

        Returns
        -------
        list of Recognition
            In the order of their ``start``; of a window without sound label
            and error are None.

        Raises
        ------
        AudioError
            If the file is missing, no audio, or damaged.
        ValueError
            If an argument is out of its range.
        BackboneError
            If the ``asr`` or ``vad`` is not to be had.
        """
        recording = as_recording(path).readable()
        speaker = speaker or recording.speaker
        recording = replace(recording, text="", speaker=speaker, context=())
        spans = sliding_windows(window_s, hop_s)
        if vad is not None:
            if recording.samples is not None:
                raise ValueError("A VAD reads the file: give its path alone.")
            spans = speech_spans(vad, recording.path, self.device)
        segments = (
            Segment(
                *(recording, start, end, heard(samples, silence_dbfs), fault),
                is_window=True,
            )
            for start, end, samples, fault in iter_segments(recording, spans)
        )
        return list(
            self._stream(
                segments, batch_size, asr, abstain_below, self._calibrated
            )
        )

    def prompt_text(self, text=None, speaker=None, context=None):
        """The prompt as the LLM sees it, with ``<AUDIO>`` for the voice.

        Takes the arguments of ``classify_file`` but for the path.
        """
        parts = self._prompt_ids(Recording(None, text, speaker, context or ()))
        return self.mods.decoder.prompt.as_text(parts)

    def _stream(self, segments, batch_size, asr, abstain_below, classify):
        """Recognitions of segments, those without a text transcribed first."""
        asr = self.asr if asr is None else load_transcriber(asr, self.device)
        if asr is not None:
            segments = with_texts(segments, asr)
        if abstain_below is None:
            abstain_below = self.hparams.abstain_below
        return Recognizing(
            classify, self.hparams.labels, batch_size, abstain_below
        ).stream(segments)

    def _read(self, recording, max_seconds):
        try:
            recording = recording.readable()
            samples = read_samples(recording, max_seconds)
        except (AudioError, OSError, ValueError) as error:
            return Segment(recording, fault=str(error))
        seconds = len(samples) / SAMPLE_RATE
        return Segment(recording, 0.0, seconds, heard(samples))

    def _calibrated(self, segments):
        """Posteriors of segments with samples, ``(B, C)``."""
        asked = ((x.recording.text, x.is_window) for x in segments)
        fitted = self.hparams.temperature
        temperatures = [temperature_for(fitted, *how) or 1.0 for how in asked]
        return calibrated(self._posteriors(segments), temperatures)

    def _posteriors(self, segments):
        """The same as they are in training.

        SourceError where there are none of any recording.
        """
        try:
            posteriors = self._decode(segments)
            if posteriors.isfinite().all():
                return posteriors
        except torch.OutOfMemoryError:
            raise
        except Exception:
            self._check_itself()
            raise
        self._check_itself()
        return posteriors

    def _check_itself(self):
        """Tries noise: where that fails, the recordings are not to blame."""
        noise = torch.linspace(0, 1e4, SAMPLE_RATE).square().sin() / 10
        try:
            found = self._decode([Segment(Recording(None), samples=noise)])
            if not found.isfinite().all():
                raise ValueError("values are not finite")
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise SourceError(
                f"The trained system in {self.hparams.pretrained_path} "
                f"recognizes nothing at all ({reason}): {DAMAGED}"
            ) from error

    def _decode(self, segments):
        batch = PaddedBatch(
            [
                {
                    "audio": segment.samples,
                    "tokens": self._inputs.tokens(segment.recording.text or ""),
                    "prompt": self._prompt_ids(segment.recording),
                }
                for segment in segments
            ]
        ).to(self.device)
        with torch.inference_mode(), self.precision:
            return decode(
                self.mods, batch, store_precision=self.hparams.store_precision
            )[2]

    def _prompt_ids(self, recording):
        if recording.context and not self.hparams.context_turns:
            raise ValueError(
                "This system was trained without the turns before an utterance "
                "(context_turns: 0): give no context."
            )
        return self._inputs.prompt_ids(
            recording.text, recording.speaker, recording.context
        )
