"""``emoq export``: a trained recognizer as a folder that loads anywhere."""

import sys
from contextlib import contextmanager

import huggingface_hub
from huggingface_hub.errors import (
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)

from emoq_modules.commands.options import add_command
from emoq_modules.errors import ConfigurationError, HubError

_DESCRIPTION = """\
Makes of a trained stage 2 a folder that loads on another machine, offline, with
EmotionRecognizer.from_hparams: weights, LoRA adapter (in peft's format),
prompt, labels, a temperature fitted on the validation set, and a model card.
Backbones from local folders are copied; those on the Hugging Face hub stay
names, at the commit that is in the cache.
"""
_EXAMPLES = """\
examples:
  emoq export results/demo/emoq/fold1-seed1234 my-emoq
  emoq export RUN my-emoq --merge --license cc-by-nc-4.0
  emoq export RUN my-emoq --push_to_hub user/my-emoq --private
"""

# A hub that does not answer would otherwise be waited for without end.
_PATIENCE_S = 5


def add_export(commands):
    """Adds ``export`` to the commands of ``emoq``."""
    command = add_command(
        commands,
        "export",
        _export,
        "make of a trained system a folder to pass on",
        _DESCRIPTION,
        _EXAMPLES,
    )
    command.add_argument(
        "results_folder",
        metavar="RESULTS_FOLDER",
        help="stage 2's output folder, or the one above it",
    )
    command.add_argument(
        "out",
        metavar="OUT",
        help="folder to make; an earlier export there is replaced",
    )
    command.add_argument(
        "--merge",
        action="store_true",
        help="merge LoRA into the LLM, and put that into OUT/llm",
    )
    command.add_argument(
        "--include_backbones",
        action="store_true",
        help="copy the backbones that are on the hub too",
    )
    command.add_argument(
        "--license",
        default="other",
        metavar="ID",
        help="license of the weights, for the model card (cc-by-nc-4.0, …)",
    )
    command.add_argument(
        "--push_to_hub",
        metavar="NAME",
        help="upload to the Hugging Face hub as NAME (user/name)",
    )
    command.add_argument(
        "--private",
        action="store_true",
        help="make a new repository on the hub private",
    )


def _export(own):
    # Here, as the help has no need of models.
    from transformers.utils import logging as transformers_logging

    from emoq_modules.inference.export import export_recognizer

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # logs take lines
    if own.private and not own.push_to_hub:
        raise ConfigurationError("--private goes with --push_to_hub NAME.")
    if own.push_to_hub:
        _check_hub(own.push_to_hub, own.private)
    out = export_recognizer(
        own.results_folder,
        own.out,
        own.merge,
        own.include_backbones,
        own.license,
    )
    print(_listing(out))
    if own.push_to_hub:
        print(f"\nPushed to\n  {_push(out, own.push_to_hub, own.private)}")
    return 0


def _check_hub(name, private):
    """Whether an export could be pushed, before anything is made."""
    api = huggingface_hub.HfApi()
    with _told(name, "The hub does not answer"):
        try:
            found = api.model_info(name, timeout=_PATIENCE_S)
        except RepositoryNotFoundError:
            found = None
    if private and found is not None and not found.private:
        raise HubError(
            f"{name} is on the hub already, and is public. Choose another "
            "name, or make it private there first."
        )
    with _told(name, "The hub refuses the login"):
        api.whoami()


def _push(folder, name, private):
    """Uploads a folder in one commit, and returns its address."""
    api = huggingface_hub.HfApi()
    what = f"{folder} is exported, but not on the hub"
    with _told(name, what, " The same command tries again."):
        url = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="Upload a trained EmoQ",
        )
    return url


@contextmanager
def _told(name, what, then=""):
    """What goes wrong at the hub, in a line."""
    try:
        yield
    except HFValidationError as error:
        raise HubError(f"{name!r} is no name for the hub: {error}") from None
    except LocalTokenNotFoundError:
        raise HubError(
            "Nobody is logged in to the hub: run `hf auth login` first."
        ) from None
    # The hub's client lets its HTTP library's exceptions through.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise HubError(
            f"{what} ({type(error).__name__}: {reason}).{then}"
        ) from error


def _listing(folder):
    """An export's files with their sizes, and how it is loaded."""
    from emoq_modules.inference.recognizer_folder import SETTINGS_FILE
    from emoq_modules.inference.safe_yaml import is_safe

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = [f"{path.stat().st_size:,}" for path in files]
    width = max(map(len, sizes))
    lines = [
        f"  {size:>{width}}  {path.relative_to(folder)}"
        for size, path in zip(sizes, files, strict=True)
    ]
    text = (folder / SETTINGS_FILE).read_text(encoding="utf-8")
    trust = "" if is_safe(text) else ", trust_source=True"
    return "\n".join(
        [
            f"Export, sizes in bytes\n  {folder}",
            *lines,
            "",
            "Load it with",
            f'  EmotionRecognizer.from_hparams("{folder}"{trust})',
        ]
    )
