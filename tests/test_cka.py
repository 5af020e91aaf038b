"""CKA: published values, hand answers, the definition itself, invariances, intervals, bad input."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.cka import (
    PUBLISHED_ORDER,
    SUBSETS,
    cka_table,
    hsic1,
    linear_cka,
    rbf_cka,
)

FloatArray = npt.NDArray[np.float64]

DOMAINS = ("real", "quickdraw", "sketch")
HELD_OUT = (1, 4, 6, 7, 11)
COLUMNS = [
    "layer", "domain_a", "domain_b", "subset", "kernel", "cka", "low", "high", "classes", "note",
]  # fmt: skip


def column(*values: float) -> FloatArray:
    return np.array(values, dtype=np.float64)[:, None]


def related(seed: int, items: int = 12) -> tuple[FloatArray, FloatArray]:
    """Make two representations with an axis in common; neither is centred."""
    generator = np.random.default_rng(seed)
    common = generator.normal(size=(items, 3))
    x, y = (
        common @ generator.normal(size=(3, width)) + 0.7 * generator.normal(size=(items, width)) + 2
        for width in (5, 7)
    )
    return x, y


def means_by_layer(
    classes: int = 14, domains: int = 3, seed: int = 0
) -> dict[str, npt.NDArray[np.float32]]:
    """Make class means of two layers, (domains, classes, channels), alike to some degree."""
    generator = np.random.default_rng(seed)
    common = generator.normal(size=(classes, 4))
    return {
        layer: np.stack(
            [
                (common + 0.5 * generator.normal(size=common.shape))
                @ generator.normal(size=(4, width))
                for _ in range(domains)
            ]
        ).astype(np.float32)
        for layer, width in (("act1", 6), ("attnpool", 9))
    }


def cell(table: pd.DataFrame, **keys: str) -> dict[str, Any]:
    chosen = table
    for name, value in keys.items():
        chosen = chosen[chosen[name] == value]
    (record,) = chosen.to_dict("records")
    return {str(name): value for name, value in record.items()}


# Published values


def test_values_are_the_published_ones(shared_file: Callable[[str], Path]) -> None:
    facts = json.loads(shared_file("oracle/numerics/cka.json").read_text())
    arrays = np.load(shared_file("oracle/numerics/cka.npz"))
    assert len(facts) == 9
    for name, expected in facts.items():
        x, y = (arrays[f"{name}/{side}"].astype(np.float64) for side in "XY")
        for found, key in ((linear_cka, "linear"), (rbf_cka, "kernel")):
            assert found(x, y) == pytest.approx(expected[f"{key}_cka_hsic1"], abs=1e-10), name
        k, l = x @ x.T, y @ y.T  # noqa: E741
        for pair, value in zip(((k, l), (k, k), (l, l)), expected["hsic1_linear"], strict=True):
            assert hsic1(*pair) == pytest.approx(value, rel=1e-10, abs=1e-10), name


def test_the_table_has_the_published_values(shared_file: Callable[[str], Path]) -> None:
    facts = json.loads(shared_file("oracle/numerics/cka.json").read_text())
    arrays = np.load(shared_file("oracle/numerics/cka.npz"))
    checked = 0
    for name, expected in facts.items():
        x, y = arrays[f"{name}/X"], arrays[f"{name}/Y"]
        if x.shape != y.shape:
            continue  # a layer is as wide in one domain as in another
        for protocol in ("corrected", "published"):
            table = cka_table(
                {"layer": np.stack([x, y])}, ("real", "sketch"), (), protocol=protocol
            )
            for kernel, key in (("linear", "linear"), ("rbf", "kernel")):
                found = cell(table, subset="all", kernel=kernel)
                assert found["cka"] == pytest.approx(expected[f"{key}_cka_hsic1"], abs=1e-10)
                assert found["classes"] == len(x)
                checked += 1
    assert checked >= 24


# Hand answers


def test_hsic_and_linear_cka_by_hand() -> None:
    # K has -1 at items 0 and 3, L at items 0 and 2, and nothing else beside the diagonals. With
    # n = 4, HSIC_1(K, L) = (0 + (-2)(-2) / 6 - 2 / 2 * 1) / 4 = -1/12, and of each with itself
    # (2 + 4 / 6 - 2) / 4 = 1/6.
    x, y = column(1, 0, 0, -1), column(1, 0, -1, 0)
    assert hsic1(x @ x.T, y @ y.T) == pytest.approx(-1 / 12, abs=1e-15)
    assert hsic1(x @ x.T, x @ x.T) == pytest.approx(1 / 6, abs=1e-15)
    assert linear_cka(x, y) == pytest.approx(-1 / 2, abs=1e-14)


def test_gaussian_cka_by_hand() -> None:
    # Two ways to halve four items, crossed. Any kernel with two values is, up to scale and shift,
    # 1 within halves and 0 between, and then HSIC_1(K, L) = (0 + 16 / 6 - 4) / 4 = -1/3, and of
    # each with itself (4 + 16 / 6 - 4) / 4 = 2/3.
    x, y = column(0, 0, 1, 1), column(0, 1, 0, 1)
    for sigma in (None, 0.5, 3.0):
        assert rbf_cka(x, y, sigma) == pytest.approx(-1 / 2, abs=1e-13)


def test_a_gaussian_kernel_of_given_bandwidth_by_hand() -> None:
    # Squared distances 1 and 4 become 1/2 and 1/16 when exp(-1 / (2 sigma^2)) is a half.
    sigma = 1 / math.sqrt(2 * math.log(2))
    x, y = column(0, 1, 2, 3), column(1, 0, 2, 3)
    half, sixteenth, last = 1 / 2, 1 / 16, 1 / 512
    k = np.array(
        [
            [1, half, sixteenth, last],
            [half, 1, half, sixteenth],
            [sixteenth, half, 1, half],
            [last, sixteenth, half, 1],
        ]
    )
    l = k[np.ix_([1, 0, 2, 3], [1, 0, 2, 3])]  # noqa: E741
    expected = hsic1(k, l) / math.sqrt(hsic1(k, k) * hsic1(l, l))
    assert rbf_cka(x, y, sigma) == pytest.approx(expected, abs=1e-13)


def test_the_bandwidth_is_the_lower_median_of_distances_between_unequal_items() -> None:
    # Distances 1, 2, 3, 4, 6 and 7: the lower median of six is 3.
    x, y = column(0, 1, 3, 7), column(0, 3, 1, 7)
    assert rbf_cka(x, y) == pytest.approx(rbf_cka(x, y, 3.0), abs=1e-13)
    assert abs(rbf_cka(x, y) - rbf_cka(x, y, 4.0)) > 1e-3
    # Distances 1, 1, 2, 3, 3, 4, 6, 7 and 7, and one of zero that does not count: the median is 3.
    x, y = column(0, 0, 1, 3, 7), column(3, 0, 1, 7, 0)
    assert rbf_cka(x, y) == pytest.approx(rbf_cka(x, y, 3.0), abs=1e-13)
    assert abs(rbf_cka(x, y) - rbf_cka(x, y, 2.0)) > 1e-3


def test_each_representation_has_a_bandwidth_of_its_own() -> None:
    x, y = column(0, 1, 3, 7, 8), column(1, 9, 4, 2, 2)
    # Stretching one changes no comparison when its bandwidth stretches along.
    assert rbf_cka(x, 10 * y) == pytest.approx(rbf_cka(x, y), abs=1e-12)
    assert abs(rbf_cka(x, 10 * y, 3.0) - rbf_cka(x, y, 3.0)) > 1e-3


# The definition


def by_quadruples(k: FloatArray, l: FloatArray) -> float:  # noqa: E741
    """Average over all ordered quadruples of different items (Song et al. 2012, equation 5)."""
    terms = [
        k[a, b] * l[a, b] + k[a, b] * l[c, d] - 2 * k[a, b] * l[a, c]
        for a, b, c, d in itertools.permutations(range(len(k)), 4)
    ]
    return float(np.mean(terms))


@pytest.mark.parametrize("items", [4, 5, 7])
def test_hsic_is_the_average_over_quadruples(items: int) -> None:
    x, y = related(items, items)
    k, l = x @ x.T, np.exp(-np.abs(y[:, :1] - y[:, :1].T))  # noqa: E741
    assert hsic1(k, l) == pytest.approx(by_quadruples(k, l), rel=1e-10)
    assert hsic1(torch.from_numpy(k), l) == hsic1(k, l)


def test_hsic_does_not_look_at_the_diagonal() -> None:
    x, y = related(1)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    assert hsic1(k + np.diag(np.arange(12.0)), l) == pytest.approx(hsic1(k, l), rel=1e-12)


def test_independent_data_have_no_hsic_on_average() -> None:
    generator = np.random.default_rng(0)
    found = np.zeros(1500)
    biased = np.zeros(1500)
    centre = np.eye(6) - 1 / 6
    for draw in range(len(found)):
        x, y = generator.normal(size=(2, 6, 3))
        found[draw] = hsic1(x @ x.T, y @ y.T)
        biased[draw] = np.trace(x @ x.T @ centre @ y @ y.T @ centre) / 36
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean()) < 3 * error
    # The usual estimate is far from zero, so that this could have failed.
    assert biased.mean() > 30 * error


# Invariances


@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-10, 10),
)
@settings(max_examples=40, deadline=None)
def test_rotation_scale_and_shift_change_nothing(seed: int, scale: float, shift: float) -> None:
    x, y = related(seed)
    rotation = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(7, 7)))[0]
    moved = scale * (y @ rotation + shift)
    for cka in (linear_cka, rbf_cka):
        value = cka(x, y)
        assert -1 <= value <= 1
        assert cka(x, moved) == pytest.approx(value, abs=1e-8)
        assert cka(y, moved) == pytest.approx(1, abs=1e-8)
        assert cka(y, x) == pytest.approx(value, abs=1e-12)


@given(seed=st.integers(0, 10_000), order=st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_only_the_pairing_of_items_counts(seed: int, order: Any) -> None:
    x, y = related(seed)
    places = order.sample(range(len(x)), len(x))
    for cka in (linear_cka, rbf_cka):
        assert cka(x[places], y[places]) == pytest.approx(cka(x, y), abs=1e-10)


def test_the_pairing_of_items_does_count() -> None:
    x, y = related(0)
    for cka in (linear_cka, rbf_cka):
        assert abs(cka(x, y[::-1]) - cka(x, y)) > 0.05


def test_stretching_one_direction_does_change_the_value() -> None:
    # Invariant to rotation but, unlike canonical correlation, not to every linear map.
    x, y = related(0)
    assert abs(linear_cka(x, y * np.r_[20, np.ones(6)]) - linear_cka(x, y)) > 0.05


@pytest.mark.parametrize("kind", [np.float16, np.float32, torch.float16, torch.bfloat16])
def test_every_precision_is_computed_in_double(kind: Any) -> None:
    x, y = (np.round(array * 4) / 4 for array in related(3))  # exact in every precision
    if isinstance(kind, torch.dtype):
        first: Any = torch.from_numpy(x).to(kind).requires_grad_()
    else:
        first = x.astype(kind)
    assert linear_cka(first, y) == linear_cka(x, y)
    assert rbf_cka(first, y) == rbf_cka(x, y)


# Nothing to compare


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-30, 1e6])
def test_activations_that_do_not_vary_have_no_value(value: float) -> None:
    # Sums of 0.1 round, and what is left must not be taken for variation.
    flat, other = np.full((30, 5), value), related(0, 30)[0]
    for cka in (linear_cka, rbf_cka):
        assert math.isnan(cka(flat, other))
        assert math.isnan(cka(other, flat))
        assert math.isnan(cka(flat, flat))


def test_a_single_item_that_differs_has_no_value() -> None:
    lonely = np.full((9, 3), 0.3)
    lonely[4] = 7
    for cka in (linear_cka, rbf_cka):
        assert math.isnan(cka(lonely, related(0, 9)[0]))
    lonely[5] = -2
    for cka in (linear_cka, rbf_cka):
        assert math.isfinite(cka(lonely, related(0, 9)[0]))


@pytest.mark.parametrize("cka", [linear_cka, rbf_cka])
def test_representations_that_cannot_be_compared_are_refused(cka: Any) -> None:
    x, y = related(0)
    with pytest.raises(ValueError, match="n is 3; HSIC_1 needs at least 4"):
        cka(x[:3], y[:3])
    with pytest.raises(ValueError, match=r"x has 12 rows but y has 11; .* same order"):
        cka(x, y[:11])
    with pytest.raises(ValueError, match=r"y has shape \(12,\); give one row an item"):
        cka(x, y[:, 0])
    with pytest.raises(ValueError, match=r"x has shape \(12, 0\)"):
        cka(x[:, :0], y)
    for wrong in (math.nan, math.inf):
        broken = y.copy()
        broken[2, 3] = broken[5, 0] = wrong
        with pytest.raises(ValueError, match="y has 2 values that are not finite"):
            cka(x, broken)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_bandwidth_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match=r"sigma is .*; give a positive bandwidth, or None"):
        rbf_cka(*related(0), sigma=sigma)


def test_matrices_that_are_no_kernels_are_refused() -> None:
    kernel = np.eye(5)
    lopsided = kernel.copy()
    lopsided[0, 1] = 1
    with pytest.raises(ValueError, match=r"l of shape \(5, 5\) is not a symmetric kernel"):
        hsic1(kernel, lopsided)
    with pytest.raises(ValueError, match=r"k of shape \(5, 4\) is not a symmetric kernel"):
        hsic1(kernel[:, :4], kernel)
    with pytest.raises(ValueError, match="k has 5 rows but l has 6"):
        hsic1(kernel, np.eye(6))
    with pytest.raises(ValueError, match="n is 3"):
        hsic1(np.eye(3), np.eye(3))


# The table


def test_the_table_holds_what_pairs_give_one_by_one() -> None:
    layers = means_by_layer()
    table = cka_table(layers, DOMAINS, HELD_OUT)
    assert table.columns.tolist() == COLUMNS
    assert len(table) == 2 * 3 * 3 * 2
    seen = [label for label in range(14) if label not in HELD_OUT]
    chosen = {"all": list(range(14)), "held_out": list(HELD_OUT), "seen": seen}
    expected: list[tuple[Any, ...]] = []
    for layer, means in layers.items():
        for a, b in itertools.combinations(range(3), 2):
            for subset, classes in chosen.items():
                x, y = means[a, classes], means[b, classes]
                for kernel, cka in (("linear", linear_cka), ("rbf", rbf_cka)):
                    keys = (layer, DOMAINS[a], DOMAINS[b], subset, kernel)
                    expected.append((*keys, cka(x, y), len(classes), ""))
    for found, (*names, value, classes, note) in zip(
        table.to_dict("records"), expected, strict=True
    ):
        assert [found[name] for name in COLUMNS[:5]] == names
        assert found["cka"] == pytest.approx(value, abs=1e-12)
        assert (found["classes"], found["note"]) == (classes, note)
        assert -1 <= found["low"] < found["cka"] < found["high"] <= 1


def test_a_single_kernel_is_the_same_rows_without_the_others() -> None:
    layers = means_by_layer()
    both = cka_table(layers, DOMAINS, HELD_OUT)
    for kernel in ("linear", "rbf"):
        alone = cka_table(layers, DOMAINS, HELD_OUT, kernels=(kernel,))
        expected = both[both["kernel"] == kernel].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, expected)


def test_torch_and_half_precision_means_are_taken() -> None:
    layers = {name: means.astype(np.float16) for name, means in means_by_layer().items()}
    tensors = {name: torch.from_numpy(means) for name, means in layers.items()}
    pd.testing.assert_frame_equal(
        cka_table(tensors, DOMAINS, HELD_OUT), cka_table(layers, DOMAINS, HELD_OUT)
    )


@given(order=st.permutations(range(14)))
@settings(max_examples=15, deadline=None)
def test_the_order_of_classes_changes_nothing(order: list[int]) -> None:
    layers = means_by_layer()
    moved = {name: means[:, order] for name, means in layers.items()}
    held_out = [order.index(label) for label in HELD_OUT]
    numbers = ["cka", "low", "high", "classes"]
    expected = cka_table(layers, DOMAINS, HELD_OUT)[numbers]
    found = cka_table(moved, DOMAINS, held_out)[numbers]
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_a_class_that_a_domain_lacks_is_left_out_of_its_pairs() -> None:
    layers = means_by_layer()
    for means in layers.values():
        means[2, [0, 4]] = np.nan  # sketch has no images of a seen and a held-out class
    table = cka_table(layers, DOMAINS, HELD_OUT)
    assert not table["cka"].isna().any()
    counts = {
        (row["domain_b"], row["subset"]): row["classes"]
        for row in table[table["domain_a"] == "real"].to_dict("records")
    }
    assert [counts["quickdraw", subset] for subset in SUBSETS] == [14, 5, 9]
    assert [counts["sketch", subset] for subset in SUBSETS] == [12, 4, 8]
    present = [label for label in range(14) if label not in (0, 4)]
    means = layers["attnpool"]
    found = cell(
        table, layer="attnpool", domain_a="quickdraw", domain_b="sketch", subset="all", kernel="rbf"
    )
    assert found["cka"] == pytest.approx(rbf_cka(means[1, present], means[2, present]), abs=1e-12)


def test_published_takes_the_classes_of_the_last_domain() -> None:
    # Painting is last in the published order, though not here, and lacks class 0, so no pair is
    # compared on class 0; quickdraw lacks class 2, so its pairs have no value, except on the
    # held-out classes, which all have.
    domains = ("painting", "real", "quickdraw", "clipart")
    layers = means_by_layer(domains=4)
    for means in layers.values():
        means[0, 0] = means[2, 2] = np.nan
    table = cka_table(layers, domains, HELD_OUT, protocol="published")
    assert set(zip(table["subset"], table["classes"], strict=True)) == {
        ("all", 13), ("held_out", 5), ("seen", 8),
    }  # fmt: skip
    with_quickdraw = (table["domain_a"] == "quickdraw") | (table["domain_b"] == "quickdraw")
    lost = with_quickdraw & (table["subset"] != "held_out")
    assert table["cka"].isna().equals(lost)
    assert set(table.loc[lost, "note"]) == {"no images of class 2 in quickdraw"}
    assert table.loc[lost, ["low", "high"]].isna().all(axis=None)
    means = layers["act1"]
    found = cell(
        table, layer="act1", domain_a="real", domain_b="clipart", subset="all", kernel="linear"
    )
    assert found["cka"] == pytest.approx(linear_cka(means[1, 1:], means[3, 1:]), abs=1e-12)


def test_published_takes_every_held_out_class_even_one_that_is_lacking() -> None:
    domains = ("real", "painting")
    layers = means_by_layer(domains=2)
    for means in layers.values():
        means[1, 4] = np.nan  # a held-out class, in painting
    table = cka_table(layers, domains, HELD_OUT, protocol="published")
    by_subset = table.groupby("subset")
    assert by_subset["classes"].unique().map(list).to_dict() == {
        "all": [13], "held_out": [5], "seen": [9],
    }  # fmt: skip
    assert by_subset["cka"].apply(lambda values: values.isna().all()).to_dict() == {
        "all": False, "held_out": True, "seen": False,
    }  # fmt: skip
    corrected = cka_table(layers, domains, HELD_OUT)
    assert corrected.groupby("subset")["classes"].unique().map(list)["held_out"] == [4]


def test_published_needs_published_domains() -> None:
    layers = means_by_layer(domains=2)
    with pytest.raises(UserError, match=r"protocol 'published' of CKA: unknown domain 'photo'"):
        cka_table(layers, ("real", "photo"), (), protocol="published")
    # With images of all classes in all published domains, both protocols agree.
    for last in PUBLISHED_ORDER[1:]:
        published, corrected = (
            cka_table(layers, ("real", last), HELD_OUT, protocol=protocol)
            for protocol in ("published", "corrected")
        )
        pd.testing.assert_frame_equal(published, corrected)


def test_activations_that_do_not_vary_are_noted() -> None:
    layers = means_by_layer()
    layers["act1"][1] = 0.1  # a dead layer in quickdraw
    layers["act1"][2, list(HELD_OUT)] = 0.3  # and held-out classes that are all alike in sketch
    table = cka_table(layers, DOMAINS, HELD_OUT)
    assert table.loc[table["layer"] == "attnpool", "note"].eq("").all()
    flat = "activations do not vary between classes in "
    for kernel in ("linear", "rbf"):
        keys = {"layer": "act1", "kernel": kernel}
        found = cell(table, domain_a="real", domain_b="quickdraw", subset="all", **keys)
        assert found["note"] == f"{flat}quickdraw"
        found = cell(table, domain_a="quickdraw", domain_b="sketch", subset="held_out", **keys)
        assert found["note"] == f"{flat}quickdraw and sketch"
        assert all(math.isnan(found[name]) for name in ("cka", "low", "high"))
        found = cell(table, domain_a="real", domain_b="sketch", subset="all", **keys)
        assert found["note"] == ""
        assert math.isfinite(found["cka"])


def test_too_few_classes_are_noted() -> None:
    table = cka_table(means_by_layer(), DOMAINS, (0, 1, 2))
    held_out = table[table["subset"] == "held_out"]
    assert held_out["cka"].isna().all()
    assert set(held_out["note"]) == {"fewer than 4 classes in both domains"}
    table = cka_table(means_by_layer(), DOMAINS, (0, 1, 2, 3))
    held_out = table[table["subset"] == "held_out"]
    assert held_out["cka"].notna().all()
    assert held_out[["low", "high"]].isna().all(axis=None)
    assert set(held_out["note"]) == {"no interval: fewer than 5 classes"}


# The interval


def jackknife(estimate: float, without: FloatArray, confidence: float) -> tuple[float, float]:
    """Make the interval from estimates with one class left out, by the textbook."""
    count = len(without)
    scaled = np.arctanh(without)
    error = math.sqrt((count - 1) / count * float(((scaled - scaled.mean()) ** 2).sum()))
    half = float(stats.t.ppf(0.5 + confidence / 2, count - 1)) * error
    return math.tanh(math.atanh(estimate) - half), math.tanh(math.atanh(estimate) + half)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("classes", [5, 6, 14])
def test_the_interval_is_that_of_leaving_out_each_class(classes: int, confidence: float) -> None:
    means = means_by_layer(classes=classes, domains=2)["attnpool"].astype(np.float64)
    table = cka_table({"layer": means}, ("real", "sketch"), (), confidence=confidence)
    linear = [
        linear_cka(*(np.delete(rows, label, axis=0) for rows in means)) for label in range(classes)
    ]
    # The bandwidth stays that of all classes.
    kernels = [np.exp(-square / (2 * lower_median(square))) for square in map(squares, means)]
    rbf = [
        hsic1(k, l) / math.sqrt(hsic1(k, k) * hsic1(l, l))
        for label in range(classes)
        for k, l in [[without(kernel, label) for kernel in kernels]]  # noqa: E741
    ]
    for kernel, left_out in (("linear", linear), ("rbf", rbf)):
        found = cell(table, subset="all", kernel=kernel)
        expected = jackknife(found["cka"], np.array(left_out), confidence)
        assert (found["low"], found["high"]) == pytest.approx(expected, abs=1e-9)


def squares(rows: FloatArray) -> FloatArray:
    return np.asarray(((rows[:, None] - rows[None]) ** 2).sum(axis=-1), dtype=np.float64)


def lower_median(distances: FloatArray) -> float:
    return float(torch.median(torch.from_numpy(distances[distances > 0])))


def without(kernel: FloatArray, label: int) -> FloatArray:
    return np.delete(np.delete(kernel, label, axis=0), label, axis=1)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    # Both domains show the same five numbers with noise of the same size: the covariance between
    # them is the identity, of each with itself twice that, so CKA is 5 / (4 * 5).
    generator = np.random.default_rng(0)
    held = []
    for _ in range(120):
        common, noise = generator.normal(size=(40, 5)), generator.normal(size=(2, 40, 5))
        table = cka_table({"layer": common + noise}, ("a", "b"), (), kernels=("linear",))
        found = cell(table, subset="all")
        held.append(found["low"] <= 0.25 <= found["high"])
    # 95 % aimed at; the standard deviation of the share is 2 %.
    assert 0.89 < np.mean(held) < 1


def test_equal_domains_have_an_interval_without_width() -> None:
    means = means_by_layer(domains=2)["act1"]
    means[1] = means[0]
    found = cell(cka_table({"layer": means}, DOMAINS[:2], ()), subset="all", kernel="linear")
    assert [found[name] for name in ("cka", "low", "high")] == pytest.approx([1, 1, 1], abs=1e-9)


def test_variation_that_one_class_holds_alone_gives_no_interval() -> None:
    # Without class 3, all but class 0 are alike in the first domain, and nothing varies.
    means = means_by_layer(domains=2, classes=7)["act1"]
    means[0] = 0.2
    means[0, 0], means[0, 3] = 5.0, -4.0
    table = cka_table({"layer": means}, DOMAINS[:2], ())
    for kernel in ("linear", "rbf"):
        found = cell(table, subset="all", kernel=kernel)
        assert math.isfinite(found["cka"])
        assert math.isnan(found["low"])
        assert found["note"] == "no interval: a single class holds all variation"


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernels": ("cosine",)}, UserError, "kernels of CKA: unknown kernel 'cosine'"),
        ({"kernels": ()}, ValueError, "kernels is empty; give linear, rbf or both"),
        ({"kernels": ("rbf", "rbf")}, ValueError, "kernels names 'rbf' twice"),
        ({"protocol": "old"}, UserError, "protocol of CKA: unknown protocol 'old'"),
        ({"confidence": 1.0}, ValueError, "confidence is 1.0; give a fraction"),
        ({"held_out": (14,)}, ValueError, "held_out has class 14; there are 0 to 13"),
        ({"held_out": (-1,)}, ValueError, "held_out has class -1"),
        ({"domains": ("real", "real", "sketch")}, ValueError, "at least two different ones"),
        ({"domains": ("real",)}, ValueError, "at least two different ones"),
        ({"class_means": {}}, ValueError, "class_means has no layers"),
    ],
)
def test_options_out_of_range_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    usual = {"class_means": means_by_layer(), "domains": DOMAINS, "held_out": HELD_OUT}
    arguments: dict[str, Any] = usual | options
    with pytest.raises(error, match=message):
        cka_table(**arguments)


def test_layers_that_do_not_fit_are_named() -> None:
    layers = means_by_layer()
    layers["attnpool"] = layers["attnpool"][:2]
    with pytest.raises(ValueError, match=r"layer 'attnpool' has shape \(2, 14, 9\); .* 3 domains"):
        cka_table(layers, DOMAINS, HELD_OUT)
    layers = means_by_layer()
    layers["attnpool"] = layers["attnpool"][:, :13]
    with pytest.raises(
        ValueError, match=r"layer 'attnpool' has 13 classes but layer 'act1' has 14"
    ):
        cka_table(layers, DOMAINS, HELD_OUT)
    layers = means_by_layer()
    layers["attnpool"][0, 3] = np.nan
    with pytest.raises(ValueError, match="layers 'act1' and 'attnpool' lack different classes"):
        cka_table(layers, DOMAINS, HELD_OUT)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_activations_that_are_not_finite_are_counted(value: float) -> None:
    layers = means_by_layer()
    layers["attnpool"][1, 3, 2] = layers["attnpool"][0, 5, 1] = value
    with pytest.raises(ValueError, match="layer 'attnpool' has 2 values that are not finite"):
        cka_table(layers, DOMAINS, HELD_OUT)
