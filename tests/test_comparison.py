"""What the report says of a study: seeds, differences, curves, classes, examples, provenance."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from clip_mixtures.errors import UserError
from clip_mixtures.evaluation.statistics import (
    mean_over_seeds,
    paired_difference,
    paired_over_seeds,
)
from clip_mixtures.mixtures.spec import Mixture, mixture_from_params
from clip_mixtures.report.audits import audit_table, verification_table
from clip_mixtures.report.differences import (
    MOST_MIXTURES,
    difference_tables,
    paired_differences,
    pairs_of,
)
from clip_mixtures.report.document import Command, Entry, Fold, Table
from clip_mixtures.report.examples import QUOTAS, choose_examples
from clip_mixtures.report.held_out import class_accuracies, class_tables, example_tables
from clip_mixtures.report.interpolation import interpolation_figure, interpolation_points
from clip_mixtures.report.matrix import averaged_over_seeds, matrix_tables, summary_over_seeds
from clip_mixtures.report.provenance import md5_of, pinned_data, provenance_blocks

DOMAINS = ["clipart", "painting", "quickdraw", "real", "sketch"]
DEFAULTS = {"test_domain": "sketch", "held_out": ["ant", "bee"]}


def interval(estimate: float) -> dict[str, Any]:
    return {"estimate": estimate, "low": estimate - 0.01, "high": estimate + 0.01, "n": 40}


def cell(
    mixture: str,
    held_out: float,
    *,
    model: str = "rn",
    seed: int = 0,
    imagenet: float | None = None,
) -> dict[str, Any]:
    groups = {"held_out": {"balanced": interval(held_out)}, "seen": {"balanced": interval(0.5)}}
    real = {"held_out": {"balanced": interval(0.6)}, "seen": {"balanced": interval(0.7)}}
    more = {} if imagenet is None else {"imagenet": {"balanced": interval(imagenet)}}
    return {
        "run": f"{mixture}-{model}-s{seed}", "mixture": mixture, "model": model, "seed": seed,
        "test_domain": "sketch", "train_images": 5060,
        "accuracies": {"sketch": groups, "real": real}, **more,
    }  # fmt: skip


def texts(table: Table) -> list[list[str]]:
    return [[entry.text for entry in row] for row in table.rows]


# The matrix


def test_one_seed_has_the_interval_of_its_run() -> None:
    averaged = averaged_over_seeds([cell("cg-low", 0.2)])
    assert averaged["measure"].tolist() == [
        "Held-out, sketch", "Seen, sketch", "Held-out, real", "Seen, real",
    ]  # fmt: skip
    first = averaged.iloc[0]
    assert first[["estimate", "low", "high"]].tolist() == pytest.approx([0.2, 0.19, 0.21])
    (table,) = matrix_tables(averaged)
    assert "of one run" in table.caption
    assert [column.name for column in table.columns][:2] == ["Mixture", "Train images"]
    assert texts(table) == [["cg-low", "5,060", "20.0", "50.0", "60.0", "70.0"]]
    assert table.rows[0][2].note == "[19.0, 21.0]"


def test_seeds_are_averaged_with_students_t() -> None:
    values = [0.1, 0.2, 0.4]
    summary = [cell("cg-low", value, seed=seed) for seed, value in enumerate(values)]
    first = averaged_over_seeds(summary).iloc[0]
    wanted = mean_over_seeds(values)
    assert first["estimate"] == pytest.approx(wanted.estimate)
    # The t interval of three seeds reaches below zero, which no accuracy does.
    assert wanted.low < 0
    assert first["low"] == 0
    assert first["high"] == pytest.approx(wanted.high)
    (table,) = matrix_tables(averaged_over_seeds(summary))
    assert "over seeds (Student's t; none where seeds agree)" in table.caption
    assert "of one run" not in table.caption
    assert [column.name for column in table.columns][:3] == ["Mixture", "Seeds", "Train images"]
    assert texts(table)[0][1] == "3"
    (merged,) = summary_over_seeds(summary)
    found = merged["accuracies"]["sketch"]["held_out"]["balanced"]
    assert found["estimate"] == pytest.approx(wanted.estimate)
    assert (found["low"], found["n"]) == (0, 40)


def test_imagenet_has_a_column_where_it_was_tested() -> None:
    (table,) = matrix_tables(averaged_over_seeds([cell("a", 0.1, imagenet=0.3), cell("b", 0.2)]))
    assert table.columns[-1].name == "ImageNet"
    assert [row[-1] for row in texts(table)] == ["30.0", "-"]


def test_bars_share_the_scale_of_the_table() -> None:
    (table,) = matrix_tables(averaged_over_seeds([cell("a", 0.1), cell("b", 0.355)]))
    middles = [entry.bar.middle for row in table.rows for entry in row if entry.bar]
    # The highest end is that of seen classes in real: 0.71.
    assert middles[0] == pytest.approx(0.1 / 0.71)
    assert middles[4] == pytest.approx(0.5)
    assert max(entry.bar.high for row in table.rows for entry in row if entry.bar) == 1


# Differences


def test_all_pairs_of_a_few_mixtures_and_baselines_of_many() -> None:
    assert pairs_of(["a", "b", "c"], {}) == [("a", "b"), ("a", "c"), ("b", "c")]
    many = [f"m{number}" for number in range(MOST_MIXTURES + 4)]
    assert pairs_of(many, {}) == [("m0", other) for other in many[1:]]
    kinds = {"m1": "natural_only", "m3": "leave_out_domain"}
    found = pairs_of(many, kinds)
    assert found[0] == ("m1", "m3")
    assert {first for first, _ in found} == {"m1", "m3"}
    assert len(found) == len(set(found)) == 1 + 2 * (len(many) - 2)


def answers_of(right: list[int]) -> pd.DataFrame:
    """Images 0 to 7 of classes 0 to 3, two each; the images in ``right`` are answered right."""
    rows = np.arange(8)
    labels = rows // 2
    return pd.DataFrame(
        {"row": rows, "class_id": labels, "prediction": np.where(np.isin(rows, right), labels, 9)}
    )


def test_a_difference_of_one_seed_is_that_of_the_same_images() -> None:
    summary = [cell("a", 0.25), cell("b", 0.75)]
    given_by = {"a-rn-s0": answers_of([0, 4]), "b-rn-s0": answers_of([0, 1, 2, 5])[::-1]}
    held_out = dict.fromkeys("ab", frozenset({0, 1}))
    found = paired_differences(summary, {}, held_out, given_by.__getitem__, resamples=200, seed=3)
    assert found["over"].tolist() == ["images", "images"]
    assert found["estimate"].tolist() == [0.5, 0.0]
    labels = np.array([0, 0, 1, 1])
    wanted = paired_difference(
        labels, np.array([0, 9, 9, 9]), np.array([0, 0, 1, 9]),
        average="balanced", resamples=200, seed=3,
    )  # fmt: skip
    assert found["low"].iloc[0] == wanted.low
    assert found["n"].tolist() == [4, 4]
    (table,) = difference_tables(found)
    assert texts(table) == [["b minus a", "+50.0", "+0.0"]]
    assert "the same for both" in table.caption


def test_seeds_that_agree_make_no_difference_clear() -> None:
    # One image more each: nothing is known of how a third seed would do.
    values = {"a": [0.0, 0.1], "b": [0.005, 0.105]}
    summary = [
        cell(key, value, seed=seed) for key, of in values.items() for seed, value in enumerate(of)
    ]
    same = dict.fromkeys("ab", frozenset({0}))
    found = paired_differences(summary, {}, same, lambda _: pd.DataFrame())
    assert found[["low", "high"]].iloc[0].isna().all()
    (rows,) = [table.rows for table in difference_tables(found)]
    entry = rows[0][1]
    assert (entry.text, entry.note, entry.shade) == ("+0.5", "", 0)


def test_a_difference_of_several_seeds_pairs_them() -> None:
    values = {"a": [0.1, 0.3], "b": [0.3, 0.501]}
    summary = [
        cell(key, value, seed=seed) for key, of in values.items() for seed, value in enumerate(of)
    ]

    def unread(run: str) -> pd.DataFrame:
        raise AssertionError(f"answers of {run} are not needed")

    found = paired_differences(summary, {}, dict.fromkeys("ab", frozenset({0})), unread)
    wanted = paired_over_seeds({0: 0.1, 1: 0.3}, {0: 0.3, 1: 0.501})
    assert found["over"].tolist() == ["seeds", "seeds"]
    assert found[["estimate", "low", "high"]].iloc[0].tolist() == pytest.approx(
        [wanted.estimate, wanted.low, wanted.high]
    )
    # Both differ by nearly the same, so the interval is short, and leaves out zero.
    (table,) = difference_tables(found)
    assert table.rows[0][1].shade > 0
    assert table.rows[0][2].shade == 0


def test_mixtures_that_hold_out_other_classes_are_not_compared() -> None:
    held_out = {"a": frozenset({0}), "b": frozenset({1})}
    found = paired_differences(
        [cell("a", 0.1), cell("b", 0.2)], {}, held_out, lambda _: answers_of([])
    )
    assert found.empty
    assert list(difference_tables(found)) == []


def test_answers_to_different_images_are_refused() -> None:
    given_by = {"a-rn-s0": answers_of([]), "b-rn-s0": answers_of([]).iloc[1:]}
    held_out = dict.fromkeys("ab", frozenset({0}))
    with pytest.raises(ValueError, match="a-rn-s0 and b-rn-s0 have answers to different images"):
        paired_differences([cell("a", 0.1), cell("b", 0.2)], {}, held_out, given_by.__getitem__)


# Curves between mixtures


def mixtures_of(params: Mapping[str, Mapping[str, Any]]) -> dict[str, Mixture]:
    return {
        key: mixture_from_params(key, value, DEFAULTS, DOMAINS) for key, value in params.items()
    }


PLAIN = {
    "natural": {"kind": "natural_only"},
    "leave-out": {"kind": "leave_out_domain"},
    "low": {"kind": "cg_low_diversity"},
    "high": {"kind": "cg_high_diversity"},
}


def points_of(params: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    summary = [cell(key, 0.1 + 0.01 * place) for place, key in enumerate(params)]
    return interpolation_points(averaged_over_seeds(summary), mixtures_of(params))


def test_plain_mixtures_have_no_curves() -> None:
    bounds = {"high-all": {"kind": "cg_high_diversity", "include_test_classes": True}}
    for params in (PLAIN, PLAIN | bounds):
        points = points_of(params)
        assert points.empty
        for axis in ("allow", "domains"):
            with pytest.raises(ValueError, match="no points to draw"):
                interpolation_figure(points, axis)


def test_shares_let_back_in_make_a_curve_up_to_the_upper_bound() -> None:
    points = points_of(
        PLAIN
        | {
            "high-half": {"kind": "cg_high_diversity", "allow": 0.5},
            "high-all": {"kind": "cg_high_diversity", "include_test_classes": True},
            "aligned-half": {"kind": "cg_high_diversity", "allow": 0.5, "captions": "aligned"},
        }
    )
    assert points[["axis", "line", "x", "mixture"]].to_numpy().tolist() == [
        ["allow", "high", 0.0, "high"],
        ["allow", "high", 50.0, "high-half"],
        ["allow", "high", 100.0, "high-all"],
    ]
    assert points["estimate"].tolist() == pytest.approx([0.13, 0.14, 0.15])


def test_numbers_of_domains_make_curves_with_the_test_domain_and_without() -> None:
    points = points_of(
        PLAIN
        | {
            "three": {"kind": "domains", "domains": ["real", "sketch", "clipart"]},
            "three-b": {"kind": "domains", "domains": ["real", "sketch", "painting"]},
            "two": {"kind": "domains", "domains": ["real", "clipart"]},
        }
    )
    found = points.groupby("line")[["x", "mixture"]].agg(list).to_dict("index")
    assert found == {
        # The natural-only mixture is not cut to the size of the others.
        "with sketch": {"x": [2, 3, 3, 5], "mixture": ["low", "three", "three-b", "high"]},
        "without sketch": {"x": [2, 4], "mixture": ["two", "leave-out"]},
    }
    ax = interpolation_figure(points, "domains").axes[0]
    line = np.asarray(ax.lines[0].get_ydata(), dtype=float)
    # Through the mean of the two mixtures of three domains.
    assert line == pytest.approx([12, 14.5, 13])


def test_lines_of_other_captions_have_names_of_their_own() -> None:
    three = {"kind": "domains", "domains": ["real", "sketch", "clipart"]}
    aligned = {"captions": "aligned"}
    points = points_of(
        PLAIN
        | {
            "three": three,
            "three-aligned": three | aligned,
            "low-aligned": PLAIN["low"] | aligned,
        }
    )
    assert set(points["line"]) == {
        "with sketch, captions standard", "with sketch, captions aligned",
    }  # fmt: skip


def test_the_legend_of_curves_fits_the_figure() -> None:
    three = {"kind": "domains", "domains": ["real", "sketch", "clipart"]}
    figure = interpolation_figure(points_of(PLAIN | {"three": three}), "domains")
    figure.draw_without_rendering()
    width, height = figure.bbox.width, figure.bbox.height
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {"with sketch"}
    for part in (legend, *(ax.xaxis.label for ax in figure.axes), *figure.texts):
        box = part.get_window_extent()
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1


# Held-out classes


def classes_table(correct: Mapping[str, int]) -> pd.DataFrame:
    rows = [
        {"epoch": epoch, "domain": domain, "class_name": name, "group": group, "images": 4,
         "correct": right * (epoch > 0) * (domain == "sketch")}
        for epoch in (0, 12)
        for domain in ("real", "sketch")
        for name, right in correct.items()
        for group in ("seen" if name == "cat" else "held_out",)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def confusions_table(wrong: Mapping[tuple[str, str], int]) -> pd.DataFrame:
    rows = [("sketch", *pair, images) for pair, images in wrong.items()]
    # What happens in other domains does not count.
    rows.append(("real", "ant", "gnu", 99))
    return pd.DataFrame(rows, columns=["domain", "class_name", "predicted", "images"])


def test_held_out_classes_by_hand() -> None:
    summary = [cell("a", 0, seed=0), cell("a", 0, seed=1), cell("b", 0)]
    classes = {
        "a-rn-s0": classes_table({"ant": 4, "bee": 0, "cat": 4}),
        "a-rn-s1": classes_table({"ant": 2, "bee": 0, "cat": 4}),
        "b-rn-s0": classes_table({"ant": 0, "bee": 4, "cat": 4}),
    }
    confusions = {
        "a-rn-s0": confusions_table({("bee", "fly"): 3, ("bee", "eel"): 1}),
        "a-rn-s1": confusions_table({("bee", "eel"): 2, ("ant", "fly"): 2, ("ant", "dog"): 1}),
        "b-rn-s0": confusions_table({("ant", "cow"): 2, ("ant", "dog"): 2, ("ant", "ant"): 9}),
    }
    found = class_accuracies(summary, classes, confusions)
    wanted = {("a", "ant"): 0.75, ("a", "bee"): 0.0, ("b", "ant"): 0.0, ("b", "bee"): 1.0}
    assert found.set_index(["mixture", "class_name"])["accuracy"].to_dict() == wanted
    # Of equally frequent answers, the first by name.
    mistakes = found.set_index(["mixture", "class_name"])["mistaken_for"]
    assert mistakes[("a", "bee")] == "eel"
    # Nobody's first, and given most often by all together.
    assert mistakes[("a", "ant")] == mistakes[("b", "ant")] == "dog"
    (table,) = class_tables(found)
    assert texts(table) == [
        ["bee", "4", "0", "100", "50", "eel"],
        ["ant", "4", "75", "0", "38", "dog"],
    ]
    assert [entry.shade for entry in table.rows[0][2:5]] == [0, 5, 3]


def test_examples_show_what_each_mixture_says() -> None:
    summary = [cell("a", 0), cell("b", 0), cell("a", 0, seed=1)]
    examples = pd.DataFrame(
        [
            ("sketch", "7.webp", "ant", "a-rn-s0", "ant"),
            ("sketch", "7.webp", "ant", "b-rn-s0", "bee"),
            ("sketch", "7.webp", "ant", "a-rn-s1", "cow"),
        ],
        columns=["test_domain", "file", "class_name", "run", "answer"],
    )
    (table,) = example_tables(summary, examples, Path("examples"))
    assert [column.name for column in table.columns] == ["Image", "a", "b"]
    image, first, second = table.rows[0]
    assert image.thumbnail is not None
    assert image.thumbnail.path == Path("examples/7.webp")
    assert image.thumbnail.alt == "sketch image of class ant"
    assert (first, second) == (Entry("ant", mark="right"), Entry("bee", mark="wrong"))
    assert "(first seed)" in table.caption


def answers_by_share(shares: list[float], runs: int = 4) -> pd.DataFrame:
    """Image i is of class i, and answered right by a share of the runs."""
    rows = [
        {"row": 100 + image, "class_id": image, "run": run,
         "prediction": image if run < share * runs else 999}
        for image, share in enumerate(shares)
        for run in range(runs)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_examples_are_right_wrong_and_contested() -> None:
    shares = [1.0] * 20 + [0.0] * 20 + [0.25] * 5 + [0.5] * 5
    chosen = choose_examples(answers_by_share(shares))
    found = [shares[row - 100] for row in chosen]
    assert found == sorted(found, reverse=True)
    # The most evenly split ones come before the others.
    assert found == [1.0] * 3 + [0.5] * 5 + [0.25] + [0.0] * 3
    # Not the first of the alphabet alone: first, middle and last of those that are right.
    assert [row for row in chosen if shares[row - 100] == 1] == [100, 110, 119]


def test_what_one_kind_of_example_lacks_the_others_fill() -> None:
    assert len(choose_examples(answers_by_share([1.0] * 30))) == sum(QUOTAS.values())
    assert len(choose_examples(answers_by_share([0.0, 1.0]))) == 2
    assert choose_examples(answers_by_share([0.0])) == [100]


def test_a_class_has_one_example() -> None:
    answers = answers_by_share([1.0, 0.5, 0.0])
    answers["class_id"] = 0
    assert len(choose_examples(answers)) == 1


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_examples_are_different_images_in_any_order_of_rows(shares: list[float]) -> None:
    answers = answers_by_share(shares)
    chosen = choose_examples(answers)
    assert len(set(chosen)) == len(chosen) == min(len(shares), sum(QUOTAS.values()))
    assert choose_examples(answers.sample(frac=1, random_state=1)) == chosen
    kinds = {math.ceil(share) + math.floor(share) for share in shares}
    shown = {math.ceil(shares[row - 100]) + math.floor(shares[row - 100]) for row in chosen}
    assert shown == kinds


# Audits and provenance


def test_an_audit_is_tabulated() -> None:
    report = {
        "held_out_pairs": {"images": 3},
        "duplicates": {"compared": True, "exact_held_out": 1, "near_held_out": 2},
        "captions": {
            "base": {"classes": {"ant": {"captions": 4, "with_the_domain": 1},
                                 "bee": {"captions": 5, "with_the_domain": 0}}}
        },
        "leaks": [],
    }  # fmt: skip
    not_compared = report | {"duplicates": {"compared": False}, "leaks": ["3 images", "more"]}
    table = audit_table({"a": report, "b": not_compared})
    assert texts(table) == [
        ["a", "3", "1", "2", "9", "1", "none"],
        ["b", "3", "-", "-", "9", "1", "3 images; more"],
    ]
    images = verification_table({"base": {"images": 7, "unreadable": 1, "remarks": {"alpha": 2}}})
    assert [column.name for column in images.columns][-1] == "Alpha"
    assert texts(images) == [["base", "7", "1", "2"]]


def test_provenance_names_results_as_dvc_does(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_bytes(b"{}")
    wanted = hashlib.md5(b"{}", usedforsecurity=False).hexdigest()
    assert md5_of(path) == wanted
    place = {"processes": 1, "device": "cpu", "device_batch": 8, "versions": {"torch": "2.15.0"}}
    on_gpus = {**place, "processes": 4, "device": "cuda", "versions": {"torch": "2", "CUDA": "13"}}
    training = {
        "r": {
            "model": "rn",
            "recipe": {"epochs": 3, "flip": True, "betas": [0.9, 0.98]},
            **on_gpus,
            "attempts": [place, on_gpus],
        }
    }
    definitions = {"a": {"mixture": {"key": "a", "kind": "x"}, "indices": {"d": {"sha256": "ff"}}}}
    pin = pinned_data({"outs": [{"md5": "abc.dir", "path": "data", "nfiles": 2, "size": 9}]}, "d")
    blocks = provenance_blocks(pin, definitions, training, {"r": [path]}, path)
    command, times = (block.text for block in blocks if isinstance(block, Command))
    assert times == "python stages/times.py"
    # As `git hash-object` names it.
    blob = "9e26dfeeb6e641a33dae4961196235bdb965b21b"
    assert command == f"git log --oneline --find-object={blob} -- {path.as_posix()}"
    tables = [block for block in blocks if isinstance(block, Table)]
    assert texts(tables[0]) == [["data/", "MD5", "abc.dir"], ["index of d", "SHA-256", "ff"]]
    folded = {
        fold.heading: texts(fold.blocks[0])
        for fold in blocks
        if isinstance(fold, Fold) and isinstance(fold.blocks[0], Table)
    }
    assert folded["Hashes of the results, by run"] == [["r", wanted]]
    assert folded["What each run was trained with"] == [
        ["r", "1", "cpu", "8", "2.15.0", "-"], ["r", "4", "cuda", "8", "2", "13"],
    ]  # fmt: skip
    assert folded["Recipes, as each run was trained"] == [
        ["epochs", "3"], ["flip", "true"], ["betas", "0.9, 0.98"],
    ]  # fmt: skip


def test_missing_results_and_unpinned_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.json: No such file"):
        md5_of(tmp_path / "gone.json")
    pins: list[dict[str, Any]] = [{}, {"outs": []}, {"outs": [{"path": "data"}]}]
    for pin in pins:
        with pytest.raises(UserError, match=r"data\.dvc: pins no data"):
            pinned_data(pin, "data.dvc")
