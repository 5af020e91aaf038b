"""A cell's evaluation: predictions of every checkpoint, and numbers that follow from them alone."""

from __future__ import annotations

import pandas as pd

from clip_mixtures.evaluation import cell


def predictions() -> pd.DataFrame:
    """Two checkpoints; class 0 is held out; one domain has no image of it."""
    rows = [
        # epoch, domain, class, prediction, rank of the class
        (5, "sketch", 0, 0, 0), (5, "sketch", 0, 1, 3), (5, "sketch", 1, 1, 0),
        (5, "real", 1, 1, 0),
        (0, "sketch", 0, 1, 1), (0, "sketch", 0, 1, -1), (0, "sketch", 1, 0, 4),
        (0, "real", 1, 1, 0),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["epoch", "domain", "class_id", "prediction", "rank"])


def test_the_history_is_by_epoch_and_by_group() -> None:
    history = cell.history_of(predictions(), held_out=[0], resamples=100, seed=0)
    assert [point["epoch"] for point in history] == [0, 5]
    first, last = (point["accuracies"] for point in history)
    assert first["sketch"]["held_out"]["micro"]["estimate"] == 0
    assert last["sketch"]["held_out"]["micro"]["estimate"] == 0.5
    assert last["sketch"]["held_out"]["micro"]["n"] == 2
    assert last["sketch"]["seen"]["balanced"]["estimate"] == 1
    # Both images of class 0 have it among their first five at last, one of them at first.
    assert first["sketch"]["held_out"]["micro_top5"]["estimate"] == 0.5
    assert last["sketch"]["held_out"]["balanced_top5"]["estimate"] == 1
    assert "held_out" not in last["real"]


def test_no_estimate_without_an_interval_around_it() -> None:
    for domain in cell.accuracies(predictions(), [0], resamples=100, seed=0).values():
        for group in domain.values():
            for value in group.values():
                low, high = value["low"], value["high"]
                assert low is not None
                assert high is not None
                assert low <= value["estimate"] <= high  # type: ignore[operator]
                assert low < high


def test_imagenet_stands_beside_the_domains_of_its_checkpoint() -> None:
    imagenet = predictions().assign(domain="imagenet")
    history = cell.history_of(predictions(), [0], 100, 0, imagenet[imagenet["class_id"] == 0])
    assert [point["imagenet"]["micro"]["estimate"] for point in history] == [0, 0.5]
    assert [point["imagenet"]["micro_top5"]["estimate"] for point in history] == [0.5, 1]
    assert "imagenet" not in cell.history_of(predictions(), [0], 100, 0)[0]


def test_classes_are_counted_by_checkpoint_and_domain() -> None:
    table = cell.class_table(predictions(), ["ant", "bee"], held_out=[0])
    assert table.drop(columns="class_id").to_numpy().tolist() == [
        [0, "real", "bee", "seen", 1, 1, 1],
        [0, "sketch", "ant", "held_out", 2, 0, 1],
        [0, "sketch", "bee", "seen", 1, 0, 1],
        [5, "real", "bee", "seen", 1, 1, 1],
        [5, "sketch", "ant", "held_out", 2, 1, 2],
        [5, "sketch", "bee", "seen", 1, 1, 1],
    ]
    columns = ["epoch", "domain", "class_id", "class_name", "group", "images", "correct"]
    assert list(table.columns) == [*columns, "correct_top5"]


def test_confusions_are_those_of_held_out_classes_at_last() -> None:
    table = cell.confusion_table(predictions(), ["ant", "bee"], held_out=[0])
    assert table.to_numpy().tolist() == [["sketch", "ant", "ant", 1], ["sketch", "ant", "bee", 1]]
    more = pd.concat([predictions(), predictions().iloc[[1]]])
    first = cell.confusion_table(more, ["ant", "bee"], held_out=[0]).iloc[0]
    assert (first["predicted"], first["images"]) == ("bee", 2)
