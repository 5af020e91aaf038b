"""Effective robustness of a study's checkpoints: the table by hand, and the figure read back."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

from clip_mixtures.errors import UserError
from clip_mixtures.evaluation.robustness import logit
from clip_mixtures.report.document import Paragraph, Table
from clip_mixtures.report.robustness import (
    line_of,
    robustness_blocks,
    robustness_of_cells,
)
from clip_mixtures.report.robustness_figures import robustness_figure
from clip_mixtures.report.style import colours, save_figure

IN, OUT = 400, 99
LN3 = math.log(3)  # logit of 3/4; that of 1/4 is -LN3 and that of 1/2 is 0

Point = tuple[float, float]


def groups(held_out: float, seen: float, held_out_n: int = OUT, seen_n: int = IN) -> dict[str, Any]:
    # The micro average differs, so that a mix-up of the two shows.
    def interval(estimate: float, n: int) -> dict[str, Any]:
        ends = {"estimate": estimate, "low": None, "high": None, "n": n}
        return {"balanced": ends, "micro": {**ends, "estimate": estimate / 2}}

    return {"held_out": interval(held_out, held_out_n), "seen": interval(seen, seen_n)}


def study(
    runs: Mapping[str, Sequence[Point]], test_domain: str = "sketch", images: int = OUT
) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Make cells and histories of runs "mixture/model", each with (natural, held-out) an epoch."""
    cells, histories = [], {}
    for name, points in runs.items():
        mixture, _, model = name.partition("/")
        run = f"{mixture}-{model or 'rn'}-s0-{test_domain}"
        history = [
            {
                "epoch": 10 * number,
                "accuracies": {
                    # Held-out classes in natural images are not asked for.
                    "real": groups(0.9, inside, images),
                    test_domain: groups(outside, 0.9, images),
                },
            }
            for number, (inside, outside) in enumerate(points)
        ]
        histories[run] = history[::-1]
        cells.append(
            {
                "run": run, "mixture": mixture, "model": model or "rn", "seed": 0,
                "test_domain": test_domain, "accuracies": history[-1]["accuracies"],
            }
        )  # fmt: skip
    return cells, histories


# Trained checkpoints at logits (-1, 0, 1) and (-1, 1, 1) times ln 3: slope 1, intercept ln 3 / 3.
# The untrained one at (1/9, 8/9) is far off, and must not count.
NATURAL = [(1 / 9, 8 / 9), (0.25, 0.25), (0.5, 0.75), (0.75, 0.75)]
OTHER = [(0.5, 0.5), (0.25, 0.9)]


class Same(dict[str, frozenset[int]]):
    """All mixtures hold the same classes out."""

    def __missing__(self, mixture: str) -> frozenset[int]:
        return frozenset({1, 2})


SAME = Same()


def table(runs: Mapping[str, Sequence[Point]], **options: Any) -> pd.DataFrame:
    return robustness_of_cells(*study(runs), SAME, ["natural"], **options)


def test_the_line_is_that_of_the_trained_natural_checkpoints() -> None:
    found = table({"other": OTHER, "natural": NATURAL})
    assert found["run"].tolist() == ["other-rn-s0-sketch"] * 2 + ["natural-rn-s0-sketch"] * 4
    assert found["epoch"].tolist() == [0, 10, 0, 10, 20, 30]
    assert found["last"].tolist() == [False, True, False, False, False, True]
    assert found["baseline"].tolist() == [False] * 3 + [True] * 3
    assert found["in_distribution"].tolist() == [0.5, 0.25, 1 / 9, 0.25, 0.5, 0.75]
    assert found["out_of_distribution"].tolist() == [0.5, 0.9, 8 / 9, 0.25, 0.75, 0.75]
    assert (found["in_images"] == IN).all()
    assert (found["out_images"] == OUT).all()
    # At logit 0 the line is at ln 3 / 3, whose odds are the cube root of 3; at -ln 3 a third of it.
    root = 3 ** (1 / 3)
    at_half, at_quarter = root / (1 + root), root / (3 + root)
    assert found["predicted"].iloc[:2].tolist() == pytest.approx([at_half, at_quarter])
    robust = found["effective_robustness"]
    assert robust.iloc[:2].tolist() == pytest.approx([0.5 - at_half, 0.9 - at_quarter])
    assert (found["low"] <= robust).all()
    assert (robust <= found["high"]).all()
    assert (found["low"] < found["high"]).all()
    assert (found["note"] == "").all()


