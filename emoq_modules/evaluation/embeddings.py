"""The embeddings of a test set: kept beside the predictions, and as a map."""

import json

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from sklearn.manifold import TSNE

EMBEDDINGS_FILE = "test_embeddings.safetensors"

_PERPLEXITY = 30.0
_FEWEST = 5  # utterances; of fewer there is no neighborhood to speak of


def embeddings_as_bytes(ids, embeddings):
    """Embeddings as the bytes of a safetensors file.

    Arguments
    ---------
    ids : list of str
        Names of the utterances, N of them.
    embeddings : torch.Tensor
        e'_q of each, ``(N, d_h)``.

    Returns
    -------
    bytes
        With the tensor ``embeddings``, and the ids in the metadata.

    Raises
    ------
    ValueError
        If there is not one embedding an utterance.
    """
    if embeddings.ndim != 2 or len(ids) != len(embeddings):
        raise ValueError(
            f"{len(ids)} utterances need embeddings of shape ({len(ids)}, d), "
            f"not {tuple(embeddings.shape)}"
        )
    tensors = {"embeddings": embeddings.detach().float().cpu().contiguous()}
    return save(tensors, {"ids": json.dumps(list(ids))})


def read_embeddings(path, ids):
    """Reads the embeddings of a test set.

    Arguments
    ---------
    path : str or Path
        The file.
    ids : list of str
        The utterances that are expected, in the order that is wanted.

    Returns
    -------
    np.ndarray
        ``(N, d_h)``

    Raises
    ------
    ValueError
        If the file is no file of embeddings, or one of other utterances.

    Example
    -------
    >>> import torch
    >>> path = getfixture("tmp_path") / EMBEDDINGS_FILE
    >>> _ = path.write_bytes(embeddings_as_bytes(["a", "b"], torch.eye(2)))
    >>> read_embeddings(path, ["b", "a"])
    array([[0., 1.],
           [1., 0.]], dtype=float32)
    """
    try:
        with safe_open(path, framework="numpy") as file:
            embeddings = file.get_tensor("embeddings")
            stored = json.loads((file.metadata() or {})["ids"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} holds no embeddings: {error}") from error
    place = {utterance: i for i, utterance in enumerate(stored)}
    if len(stored) != len(embeddings) or place.keys() != set(ids):
        raise ValueError(
            f"{path} holds embeddings of other utterances than the predictions "
            "beside it: were files of two runs mixed?"
        )
    return embeddings[[place[utterance] for utterance in ids]]


def to_plane(embeddings):
    """Places embeddings in a plane, neighbors beside each other (t-SNE).

    By scikit-learn's implementation, cosine distance, started from the
    principal components: the same embeddings, the same map. Only what is near
    says something; distances between groups and their sizes do not (van der
    Maaten and Hinton, 2008).

    Arguments
    ---------
    embeddings : np.ndarray
        ``(N, d_h)``

    Returns
    -------
    np.ndarray | None
        ``(N, 2)``; None for fewer than five utterances.
    """
    if len(embeddings) < _FEWEST:
        return None
    # A model that has collapsed makes all equal, which has no components:
    # scikit-learn divides by their deviation, and then crashes.
    collapsed = not np.ptp(embeddings, axis=0).any()
    return TSNE(
        # Smaller than a third of the set, as its neighborhoods have to be.
        perplexity=min(_PERPLEXITY, (len(embeddings) - 1) / 3),
        metric="cosine",
        init="random" if collapsed else "pca",
        random_state=0,
    ).fit_transform(np.asarray(embeddings, dtype=np.float64))
