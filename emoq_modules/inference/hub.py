"""Puts an export onto the Hugging Face hub.

What can be wrong (no network, no login, a name of somebody else's) is found
out before anything is made, here or there.
"""

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from emoq_modules.errors import HubError

# A hub that does not answer would otherwise be waited for without end.
_PATIENCE_S = 5


def check_hub(name, private=False):
    """Tells whether an export could be pushed, and leaves no trace.

    Arguments
    ---------
    name : str
        The repository, ``user/name``.
    private : bool
        Whether it is to be private.

    Raises
    ------
    HubError
        If the name is none, the hub does not answer, nobody is logged in, or
        the repository is there and is public.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise HubError(f"{name!r} is no name for the hub: {error}") from None
    api = HfApi()
    try:
        found = api.model_info(name, timeout=_PATIENCE_S)
    except RepositoryNotFoundError:
        found = None
    # The hub's client lets its HTTP library's exceptions through.
    except Exception as error:
        raise HubError(_reason("The hub does not answer", error)) from error
    if private and found is not None and not found.private:
        raise HubError(
            f"{name} is on the hub already, and is public. Choose another "
            "name, or make it private there first."
        )
    try:
        api.whoami()
    except LocalTokenNotFoundError:
        raise HubError(
            "Nobody is logged in to the hub: run `hf auth login` first."
        ) from None
    except Exception as error:
        raise HubError(_reason("The hub refuses the login", error)) from error


def push_folder(folder, name, private=False):
    """Uploads a folder in one commit.

    Arguments
    ---------
    folder : str or Path
        What to upload.
    name : str
        The repository, made if it is not there.
    private : bool
        Whether a new one is private.

    Returns
    -------
    str
        Its address.

    Raises
    ------
    HubError
        If the hub does not take it.
    """
    api = HfApi()
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="Upload a trained EmoQ",
        )
    except Exception as error:
        raise HubError(
            _reason(f"{folder} is exported, but not on the hub", error)
            + " The same command tries again."
        ) from error
    return str(url)


def _reason(what, error):
    reason = " ".join(str(error).split())[:300]
    return f"{what} ({type(error).__name__}: {reason})."
