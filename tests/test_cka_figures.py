"""Curves of CKA on made-up tables, read back from the artists they hold."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from clip_mixtures.errors import UserError
from clip_mixtures.report.cka_figures import cka_curves, short_layer
from clip_mixtures.report.embedding_figures import PAGE_WIDTH
from clip_mixtures.report.style import COLUMN_WIDTH, colours, save_figure

DOMAINS = ("real", "quickdraw", "sketch")
LAYERS = ("act1", "avgpool", "resblock10", "attnpool")
RUNS = ("natural-only", "cg-low", "cg-high", "imagenet-captions-with-a-long-name")


def table(shift: float = 0.0, layers: tuple[str, ...] = LAYERS) -> pd.DataFrame:
    """Make CKA that rises by 0.1 a layer, from 0.1 and 0.3 for quickdraw's pairs and from 0.5."""
    starts = {("real", "quickdraw"): 0.1, ("real", "sketch"): 0.5, ("quickdraw", "sketch"): 0.3}
    rows = [
        {
            "layer": layer,
            "domain_a": pair[0],
            "domain_b": pair[1],
            "subset": subset,
            "kernel": kernel,
            "cka": shift + starts[pair] + 0.1 * depth - (0.05 if kernel == "rbf" else 0.0),
            "low": 0.0,
            "high": 1.0,
            "classes": {"all": 20, "held_out": 5, "seen": 15}[subset],
            "note": "",
        }
        for depth, layer in enumerate(layers)
        for pair in itertools.combinations(DOMAINS, 2)
        for subset in ("all", "held_out", "seen")
        for kernel in ("linear", "rbf")
    ]
    return pd.DataFrame(rows)


def study(runs: tuple[str, ...] = RUNS) -> pd.DataFrame:
    return pd.concat([table(0.02 * place).assign(run=run) for place, run in enumerate(runs)])


def titles(figure: Figure) -> list[str]:
    return [ax.get_title(loc="left") for ax in figure.axes]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


def heights(line: Line2D) -> list[float]:
    return [float(value) for value in np.asarray(line.get_ydata())]


def bands(ax: Axes) -> list[tuple[float, float]]:
    """Return least and largest value of each band at the first layer."""
    found = []
    for band in ax.collections:
        vertices = np.asarray(band.get_paths()[0].vertices)
        values = vertices[vertices[:, 0] == 0, 1]
        found.append((float(values.min()), float(values.max())))
    return found


FIGURES = {
    "one run": lambda: cka_curves(table(), apart="quickdraw"),
    "all pairs": lambda: cka_curves(table(), kernel="rbf"),
    "four runs": lambda: cka_curves(study(), apart="quickdraw"),
    "four runs, all pairs": lambda: cka_curves(study()),
    "many layers": lambda: cka_curves(table(layers=tuple(f"resblock{n}" for n in range(60)))),
}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_drawn_beyond_the_edge_and_panels_have_room(name: str) -> None:
    figure = FIGURES[name]()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    page = figure.bbox
    boxes = [ax.get_tightbbox(canvas.get_renderer()) for ax in figure.axes]
    boxes += [one.get_window_extent(canvas.get_renderer()) for one in figure.legends]
    for box in boxes:
        assert box is not None
        assert box.x0 >= page.x0 - 1
        assert box.x1 <= page.x1 + 1
        assert box.y0 >= page.y0 - 1
        assert box.y1 <= page.y1 + 1
    for ax in figure.axes:
        assert ax.get_window_extent().height > 0.6 * figure.dpi


def test_a_figure_is_written_with_the_same_bytes_twice(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in save_figure(FIGURES["one run"](), tmp_path / "first")]
    second = [path.read_bytes() for path in save_figure(FIGURES["one run"](), tmp_path / "second")]
    assert first == second


def test_a_line_is_the_mean_over_pairs_and_the_band_goes_from_least_to_most() -> None:
    figure = cka_curves(table(), apart="quickdraw")
    assert titles(figure) == ["All classes (20)", "Held-out classes (5)", "Seen classes (15)"]
    for ax in figure.axes:
        with_quickdraw, others = ax.lines
        assert heights(with_quickdraw) == pytest.approx([0.2, 0.3, 0.4, 0.5])
        assert heights(others) == pytest.approx([0.5, 0.6, 0.7, 0.8])
        assert bands(ax) == [pytest.approx((0.1, 0.3)), pytest.approx((0.5, 0.5))]
    assert legend(figure) == [
        "pairs with quickdraw (2)",
        "other pairs (1)",
        "least to most alike pair",
    ]
    ticks = [tick.get_text() for tick in figure.axes[-1].get_xticklabels()]
    assert ticks == ["act1", "avgp", "resb10", "attnp"]
    assert figure.get_size_inches()[0] == pytest.approx(COLUMN_WIDTH)


def test_without_a_domain_apart_there_is_one_line() -> None:
    figure = cka_curves(table(), kernel="rbf")
    (line,) = figure.axes[0].lines
    assert heights(line) == pytest.approx([0.25, 0.35, 0.45, 0.55])
    assert legend(figure) == ["all pairs (3)", "least to most alike pair"]
    assert figure.get_supylabel() == "CKA, Gaussian kernel"