def test_all_natural_runs_make_the_line_together() -> None:
    apart = {"natural/rn": [NATURAL[0], *NATURAL[1:3]], "natural/vit": [NATURAL[0], NATURAL[3]]}
    found = table({**apart, "other": OTHER})
    wanted = table({"natural": NATURAL, "other": OTHER})
    assert found["predicted"].iloc[-1] == pytest.approx(wanted["predicted"].iloc[-1])
    assert found["baseline"].sum() == 3


def test_none_correct_is_half_an_image() -> None:
    natural = [(0.25, 0.5), (0.25, 0.0), (0.5, 0.1), (0.75, 0.1)]
    found = table({"natural": natural})
    x = np.array([-LN3, 0, LN3])
    # (0 + 0.5) / (99 + 1) in place of 0; a tenth is in.
    y = np.log([0.005 / 0.995, 1 / 9, 1 / 9])
    slope, intercept = np.polyfit(x, y, 1)
    line = 1 / (1 + np.exp(-(slope * x + intercept)))
    assert found["predicted"].iloc[1:].tolist() == pytest.approx(line.tolist())
    # The accuracy itself enters as it is.
    assert found["effective_robustness"].iloc[1] == pytest.approx(-line[0])


def test_without_a_natural_mixture_there_is_no_line() -> None:
    found = robustness_of_cells(*study({"other": OTHER}), SAME, [])
    assert found[["predicted", "effective_robustness", "low", "high"]].isna().all(axis=None)
    assert found["note"].unique().tolist() == [
        "no checkpoint of a natural-only mixture was tested on the same images"
    ]
    assert found["out_of_distribution"].tolist() == [0.5, 0.9]


def test_too_few_points_make_no_line() -> None:
    found = table({"natural": NATURAL[:3], "other": OTHER})
    assert found["note"].unique().tolist() == [
        "2 checkpoints of natural-only mixtures; a line takes 3"
    ]
    assert found["baseline"].tolist() == [False, True, True, False, False]
    assert found["effective_robustness"].isna().all()


def test_points_that_determine_no_line_say_so() -> None:
    found = table({"natural": [(0.5, 0.1), (0.5, 0.2), (0.5, 0.3), (0.5, 0.4)]})
    (note,) = found["note"].unique()
    assert "have the same accuracy" in note
    assert found["effective_robustness"].isna().all()


def test_other_test_images_have_a_line_of_their_own() -> None:
    runs = {"natural": NATURAL, "other": OTHER}
    sketch, clipart = study(runs), study({"other": OTHER}, "clipart")
    fewer = study({"natural": NATURAL[:1] + NATURAL[:0:-1]}, "sketch", images=50)
    fewer[0][0]["run"] = "fewer"
    fewer[1]["fewer"] = fewer[1].pop("natural-rn-s0-sketch")
    cells = [*sketch[0], *clipart[0], *fewer[0]]
    histories = {**sketch[1], **clipart[1], **fewer[1]}
    found = robustness_of_cells(cells, histories, SAME, ["natural"])
    alone = table(runs)
    columns = ["predicted", "effective_robustness", "low", "high"]
    pd.testing.assert_frame_equal(found.loc[:5, columns], alone[columns])
    of_clipart = found[found["test_domain"] == "clipart"]
    assert of_clipart["note"].str.startswith("no checkpoint of a natural-only").all()
    assert (found.loc[found["run"] == "fewer", "out_images"] == 50).all()
    assert found.loc[found["run"] == "fewer", "effective_robustness"].notna().all()
    figure = robustness_figure(found)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == [
        "Test domain: sketch, 99 held-out images",
        "Test domain: clipart",
        "Test domain: sketch, 50 held-out images",
    ]


