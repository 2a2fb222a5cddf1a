"""The embeddings of a test set: kept beside the predictions, and as a map."""

import json

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from sklearn.manifold import TSNE

from emoq_modules.errors import ResultsError

EMBEDDINGS_FILE = "test_embeddings.safetensors"

_PERPLEXITY = 30.0
_FEWEST = 5  # utterances; of fewer there is no neighborhood to speak of


def embeddings_as_bytes(ids, embeddings):
    """Embeddings e'_q ``(N, d_h)`` and their N ids, as a safetensors file."""
    if embeddings.ndim != 2 or len(ids) != len(embeddings):
        raise ValueError(
            f"{len(ids)} utterances need embeddings of shape ({len(ids)}, d), "
            f"not {tuple(embeddings.shape)}"
        )
    tensors = {"embeddings": embeddings.detach().float().cpu().contiguous()}
    return save(tensors, {"ids": json.dumps(list(ids))})


def read_embeddings(path, ids):
    """Embeddings of these utterances ``(N, d_h)``, in their order.

    ResultsError where the file holds none, or those of other utterances.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            embeddings = file.get_tensor("embeddings")
            stored = json.loads((file.metadata() or {})["ids"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ResultsError(f"{path} holds no embeddings: {error}") from error
    place = {utterance: i for i, utterance in enumerate(stored)}
    if len(stored) != len(embeddings) or place.keys() != set(ids):
        raise ResultsError(
            f"{path} holds embeddings of other utterances than the predictions "
            "beside it: were files of two runs mixed?"
        )
    return embeddings[[place[utterance] for utterance in ids]]


def to_plane(embeddings):
    """Places embeddings in a plane, neighbors beside each other (t-SNE).

    By cosine distance, started from the principal components: the same
    embeddings, the same map, ``(N, 2)``; None of fewer than five. Only what is
    near says something; distances between groups and their sizes do not (van
    der Maaten and Hinton, 2008).
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
