"""Intervals and comparisons against a plain bootstrap, and what they claim."""

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from sklearn.metrics import balanced_accuracy_score, f1_score

from emoq_modules.evaluation.bootstrap import (
    bootstrap_interval,
    find_clusters,
    paired_bootstrap,
)
from emoq_modules.evaluation.metrics import EmotionStats

LABELS = ["angry", "happy", "sad"]


def make_stats(
    targets, predictions, dialogues=None, labels=LABELS, speakers=None
):
    stats = EmotionStats(labels)
    stats.append(
        [f"u{i:04d}" for i in range(len(targets))],
        torch.eye(len(labels))[torch.as_tensor(predictions)],
        torch.as_tensor(targets),
        dialogues,
        speakers,
    )
    return stats


def random_predictions(rng, targets, accuracy):
    """Right with this probability, else any class."""
    guesses = rng.integers(len(LABELS), size=len(targets))
    return np.where(rng.random(len(targets)) < accuracy, targets, guesses)


def random_case(seed, n=200, accuracy=0.6):
    rng = np.random.default_rng(seed)
    targets = rng.choice(len(LABELS), n, p=[0.6, 0.3, 0.1])
    return targets, random_predictions(rng, targets, accuracy)


def plain_measure(measure, targets, predictions):
    if measure == "WA":
        return 100 * np.mean(targets == predictions)
    if measure == "UA":
        return 100 * balanced_accuracy_score(targets, predictions)
    return 100 * f1_score(
        targets, predictions, average="weighted", zero_division=0
    )


# --- Intervals ----------------------------------------------------------------


@pytest.mark.parametrize("measure", ["WA", "UA", "WF1"])
def test_interval_and_comparison_are_those_of_a_plain_bootstrap(measure):
    # Over single utterances, each resample measured by scikit-learn.
    rng = np.random.default_rng(0)
    targets, of_a = random_case(0)
    of_b = np.where(rng.random(200) < 0.7, of_a, rng.integers(3, size=200))

    def plain(utterances):
        reference = targets[utterances]
        a, b = (
            plain_measure(measure, reference, system[utterances])
            for system in (of_a, of_b)
        )
        return a, a - b

    values = [plain(rng.integers(200, size=200)) for _ in range(600)]
    systems = make_stats(targets, of_a), make_stats(targets, of_b)
    compared = paired_bootstrap(*systems, measure)
    for (value, low, high), expected, resampled in zip(
        (bootstrap_interval(systems[0], measure), compared[:3]),
        plain(np.arange(200)),
        np.transpose(values),
        strict=True,
    ):
        assert value == pytest.approx(expected)
        # An edge of 600 resamples is known to about an eighth of the spread.
        np.testing.assert_allclose(
            [low, high],
            np.percentile(resampled, [2.5, 97.5]),
            atol=0.3 * resampled.std(),
        )
    p_value = 2 * np.mean(resampled <= 0)
    assert compared.p_value == pytest.approx(p_value, abs=0.05)


def test_whole_dialogues_are_resampled():
    # In a dialogue all is right or all is wrong: 400 utterances tell no more
    # than 40 do, and the interval is that of the 40.
    rng = np.random.default_rng(0)
    targets = np.tile(np.arange(40) % 2, 10)
    right = np.tile(rng.random(40) < 0.7, 10)
    predictions = np.where(right, targets, 2)
    dialogues = [f"d{i % 40}" for i in range(400)]
    by_utterance = bootstrap_interval(make_stats(targets, predictions))
    whole = make_stats(targets, predictions, dialogues)
    by_dialogue = bootstrap_interval(whole)
    few = bootstrap_interval(make_stats(targets[:40], predictions[:40]))
    assert by_dialogue.value == by_utterance.value == few.value
    width, of_utterances, of_few = (
        interval.high - interval.low
        for interval in (by_dialogue, by_utterance, few)
    )
    assert width == pytest.approx(of_few, rel=0.1)
    assert width == pytest.approx(10**0.5 * of_utterances, rel=0.1)


