"""The data of a run: its manifests, the frames of its audio, its data sets."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from speechbrain.utils.distributed import ddp_barrier, run_on_main

from emoq_modules.dataio.audio import read_audio
from emoq_modules.dataio.datasets import TextInputs, build_datasets
from emoq_modules.dataio.digests import DIGESTS_FILE, AudioDigests
from emoq_modules.dataio.feature_extraction import extract_features
from emoq_modules.dataio.feature_store import FeatureStore
from emoq_modules.dataio.manifest import DIALOGUES_FILE, SPLITS, name_few
from emoq_modules.dataio.manifest_reader import read_dialogues, read_manifest
from emoq_modules.dataio.recordings import WINDOW_S
from emoq_modules.errors import ConfigurationError, CorpusError
from emoq_modules.evaluation.calibration import UNTOLD, WINDOW
from emoq_modules.training.distributed import own_rank, world_size


def read_manifests(hparams):
    """Reads the manifests of a run, by split."""
    hears = hparams.get("audio_encoder", True) is not None
    digests = None
    if hparams["feature_store"] is not None:
        # Files that have been read are known by these; others are checked.
        digests = AudioDigests(Path(hparams["feature_store"], DIGESTS_FILE))
    manifests = {
        split: read_manifest(
            f"{hparams['manifest_folder']}/{split}.json",
            hparams["labels"],
            hparams["data_root"],
            digests,
            with_audio=hears,
        )
        for split in SPLITS
    }
    if hears:
        _check_lengths(manifests, hparams.get("max_utterance_s", float("inf")))
    return manifests


def _check_lengths(manifests, longest):
    """Refuses utterances that would take a GPU's memory, or all of it."""
    long = [
        f"{row.id}: {row.duration:.1f} s"
        for rows in manifests.values()
        for row in rows.values()
        if row.duration > longest
    ]
    if long:
        raise CorpusError(
            f"There are utterances of more than {longest:g} s, "
            f"{name_few(long)}, of which a batch would take gigabytes: cut "
            "them into parts (a table has start and end), leave them out, or "
            "set --max_utterance_s."
        )


def read_corpus(hparams):
    """Prepares the corpus of a run, and reads and checks what that has written.

    Returns the manifests, and the turns of each dialogue, which are None where
    no turns before are wanted.
    """
    run_on_main(hparams["prepare"])
    manifests = read_manifests(hparams)
    return manifests, _read_dialogues(hparams, manifests)


def _read_dialogues(hparams, manifests):
    if not hparams.get("context_turns"):
        return None
    path = Path(hparams["manifest_folder"], DIALOGUES_FILE)
    dialogues = read_dialogues(path)
    rows = (row for split in manifests.values() for row in split.values())
    unknown = {row.dialogue for row in rows} - dialogues.keys()
    if unknown:
        raise CorpusError(
            f"{path} lacks dialogues of the manifests beside it, "
            f"{name_few(sorted(unknown))}: run the prepare step again."
        )
    return dialogues


def make_datasets(hparams, manifests, device, progressbar=True, dialogues=None):
    """The data set of each split; frames that the store lacks are computed.

    In stage 2 the validation set is there in the other ways, too, in which a
    recognizer is asked (``WAYS``), where they differ. Settings of the audio
    that do not go together are a ``ConfigurationError``.
    """
    of_prompt = {}
    if hparams["stage"] == 2:
        of_prompt = {
            "prompt": hparams["decoder"].prompt,
            "speaker_in_prompt": hparams["speaker_in_prompt"],
            "context_turns": hparams["context_turns"],
        }
    source = _audio_source(hparams, manifests, device, progressbar)
    inputs = TextInputs(
        hparams["text_tokenizer"], hparams["max_text_tokens"], **of_prompt
    )
    build = partial(build_datasets, labels=hparams["labels"], inputs=inputs)
    untold = hparams.get("text_dropout", 0) > 0
    datasets = build(
        manifests, audio=source, dialogues=dialogues, untold=untold
    )
    if hparams["stage"] == 2 and source is not None:
        valid = manifests["valid"]
        rows = {key: replace(row, text="") for key, row in valid.items()}
        seconds = {row.wav: row.duration for row in rows.values()}
        middle = partial(_middle, source, seconds)
        if any(row.text for row in valid.values()):
            datasets |= build({UNTOLD: rows}, audio=source, dialogues=dialogues)
        if max(seconds.values()) > WINDOW_S:
            datasets |= build({WINDOW: rows}, audio=middle)
    return datasets


def _middle(source, seconds, path):
    """Of an utterance's frames or samples those of a window in its middle."""
    audio = source(path)
    share = min(1, WINDOW_S / seconds[path])
    length = max(1, round(share * len(audio)))
    first = (len(audio) - length) // 2
    return audio[first : first + length]


def _check_width(encoder, dim, layers):
    """Whether frames are of the size that the fusion is made for."""
    given = encoder.frame_layers, encoder.dim // encoder.frame_layers
    if given == (layers, dim):
        return
    advice = f"audio_dim to {given[1]}"
    if given[0] != layers:
        advice = "audio_layer to a single layer"
    raise ConfigurationError(
        "audio_encoder gives frames of {} x {} values (layers x audio_dim), "
        "and what takes them is made for {} x {}: set {}.".format(
            *given, layers, dim, advice
        )
    )


def _audio_source(hparams, manifests, device, progressbar):
    """What makes frames, or a waveform, of a path."""
    encoder = hparams["audio_encoder"]
    if encoder is None:
        return None
    _check_width(encoder, hparams["audio_dim"], hparams.get("audio_layers", 1))
    if hparams["feature_store"] is None:
        return read_audio
    if hparams["augment_audio"] is not None:
        raise ConfigurationError(
            "augment_audio changes waveforms, but frames come from the feature "
            "store: set feature_store to null, or augment_audio."
        )
    store = FeatureStore(
        hparams["feature_store"], encoder.identity, hparams["store_precision"]
    )
    extract_features(
        [row for split in manifests.values() for row in split.values()],
        encoder,
        store,
        read_audio,
        device=device,
        progressbar=progressbar,
        rank=own_rank(),
        world_size=world_size(),
    )
    ddp_barrier()  # the other ranks' share is there too
    encoder.to("cpu")
    return store.load
