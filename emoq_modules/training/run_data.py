"""The data of a run: its manifests, the frames of its audio, its data sets."""

from pathlib import Path

from speechbrain.utils.distributed import ddp_barrier

from emoq_modules.dataio.audio import read_audio
from emoq_modules.dataio.datasets import build_datasets
from emoq_modules.dataio.digests import DIGESTS_FILE, AudioDigests
from emoq_modules.dataio.feature_extraction import extract_features
from emoq_modules.dataio.feature_store import FeatureStore
from emoq_modules.dataio.manifest import DIALOGUES_FILE, SPLITS, name_few
from emoq_modules.dataio.manifest_reader import read_dialogues, read_manifest
from emoq_modules.errors import ConfigurationError, CorpusError
from emoq_modules.training.ranks import own_rank, world_size


def read_manifests(plain):
    """The manifests of a run, by split, from its plain settings.

    Raises
    ------
    CorpusError
        If a row or its audio is at fault.
    """
    digests = None
    if plain["feature_store"] is not None:
        # Of files that have been read; the others are checked.
        digests = AudioDigests(Path(plain["feature_store"], DIGESTS_FILE))
    return {
        split: read_manifest(
            f"{plain['manifest_folder']}/{split}.json",
            plain["labels"],
            plain["data_root"],
            digests,
        )
        for split in SPLITS
    }


def read_context(plain, manifests):
    """What ``build_datasets`` needs for the turns before an utterance.

    Raises
    ------
    CorpusError
        If there are utterances of a dialogue that is not there.
    """
    if plain["stage"] == 1 or not plain["context_turns"]:
        return {}
    path = Path(plain["manifest_folder"], DIALOGUES_FILE)
    dialogues = read_dialogues(path)
    rows = (row for split in manifests.values() for row in split.values())
    unknown = {row.dialogue for row in rows} - dialogues.keys()
    if unknown:
        raise CorpusError(
            f"{path} lacks dialogues of the manifests beside it, "
            f"{name_few(sorted(unknown))}: run the prepare step again."
        )
    return {"dialogues": dialogues, "context_turns": plain["context_turns"]}


def make_datasets(hparams, manifests, device, progressbar=True, **context):
    """The data sets of a run; frames that its store lacks are computed.

    Arguments
    ---------
    hparams : dict
        The run's settings and objects.
    manifests : dict
        Of each split, as ``read_manifests`` gives them.
    device : str or torch.device
        Where to compute frames.
    progressbar : bool
        Whether to show one.
    **context
        ``dialogues`` and ``context_turns`` of ``build_datasets``.

    Returns
    -------
    dict
        A ``DynamicItemDataset`` for each split.

    Raises
    ------
    ConfigurationError
        If settings of the audio do not go together.
    """
    return build_datasets(
        manifests,
        hparams["labels"],
        _audio_source(hparams, manifests, device, progressbar),
        hparams["text_tokenizer"],
        hparams["max_text_tokens"],
        **context,
    )


def _audio_source(hparams, manifests, device, progressbar):
    """What gives an utterance's frames, or its waveform, from its path."""
    encoder = hparams["audio_encoder"]
    if encoder is None:
        return None
    if encoder.dim != hparams["audio_dim"]:
        raise ConfigurationError(
            f"audio_dim is {hparams['audio_dim']}, but a frame of "
            f"audio_encoder has {encoder.dim} values."
        )
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
