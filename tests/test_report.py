"""Tables, figures and page on made-up studies, read back from what was written."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from clip_mixtures.errors import UserError
from clip_mixtures.report import figures, style, tables
from clip_mixtures.report.markdown import table_markdown

MIXTURES = ("natural-only", "leave-out-domain", "cg-low", "cg_high_diversity_of_five_domains")
KINDS = dict(
    zip(
        MIXTURES,
        ("natural_only", "leave_out_domain", "cg_low_diversity", "cg_high_diversity"),
        strict=True,
    )
)


def interval(estimate: float, n: int = 210) -> dict[str, Any]:
    return {
        "estimate": estimate,
        "low": max(estimate - 0.05, 0.0),
        "high": min(estimate + 0.05, 1.0),
        "n": n,
    }


def groups(held_out: float, seen: float) -> dict[str, Any]:
    # The micro average differs, so that a mix-up of the two shows.
    return {
        "held_out": {"balanced": interval(held_out), "micro": interval(held_out / 2)},
        "seen": {"balanced": interval(seen, 1900), "micro": interval(seen / 2, 1900)},
    }


def cell(
    mixture: str,
    held_out: float,
    seen: float = 0.4,
    *,
    model: str = "sample-rn",
    seed: int = 0,
    test_domain: str = "sketch",
) -> dict[str, Any]:
    return {
        "run": f"{mixture}-{model}-{test_domain}-s{seed}",
        "mixture": mixture,
        "model": model,
        "seed": seed,
        "test_domain": test_domain,
        "epoch": 40,
        "train_images": 5060,
        "accuracies": {test_domain: groups(held_out, seen), "real": groups(0.6, 0.7)},
    }


def study(seeds: int = 1, models: int = 1, test_domains: int = 1) -> list[dict[str, Any]]:
    return [
        cell(
            mixture,
            0.05 + 0.08 * index + 0.01 * seed,
            model=f"model-{model}",
            seed=seed,
            test_domain=test_domain,
        )
        for test_domain in ("sketch", "clipart")[:test_domains]
        for index, mixture in enumerate(MIXTURES)
        for model in range(models)
        for seed in range(seeds)
    ]


def histories_of(summary: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {
        one["run"]: [
            {"epoch": epoch, "accuracies": {one["test_domain"]: groups(0.01 * epoch, 0.02 * epoch)}}
            for epoch in (20, 0, 10)
        ]
        for one in summary
    }


def losses_of(summary: list[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    return {
        one["run"]: pd.DataFrame({"step": range(100), "loss": np.linspace(5, 1, 100)})
        for one in summary
    }


COUNTS = pd.DataFrame(
    [
        ("cg-low", "base", "base", 2000),
        ("cg-low", "real", "seen", 900),
        ("cg-low", "real", "held_out", 150),
        ("cg-high", "real", "seen", 900),
        ("cg-high", "real", "held_out", 100),
        ("cg-high", "real", "held_out", 50),
        ("cg-high", "sketch", "seen", 1234),
    ],
    columns=["mixture", "domain", "group", "images"],
)


def rows_of(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines]


# Tables


def test_cells_frame_has_a_row_an_accuracy() -> None:
    frame = tables.cells_frame(study(seeds=2))
    assert len(frame) == 8 * 2 * 2 * 2
    chosen = frame.query(
        "mixture == 'cg-low' and seed == 1 and domain == 'sketch' and group == 'held_out'"
        " and average == 'micro'"
    )
    assert chosen[["run", "estimate", "n"]].to_numpy().tolist() == [
        ["cg-low-model-0-sketch-s1", pytest.approx(0.11), 210]
    ]


def test_an_unknown_end_of_an_interval_becomes_nan() -> None:
    summary = [cell("cg-low", 0.2)]
    summary[0]["accuracies"]["sketch"]["held_out"]["balanced"].update(low=None, high=None)
    frame = tables.cells_frame(summary)
    assert frame["low"].isna().sum() == 1
    assert rows_of(tables.comparison_markdown(summary))[2][2] == "20.0"


def test_comparison_of_one_seed_and_model() -> None:
    markdown = tables.comparison_markdown([cell("cg-low", 0.124)], classes=115)
    assert rows_of(markdown) == [
        [
            "Mixture",
            "Train images",
            "Held-out, sketch",
            "Seen, sketch",
            "Held-out, real",
            "Seen, real",
        ],
        ["---", "---:", "---:", "---:", "---:", "---:"],
        [
            "cg-low",
            "5,060",
            "12.4 [7.4, 17.4]",
            "40.0 [35.0, 45.0]",
            "60.0 [55.0, 65.0]",
            "70.0 [65.0, 75.0]",
        ],
    ]
    line = markdown.splitlines()[0]
    assert "210 of held-out classes in sketch" in line
    assert "Chance is 0.9 % (115 classes)" in line
    assert "Chance" not in tables.comparison_markdown([cell("cg-low", 0.124)])


def test_model_and_seed_are_shown_only_where_they_vary() -> None:
    assert rows_of(tables.comparison_markdown(study(seeds=2)))[0][:2] == ["Mixture", "Seed"]
    assert rows_of(tables.comparison_markdown(study(models=2)))[0][:2] == ["Mixture", "Model"]


def test_each_test_domain_has_a_table() -> None:
    markdown = tables.comparison_markdown(study(test_domains=2))
    assert re.findall("### Test domain: (.*)", markdown) == ["sketch", "clipart"]
    headers = [row for row in rows_of(markdown) if row[0] == "Mixture"]
    assert [header[2] for header in headers] == ["Held-out, sketch", "Held-out, clipart"]
    assert len(rows_of(markdown)) == 2 * (2 + len(MIXTURES))


def test_a_missing_group_is_a_dash_and_the_reference_is_not_shown_twice() -> None:
    summary = [cell("cg-low", 0.2, test_domain="real")]
    del summary[0]["accuracies"]["real"]["held_out"]
    header, _, row = rows_of(tables.comparison_markdown(summary))
    assert header[2:] == ["Held-out, real", "Seen, real"]
    assert row[2] == "-"


def test_names_cannot_break_the_table() -> None:
    markdown = tables.comparison_markdown([cell("a|b <i>\nc", 0.2)])
    assert rows_of(markdown)[2][0] == "a&#124;b &lt;i&gt; c"
    assert {len(row) for row in rows_of(markdown)} == {6}


def test_counts_add_up_and_missing_parts_are_zero() -> None:
    assert rows_of(table_markdown(tables.counts_table(COUNTS))) == [
        ["Mixture", "base", "real held-out", "real seen", "sketch seen", "Total"],
        ["---", "---:", "---:", "---:", "---:", "---:"],
        ["cg-low", "2,000", "150", "900", "0", "3,050"],
        ["cg-high", "0", "150", "900", "1,234", "2,284"],
    ]


def test_headline_numbers_by_hand() -> None:
    summary = [
        cell("natural-only", 0.1, 0.3),
        cell("cg-low", 0.2, 0.4),
        cell("cg-low", 0.3, 0.5, seed=1),
        cell(MIXTURES[3], 0.4, 0.6),
    ]
    assert tables.headline(summary, KINDS) == {
        "cells": 4,
        "best_held_out": 0.4,
        "mean_held_out": 0.25,
        "mean_seen": 0.45,
        "generalisation_gap": 0.1,  # 0.2, and 0.1 in natural images
        "diversity_gain": 0.15,  # 0.4 less the mean of 0.2 and 0.3
        "gain_over_natural_only": 0.3,
    }


def test_upper_bounds_are_no_result_of_the_headline() -> None:
    summary = [cell("cg-low", 0.2, 0.4), cell(MIXTURES[3], 0.9, 0.9)]
    found = tables.headline(summary, KINDS, informed={MIXTURES[3]})
    assert found == {
        "cells": 2,
        "best_held_out": 0.2,
        "mean_held_out": 0.2,
        "mean_seen": 0.4,
        "generalisation_gap": 0.1,  # 0.2, and 0.1 in natural images
    }


def test_headline_gains_compare_like_with_like() -> None:
    # High diversity was trained with a second, better model too; low was not.
    summary = [
        cell("cg-low", 0.2),
        cell(MIXTURES[3], 0.3),
        cell(MIXTURES[3], 0.9, model="better"),
    ]
    assert tables.headline(summary, KINDS)["diversity_gain"] == pytest.approx(0.1)


def test_headline_gains_compare_mixtures_that_hold_the_same_classes_out() -> None:
    # Of a harder list there is high diversity alone.
    summary = [cell("cg-low", 0.5), cell(MIXTURES[3], 0.6), cell("hard", 0.1)]
    kinds = {**KINDS, "hard": "cg_high_diversity"}
    lists = {cell["mixture"]: frozenset({1, 2}) for cell in summary} | {"hard": frozenset({3})}
    assert tables.headline(summary, kinds, lists)["diversity_gain"] == pytest.approx(0.1)
    assert tables.headline(summary, kinds)["diversity_gain"] == pytest.approx(-0.15)


def test_the_gap_is_none_of_harder_classes() -> None:
    known, alone = cell("cg-low", 0.2, 0.5), cell("natural-only", 0.1, 0.9)
    # Held-out classes are harder in natural images, too, where none is held out.
    known["accuracies"]["real"] = groups(0.5, 0.75)
    found = tables.headline([known, alone], KINDS)
    assert found["generalisation_gap"] == pytest.approx((0.5 - 0.2) - (0.75 - 0.5))
    natural = cell("cg-low", 0.2, 0.5, test_domain="real")
    assert tables.headline([known, natural], KINDS)["generalisation_gap"] == pytest.approx(0.05)
    for rest in (alone, natural):
        assert "generalisation_gap" not in tables.headline([rest], KINDS)


def test_headline_without_kinds_has_no_gain() -> None:
    assert not any("gain" in key or "gap" in key for key in tables.headline(study()))
    other_model = [cell("cg-low", 0.2), cell(MIXTURES[3], 0.3, model="other")]
    assert "diversity_gain" not in tables.headline(other_model, KINDS)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in cell("cg-low", 0.2).items() if name != key}


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ([], "no cells"),
        ([without("accuracies")], "no accuracies; evaluate"),
        ([cell("cg-low", 0.2) | {"test_domain": "clipart"}], "test domain 'clipart'"),
        ([cell("cg-low", 0.2)] * 2, "'cg-low-sample-rn-sketch-s0' is there twice"),
    ],
)
def test_an_unusable_summary_is_a_users_mistake(summary: Any, message: str) -> None:
    for use in (tables.comparison_markdown, tables.headline, figures.held_out_accuracy):
        with pytest.raises(UserError, match=message):
            use(summary)


def test_unusable_counts_are_a_users_mistake() -> None:
    for use in (tables.counts_table, figures.mixture_composition):
        with pytest.raises(UserError, match="no column group"):
            use(COUNTS.drop(columns="group"))
        with pytest.raises(UserError, match="no rows"):
            use(COUNTS.iloc[:0])
        with pytest.raises(UserError, match="unknown group 'other'"):
            use(COUNTS.assign(group="other"))


# Style


def test_colours_are_distinct_and_follow_the_order() -> None:
    names = [f"mixture-{index}" for index in range(16)]
    palette = style.colours(names)
    assert list(palette) == names
    assert len(set(palette.values()) - {"#000000"}) >= 14  # black has no darker shade
    assert style.colours(names[:3] + names[:1]) == {name: palette[name] for name in names[:3]}


def test_style_does_not_leak() -> None:
    before = matplotlib.rcParams["axes.spines.top"]
    with style.figure_style():
        assert matplotlib.rcParams["axes.spines.top"] is False
    assert matplotlib.rcParams["axes.spines.top"] is before is True


def test_saved_figures_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    first, second = (
        style.save_figure(figures.held_out_accuracy(study()), tmp_path / name / "held.out")
        for name in ("a", "b")
    )
    assert [path.name for path in first] == ["held.out.png", "held.out.pdf"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert b"CreationDate" not in first[1].read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "held.out.pdf",
        "held.out.png",
    ]


def test_a_figure_is_written_in_the_formats_that_are_asked_for(tmp_path: Path) -> None:
    figure = figures.mixture_composition(COUNTS)
    (png,) = style.save_figure(figure, tmp_path / "x", ("png",))
    assert [path.name for path in tmp_path.iterdir()] == [png.name] == ["x.png"]
    with pytest.raises(ValueError, match=r"formats: is 'svg'; allowed: png, pdf"):
        style.save_figure(figure, tmp_path / "y", ("png", "svg"))
    assert not (tmp_path / "y.png").exists()


def test_a_written_figure_is_what_matplotlib_draws_but_for_rounded_colours(tmp_path: Path) -> None:
    figure = figures.mixture_composition(COUNTS)
    (png,) = style.save_figure(figure, tmp_path / "x", ("png",))
    with Image.open(png) as image:
        written = np.asarray(image.convert("RGB"), dtype=int)
        assert image.mode == "P"
    with style.figure_style():
        figure.savefig(tmp_path / "plain.png", dpi=style.PNG_DPI)
    with Image.open(tmp_path / "plain.png") as image:
        plain = np.asarray(image.convert("RGB"), dtype=int)
    assert written.shape == plain.shape
    assert np.abs(written - plain).mean() < 1
    # Paper is white, not nearly so.
    assert (written[0] == 255).all()


def test_saving_leaves_the_figure_as_it_was(tmp_path: Path) -> None:
    figure = figures.mixture_composition(COUNTS)
    engine, dpi = figure.get_layout_engine(), figure.dpi
    style.save_figure(figure, tmp_path / "x")
    assert figure.get_layout_engine() is engine
    assert figure.dpi == dpi


def test_saving_replaces_a_file_instead_of_writing_into_it(tmp_path: Path) -> None:
    target, link = tmp_path / "x.png", tmp_path / "cached.png"
    target.write_bytes(b"old")
    link.hardlink_to(target)
    style.save_figure(figures.mixture_composition(COUNTS), tmp_path / "x")
    assert link.read_bytes() == b"old"
    assert target.read_bytes().startswith(b"\x89PNG")


# Figures


def all_figures(summary: list[dict[str, Any]]) -> dict[str, Figure]:
    return {
        "held_out": figures.held_out_accuracy(summary, classes=115),
        "curves": figures.learning_curves(histories_of(summary), summary),
        "loss": figures.training_loss(losses_of(summary), summary),
        "composition": figures.mixture_composition(COUNTS),
    }


def x_of(line: Line2D) -> Any:
    return np.asarray(line.get_xdata(), dtype=float)


def y_of(line: Line2D) -> Any:
    return np.asarray(line.get_ydata(), dtype=float)


def visible_texts(figure: Figure) -> list[Text]:
    ticks = {
        label
        for ax in figure.axes
        for axis in (ax.xaxis, ax.yaxis)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
    }
    # Ticks outside the view keep their labels, which are not drawn.
    shown = {
        label
        for ax in figure.axes
        for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim()))
        for tick, place in zip(axis.get_major_ticks(), axis.get_majorticklocs(), strict=False)
        if min(limits) <= place <= max(limits)
        for label in (tick.label1,)
    }
    return [
        text
        for text in figure.findobj(Text)
        if isinstance(text, Text)
        and text.get_visible()
        and text.get_text()
        and (text not in ticks or text in shown)
    ]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (1, 2, 2)])
def test_texts_fit_the_column_without_overlap(shape: tuple[int, int, int]) -> None:
    for name, figure in all_figures(study(*shape)).items():
        assert figure.get_figwidth() == style.COLUMN_WIDTH
        FigureCanvasAgg(figure)
        with style.figure_style():
            figure.draw_without_rendering()
        boxes = [(text, text.get_window_extent()) for text in visible_texts(figure)]
        assert len(boxes) > 5
        for text, box in boxes:
            assert min(box.x0, box.y0) >= 0, (name, text.get_text())
            assert box.x1 <= figure.bbox.x1, (name, text.get_text())
            assert box.y1 <= figure.bbox.y1, (name, text.get_text())
        for (text, box), (other, further) in itertools.combinations(boxes, 2):
            assert not box.overlaps(further), (name, text.get_text(), other.get_text())


def test_dots_show_held_out_filled_and_seen_hollow_in_percent() -> None:
    (ax,) = figures.held_out_accuracy([cell("cg-low", 0.2, 0.4)]).axes
    dots = [
        (x_of(line)[0], to_hex(str(line.get_markerfacecolor())))
        for line in ax.lines
        if line.get_marker() == "o"
    ]
    assert [face for _, face in dots] == ["#0072b2", "#ffffff"]
    np.testing.assert_allclose([x for x, _ in dots], [20, 40])
    spans = [x_of(line) for line in ax.lines if len(x_of(line)) == 2]
    np.testing.assert_allclose(spans, [[15, 25], [35, 45]])


def test_every_run_is_a_dot_and_every_test_domain_a_panel() -> None:
    figure = figures.held_out_accuracy(study(seeds=3, models=2, test_domains=2))
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "Test domain: sketch",
        "Test domain: clipart",
    ]
    for ax in figure.axes:
        dots = [line for line in ax.lines if line.get_marker() in figures.MARKERS]
        assert len(dots) == len(MIXTURES) * 3 * 2 * 2
        assert len({line.get_marker() for line in dots}) == 2


def test_learning_curves_run_by_epoch_in_the_colour_of_their_mixture() -> None:
    summary = study(seeds=1)
    held_out, seen = figures.learning_curves(histories_of(summary), summary).axes
    assert len(held_out.lines) == len(seen.lines) == len(MIXTURES)
    np.testing.assert_allclose(x_of(held_out.lines[0]), [0, 10, 20])
    np.testing.assert_allclose(y_of(held_out.lines[0]), [0, 10, 20])
    np.testing.assert_allclose(y_of(seen.lines[0]), [0, 20, 40])
    assert len({line.get_color() for line in held_out.lines}) == len(MIXTURES)


def test_a_curve_of_several_seeds_is_their_mean_in_a_band_of_all() -> None:
    summary = study(seeds=3)
    histories = dict(histories_of(summary))
    losses = dict(losses_of(summary))
    first = [cell["run"] for cell in summary if cell["mixture"] == summary[0]["mixture"]]
    for number, run in enumerate(first):
        histories[run] = [
            {
                "epoch": epoch,
                "accuracies": {
                    "sketch": {"held_out": {"balanced": value}, "seen": {"balanced": value}}
                },
            }
            for epoch in range(number, 4)
            if (value := {"estimate": (epoch + number**2) / 10, "low": 0.0, "high": 1.0, "n": 5})
        ]
        losses[run] = pd.DataFrame({"step": [0, 1], "loss": [float(number), np.inf]})
    held_out = figures.learning_curves(histories, summary).axes[0]
    assert len(held_out.lines) == len(MIXTURES)
    # Epochs 2 and 3 are those that all three have; 5/3 is the mean of 0, 1 and 4.
    np.testing.assert_allclose(x_of(held_out.lines[0]), [2, 3])
    np.testing.assert_allclose(y_of(held_out.lines[0]), [10 * (2 + 5 / 3), 10 * (3 + 5 / 3)])
    band = held_out.collections[0].get_paths()[0].get_extents()
    np.testing.assert_allclose([band.y0, band.y1], [20, 70])
    loss = figures.training_loss(losses, summary).axes[0]
    assert len(loss.lines) == len(MIXTURES)
    np.testing.assert_allclose(y_of(loss.lines[0]), [1.0, np.nan])


def test_a_run_without_history_or_loss_is_named() -> None:
    summary = study()
    with pytest.raises(UserError, match="run 'natural-only-model-0-sketch-s0': no history"):
        figures.learning_curves({}, summary)
    with pytest.raises(UserError, match="run 'natural-only-model-0-sketch-s0': no training loss"):
        figures.training_loss({}, summary)


def test_smoothing_averages_a_centred_window_and_keeps_steps() -> None:
    noisy = pd.DataFrame({"step": np.arange(120)[::-1], "loss": np.tile([1.0, 2.0, 3.0], 40)})
    steps, means = figures.smoothed(noisy)  # windows of 120 / 40 = 3 steps
    np.testing.assert_allclose(steps, np.arange(120))
    np.testing.assert_allclose(means[1:-1], 2.0)


def test_a_diverged_run_ends_where_its_loss_does() -> None:
    loss = np.ones(80)
    loss[40:] = np.nan
    loss[20] = np.inf
    _, means = figures.smoothed(pd.DataFrame({"step": np.arange(80), "loss": loss}))
    np.testing.assert_allclose(means[:40], 1.0)
    assert np.isnan(means[42:]).all()


def test_a_long_run_is_thinned() -> None:
    long = pd.DataFrame({"step": np.arange(5001), "loss": 1.0})
    steps, means = figures.smoothed(long)
    assert len(steps) == len(means) <= 1000


def test_bars_stack_to_the_size_of_the_mixture() -> None:
    (ax,) = figures.mixture_composition(COUNTS).axes
    ends: dict[float, float] = {}
    hatched = 0.0
    for bar in ax.patches:
        row = round(bar.get_y() + bar.get_height() / 2)  # type: ignore[attr-defined]
        ends[row] = max(ends.get(row, 0), bar.get_x() + bar.get_width())  # type: ignore[attr-defined]
        hatched += bar.get_width() if bar.get_hatch() else 0  # type: ignore[attr-defined]
    assert ends == {0: 3050, 1: 2284}
    assert hatched == 300
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cg-low", "cg-high"]
    assert ax.yaxis_inverted()  # the first mixture is on top
