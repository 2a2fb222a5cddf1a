"""Where a trained system is loaded from, looked at before it is executed.

Whatever a source is, its YAML becomes a local file first, is checked, and only
then goes to SpeechBrain, which executes it.
"""

from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from ruamel.yaml import YAML, YAMLError
from speechbrain.utils.fetching import (
    FetchConfig,
    FetchFrom,
    LocalStrategy,
    fetch,
    guess_source,
)
from speechbrain.utils.logger import get_logger

from emoq_modules.dataio.files import CONTENTS_FILE, find_faults
from emoq_modules.errors import CheckpointError, EmoQError, SourceError
from emoq_modules.inference.recognizer_folder import (
    FORMAT_VERSION,
    RECOGNIZER_FOLDER,
    SETTINGS_FILE,
)
from emoq_modules.inference.safe_yaml import check_yaml
from emoq_modules.lobes.backbones import download

logger = get_logger(__name__)

DAMAGED = "have its files been changed since it was written?"
# Of a YAML; those of trained systems have some thousand bytes.
_MOST_BYTES = 2**20

# Nothing else of a repository on the hub is fetched: no code and no pickles.
_PATTERNS = ("*.yaml", "*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


def open_source(
    source,
    hparams_file,
    overrides=None,
    trust_source=False,
    savedir=None,
    local_strategy=LocalStrategy.SYMLINK,
    fetch_config=None,
):
    """Brings a trained system onto this machine, and checks it.

    ``source`` is a folder, a name on the hub, a web address (which needs
    ``savedir``) or SpeechBrain's ``FetchSource``; the last three arguments are
    those of ``Pretrained``. Returns the folder in which the YAML now is, and
    the overrides with ``pretrained_path``: where the weights are.

    Raises ``BackboneError`` if a name is not to be had from the hub;
    ``SourceError`` if there is no such YAML, a file is missing or was cut off,
    or a later version has written it; and ``UnsafeYAMLError`` if the YAML would
    execute what no trained EmoQ needs and is not trusted.
    """
    fetch_config = fetch_config or FetchConfig()
    if isinstance(source, Path):
        source = str(source)
    kind, place = guess_source(source)
    if kind == FetchFrom.URI and savedir is None:
        raise SourceError(
            f"{source} is a web address: give the name on the Hugging Face hub "
            "alone, such as user/emoq, or savedir, a folder to keep it in."
        )
    is_on_hub = kind == FetchFrom.HUGGING_FACE
    if is_on_hub:
        kind = FetchFrom.LOCAL
        place = _snapshot(place, hparams_file, fetch_config)
    if kind == FetchFrom.LOCAL:
        _check_there(Path(place), hparams_file)
    # As SpeechBrain will do it: what is in savedir goes before the source.
    path = fetch(
        hparams_file, place, savedir, None, local_strategy, fetch_config
    )
    if path.stat().st_size > _MOST_BYTES:
        raise SourceError(f"{path} is too large to be that of a trained system")
    with damaged_named(path.parent):
        text = path.read_text(encoding="utf-8")
        is_export = "format_version" in _read(text, path)
        if kind == FetchFrom.LOCAL:
            _check_whole(Path(place), is_export, is_on_hub)
        if isinstance(overrides, str):
            overrides = YAML().load(overrides)
        overrides = {"pretrained_path": str(place), **(overrides or {})}
        if not trust_source:
            check_yaml(text, overrides, origin=path)
    # What was checked is executed, even if a web address answers otherwise now.
    folder = place if kind == FetchFrom.LOCAL else path.parent
    return str(folder), overrides


@contextmanager
def damaged_named(folder):
    """Whatever a folder's values raise becomes one line about the folder."""
    try:
        yield
    except CheckpointError as error:
        raise SourceError(f"{error.fault}: {DAMAGED}") from error
    except EmoQError:
        raise
    except ImportError as error:
        raise SourceError(
            f"The trained system in {folder} names what is not installed "
            f"here: {error}."
        ) from error
    except Exception as error:
        reason = str(error).strip().splitlines() or ["it does not say why"]
        raise SourceError(
            f"The trained system in {folder} cannot be built "
            f"({type(error).__name__}: {reason[0][:200]}): {DAMAGED}"
        ) from error


def check_values(modules, hparams):
    """Refuses values that would show in the first recording, or not at all."""
    labels = hparams["labels"]
    if not isinstance(labels, list) or len(labels) < 2:
        raise SourceError(f"labels is {labels!r}, in a trained system.")
    fitted = hparams["temperature"]
    # Earlier versions fitted one to all ways of asking.
    fitted = fitted if isinstance(fitted, dict) else {"temperature": fitted}
    values = [(name, value, 1e-6, 1e6) for name, value in fitted.items()]
    values.append(("abstain_below", hparams["abstain_below"], 0, 1))
    values.append(("max_text_tokens", hparams["max_text_tokens"], 1, 1e6))
    values.append(("context_turns", hparams.get("context_turns", 0), 0, 1e6))
    for name, value, low, high in values:
        if type(value) not in (int, float) or not low <= value <= high:
            raise SourceError(
                f"{name} is {value!r} in a trained system; it has to be a "
                f"number from {low:g} to {high:g}."
            )
    encoder, fusion = modules.get("encoder"), modules.get("fusion")
    projection = getattr(fusion, "audio_projection", None)
    if projection is None or not hasattr(encoder, "frame_layers"):
        return
    width = encoder.dim // encoder.frame_layers
    if width != projection.in_features:
        raise SourceError(
            f"The audio encoder of a trained system gives {width} values a "
            f"frame, and what takes them {projection.in_features}: one of the "
            "two has been changed."
        )


def _snapshot(name, hparams_file, config):
    """The folder of a repository on the hub, from the cache if it is whole."""
    where = {
        "revision": config.revision,
        "cache_dir": config.huggingface_cache_dir,
    }
    try:
        file = try_to_load_from_cache(name, hparams_file, **where)
    except HFValidationError:
        raise SourceError(
            f"There is no folder {name}, and a name on the Hugging Face hub "
            "it cannot be either."
        ) from None
    folder = Path(file).parent if isinstance(file, str) else None
    if not config.allow_network and folder is None:
        raise SourceError(
            f"{name} is no local folder and not in the cache, and "
            "fetch_config has allow_network=False."
        )
    # Less is there after a download that was interrupted.
    is_whole = folder and not any(find_faults(folder, checksums=False))
    if not config.allow_network or (is_whole and not config.allow_updates):
        return folder
    return download(name, _PATTERNS, token=config.token, **where)


def _check_there(folder, hparams_file):
    """Refuses folders without a trained system."""
    inside = folder / RECOGNIZER_FOLDER
    if (inside / hparams_file).is_file():
        raise SourceError(
            f"{folder} is the folder of a run; its recognizer is in {inside}."
        )
    if not (folder / hparams_file).is_file():
        raise SourceError(
            f"{folder} holds no {hparams_file}, so there is no trained system "
            "in it. Give the folder `recognizer` that stage 2 leaves, or one "
            "that `emoq export` has made."
        )


def _check_whole(folder, is_export, is_on_hub):
    """Refuses a folder with other files than it was written with.

    Its YAML may have been edited by hand, which gives a warning.
    """
    if not is_export and not (folder / CONTENTS_FILE).exists():
        logger.warning(
            f"{folder} has no {CONTENTS_FILE}, as if an earlier version had "
            "written it: whether its files are whole is not known."
        )
        return
    advice = "start the run again, which writes it anew from its checkpoint"
    if is_on_hub:
        # The hub's client takes what it has, whatever that has become.
        advice = f"delete {folder.parents[1]}, and it is downloaded again"
    elif is_export:
        advice = "copy, download or export it again"
    for name, fault in find_faults(folder):
        if name != SETTINGS_FILE:
            raise SourceError(
                f"{folder} is not whole: {fault}. Restore it from a backup, or "
                f"{advice}."
            )
        logger.warning(
            f"{folder / name} is not as it was written: unless you have edited "
            f"it, {advice}."
        )


def _read(text, path):
    """A YAML's tree, with nothing executed, if this version reads it."""
    try:
        tree = YAML().load(text)
    except YAMLError as error:
        raise SourceError(f"{path} is no YAML file: {error}") from None
    if not isinstance(tree, dict):
        raise SourceError(f"{path} has no keys: it is no trained system.")
    version = tree.get("format_version", FORMAT_VERSION)
    if version not in range(FORMAT_VERSION + 1):
        raise SourceError(
            f"{path} is of format {version}, and this version of EmoQ reads "
            f"formats up to {FORMAT_VERSION}: install the version that wrote "
            "it (README.md beside it tells which), or a later one."
        )
    return tree