def test_several_runs_are_lines_of_one_panel() -> None:
    figure = cka_curves(study(), apart="quickdraw")
    assert titles(figure) == [
        f"{classes}, {pairs}"
        for classes in ("All classes (20)", "Held-out classes (5)", "Seen classes (15)")
        for pairs in ("pairs with quickdraw (2)", "other pairs (1)")
    ]
    assert figure.get_size_inches()[0] == pytest.approx(PAGE_WIDTH)
    for place, ax in enumerate(figure.axes):
        assert not ax.collections  # no bands
        start = (0.2, 0.5)[place % 2]
        assert [heights(line)[0] for line in ax.lines] == pytest.approx(
            [start, start + 0.02, start + 0.04, start + 0.06]
        )
        assert [line.get_color() for line in ax.lines] == list(colours(RUNS).values())
        looks = {(str(line.get_linestyle()), str(line.get_marker())) for line in ax.lines}
        assert len(looks) == len(RUNS)  # for those who see no colours
    assert legend(figure) == list(RUNS)


def test_several_runs_without_a_domain_apart_fit_in_a_column() -> None:
    figure = cka_curves(study())
    assert titles(figure) == ["All classes (20)", "Held-out classes (5)", "Seen classes (15)"]
    assert figure.get_size_inches()[0] == pytest.approx(COLUMN_WIDTH)
    assert len(figure.axes[0].lines) == len(RUNS)


def test_a_column_for_a_single_run_changes_nothing() -> None:
    figure = cka_curves(study(("cg-low",)), apart="quickdraw")
    assert titles(figure)[0] == "All classes (20)"
    assert legend(figure)[0] == "pairs with quickdraw (2)"


def test_pairs_without_a_value_have_no_part() -> None:
    rows = table()
    gone = (rows["domain_a"] == "real") & (rows["domain_b"] == "quickdraw")
    rows.loc[gone & (rows["subset"] == "all"), "cka"] = math.nan
    with_quickdraw, _ = cka_curves(rows, apart="quickdraw").axes[0].lines
    assert heights(with_quickdraw) == pytest.approx([0.3, 0.4, 0.5, 0.6])


def test_a_layer_without_values_leaves_a_gap() -> None:
    rows = table()
    rows.loc[rows["layer"] == "avgpool", "cka"] = math.nan
    (line,) = cka_curves(rows).axes[0].lines
    assert [math.isnan(value) for value in heights(line)] == [False, True, False, False]


def test_a_panel_without_values_says_why() -> None:
    rows = table()
    held_out = rows["subset"] == "held_out"
    rows.loc[held_out, "cka"] = math.nan
    rows.loc[held_out, "note"] = "fewer than 4 classes in both domains"
    figure = cka_curves(rows)
    texts = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert texts == [[], ["no values:\nfewer than 4 classes in both domains"], []]


def test_the_axis_reaches_down_to_the_least_value_that_is_drawn() -> None:
    rows = table()
    assert cka_curves(rows).axes[0].get_ylim() == (0, 1)
    first = (rows["domain_a"] == "real") & (rows["domain_b"] == "quickdraw")
    rows.loc[first, "cka"] -= 0.5
    # The band goes down to -0.4; the mean of runs, without bands, to (-0.4 + 0.5 + 0.3) / 3.
    assert cka_curves(rows).axes[0].get_ylim() == pytest.approx((-0.4, 1))
    runs = pd.concat([rows.assign(run=run) for run in RUNS])
    assert cka_curves(runs).axes[0].get_ylim() == (0, 1)
    rows["cka"] = math.nan
    assert cka_curves(rows).axes[0].get_ylim() == (0, 1)


def test_not_every_layer_is_named_where_there_are_many() -> None:
    ticks = FIGURES["many layers"]().axes[-1].get_xticklabels()
    assert [tick.get_text() for tick in ticks] == [f"resb{n}" for n in range(0, 60, 3)]


def test_unequal_numbers_of_classes_are_named_as_a_range() -> None:
    rows = table()
    rows.loc[(rows["domain_b"] == "sketch") & (rows["subset"] == "held_out"), "classes"] = 4
    assert titles(cka_curves(rows))[1] == "Held-out classes (4 to 5)"


@pytest.mark.parametrize(
    ("name", "short"),
    [("resblock16", "resb16"), ("avgpool", "avgp"), ("attnpool", "attnp"), ("act1", "act1")],
)
def test_layers_have_the_studys_short_names(name: str, short: str) -> None:
    assert short_layer(name) == short


def test_tables_that_cannot_be_drawn_are_named() -> None:
    with pytest.raises(UserError, match="no column 'cka'; make it with cka_table"):
        cka_curves(table().drop(columns="cka"))
    with pytest.raises(UserError, match="unknown kernel 'cosine'"):
        cka_curves(table(), kernel="cosine")
    with pytest.raises(UserError, match="no rows with the kernel 'rbf'"):
        cka_curves(table().query("kernel == 'linear'"), kernel="rbf")
    with pytest.raises(UserError, match="unknown domain 'clipart'; allowed: real, quickdraw"):
        cka_curves(table(), apart="clipart")
    with pytest.raises(
        UserError, match="layer 'act1' has 'real' and 'quickdraw' twice; tell runs apart"
    ):
        cka_curves(pd.concat([table(), table()]))