def test_the_same_seed_gives_the_same_table() -> None:
    runs = {"natural": NATURAL, "other": OTHER}
    first, again = table(runs, seed=3), table(runs, seed=3)
    pd.testing.assert_frame_equal(first, again)
    assert table(runs, seed=4, resamples=50)["low"].tolist() != first["low"].tolist()


def test_the_natural_domain_has_the_name_it_is_given() -> None:
    cells, histories = study({"natural": NATURAL})
    for point in histories["natural-rn-s0-sketch"]:
        point["accuracies"]["photo"] = point["accuracies"].pop("real")
    found = robustness_of_cells(cells, histories, SAME, ["natural"], reference="photo")
    assert found["in_distribution"].iloc[-1] == 0.75
    with pytest.raises(UserError, match="epoch 0: no accuracy on seen classes in real"):
        robustness_of_cells(cells, histories, SAME, ["natural"])


def test_runs_that_were_not_evaluated_are_named() -> None:
    cells, histories = study({"natural": NATURAL})
    with pytest.raises(UserError, match="run 'natural-rn-s0-sketch': no history"):
        robustness_of_cells(cells, {}, SAME, ["natural"])
    del histories["natural-rn-s0-sketch"][0]["accuracies"]["sketch"]["held_out"]
    with pytest.raises(UserError, match="epoch 30: no accuracy on held-out classes"):
        robustness_of_cells(cells, histories, SAME, ["natural"])
    with pytest.raises(UserError, match="no cells"):
        robustness_of_cells([], {}, SAME, ["natural"])


def test_the_accuracy_s_own_error_counts_beside_the_line_s() -> None:
    runs = {"other": OTHER, "natural": NATURAL}
    of_line = table(runs)
    cells, histories = study(runs)
    for history in histories.values():
        for point in history:
            found = point["accuracies"]["sketch"]["held_out"]["balanced"]
            found |= {"low": found["estimate"] - 0.03, "high": found["estimate"] + 0.04}
    # One without an interval of its own is left with the line's.
    histories["other-rn-s0-sketch"][0]["accuracies"]["sketch"]["held_out"]["balanced"]["low"] = None
    found = robustness_of_cells(cells, histories, SAME, ["natural"])
    middle = found["effective_robustness"]
    pd.testing.assert_series_equal(middle, of_line["effective_robustness"])
    own = np.where((found["run"] == "other-rn-s0-sketch") & found["last"], 0, 0.03)
    expected = np.sqrt(own**2 + (middle - of_line["low"]) ** 2)
    assert (middle - found["low"]).tolist() == pytest.approx(expected.tolist())
    expected = np.sqrt(0.04**2 + (of_line["high"] - middle) ** 2)
    assert (found["high"] - middle).tolist() == pytest.approx(expected.tolist())


def test_mixtures_that_hold_out_other_classes_have_lines_of_their_own() -> None:
    # The same domain and as many images, but another, harder list.
    hard = [(0.5, 0.1), (0.25, 0.05), (0.5, 0.06), (0.75, 0.1)]
    runs = {"natural": NATURAL, "other": OTHER, "natural-hard": hard, "other-hard": hard}
    lists = {name: frozenset({3} if "hard" in name else {1, 2}) for name in runs}
    baselines = ["natural", "natural-hard"]
    cells, histories = study(runs)
    # Of other seen classes there are other numbers of natural images.
    for run, history in histories.items():
        for point in history if "hard" in run else ():
            point["accuracies"]["real"]["seen"]["balanced"]["n"] = IN + 1
    found = robustness_of_cells(cells, histories, lists, baselines)
    assert found["held_out_list"].tolist() == 6 * [0] + 8 * [1]
    columns = ["predicted", "effective_robustness", "low", "high"]
    for part, names in ((found[:6], list(runs)[:2]), (found[6:], list(runs)[2:])):
        alone = robustness_of_cells(*study({name: runs[name] for name in names}), SAME, baselines)
        middle = alone[columns].to_numpy()
        np.testing.assert_allclose(part[columns].to_numpy(), middle, atol=1e-3)
    titles = [ax.get_title("left") for ax in robustness_figure(found).axes]
    assert titles == [
        f"Test domain: sketch, 99 held-out images of list {number}" for number in (1, 2)
    ]
    without = robustness_of_cells(*study(runs), lists, ["natural"])
    note = robustness_blocks(without)[1]
    assert isinstance(note, Paragraph)
    assert note.text.startswith("No line for 99 held-out images of list 2 in sketch: ")


