"""What the comparison says of sharing, circuits and ablation, from small files as stages leave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import explained
from experiment import Cell

RUNS = ("cg-low-sample-rn-s0", "cg-high-sample-rn-s0")


def measured(chances: tuple[float | None, float | None]) -> pd.DataFrame:
    """Give two runs a sharing each, beside its chance level."""
    return pd.DataFrame(
        {
            "run": RUNS,
            "measure": "sharing",
            "of": "test domain",
            "estimate": [0.37, 0.35],
            "low": [0.35, 0.33],
            "high": [0.39, 0.37],
            "chance": np.array(chances, dtype=np.float64),
        }
    )


def test_a_chance_level_of_all_runs_stands_in_the_heading() -> None:
    table = explained.measures_table(measured((0.2, 0.2)))
    assert table.columns[1].name == "Sharing, test domain (chance 0.20)"
    assert [row[1].note for row in table.rows] == ["[0.35, 0.39]", "[0.33, 0.37]"]


@pytest.mark.parametrize(
    ("levels", "said"),
    [((0.0034, 0.0037), "below 0.01"), ((0.0, 0.0), "0.00"), ((0.0051, 0.0149), "0.01")],
)
def test_a_chance_level_that_is_small_is_not_said_to_be_none(
    levels: tuple[float, float], said: str
) -> None:
    table = explained.measures_table(measured(levels))
    assert table.columns[1].name == f"Sharing, test domain (chance {said})"


def test_chance_levels_that_differ_stand_beside_each_number() -> None:
    table = explained.measures_table(measured((0.2, 0.18)))
    assert table.columns[1].name == "Sharing, test domain"
    assert [row[1].note for row in table.rows] == [
        "[0.35, 0.39] chance 0.20",
        "[0.33, 0.37] chance 0.18",
    ]


def test_without_a_chance_level_none_is_said() -> None:
    table = explained.measures_table(measured((None, None)))
    assert table.columns[1].name == "Sharing, test domain"
    assert [row[1].note for row in table.rows] == ["[0.35, 0.39]", "[0.33, 0.37]"]


class OneCell:
    """A study of one mixture that holds classes out in sketch, all of it looked into."""

    cells = (Cell("cg-low", "sample-rn", 0),)
    circuit_cells = cells
    test_domain = "sketch"

    def mixture(self, name: str) -> OneCell:
        assert name == "cg-low"
        return self


def test_the_numbers_have_their_chance_level_and_no_error_of_the_last_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explained, "MECHANISMS", tmp_path)
    run = OneCell.cells[0].run
    for family in ("representation", "sharing", "circuits"):
        (tmp_path / family / run).mkdir(parents=True)
    pd.DataFrame(
        [["silhouette", "class", 0.1, 0.05, 0.2, 0.0, 20]],
        columns=["measure", "of", "estimate", "low", "high", "chance", "n"],
    ).to_csv(tmp_path / "representation" / run / "separation.csv", index=False)
    interval = {"estimate": 0.37, "low": 0.35, "high": 0.39, "n": 70}
    facts = {"test_domain": "sketch", "score": interval, "chance": 0.2}
    (tmp_path / "sharing" / run / "score.json").write_text(json.dumps(facts))
    pd.DataFrame(
        {"layer": ["act1", "act2", "attnpool"] * 2, "error": [0.1, 0.2, 1.0, 0.3, 0.4, 1.0]}
    ).to_parquet(tmp_path / "circuits" / run / "completeness.parquet")
    study = OneCell()
    rows = explained.measures(study, study).to_dict("records")  # type: ignore[arg-type]
    found = {row["measure"]: row for row in rows}
    assert (found["sharing"]["estimate"], found["sharing"]["chance"]) == (0.37, 0.2)
    error = found["completeness error"]
    assert error["of"] == "median over layers and circuits"
    assert [error[name] for name in ("estimate", "low", "high")] == pytest.approx(
        [0.25, 0.175, 0.325]
    )


def ablation(in_sample: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "group": "held_out",
            "source": ["real", "sketch", "real", "sketch"],
            "target": ["real", "sketch", "sketch", "real"],
            "images": [6, 5, 5, 6],
            "in_sample": [0, in_sample, 0, 0],
        }
    )


def test_the_caption_says_when_circuits_are_ablated_on_their_own_images() -> None:
    assert explained.images_known(ablation(0)) == "No image is one that a circuit was found on."
    assert explained.images_known(ablation(1)) == (
        "The circuit of the same domain was found on these very images: 1 of 5 images of sketch."
    )
