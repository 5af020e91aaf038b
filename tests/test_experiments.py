"""Experiments side by side: what changed, and by how much."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from clip_mixtures.report.experiments import (
    Experiment,
    changes,
    changes_table,
    experiments_frame,
    experiments_table,
    flat,
)
from clip_mixtures.report.markdown import table_markdown


def cell(estimate: float, half: float, mixture: str = "cg-low", seed: int = 0) -> dict[str, Any]:
    found = {"estimate": estimate, "low": estimate - half, "high": estimate + half, "n": 100}
    return {
        "run": f"{mixture}-m-s{seed}", "mixture": mixture, "model": "m", "seed": seed,
        "test_domain": "sketch", "epoch": 2, "train_images": 10,
        "accuracies": {"sketch": {"held_out": {"balanced": found}}},
    }  # fmt: skip


BASE = Experiment("abc1234", "", flat({"train": {"lr": 1.0, "seeds": [0]}}), [cell(0.5, 0.04)])


def test_the_difference_has_newcombes_interval() -> None:
    other = Experiment("faster", "Success", {}, [cell(0.6, 0.03)])
    row = experiments_frame([BASE, other]).set_index("experiment").loc["faster"]
    assert row["difference"] == pytest.approx(0.1)
    assert row["difference_low"] == pytest.approx(0.1 - 0.05)
    assert row["difference_high"] == pytest.approx(0.1 + 0.05)


def test_the_interval_of_a_difference_is_as_lopsided_as_the_two() -> None:
    found = cell(0.1, 0.0)
    found["accuracies"]["sketch"]["held_out"]["balanced"].update(low=0.06, high=0.18)
    row = experiments_frame([BASE, Experiment("x", "Success", {}, [found])]).iloc[1]
    assert row["difference_low"] == pytest.approx(-0.4 - math.hypot(0.04, 0.04))
    assert row["difference_high"] == pytest.approx(-0.4 + math.hypot(0.08, 0.04))


def test_a_cell_that_the_baseline_lacks_has_no_difference() -> None:
    other = Experiment("more", "Success", {}, [cell(0.6, 0.03), cell(0.2, 0.1, "cg-high")])
    found = experiments_frame([BASE, other])
    assert found["mixture"].tolist() == ["cg-low", "cg-low", "cg-high"]
    assert found["difference"].isna().tolist() == [False, False, True]
    text = table_markdown(experiments_table([BASE, other], ["Held-out"]))
    assert text.splitlines()[-1] == "| more | cg-high | m | 1 | 20.0 [10.0, 30.0] | - |"


def test_seeds_are_averaged() -> None:
    cells = [cell(0.5, 0.04, seed=seed) for seed in range(3)]
    found = experiments_frame([BASE, Experiment("seeds", "Success", {}, cells)])
    assert found["seeds"].tolist() == [1, 3]
    assert found["difference"].tolist() == [0.0, 0.0]


def test_what_has_no_results_is_shown_with_its_state() -> None:
    waiting = Experiment("later", "Queued", {"train.lr": 2.0}, None)
    text = table_markdown(experiments_table([BASE, waiting], ["Held-out"]))
    assert text.splitlines()[-1] == "| later | Queued | - | - | - | - |"
    assert len(experiments_frame([waiting])) == 0
    assert experiments_table([waiting], ["Held-out"]).rows


def test_only_the_measures_that_are_asked_for_are_shown() -> None:
    table = experiments_table([BASE], ["ImageNet"])
    assert [column.name for column in table.columns] == ["Experiment", "Mixture", "Model", "Seeds"]


def test_changes_are_by_dotted_keys_and_include_what_one_lacks() -> None:
    params = flat({"train": {"lr": 2.0, "seeds": [0]}, "models": {"a": {}}})
    other = Experiment("x", "Success", params, None)
    assert changes(other, BASE) == {"train.lr": (1.0, 2.0), "models.a": (None, {})}
    gone = Experiment("y", "Success", flat({"train": {"lr": 1.0}}), None)
    assert changes(gone, BASE) == {"train.seeds": ([0], None)}
    rows = table_markdown(changes_table([BASE, other, gone])).splitlines()[2:]
    assert rows == [
        "| x | train.lr | 1.0 | 2.0 |",
        "| x | models.a | - | {} |",
        "| y | train.seeds | [0] | - |",
    ]


def test_an_experiment_that_changed_nothing_is_in_no_row_of_changes() -> None:
    same = Experiment("same", "Success", BASE.params, BASE.summary)
    assert changes_table([BASE, same]).rows == ()
    assert isinstance(experiments_frame([BASE, same]), pd.DataFrame)


@pytest.mark.parametrize(
    ("params", "data", "alike"),
    [
        ({"test.held_out": ["ant", "bee"], "test.test_domain": "sketch"}, "d", True),
        ({"test.held_out": ["ant", "bee"], "test.test_domain": "sketch"}, "other", False),
        ({"test.held_out": ["ant"], "test.test_domain": "sketch"}, "d", False),
        ({"test.held_out": ["ant", "bee"], "test.test_domain": "real"}, "d", False),
        # What a mixture says itself goes before what all of them have.
        (
            {
                "test.held_out": ["cat"],
                "test.test_domain": "sketch",
                "mixtures.cg-low.held_out": ["ant", "bee"],
            },
            "d",
            True,
        ),
        (
            {
                "test.held_out": ["ant", "bee"],
                "test.test_domain": "sketch",
                "corpus.domains": ["real"],
            },
            "d",
            False,
        ),
    ],
)
def test_only_what_was_tested_on_the_same_is_compared(
    params: dict[str, Any], data: str, alike: bool
) -> None:
    tested = {"test.held_out": ["ant", "bee"], "test.test_domain": "sketch"}
    base = Experiment("abc1234", "", tested, [cell(0.5, 0.04)], "d")
    other = Experiment("x", "Success", params, [cell(0.6, 0.03)], data)
    found = experiments_frame([base, other])
    assert found["difference"].notna().tolist() == [True, alike]


def test_long_lists_are_cut_short() -> None:
    other = Experiment("x", "Success", {"train.lr": list(range(70))}, None)
    rows = table_markdown(changes_table([BASE, other])).splitlines()[2:]
    assert rows[0] == "| x | train.lr | 1.0 | 0, 1, 2, 3, 4, 5, ... (70) |"
