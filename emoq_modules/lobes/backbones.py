"""Finds pre-trained models in a folder, in the cache or on the hub.

transformers, asked for a model it cannot reach, retries for half a minute and
ends with an error about connections. Here a name becomes a folder first, in
milliseconds where it is cached, or in seconds a message that says what to do.
"""

import hashlib
import json
from pathlib import Path

from huggingface_hub import (
    HfApi,
    constants,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer

from emoq_modules.errors import BackboneError

# A hub that does not answer would otherwise be waited for without end.
_PATIENCE_S = 5
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_DETERMINING = ("config.json", "preprocessor_config.json")
TEXT_FILES = (".json", ".txt", ".model", ".jinja")


def local_folder(
    source,
    revision=None,
    weights=True,
    needs=("config.json",),
    cache_dir=None,
    whole=False,
):
    """Finds, or downloads, what ``from_pretrained`` loads.

    What is in the cache is taken as it is. Only safetensors are downloaded of
    the weights, or where there are none PyTorch's files, which transformers
    reads with ``weights_only=True``.

    Arguments
    ---------
    source : str or Path
        A local folder, or a name on the Hugging Face hub.
    revision : str | None
        Branch, tag or commit on the hub; None is the default branch.
    weights : bool
        Whether the weights must be there.
    needs : tuple of str
        Names of other files that must be there, one at least.
    cache_dir : str | None
        Where downloads are kept; None is Hugging Face's own cache.
    whole : bool
        Whether all that is on the hub is wanted, as of SpeechBrain's models,
        whose files only their YAML names. Then the cache, of which part may be
        missing, is taken only if the hub does not answer.

    Returns
    -------
    str
        A local folder with all of these files.

    Raises
    ------
    BackboneError
        If they are not to be had.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "config.json").write_text("{}")
    >>> local_folder(folder, weights=False) == str(folder)
    True
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        lacks = _lacking(folder, weights, needs)
        if lacks:
            raise BackboneError(
                f"The folder {folder} lacks {', '.join(lacks)}. Give one that "
                "save_pretrained (of the model, and of its tokenizer or "
                "feature extractor) has written, or a name on the Hugging "
                "Face hub."
            )
        return str(folder)
    name = str(source)
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise BackboneError(
            f"There is no folder {name}, and a name on the Hugging Face hub "
            "it cannot be either."
        ) from None
    cached = _cached(name, revision, weights, needs, cache_dir)
    if cached and not whole:
        return cached
    try:
        return _downloaded(name, revision, weights, needs, cache_dir, whole)
    except BackboneError:
        if cached:
            return cached
        raise


def load_tokenizer(source, revision=None):
    """Loads a tokenizer, with its chat template, from a folder or the hub.

    Arguments
    ---------
    source : str or Path
        A local folder, or a name on the Hugging Face hub.
    revision : str | None
        Branch, tag or commit on the hub.

    Returns
    -------
    transformers.PreTrainedTokenizerBase
        The tokenizer; a ``BackboneError`` if it is not to be had.

    Example
    -------
    >>> from emoq_modules.lobes.small_backbones import build_text_encoder
    >>> folder = build_text_encoder(getfixture("tmp_path"), ["Oh no!"])
    >>> tokenizer = load_tokenizer(folder)
    >>> tokenizer.decode(tokenizer("Oh no!").input_ids)
    '<s>Oh no!</s>'
    """
    return AutoTokenizer.from_pretrained(
        local_folder(
            source, revision, weights=False, needs=("tokenizer_config.json",)
        ),
        trust_remote_code=False,
    )


def load_configuration(source, revision=None):
    """Loads a model's configuration, with which its weights are random.

    Arguments
    ---------
    source : str or Path
        A local folder, or a name on the Hugging Face hub.
    revision : str | None
        Branch, tag or commit on the hub.

    Returns
    -------
    transformers.PretrainedConfig
        The configuration, in the model's own class; a ``BackboneError`` if it
        is not to be had.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "config.json").write_text('{"model_type": "bert"}')
    >>> load_configuration(folder).hidden_size
    768
    """
    return AutoConfig.from_pretrained(
        local_folder(source, revision, weights=False), trust_remote_code=False
    )


def load_whole(folder, not_needed=(), kind=AutoModel, **options):
    """Loads a model with all weights that its configuration asks for.

    Arguments
    ---------
    folder : str or Path
        A folder written by ``save_pretrained``.
    not_needed : tuple of str
        How names begin of weights that may be lacking.
    kind : type
        Which of transformers' automatic classes loads it.
    **options : dict
        Further arguments of its ``from_pretrained``.

    Returns
    -------
    transformers.PreTrainedModel
        The model; a ``BackboneError`` if weights are damaged, lacking, or of
        another size.

    Example
    -------
    >>> from emoq_modules.lobes.small_backbones import build_text_encoder
    >>> folder = build_text_encoder(getfixture("tmp_path"), ["Oh no!"])
    >>> load_whole(folder, not_needed=("pooler.",)).config.model_type
    'roberta'
    """
    try:
        model, report = kind.from_pretrained(
            folder, output_loading_info=True, trust_remote_code=False, **options
        )
    except (SafetensorError, RuntimeError) as error:
        if "memory" in str(error):
            raise  # there is not enough of it, and nothing is damaged
        raise BackboneError(
            f"The weights in {folder} cannot be loaded "
            f"({str(error).splitlines()[0]}): they are damaged, or not those "
            "of its config.json. Restore the folder, or get the model again."
        ) from error
    missing = [
        name
        for name in report["missing_keys"]
        if not name.startswith(not_needed)
    ]
    if missing:
        raise BackboneError(
            f"{folder} lacks {len(missing)} of the weights that its "
            f"config.json asks for, for one {min(missing)}. It is not the "
            "folder of a pre-trained model."
        )
    return model


def download(
    name, patterns=None, revision=None, cache_dir=None, token=None, advice=""
):
    """Downloads files of a repository on the Hugging Face hub.

    Arguments
    ---------
    name : str
        The repository's name.
    patterns : list of str | None
        As ``allow_patterns`` of ``snapshot_download``; None downloads all.
    revision : str | None
        Branch, tag or commit.
    cache_dir : str | None
        Where downloads are kept; None is Hugging Face's own cache.
    token : str | bool | None
        The hub's token, as ``huggingface_hub`` takes it.
    advice : str
        What else the person can do, at the end of the message.

    Returns
    -------
    str
        Their folder; a ``BackboneError`` if the hub does not answer or has
        no such repository.
    """
    try:
        # snapshot_download alone would wait for ever for a silent hub.
        HfApi().model_info(
            name, revision=revision, timeout=_PATIENCE_S, token=token
        )
        return snapshot_download(
            name,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            allow_patterns=patterns,
        )
    # The hub's client lets its HTTP library's exceptions through, which are
    # others from release to release.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise BackboneError(
            f"{name}{f' at revision {revision}' if revision else ''} is no "
            "local folder, is not (completely) in the cache at "
            f"{cache_dir or constants.HF_HUB_CACHE}, and could not be "
            f"downloaded ({type(error).__name__}: {reason}). Where there is a "
            f"network run `hf download {name}`, or give a local folder that "
            f"holds it{advice}."
        ) from error


def weight_files(folder):
    """Names the files from which ``from_pretrained`` takes the weights.

    Arguments
    ---------
    folder : str or Path
        A folder written by ``save_pretrained``.

    Returns
    -------
    list of Path
        One file, or the shards; empty if there are none.
    """
    folder = Path(folder)
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return [folder / shard for shard in sorted(set(shards.values()))]
    return []


def fingerprint(folder):
    """Computes a digest of the files that determine a model.

    Arguments
    ---------
    folder : str or Path
        A folder written by ``save_pretrained``; its name has no part in it.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    texts = [Path(folder) / name for name in _DETERMINING]
    digest = hashlib.blake2b(digest_size=16)
    for path in [*filter(Path.is_file, texts), *weight_files(folder)]:
        with path.open("rb") as file:
            while block := file.read(2**24):
                digest.update(block)
    return digest.hexdigest()


