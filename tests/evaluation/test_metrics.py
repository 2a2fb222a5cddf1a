"""WA, UA and WF1 against scikit-learn, and what the metric refuses."""

import io
import json
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from speechbrain.utils.metric_stats import MetricStats

from emoq_modules.evaluation.metrics import EmotionStats

LABELS = ["neutral", "angry", "sadness", "joy"]


def random_case(seed, target_classes, predicted_classes, n=200):
    rng = np.random.default_rng(seed)
    targets = rng.choice(target_classes, n).tolist()
    predictions = rng.choice(predicted_classes, n).tolist()
    return targets, predictions


def one_hot(classes):
    return torch.eye(len(LABELS))[torch.as_tensor(classes)]


def stats_of(targets, predictions):
    stats = EmotionStats(LABELS)
    ids = [f"utt{i}" for i in range(len(targets))]
    stats.append(ids, one_hot(predictions), torch.tensor(targets))
    return stats


CASES = {
    "random": random_case(0, [0, 1, 2, 3], [0, 1, 2, 3]),
    "unbalanced": random_case(1, [0, 0, 0, 0, 0, 1, 2, 3], [0, 0, 0, 1, 3]),
    "a class absent from the reference": random_case(2, [0, 2, 3], [0, 1, 2]),
    "a class never predicted": random_case(3, [0, 1, 2, 3], [0, 1]),
    "a class in neither": random_case(4, [0, 3], [0, 3]),
    "one class in the reference": random_case(5, [2], [0, 1, 2, 3]),
    "one class predicted": random_case(6, [0, 1, 2, 3], [3]),
    "all wrong": ([0, 1, 2], [1, 2, 0]),
    "all right": ([0, 1, 2, 3], [0, 1, 2, 3]),
    "one utterance": ([1], [1]),
}


@pytest.mark.parametrize(("targets", "predictions"), CASES.values(), ids=CASES)
def test_measures_agree_with_scikit_learn(targets, predictions):
    found = stats_of(targets, predictions).summarize()
    with warnings.catch_warnings():
        # It warns of classes that are predicted but not in the reference.
        warnings.simplefilter("ignore")
        balanced = sklearn.balanced_accuracy_score(targets, predictions)
    options = {"average": "weighted", "zero_division": 0}
    for name, expected in (
        ("WA", sklearn.accuracy_score(targets, predictions)),
        ("UA", balanced),
        ("WF1", sklearn.f1_score(targets, predictions, **options)),
    ):
        assert found[name] == pytest.approx(100 * expected)
    assert found["n"] == len(targets)

    classes = list(range(len(LABELS)))
    expected = sklearn.confusion_matrix(targets, predictions, labels=classes)
    assert found["confusion"] == expected.tolist()
    recalls = sklearn.recall_score(
        targets, predictions, labels=classes, average=None, zero_division=0
    )
    for label, recall in zip(LABELS, recalls, strict=True):
        if LABELS.index(label) in targets:
            assert found["recall"][label] == pytest.approx(100 * recall)
        else:
            assert found["recall"][label] is None


def test_batches_add_up_to_the_whole():
    targets, predictions = CASES["random"]
    whole = stats_of(targets, predictions)
    in_batches = EmotionStats(LABELS)
    for start in range(0, len(targets), 7):
        batch = slice(start, start + 7)
        in_batches.append(
            whole.ids[batch],
            one_hot(predictions[batch]),
            torch.tensor(targets[batch]),
        )
    assert in_batches.summarize() == whole.summarize()
    assert in_batches.ids == whole.ids


def test_ties_at_the_top_are_counted_where_there_are_any():
    posteriors = torch.tensor(
        [
            [0.4, 0.4, 0.1, 0.1],
            [0.1, 0.1, 0.1, 0.7],  # a tie, but not at the top
            [0.25, 0.25, 0.25, 0.25],
            # Next to each other in bfloat16, and the same in it.
            [0.0, 0.50001, 0.49999, 0.0],
        ]
    )
    targets = torch.tensor([1, 3, 0, 1])
    stats = EmotionStats(LABELS)
    stats.append("abcd", posteriors, targets)
    assert stats.summarize("ties") == 2
    assert stats.summarize("WA") == 75.0
    stats.clear()
    stats.append("abcd", posteriors.bfloat16(), targets)
    assert stats.summarize("ties") == 3
    stats.clear()
    stats.append("ab", posteriors[[1, 3]], targets[[1, 3]])
    assert "ties" not in stats.summarize()


