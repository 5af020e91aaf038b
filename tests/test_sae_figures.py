"""Figures of sparse autoencoders on made-up data, read back from the artists they hold."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.class_bootstrap import bootstrap_over_classes
from clip_mixtures.mechanisms.sharing import sharing_table
from clip_mixtures.report.embedding_figures import PAGE_WIDTH
from clip_mixtures.report.sae_figures import (
    sae_training_curves,
    sharing_matrices,
    sharing_scores,
    unit_examples,
)
from clip_mixtures.report.style import COLUMN_WIDTH, colours, save_figure

RUNS = ("natural-only", "cg-low", "cg-high", "imagenet-captions-with-a-very-long-name")
DOMAINS = ("clipart", "real", "sketch")


def curve(factor: float = 1.0, *, validation: bool = True, points: int = 20) -> pd.DataFrame:
    step = np.arange(1, points + 1) * 50
    table = pd.DataFrame(
        {
            "step": step,
            "loss": factor * 100 / step,
            "reconstruction": 0.5 + 1 / step,
            "l0": 2000 / step,
            "dead_share": np.linspace(0, 0.25, points),
            "explained_variance": 0.8 - 100 / step,
        }
    )
    if validation:
        for name in table.columns[1:]:
            table[f"validation_{name}"] = np.where(step % 500 == 0, 1.1 * table[name], np.nan)
    return table


def shared(seed: int = 0, classes: int = 5) -> pd.DataFrame:
    counts = np.random.default_rng(seed).integers(0, 9, size=(classes, len(DOMAINS), 40))
    return sharing_table(counts, [f"class {n}" for n in range(classes)], DOMAINS)


def scores(runs: tuple[str, ...] = RUNS, domain: str = "sketch") -> pd.DataFrame:
    estimates = [0.2 + 0.1 * place for place in range(len(runs))]
    return pd.DataFrame(
        {
            "run": runs,
            "test_domain": domain,
            "estimate": estimates,
            "low": [value - 0.05 for value in estimates],
            "high": [value + 0.08 for value in estimates],
            "chance": [value - 0.1 for value in estimates],
        }
    )


def pictures(units: int = 3, domains: int = 3, shown: int = 2) -> npt.NDArray[np.uint8]:
    """Make images of one colour each, red by unit, green by domain and blue by rank."""
    made = np.zeros((units, domains, shown, 8, 8, 3), dtype=np.uint8)
    for unit, domain, rank in np.ndindex(units, domains, shown):
        made[unit, domain, rank] = (10 * unit, 10 * domain, 10 * rank)
    return made


FIGURES = {
    "one curve": lambda: sae_training_curves({"cg-low": curve()}),
    "four curves": lambda: sae_training_curves({run: curve(n + 1) for n, run in enumerate(RUNS)}),
    "one matrix": lambda: sharing_matrices({"cg-low": shared()}),
    "four matrices": lambda: sharing_matrices({run: shared(n) for n, run in enumerate(RUNS)}),
    "scores": lambda: sharing_scores(scores()),
    "scores of seeds": lambda: sharing_scores(pd.concat([scores()] * 3)),
    "scores of domains": lambda: sharing_scores(pd.concat([scores(), scores(domain="clipart")])),
    "units": lambda: unit_examples(pictures(), (4, 17, 9), DOMAINS, ("a", "b", "c")),
}


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


def titles(figure: Figure) -> list[str]:
    return [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]


def values(line: Any) -> list[float]:
    return [float(value) for value in np.asarray(line.get_ydata())]


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_drawn_beyond_the_edge(name: str) -> None:
    figure = FIGURES[name]()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    page = figure.bbox
    boxes = [ax.get_tightbbox(canvas.get_renderer()) for ax in figure.axes]
    boxes += [one.get_window_extent(canvas.get_renderer()) for one in figure.legends]
    boxes += [text.get_window_extent(canvas.get_renderer()) for text in figure.texts]
    for box in boxes:
        assert box is not None
        assert box.x0 >= page.x0 - 1
        assert box.x1 <= page.x1 + 1
        assert box.y0 >= page.y0 - 1
        assert box.y1 <= page.y1 + 1


def test_a_figure_is_written_with_the_same_bytes_twice(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in save_figure(FIGURES["units"](), tmp_path / "first")]
    second = [path.read_bytes() for path in save_figure(FIGURES["units"](), tmp_path / "second")]
    assert first == second


# Training curves


def test_every_metric_has_a_panel_and_every_run_a_line() -> None:
    figure = FIGURES["four curves"]()
    assert titles(figure) == [
        "Loss",
        "Squared error, mean over inputs",
        "Active units an image",
        "Units that never fire (%)",
        "Explained variance (%)",
    ]
    wanted = curve(2)
    by_panel = [lines_of(ax, "cg-low") for ax in figure.axes]
    expected = [
        wanted["loss"],
        wanted["reconstruction"],
        wanted["l0"],
        100 * wanted["dead_share"],
        100 * wanted["explained_variance"],
    ]
    for (line, dots), of_metric in zip(by_panel, expected, strict=True):
        assert values(line) == pytest.approx(of_metric.tolist())
        assert np.asarray(line.get_xdata()).tolist() == wanted["step"].tolist()
        # Validation at steps 500 and 1000 alone, hollow.
        judged = [value for value in values(dots) if not math.isnan(value)]
        assert judged == pytest.approx(1.1 * of_metric[[9, 19]])
        assert dots.get_markerfacecolor() == "white"
        assert dots.get_linestyle() == "None"
    assert figure.get_size_inches()[0] == pytest.approx(COLUMN_WIDTH)


def lines_of(ax: Axes, run: str) -> list[Any]:
    return [line for line in ax.lines if line.get_color() == colours(RUNS)[run]]


def test_runs_differ_in_dashes_as_well_as_in_colour() -> None:
    figure = FIGURES["four curves"]()
    styles = {str(lines_of(figure.axes[0], run)[0].get_linestyle()) for run in RUNS}
    assert len(styles) == 4
    names = [name.replace("\n", "") for name in legend(figure)]
    assert names == [*RUNS, "validation"]


def test_curves_without_validation_have_no_dots() -> None:
    figure = sae_training_curves({"cg-low": curve(validation=False)})
    assert legend(figure) == ["cg-low"]
    assert all(len(ax.lines) == 1 for ax in figure.axes)


def test_axes_are_logarithmic_where_a_positive_metric_changes_much() -> None:
    figure = FIGURES["one curve"]()
    scales = [ax.get_yscale() for ax in figure.axes]
    # The squared error changes by a few percent, shares begin at zero.
    assert scales == ["log", "linear", "log", "linear", "linear"]
    figure.draw_without_rendering()
    ticks = {tick.get_text() for tick in figure.axes[2].get_yticklabels()}
    assert {"1", "10"} <= ticks
    silent = curve(validation=False)
    silent.loc[19, "l0"] = 0.0
    assert sae_training_curves({"a": silent}).axes[2].get_yscale() == "linear"


def test_explained_variance_is_cut_off_below() -> None:
    assert FIGURES["one curve"]().axes[4].get_ylim() == (-50, 100)
    mild = curve(validation=False)
    mild["explained_variance"] = np.linspace(-0.2, 0.9, 20)
    assert sae_training_curves({"a": mild}).axes[4].get_ylim() == pytest.approx((-20, 100))
    mild["explained_variance"] = 0.9
    assert sae_training_curves({"a": mild}).axes[4].get_ylim() == (0, 100)


def test_a_single_point_shows() -> None:
    figure = sae_training_curves({"a": curve(validation=False, points=1)})
    assert [ax.lines[0].get_marker() for ax in figure.axes] == ["o"] * 5


def test_a_loss_that_is_not_finite_leaves_a_gap() -> None:
    broken = curve()
    broken.loc[3, "loss"] = math.inf
    figure = sae_training_curves({"a": broken})
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    assert figure.axes[0].get_yscale() == "log"


# Sharing


def test_a_matrix_holds_the_means_over_classes_with_their_intervals() -> None:
    table = shared(classes=15)
    figure = sharing_matrices({"cg-low": table})
    ax = figure.axes[0]
    assert titles(figure) == ["cg-low (15 classes)"]
    drawn = np.ma.filled(np.ma.asarray(ax.images[0].get_array()).astype(float), np.nan)
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    for a, b in itertools.combinations(range(3), 2):
        of_pair = table[(table["domain_a"] == DOMAINS[a]) & (table["domain_b"] == DOMAINS[b])]
        by_class = of_pair["shared"].to_numpy()
        interval = bootstrap_over_classes(by_class, np.arange(15))
        assert drawn[b - 1, a] == pytest.approx(by_class.mean())
        # From the top of the cell down.
        written = [text for place, text in sorted(texts.items()) if cell_of(place) == (a, b - 1)]
        assert written == [
            f"{by_class.mean():.2f}",
            f"{interval.low:.2f}\u2013{interval.high:.2f}",
            f"({of_pair['chance'].mean():.2f})",
        ]
    assert math.isnan(drawn[0, 1])


def cell_of(place: tuple[float, float]) -> tuple[int, int]:
    return round(place[0]), round(place[1])


def test_one_order_of_each_pair_is_enough_and_either_does() -> None:
    table = shared()
    place = {name: number for number, name in enumerate(DOMAINS)}
    first = table["domain_a"].map(place) < table["domain_b"].map(place)
    last = table["domain_a"].map(place) > table["domain_b"].map(place)
    expected = [text.get_text() for text in sharing_matrices({"a": table}).axes[0].texts]
    for part in (table[first], pd.concat([table[first], table[last]])):
        found = [text.get_text() for text in sharing_matrices({"a": part}).axes[0].texts]
        assert found == expected


def test_one_class_has_no_interval() -> None:
    figure = sharing_matrices({"cg-low": shared(classes=1)})
    assert titles(figure) == ["cg-low (one class)"]
    assert len(figure.axes[0].texts) == 3


def test_matrices_share_one_scale_and_are_a_page_wide() -> None:
    figure = FIGURES["four matrices"]()
    limits = {ax.images[0].get_clim() for ax in figure.axes[:4]}
    assert len(limits) == 1
    assert figure.get_size_inches()[0] == pytest.approx(PAGE_WIDTH)
    assert FIGURES["one matrix"]().get_size_inches()[0] == pytest.approx(COLUMN_WIDTH)


def test_a_score_is_a_dot_with_its_interval() -> None:
    figure = FIGURES["scores"]()
    (ax,) = figure.axes
    assert titles(figure) == ["Test domain: sketch"]
    assert [tick.get_text().replace("\n", "") for tick in ax.get_yticklabels()] == list(RUNS)
    top_down = ax.get_yticks()
    assert (np.diff(top_down) > 0).all()
    assert ax.yaxis_inverted()
    for place, run in enumerate(RUNS):
        interval, dot = lines_of(ax, run)
        assert np.asarray(dot.get_xdata()) == pytest.approx([20 + 10 * place])
        assert np.asarray(interval.get_xdata()) == pytest.approx([15 + 10 * place, 28 + 10 * place])
        assert values(dot)[0] == pytest.approx(top_down[place])
    assert ax.get_xlim()[0] == 0


def test_an_unknown_interval_is_left_out() -> None:
    table = scores(("a",)).assign(low=math.nan, high=math.nan, chance=math.nan)
    figure = sharing_scores(table)
    (ax,) = figure.axes
    assert len(ax.lines) == 1
    assert legend(figure) == []


def test_the_chance_level_is_a_dotted_line_across_the_row_of_its_dot() -> None:
    figure = FIGURES["scores"]()
    (ax,) = figure.axes
    dotted = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert len(dotted) == len(RUNS)
    for line, middle, place in zip(dotted, ax.get_yticks(), range(len(RUNS)), strict=True):
        assert np.asarray(line.get_xdata()) == pytest.approx([10 + 10 * place] * 2)
        low, high = values(line)
        assert low < middle < high
        assert (low + high) / 2 == pytest.approx(middle)
    assert legend(figure) == ["chance: other classes of these domains"]


def test_seeds_are_dots_of_one_row_and_test_domains_panels() -> None:
    seeds = pd.concat([scores(("a", "b")), scores(("a", "b"))])
    (ax,) = sharing_scores(seeds).axes
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert len(dots) == 4
    rows = sorted(values(dot)[0] for dot in dots)
    boundary = float(np.mean(ax.get_yticks()))
    assert rows[1] < boundary < rows[2]
    assert rows[0] < rows[1]
    figure = FIGURES["scores of domains"]()
    assert titles(figure) == ["Test domain: sketch", "Test domain: clipart"]


# Units


def test_images_lie_in_strips_by_unit_and_domain() -> None:
    figure = FIGURES["units"]()
    assert len(figure.axes) == 9
    for place, ax in enumerate(figure.axes):
        unit, domain = divmod(place, 3)
        strip = np.asarray(ax.images[0].get_array())
        assert strip.shape == (8, 16, 3)
        assert strip[0, 0].tolist() == [10 * unit, 10 * domain, 0]
        assert strip[0, 15].tolist() == [10 * unit, 10 * domain, 10]
    boxes = [ax.get_position() for ax in figure.axes]
    assert boxes[0].x1 < boxes[1].x0
    assert boxes[0].y0 > boxes[3].y1
    # Pixels are square.
    page_width, page_height = figure.get_size_inches()
    assert boxes[0].width * page_width == pytest.approx(2 * boxes[0].height * page_height)


def test_few_images_do_not_fill_a_page_and_many_do() -> None:
    few = unit_examples(pictures(1, 2, 1), (4,), DOMAINS[:2])
    assert few.get_size_inches()[0] == pytest.approx(COLUMN_WIDTH)
    assert few.axes[0].get_position().height * few.get_size_inches()[1] < 0.8
    many = unit_examples(pictures(1, 6, 4), (4,), tuple("abcdef"))
    assert many.get_size_inches()[0] == pytest.approx(PAGE_WIDTH)


def test_units_and_domains_are_named() -> None:
    found = {text.get_text() for text in FIGURES["units"]().texts}
    assert found == {"Unit 4: a", "Unit 17: b", "Unit 9: c", *DOMAINS}
    plain = unit_examples(pictures(), (4, 17, 9), DOMAINS)
    assert {text.get_text() for text in plain.texts} == {"Unit 4", "Unit 17", "Unit 9", *DOMAINS}
    long = unit_examples(pictures(1), (4,), DOMAINS, ("word " * 100,))
    assert max(len(text.get_text()) for text in long.texts) < 150


# Bad input


def test_tables_that_cannot_be_drawn_are_named() -> None:
    with pytest.raises(UserError, match="curves of 'a': no column l0"):
        sae_training_curves({"a": curve().drop(columns="l0")})
    with pytest.raises(UserError, match="curves of 'a': there are no rows"):
        sae_training_curves({"a": curve().iloc[:0]})
    with pytest.raises(UserError, match="nothing to draw"):
        sae_training_curves({})
    with pytest.raises(UserError, match="sharing of 'a': no column shared"):
        sharing_matrices({"a": shared().drop(columns="shared")})
    with pytest.raises(UserError, match="scores of 'runs': no column test_domain"):
        sharing_scores(scores().drop(columns="test_domain"))


def test_sharing_of_two_runs_in_one_table_is_refused() -> None:
    with pytest.raises(UserError, match="sharing of 'a': class 'class 0' has two values for"):
        sharing_matrices({"a": pd.concat([shared(0), shared(1)])})


def test_sharing_that_lacks_a_pair_is_refused() -> None:
    table = shared()
    pair = {"clipart", "sketch"}
    lost = (
        table["domain_a"].isin(pair)
        & table["domain_b"].isin(pair)
        & (table["domain_a"] != table["domain_b"])
        & (table["class"] == "class 2")
    )
    message = "class 'class 2' has no value for 'clipart' and 'sketch'"
    with pytest.raises(UserError, match=message):
        sharing_matrices({"a": table[~lost]})
    with pytest.raises(UserError, match=message):
        sharing_matrices({"a": table.assign(shared=table["shared"].mask(lost))})


@pytest.mark.parametrize(
    ("images", "units", "domains", "notes", "message"),
    [
        (pictures()[0], (1, 2, 3), DOMAINS, (), r"uint8 images of shape \(3, 2, 8, 8, 3\)"),
        (pictures().astype(float), (1, 2, 3), DOMAINS, (), "float64 images"),
        (pictures(units=0), (), DOMAINS, (), "one of each at least"),
        (pictures(), (1, 2), DOMAINS, (), "for 2 units, 3 domains and 0 notes"),
        (pictures(), (1, 2, 3), DOMAINS[:2], (), "for 3 units, 2 domains"),
        (pictures(), (1, 2, 3), DOMAINS, ("a",), "and 1 notes; give one name each"),
        (pictures(domains=9), (1, 2, 3), "abcdefghi", (), "9 domains side by side; choose 8"),
    ],
)
def test_images_that_do_not_match_are_refused(
    images: Any, units: Any, domains: Any, notes: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        unit_examples(images, units, domains, notes)
