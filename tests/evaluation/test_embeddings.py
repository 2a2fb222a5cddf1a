"""Embeddings of a test set: kept by name, and drawn as a map."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.manifold import trustworthiness
from sklearn.neighbors import KNeighborsClassifier

from emoq_modules.evaluation.embeddings import (
    embeddings_as_bytes,
    read_embeddings,
    to_plane,
)
from emoq_modules.evaluation.plots import plot_map


def on_the_sphere(n, centers, spread):
    """Unit vectors around random centers, and which center is whose."""
    rng = np.random.default_rng(3)
    middle = rng.standard_normal((centers, 32))
    targets = np.arange(n) % centers
    points = middle[targets] + spread * rng.standard_normal((n, 32))
    return points / np.linalg.norm(points, axis=1, keepdims=True), targets


def test_embeddings_are_read_back_by_name_bit_for_bit(tmp_path):
    path, ids = tmp_path / "e", ["c", "a", "ü b"]
    embeddings = torch.randn(3, 7)
    path.write_bytes(embeddings_as_bytes(ids, embeddings))
    for order in (ids, sorted(ids)):
        expected = embeddings[[ids.index(name) for name in order]]
        np.testing.assert_array_equal(read_embeddings(path, order), expected)


def test_embeddings_of_other_utterances_are_refused_by_name(tmp_path):
    path = tmp_path / "e"
    path.write_bytes(embeddings_as_bytes(["a", "b"], torch.eye(2)))
    for ids in (["a"], ["a", "c"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match=f"{path}.*other utterances"):
            read_embeddings(path, ids)


@pytest.mark.parametrize("spoil", ["text", "cut", "other"])
def test_a_file_that_holds_no_embeddings_is_refused_by_name(tmp_path, spoil):
    path = tmp_path / "e"
    whole = embeddings_as_bytes(["a"], torch.ones(1, 2))
    path.write_bytes({"text": b"hello", "cut": whole[:-3]}.get(spoil, whole))
    if spoil == "other":
        save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=f"{path} holds no embeddings"):
        read_embeddings(path, ["a"])


@pytest.mark.parametrize("shape", [(1, 4), (2,), (3, 4)])
def test_there_is_one_embedding_an_utterance(shape):
    with pytest.raises(ValueError, match="2 utterances need"):
        embeddings_as_bytes(["a", "b"], torch.zeros(shape))


def test_neighbors_stay_neighbors_on_a_map_that_stays_the_same():
    embeddings, targets = on_the_sphere(120, centers=4, spread=0.3)
    points = to_plane(embeddings)
    assert points.shape == (120, 2)
    assert trustworthiness(embeddings, points, metric="cosine") > 0.9
    knn = KNeighborsClassifier(5).fit(points, targets)
    assert knn.score(points, targets) > 0.95
    np.testing.assert_array_equal(to_plane(embeddings), points)


@pytest.mark.parametrize("n, drawn", [(1, False), (4, False), (5, True)])
def test_a_few_utterances_are_enough_for_a_map(n, drawn):
    embeddings, _ = on_the_sphere(n, centers=2, spread=0.5)
    assert (to_plane(embeddings) is not None) == drawn


def test_equal_embeddings_have_a_map_too():
    assert np.isfinite(to_plane(np.ones((20, 4)))).all()


@pytest.mark.parametrize("classes", [4, 7, 11])
def test_every_class_has_a_look_and_a_count_of_its_own(classes):
    labels = [f"emotion {number}" for number in range(classes)]
    points, targets = on_the_sphere(30, classes, 0.5)
    figure = plot_map(points[:, :2], targets, labels, "toy")
    dots = figure.axes[0].collections
    looks = {
        (
            tuple(d.get_facecolor()[0]),
            d.get_paths()[0].vertices.tobytes(),
            d.get_sizes()[0],
        )
        for d in dots
    }
    assert len(looks) == classes
    counts = np.bincount(targets, minlength=classes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        f"{label} ({count})"
        for label, count in zip(labels, counts, strict=True)
    ]