def test_line_and_band_are_those_of_the_table() -> None:
    found = table({"natural": NATURAL, "other": OTHER}, seed=1)
    line = line_of(found, found["in_distribution"].to_numpy(), seed=1)
    assert line is not None
    assert line["predicted"].tolist() == pytest.approx(found["predicted"].tolist())
    # An interval of the robustness is the accuracy minus the band.
    accuracy = found["out_of_distribution"].to_numpy()
    assert (accuracy - line["high"]).tolist() == pytest.approx(found["low"].tolist())
    assert (accuracy - line["low"]).tolist() == pytest.approx(found["high"].tolist())


def test_no_line_has_no_band() -> None:
    found = table({"other": OTHER})
    assert line_of(found, np.array([0.5])) is None


def test_the_last_checkpoints_are_tabulated() -> None:
    (found,) = robustness_blocks(table({"natural": NATURAL, "other|x": OTHER}))
    assert isinstance(found, Table)
    assert found.caption.startswith("Accuracy in percent on seen classes")
    assert [column.name for column in found.columns] == [
        "Run", "Seen, natural", "Held-out, test domain", "Line of natural-only",
        "Effective robustness",
    ]  # fmt: skip
    assert [[entry.text for entry in row[:4]] for row in found.rows] == [
        # At ln 3 the line is at 4/3 ln 3, at -ln 3 at -2/3 ln 3.
        ["natural-rn-s0-sketch", "75.0", "75.0", "81.2"],
        ["other|x-rn-s0-sketch", "25.0", "90.0", "32.5"],
    ]
    (first, second) = (row[4] for row in found.rows)
    assert first.text == "-6.2"
    assert re.fullmatch(r"\[-\d+\.\d, \+0\.0\]", first.note)
    assert second.text == "+57.5"
    assert re.fullmatch(r"\[\+\d\d\.\d, \+\d\d\.\d\]", second.note)
    assert (second.order or 0) > 57 > (first.order or 0)


def test_where_there_is_no_line_the_table_says_why() -> None:
    found, note = robustness_blocks(table({"other": OTHER}))
    assert isinstance(found, Table)
    assert [entry.text for entry in found.rows[0]] == [
        "other-rn-s0-sketch", "25.0", "90.0", "-", "-",
    ]  # fmt: skip
    why = "no checkpoint of a natural-only mixture was tested on the same images"
    assert note == Paragraph(f"No line: {why}.")


def test_of_several_sets_of_test_images_those_without_a_line_are_named() -> None:
    cells, histories = study({"natural": NATURAL})
    others, further = study({"natural": NATURAL[:2]}, test_domain="clipart", images=7)
    found = robustness_of_cells([*cells, *others], {**histories, **further}, SAME, ["natural"])
    _, note = robustness_blocks(found)
    why = "1 checkpoint of natural-only mixtures; a line takes 3"
    assert note == Paragraph(f"No line for 7 held-out images in clipart: {why}.")


# The figure


def points_of(ax: Axes) -> list[PathCollection]:
    return [each for each in ax.collections if isinstance(each, PathCollection)]