def test_values_are_plain_python():
    summary = stats_of(*CASES["random"]).summarize()
    assert {type(summary[name]) for name in ("WA", "UA", "WF1")} == {float}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_it_is_a_speechbrain_metric():
    stats = stats_of([0, 1, 1], [0, 1, 0])
    assert isinstance(stats, MetricStats)
    assert stats.summarize(field="UA") == 75.0
    stats.clear()
    stats.append(["utt0"], one_hot([2]), torch.tensor([2]))
    assert stats.summarize("n") == 1

    stream = io.StringIO()
    stats_of([0, 1, 1], [0, 1, 0]).write_stats(stream)
    text = stream.getvalue()
    assert "WA: 66.67 %" in text and "UA: 75.00 %" in text
    assert all(label in text for label in LABELS)


def test_half_precision_posteriors_with_a_graph_are_taken():
    posteriors = one_hot([3, 0]).bfloat16().requires_grad_() * 1.0
    stats = EmotionStats(LABELS)
    stats.append(("a", "b"), posteriors, torch.tensor([3, 1]))
    assert stats.predictions == [3, 0]
    assert all(row.dtype == torch.float32 for row in stats.posteriors)
    assert not any(row.requires_grad for row in stats.posteriors)


NEUTRAL = [1, 0, 0, 0]
REFUSED = {
    "an id that came before": (["utt0"], [NEUTRAL], [0], "'utt0' measured"),
    "an id twice in a batch": (
        *(["a", "a"], [NEUTRAL, NEUTRAL], [0, 0]),
        "'a' measured more than once",
    ),
    "a target out of range": (
        *(["a"], [NEUTRAL], [4]),
        "target 4 of utterance 'a' is not one of the 4 classes",
    ),
    "a negative target": (["a"], [NEUTRAL], [-1], "target -1"),
    "posteriors that are not finite": (
        *(["a"], [[float("nan"), 0, 0, 0]], [0]),
        "posteriors of utterance 'a' are not finite",
    ),
    "too few classes": (["a"], [[1, 0, 0]], [0], r"not \(1, 3\), \(1,\)"),
    "too few targets": (["a"], [NEUTRAL], [], r"not .*, \(0,\)"),
}


@pytest.mark.parametrize(
    ("ids", "posteriors", "targets", "message"), REFUSED.values(), ids=REFUSED
)
def test_a_faulty_batch_is_refused_whole(ids, posteriors, targets, message):
    stats = stats_of([0, 1], [0, 1])
    before = stats.summarize()
    with pytest.raises(ValueError, match=message):
        stats.append(ids, torch.tensor(posteriors), torch.tensor(targets))
    assert stats.summarize() == before
    assert stats.ids == ["utt0", "utt1"]


def test_dialogues_stand_beside_their_utterances():
    stats = EmotionStats(LABELS)
    stats.append(
        ["a", "b"], one_hot([0, 1]), torch.tensor([0, 1]), ["d1", "d1"]
    )
    stats.append(["c"], one_hot([2]), torch.tensor([2]))  # one of its own
    assert stats.dialogues == ["d1", "d1", "c"]
    with pytest.raises(ValueError, match="need .* 2 dialogues, .* and 1, 2, 2"):
        stats.append(["e", "f"], one_hot([0, 0]), torch.tensor([0, 0]), ["d2"])
    assert stats.ids == ["a", "b", "c"]
    stats.clear()
    assert stats.dialogues == []


def test_speakers_and_sessions_are_known_or_empty():
    stats = EmotionStats(LABELS)
    places = [["d", "d"], ["Jo", "Max"], ["1", "1"]]
    stats.append(["a", "b"], one_hot([0, 1]), torch.tensor([0, 1]), *places)
    stats.append(["c"], one_hot([2]), torch.tensor([2]))
    assert stats.speakers == ["Jo", "Max", ""]
    assert stats.sessions == ["1", "1", ""]
    rows = {
        name: {"speaker": name.upper(), "session": "s", "corpus": "c"}
        for name in "dcba"
    }
    stats.locate(rows)
    assert stats.speakers == ["A", "B", "C"]
    assert stats.sessions == ["s"] * 3
    stats.clear()
    assert stats.speakers == stats.sessions == []


def test_each_corpus_is_measured_where_there_are_several():
    stats = EmotionStats(LABELS)
    targets, found = torch.tensor([0, 0, 1, 2]), one_hot([0, 0, 0, 1])
    stats.append("abcd", found, targets, None, None, None, ["x", "y", "y", "x"])
    parts = stats.by_corpus()
    assert [(name, part.ids) for name, part in parts.items()] == [
        ("x", ["a", "d"]),
        ("y", ["b", "c"]),
    ]
    assert parts["x"].summarize("WA") == 50.0
    # Each is one corpus by itself.
    assert parts["x"].by_corpus() == {}


def test_nothing_measured_is_an_error():
    with pytest.raises(ValueError, match="no utterances to measure"):
        EmotionStats(LABELS).summarize()


@pytest.mark.parametrize("labels", [[], ["angry", "sad", "angry"]])
def test_a_label_set_that_is_none_is_refused(labels):
    with pytest.raises(ValueError, match="labels"):
        EmotionStats(labels)
