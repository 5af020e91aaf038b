"""Accuracies against hand-counted values and against a loop that is too plain to be wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_mixtures.evaluation.accuracy import accuracy_table, per_class_accuracy

DOMAINS = ("sketch", "real", "clipart")

images_of = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from(DOMAINS)),
    min_size=1,
    max_size=40,
)


def columns(images: list[tuple[int, int, str]]) -> tuple[Any, Any, Any]:
    labels, predictions, domains = zip(*images, strict=True)
    return np.array(labels), np.array(predictions), np.array(domains)


def slow_table(images: list[tuple[int, int, str]], held_out: set[int]) -> list[tuple[Any, ...]]:
    rows = []
    for domain in dict.fromkeys(domain for _, _, domain in images):
        for group in ("held_out", "seen"):
            hits: dict[int, list[int]] = {}
            for label, prediction, where in images:
                if where == domain and (label in held_out) == (group == "held_out"):
                    hits.setdefault(label, []).append(int(label == prediction))
            if hits:
                recalls = [sum(of_class) / len(of_class) for of_class in hits.values()]
                total = sum(len(of_class) for of_class in hits.values())
                right = sum(sum(of_class) for of_class in hits.values())
                balanced = sum(recalls) / len(recalls)
                rows.append((domain, group, balanced, right / total, total, len(hits)))
    return rows


def test_table_of_a_hand_counted_case() -> None:
    # sketch: class 0 (held out) 1 of 3; class 1 (seen) 1 of 1, class 2 (seen) 0 of 3.
    # A held-out image that is taken for a seen class is wrong: the problem is full-way.
    labels = np.array([0, 0, 0, 1, 2, 2, 2, 0])
    predictions = np.array([0, 1, 2, 1, 0, 0, 1, 0])
    domains = np.array(["sketch"] * 7 + ["real"])
    table = accuracy_table(labels, predictions, domains, held_out={0})
    assert list(table.columns) == ["domain", "group", "balanced", "micro", "images", "classes"]
    assert table.to_numpy().tolist() == [
        ["sketch", "held_out", pytest.approx(1 / 3), pytest.approx(1 / 3), 3, 1],
        ["sketch", "seen", 0.5, 0.25, 4, 2],
        ["real", "held_out", 1.0, 1.0, 1, 1],
    ]


@given(images=images_of, held_out=st.sets(st.integers(0, 5)))
@settings(deadline=None)
def test_table_agrees_with_a_slow_loop(
    images: list[tuple[int, int, str]], held_out: set[int]
) -> None:
    table = accuracy_table(*columns(images), held_out)
    expected = slow_table(images, held_out)
    assert table[["domain", "group", "images", "classes"]].to_numpy().tolist() == [
        [domain, group, total, classes] for domain, group, _, _, total, classes in expected
    ]
    np.testing.assert_allclose(table["balanced"], [row[2] for row in expected])
    np.testing.assert_allclose(table["micro"], [row[3] for row in expected])
    assert table["balanced"].between(0, 1).all()


@given(images=images_of, shift=st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_images_does_not_matter(
    images: list[tuple[int, int, str]], shift: Any
) -> None:
    shuffled = shift.sample(images, len(images))
    keys = ["domain", "group"]
    before = accuracy_table(*columns(images), {0, 1}).sort_values(keys, ignore_index=True)
    after = accuracy_table(*columns(shuffled), {0, 1}).sort_values(keys, ignore_index=True)
    assert before[[*keys, "images", "classes"]].equals(after[[*keys, "images", "classes"]])
    np.testing.assert_allclose(before[["balanced", "micro"]], after[["balanced", "micro"]])


def test_per_class_lists_classes_that_were_never_predicted_but_not_absent_ones() -> None:
    table = per_class_accuracy(np.array([7, 2, 7, 7, 4]), np.array([7, 9, 7, 2, 4]))
    assert table.to_dict("list") == {
        "label": [2, 4, 7],
        "correct": [0, 1, 2],
        "images": [1, 1, 3],
        "accuracy": [0.0, 1.0, pytest.approx(2 / 3)],
    }


@pytest.mark.parametrize(
    ("labels", "predictions", "domains", "message"),
    [
        ([], [], [], "no images"),
        ([1, 2], [1], ["a", "a"], "2 labels but 1 predictions"),
        ([1, 2], [1, 2], ["a"], "domains has shape"),
        ([1, 2], [0.3, 0.7], ["a", "a"], "predictions has dtype float64"),
        ([1], [[0, 1]], ["a"], "argmax"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    labels: list[Any], predictions: list[Any], domains: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        accuracy_table(np.array(labels), np.array(predictions), np.array(domains), {1})
