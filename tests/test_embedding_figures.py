"""Figures of the embedding on made-up tables, read back from the artists they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from clip_mixtures.errors import UserError
from clip_mixtures.report import embedding_figures
from clip_mixtures.report.style import COLUMN_WIDTH, colours, save_figure

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


def images(domains: tuple[str, ...] = DOMAINS, each: int = 30) -> pd.DataFrame:
    generator = np.random.default_rng(len(domains))
    centres = 8 * generator.normal(size=(len(domains), 2))
    places = np.repeat(centres, each, axis=0) + generator.normal(size=(len(domains) * each, 2))
    held_out = np.tile(np.arange(each) < each // 3, len(domains))
    names = np.repeat(np.array(domains, dtype=object), each)
    return pd.DataFrame(
        {"domain": names, "x": places[:, 0], "y": places[:, 1], "held_out": held_out}
    )


def distances(names: tuple[str, ...] = DOMAINS, *, interval: bool = False) -> pd.DataFrame:
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    table = pd.DataFrame(pairs, columns=["domain_a", "domain_b"])
    table["distance"] = 0.1 * np.arange(1, len(pairs) + 1)
    if interval:
        table["low"], table["high"] = table["distance"] - 0.02, table["distance"] + 0.03
    return table


def differences(domains: tuple[str, ...] = DOMAINS) -> dict[str, pd.DataFrame]:
    values = np.linspace(0.2, -0.3, 40)
    return {
        name: pd.DataFrame({"dimension": np.roll(np.arange(40), place), "difference": values})
        for place, name in enumerate(domains)
    }


def top(domains: tuple[str, ...] = DOMAINS) -> pd.DataFrame:
    frame = images(domains).drop(columns="held_out")
    return frame.rename(columns={"x": "dimension_17", "y": "dimension_3"})


def dots(figure: Figure, panel: int = 0) -> list[PathCollection]:
    found = [one for one in figure.axes[panel].collections if isinstance(one, PathCollection)]
    return [one for one in found if len(np.asarray(one.get_offsets()))]


def colour_at(scatter: PathCollection, place: Any) -> str:
    offsets = np.asarray(scatter.get_offsets())
    nearest = int(np.abs(offsets - place).sum(axis=1).argmin())
    assert offsets[nearest] == pytest.approx(place)
    shades = np.asarray(scatter.get_facecolor())
    return to_hex(shades[nearest % len(shades)]).upper()


def texts(figure: Figure, panel: int = 0) -> list[str]:
    return [text.get_text() for text in figure.axes[panel].texts]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


FIGURES = {
    "one map": lambda: embedding_figures.embedding_maps({"all": images()}),
    "four maps": lambda: embedding_figures.embedding_maps(
        {
            f"{captions}, {which}": images(DOMAINS if which == "all" else DOMAINS[:-1])
            for captions in ("standard captions", "aligned captions")
            for which in ("all", "without sketch")
        },
        test_domain="sketch",
    ),
    "one heat map": lambda: embedding_figures.distance_heatmaps({"a": distances(interval=True)}),
    "heat maps": lambda: embedding_figures.distance_heatmaps(
        {"a": distances(), "b": distances(interval=True), "c": distances(("real", "sketch"))}
    ),
    "difference": lambda: embedding_figures.mean_difference(differences()),
    "dimensions": lambda: embedding_figures.top_dimensions(top()),
}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_drawn_beyond_the_edge(name: str) -> None:
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


def test_a_figure_is_written_with_the_same_bytes_twice(tmp_path: Path) -> None:
    for name in ("four maps", "heat maps"):
        first = [path.read_bytes() for path in save_figure(FIGURES[name](), tmp_path / "first")]
        second = [path.read_bytes() for path in save_figure(FIGURES[name](), tmp_path / "second")]
        assert first == second


def test_one_panel_is_a_column_wide_and_several_a_page() -> None:
    assert FIGURES["one map"]().get_size_inches()[0] == pytest.approx(COLUMN_WIDTH)
    wide = FIGURES["four maps"]().get_size_inches()[0]
    assert wide == pytest.approx(embedding_figures.PAGE_WIDTH)


# Maps


def test_every_image_is_a_dot_in_the_colour_of_its_domain() -> None:
    frame = images()
    (scatter,) = dots(embedding_figures.embedding_maps({"all": frame}))
    assert len(np.asarray(scatter.get_offsets())) == len(frame)
    palette = colours(DOMAINS)
    for row in (0, 65, 179):
        place, domain = frame[["x", "y"]].to_numpy()[row], frame["domain"].iloc[row]
        assert colour_at(scatter, place) == palette[domain]


def test_a_domain_keeps_its_colour_in_a_map_without_another() -> None:
    rest = images(DOMAINS[1:])
    figure = embedding_figures.embedding_maps({"all": images(), "without clipart": rest})
    (scatter,) = dots(figure, panel=1)
    assert colour_at(scatter, rest[["x", "y"]].to_numpy()[0]) == colours(DOMAINS)["infograph"]
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["all", "without clipart"]
    assert legend(figure) == list(DOMAINS)


def test_only_held_out_classes_of_the_test_domain_are_ringed() -> None:
    frame = images()
    figure = embedding_figures.embedding_maps({"all": frame}, test_domain="sketch")
    plain, rings, marked = dots(figure)
    expected = frame[(frame["domain"] == "sketch") & frame["held_out"]]
    assert len(expected) == 10
    for scatter in (rings, marked):
        np.testing.assert_allclose(np.asarray(scatter.get_offsets()), expected[["x", "y"]])
    assert to_hex(np.asarray(rings.get_facecolor())[0]) == "#000000"
    assert to_hex(np.asarray(marked.get_facecolor())[0]).upper() == colours(DOMAINS)["sketch"]
    assert rings.get_sizes()[0] > marked.get_sizes()[0] >= plain.get_sizes()[0]
    assert len(np.asarray(plain.get_offsets())) == len(frame) - len(expected)
    assert legend(figure)[-1] == "held-out classes in sketch"
    handle: Any = figure.legends[0].legend_handles[-1]
    assert handle.get_markerfacecolor() == colours(DOMAINS)["sketch"]
    assert handle.get_markeredgecolor() == "black"


def test_maps_without_the_test_domain_have_no_rings() -> None:
    figure = embedding_figures.embedding_maps({"a": images(DOMAINS[:-1])}, test_domain="sketch")
    assert len(dots(figure)) == 1
    assert legend(figure) == list(DOMAINS[:-1])


# Distances


def test_each_distance_is_written_into_its_cell() -> None:
    figure = embedding_figures.distance_heatmaps({"a": distances(("x", "y", "z"))})
    ax = figure.axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["x", "y"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["y", "z"]
    # Pairs x-y 0.1, x-z 0.2, y-z 0.3 below the diagonal, nothing above it.
    drawn = np.ma.filled(np.ma.asarray(ax.images[0].get_array()).astype(float), np.nan)
    np.testing.assert_allclose(drawn, [[0.1, np.nan], [0.2, 0.3]])
    places = {text.get_text(): text.get_position() for text in ax.texts}
    assert places == {"0.10": (0, 0), "0.20": (0, 1), "0.30": (1, 1)}


def test_intervals_are_written_below_and_missing_distances_are_a_dash() -> None:
    table = distances(("x", "y", "z"), interval=True)
    table.loc[1, ["distance", "low", "high"]] = np.nan
    figure = embedding_figures.distance_heatmaps({"a": table})
    assert texts(figure) == ["0.10", "0.08\u20130.13", "-", "0.30", "0.28\u20130.33"]


def test_heat_maps_share_one_scale() -> None:
    figure = embedding_figures.distance_heatmaps({"a": distances(), "b": distances(("x", "y"))})
    limits = [ax.images[0].get_clim() for ax in figure.axes[:2]]
    assert np.array(limits) == pytest.approx(np.array([[0, 1.5]] * 2))


def test_distances_of_nothing_but_zero_can_be_drawn() -> None:
    table = distances(("x", "y"))
    for value, word in ((0.0, "0.00"), (np.nan, "-")):
        table["distance"] = value
        assert texts(embedding_figures.distance_heatmaps({"a": table})) == [word]


# Mean difference and the dimensions


def test_the_curve_is_the_difference_by_rank() -> None:
    figure = embedding_figures.mean_difference(differences(("real", "sketch")))
    curves = [line for line in figure.axes[0].lines if len(np.asarray(line.get_xdata())) == 40]
    assert len(curves) == 2
    np.testing.assert_allclose(np.asarray(curves[0].get_ydata()), np.linspace(0.2, -0.3, 40))
    assert np.asarray(curves[0].get_xdata())[[0, -1]].tolist() == [1, 40]
    # The largest difference in absolute value is the last one: dimension 39, and 38 once rolled.
    assert legend(figure) == ["real (39)", "sketch (38)"]


def test_the_axes_of_the_scatter_name_the_dimensions() -> None:
    figure = embedding_figures.top_dimensions(top())
    ax = figure.axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Dimension 17", "Dimension 3")
    place = top()[["dimension_17", "dimension_3"]].to_numpy()[0]
    assert colour_at(dots(figure)[0], place) == colours(DOMAINS)["clipart"]


# Bad input


@pytest.mark.parametrize(
    ("draw", "table", "message"),
    [
        (embedding_figures.embedding_maps, images().drop(columns="x"), "map 'a': no column x"),
        (embedding_figures.embedding_maps, images().iloc[:0], "map 'a': there are no rows"),
        (embedding_figures.distance_heatmaps, distances().iloc[:0], "there are no rows"),
        (embedding_figures.distance_heatmaps, images(), "no column domain_a, domain_b, distance"),
        (embedding_figures.mean_difference, images(), "no column dimension, difference"),
    ],
)
def test_a_table_that_cannot_be_drawn_is_named(
    draw: Any, table: pd.DataFrame, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        draw({"a": table})
    with pytest.raises(UserError, match="there is nothing to draw"):
        draw({})


def test_rings_need_to_know_what_is_held_out() -> None:
    frame = images().drop(columns="held_out")
    with pytest.raises(UserError, match="no column held_out"):
        embedding_figures.embedding_maps({"a": frame}, test_domain="sketch")


def test_the_scatter_takes_two_dimensions() -> None:
    with pytest.raises(UserError, match=r"columns \['dimension_17'\] beside 'domain'"):
        embedding_figures.top_dimensions(top().drop(columns="dimension_3"))