def test_speakers_are_resampled_where_each_dialogue_is_one_utterance():
    # Ten speakers, who are recognized more or less well. The reference is
    # SciPy's bootstrap of the speakers' hits and numbers of utterances.
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(10), rng.integers(20, 60, size=10))
    right = rng.random(len(speakers)) < rng.random(10)[speakers]
    targets = np.zeros(len(speakers), dtype=int)
    names = [f"s{speaker}" for speaker in speakers]
    stats = make_stats(targets, np.where(right, 0, 1), speakers=names)
    expected = bootstrap(
        (np.bincount(speakers, right), np.bincount(speakers)),
        lambda hits, sizes, axis: 100 * hits.sum(axis) / sizes.sum(axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = bootstrap_interval(stats, "WA")
    np.testing.assert_allclose(found[1:], expected, atol=0.5)
    unknown = bootstrap_interval(make_stats(targets, np.where(right, 0, 1)))
    assert found.high - found.low > 3 * (unknown.high - unknown.low)
    assert str(find_clusters(stats)) == "10 speakers"


def test_clusters_are_dialogues_then_speakers_then_utterances():
    targets = [0, 1, 2, 0]
    one_each = make_stats(targets, targets, list("abcd"), speakers=list("xxyy"))
    two_each = make_stats(targets, targets, list("aabb"), speakers=list("xyxy"))
    of_no_one = make_stats(targets, targets)
    of_some = make_stats(targets, targets, speakers=["x", "x", "", "y"])
    assert find_clusters(two_each).of["u0001"] == "a"
    for system, clusters in (
        (two_each, "2 dialogues"),
        (one_each, "2 speakers"),
        (of_no_one, "4 utterances"),
        (of_some, "4 utterances"),
    ):
        assert str(find_clusters(system)) == clusters
    # Predictions of an earlier version name no speakers; the others' do.
    named = make_stats(targets, [0, 1, 1, 0], speakers=list("xxyy"))
    assert str(find_clusters(of_no_one, named)) == "2 speakers"
    halves = make_stats(targets, [1, 2, 2, 0])
    pairs = (halves, named), (named, halves)
    (_, low, high, _), other = (paired_bootstrap(*pair, "WA") for pair in pairs)
    # The speakers' differences are -100 and 50 points, each of two utterances.
    assert (low, high) == (-100, 50) and other[1:3] == (-50, 100)


def test_seeds_and_clusters_are_resampled_together():
    # Of 16 resamples, by hand: two of dialogues of one and three utterances,
    # and two of seeds, of which one recognizes the first dialogue alone and the
    # other the second. Both of one seed have 100, 25, 25, 0 or 0, 75, 75, 100
    # percent, and one of each 50, whatever the dialogues. 0 and 100 come twice.
    targets, dialogues = np.zeros(4, dtype=int), list("abbb")
    seeds = [
        make_stats(targets, predictions, dialogues)
        for predictions in ([0, 1, 1, 1], [1, 0, 0, 0])
    ]
    assert bootstrap_interval(seeds, "WA") == (50, 0, 100)
    assert bootstrap_interval(seeds[:1], "WA") == (25, 0, 100)
    whole = make_stats(targets, targets, dialogues)
    assert paired_bootstrap(whole, seeds, "WA")[:3] == (50, 0, 100)


def test_seeds_together_are_a_plain_bootstrap_of_two_levels():
    rng = np.random.default_rng(0)
    targets, first = random_case(0)
    of_seeds = [first, random_case(0, accuracy=0.4)[1]]
    of_seeds += [random_predictions(rng, targets, 0.7)]
    groups = np.arange(200).reshape(40, 5)
    dialogues = [f"d{i // 5}" for i in range(200)]

    def plain(seeds, chosen):
        utterances = groups[chosen].ravel()
        return np.mean(
            [
                plain_measure(
                    "UA", targets[utterances], of_seeds[seed][utterances]
                )
                for seed in seeds
            ]
        )

    resampled = [
        plain(rng.integers(3, size=3), rng.integers(40, size=40))
        for _ in range(600)
    ]
    seeds = [make_stats(targets, seed, dialogues) for seed in of_seeds]
    value, low, high = bootstrap_interval(seeds, "UA")
    assert value == pytest.approx(plain(range(3), np.arange(40)))
    np.testing.assert_allclose(
        [low, high],
        np.percentile(resampled, [2.5, 97.5]),
        atol=0.3 * np.std(resampled),
    )


def test_an_interval_over_seeds_holds_the_truth_of_other_seeds():
    # Eight seeds, of which one recognizes more than another.
    together = alone = 0
    for number in range(100):
        rng = np.random.default_rng(number)
        easy = rng.normal(0.6, 0.1, size=(1, 40, 1))
        good = rng.normal(0, 0.08, size=(8, 1, 1))
        right = rng.random((8, 40, 5)) < easy + good
        dialogues = [f"d{i // 5}" for i in range(200)]
        targets = np.zeros(200, dtype=int)
        seeds = [
            make_stats(targets, np.where(seed.ravel(), 0, 1), dialogues)
            for seed in right
        ]
        _, low, high = bootstrap_interval(seeds, "WA", resamples=400)
        together += low <= 60 <= high
        _, low, high = bootstrap_interval(seeds[0], "WA", resamples=400)
        alone += low <= 60 <= high
    assert together > 90 > 75 > alone


def test_seeds_of_other_utterances_are_refused():
    targets, predictions = random_case(0)
    first = make_stats(targets, predictions)
    for other, message in (
        (
            make_stats(targets[:-1], predictions[:-1]),
            "only the first .*'u0199'",
        ),
        (make_stats((targets + 1) % 3, predictions), "'u0000' is 'happy'"),
    ):
        with pytest.raises(ValueError, match=message):
            bootstrap_interval([first, other])


def test_a_class_that_a_resample_lacks_has_no_part_in_it():
    # "sad" occurs once, so that a third of the resamples lacks it; were its
    # recall 0 there, they would be at 67 % and not at 100.
    targets = np.array([0] * 10 + [1] * 10 + [2])
    assert bootstrap_interval(make_stats(targets, targets)) == (100, 100, 100)


def test_interval_is_repeatable_and_hangs_on_no_order():
    targets, predictions = random_case(0)
    dialogues = [f"d{i // 7}" for i in range(len(targets))]
    stats = make_stats(targets, predictions, dialogues)
    shuffled = EmotionStats(LABELS)
    order = np.random.default_rng(3).permutation(len(targets))
    shuffled.append(
        [stats.ids[i] for i in order],
        torch.stack(stats.posteriors)[order],
        torch.as_tensor(targets[order]),
        [dialogues[i] for i in order],
    )
    assert bootstrap_interval(stats) == bootstrap_interval(shuffled)


def test_interval_holds_the_truth_as_often_as_it_says():
    # The truth: in a dialogue of 4, all right with probability 0.605.
    held = 0
    for seed in range(200):
        right = np.random.default_rng(seed).random(80) < 0.605
        predictions = np.where(np.repeat(right, 4), 0, 1)
        dialogues = [f"d{i // 4}" for i in range(320)]
        stats = make_stats(np.zeros(320, dtype=int), predictions, dialogues)
        _, low, high = bootstrap_interval(stats, "WA", resamples=500)
        held += low <= 60.5 <= high
    assert 0.9 < held / 200 < 0.98


def test_what_has_no_interval_is_refused():
    targets, predictions = random_case(0)
    with pytest.raises(ValueError, match="'F1'; it can be WA, UA, WF1"):
        bootstrap_interval(make_stats(targets, predictions), "F1")
    one = make_stats(targets, predictions, ["d"] * len(targets))
    with pytest.raises(ValueError, match="there is 1 in 200 utterances"):
        bootstrap_interval(one)


# --- Comparisons --------------------------------------------------------------


def test_only_a_system_that_is_better_everywhere_is_surely_better():
    targets, predictions = random_case(0)
    same = make_stats(targets, predictions)
    assert paired_bootstrap(same, same) == (0, 0, 0, 1)
    right = make_stats(targets, targets)
    wrong = make_stats(targets, (targets + 1) % 3)
    found = paired_bootstrap(right, wrong, resamples=999)
    assert found == (100, 100, 100, 2 * 1 / 1000)  # and not 0
    found = paired_bootstrap(wrong, right, resamples=999)
    assert found == (-100, -100, -100, 2 * 1 / 1000)


def test_one_lucky_dialogue_does_not_make_a_system_better():
    # It is ahead by 20 utterances, all of them in one of ten dialogues.
    targets = np.zeros(200, dtype=int)
    dialogues = [f"d{i // 20}" for i in range(200)]
    of_a = np.where(np.arange(200) < 20, 0, np.arange(200) % 2)
    of_b = np.where(np.arange(200) < 20, 1, np.arange(200) % 2)
    by_dialogue = paired_bootstrap(
        make_stats(targets, of_a, dialogues),
        make_stats(targets, of_b, dialogues),
        "WA",
    )
    by_utterance = paired_bootstrap(
        make_stats(targets, of_a), make_stats(targets, of_b), "WA"
    )
    assert by_dialogue.difference == by_utterance.difference == 10
    assert by_utterance.p_value < 0.001
    # A third of the resamples lacks the dialogue.
    assert by_dialogue.p_value == pytest.approx(2 * 0.9**10, abs=0.03)


def test_systems_that_are_equally_good_seldom_differ():
    rejected = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        targets = rng.integers(3, size=120)
        a, b = (
            make_stats(targets, random_predictions(rng, targets, 0.6))
            for _ in range(2)
        )
        p_value = paired_bootstrap(a, b, resamples=500).p_value
        rejected += p_value < 0.1
    assert 0.05 < rejected / 200 < 0.15


def test_the_p_value_and_the_interval_agree():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        targets = rng.integers(3, size=120)
        a, b = (
            make_stats(targets, random_predictions(rng, targets, accuracy))
            for accuracy in (0.65, 0.5)
        )
        found = paired_bootstrap(a, b, resamples=999)
        if abs(found.p_value - 0.05) > 0.01:  # not by a hair
            without_0 = found.low > 0 or found.high < 0
            assert (found.p_value < 0.05) == without_0


def test_only_systems_on_the_same_utterances_are_compared():
    targets, predictions = np.array([0, 1, 2, 0]), np.array([0, 1, 1, 0])
    a = make_stats(targets, predictions)
    with pytest.raises(
        ValueError, match="second has .* sad, happy, angry, but .*: only"
    ):
        paired_bootstrap(
            a, make_stats(targets, predictions, None, LABELS[::-1])
        )
    with pytest.raises(ValueError, match="only the first .* on 'u0003'"):
        paired_bootstrap(a, make_stats(targets[:3], predictions[:3]))
    with pytest.raises(ValueError, match="only the second .* on 'u0003'"):
        paired_bootstrap(make_stats(targets[:3], predictions[:3]), a)
    with pytest.raises(ValueError, match="'u0000' is 'angry' .* 'happy' in"):
        paired_bootstrap(a, make_stats((targets + 1) % 3, predictions))
    with pytest.raises(ValueError, match="dialogue 'u0000' for .* 'd' for the"):
        paired_bootstrap(a, make_stats(targets, predictions, ["d"] * 4))