def _lacking(folder, weights, needs):
    lacks = [name for name in needs if not (folder / name).is_file()]
    if weights:
        files = weight_files(folder)
        lacks += [file.name for file in files if not file.is_file()]
        if not files:
            lacks.append(" or ".join(_WEIGHTS))
    return lacks


def _cached(name, revision, weights, needs, cache_dir):
    file = try_to_load_from_cache(
        name, needs[0], cache_dir=cache_dir, revision=revision
    )
    if not isinstance(file, str):
        return None
    folder = Path(file).parent
    # A download may have been interrupted, or have left the weights out.
    return None if _lacking(folder, weights, needs) else str(folder)


def _downloaded(name, revision, weights, needs, cache_dir, whole):
    texts = [f"*{suffix}" for suffix in TEXT_FILES]
    choices = [None] if whole else [texts]
    if weights and not whole:
        # A single file, or shards such as model-00001-of-00004.safetensors.
        choices = [
            [*texts, name, name.replace(".", "-*.")] for name in _WEIGHTS
        ]
    for patterns in choices:
        folder = download(
            name,
            patterns,
            revision,
            cache_dir,
            advice="; hparams/presets/offline.yaml needs no download at all",
        )
        lacks = _lacking(Path(folder), weights, needs)
        if not lacks:
            return folder
    raise BackboneError(
        f"{name} on the Hugging Face hub has no {', no '.join(lacks)}. "
        "Choose another model."
    )