def places_of(points: PathCollection) -> list[tuple[float, ...]]:
    return [tuple(place) for place in np.asarray(points.get_offsets(), dtype=float)]


def test_every_checkpoint_is_drawn_where_its_accuracies_are(tmp_path: Path) -> None:
    found = table({"natural": NATURAL, "other": [(0.5, 0.5), (0.25, 0.0)]})
    figure = robustness_figure(found)
    (ax,) = figure.axes
    before, last, other_before, other_last = points_of(ax)
    assert places_of(last) == [pytest.approx((LN3, LN3))]
    assert places_of(before)[1:] == [pytest.approx((-LN3, -LN3)), pytest.approx((0, LN3))]
    assert places_of(other_before) == [pytest.approx((0, 0))]
    # None of 99 is half of one of 100.
    assert places_of(other_last) == [pytest.approx((-LN3, math.log(0.005 / 0.995)))]
    assert last.get_sizes()[0] > before.get_sizes()[0]
    assert np.asarray(last.get_edgecolor()).any()
    for path in save_figure(figure, tmp_path / "figure"):
        assert path.stat().st_size > 5000


def test_the_line_and_its_band_are_drawn() -> None:
    found = table({"natural": NATURAL, "other": OTHER})
    figure = robustness_figure(found)
    (ax,) = figure.axes
    lines = [np.asarray(line.get_xydata(), dtype=float) for line in ax.lines]
    slope = [np.polyfit(line[:, 0], line[:, 1], 1) for line in lines if len(line) > 100]
    assert slope == [pytest.approx([1, LN3 / 3], abs=1e-3)]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "natural", "other", "last checkpoint", "line of natural-only", "its 95 % interval",
        "equal accuracy",
    ]  # fmt: skip


def test_without_a_line_the_figure_says_why() -> None:
    figure = robustness_figure(table({"other": OTHER}))
    (ax,) = figure.axes
    said = " ".join(text.get_text() for text in ax.texts)
    assert "No line: no checkpoint of a natural-only mixture was tested" in re.sub(
        r"\s+", " ", said
    )
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["other", "last checkpoint", "equal accuracy"]


def test_axes_name_percentages_where_their_logits_are() -> None:
    (ax,) = robustness_figure(table({"natural": NATURAL, "other": OTHER})).axes
    for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        ticks = axis.get_ticklocs()
        named = [float(label.get_text()) / 100 for label in axis.get_ticklabels()]
        assert len(named) >= 3
        assert logit(named).tolist() == pytest.approx(list(ticks))
        assert limits[0] <= min(ticks) <= max(ticks) <= limits[1]


def test_mixtures_have_colours_and_models_markers() -> None:
    runs = {"natural/rn": NATURAL, "natural/vit": NATURAL, "other/rn": OTHER}
    figure = robustness_figure(table(runs))
    (ax,) = figure.axes
    palette = colours(["natural", "other"])
    drawn = points_of(ax)[1::2]
    faces = [to_hex(np.asarray(points.get_facecolor())[0]).upper() for points in drawn]
    assert faces == [palette["natural"], palette["natural"], palette["other"]]
    shapes = [len(np.asarray(points.get_paths()[0].vertices)) for points in drawn]
    assert shapes[0] == shapes[2] != shapes[1]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:4] == ["natural", "other", "rn", "vit"]


def test_a_single_checkpoint_can_be_drawn() -> None:
    figure = robustness_figure(table({"other": [(0.0, 1.0)]}))
    (ax,) = figure.axes
    assert ax.get_xlim()[0] < float(logit(0.0, IN)) < ax.get_xlim()[1]
    assert ax.get_ylim()[0] < float(logit(1.0, OUT)) < ax.get_ylim()[1]


def test_another_table_is_refused() -> None:
    found = table({"other": OTHER})
    with pytest.raises(UserError, match="no column 'baseline'; make it anew"):
        robustness_figure(found.drop(columns="baseline"))
    with pytest.raises(UserError, match="no rows"):
        robustness_figure(found.iloc[:0])
