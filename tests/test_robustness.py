"""Effective robustness against lines fitted by hand, known properties and mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_mixtures.errors import UserError
from clip_mixtures.evaluation.robustness import (
    EPS,
    Baseline,
    effective_robustness,
    fit_baseline,
    inverse_logit,
    logit,
    predict,
    relative_robustness,
    robustness_table,
)

LN3 = math.log(3)  # logit of 3/4; that of 1/4 is -LN3 and that of 1/2 is 0
CUBE_ROOT = 3 ** (1 / 3)

slopes = st.floats(-1.5, 1.5)
intercepts = st.floats(-2, 2)
percents = st.lists(st.integers(5, 95), min_size=3, max_size=12, unique=True)


def by_hand() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Logits (-1, 0, 1) and (-1, 1, 1) times ln 3: slope 1, intercept ln 3 / 3."""
    return np.array([0.25, 0.5, 0.75]), np.array([0.25, 0.75, 0.75])


def table_by_hand(**options: Any) -> pd.DataFrame:
    """Give the three models of ``by_hand`` and a fourth, off the line, a table."""
    real, sketch = by_hand()
    frame = pd.DataFrame(
        {"real": [*real, 0.5], "sketch": [*sketch, 0.9]}, index=["small", "medium", "large", "odd"]
    )
    arguments: dict[str, Any] = {
        "ood": "sketch",
        "id_sets": ["real"],
        "baseline_rows": ["small", "medium", "large"],
        "resamples": 2000,
        "seed": 0,
    }
    return robustness_table(**{"frame": frame, **arguments, **options})


def test_logit_by_hand_and_back() -> None:
    accuracies = np.array([0.25, 0.5, 0.75, 0.9])
    assert logit(accuracies) == pytest.approx([-LN3, 0, LN3, math.log(9)])
    assert inverse_logit(logit(accuracies)) == pytest.approx(accuracies)
    assert logit(0.75).shape == ()


def test_none_and_all_correct_are_moved_in_by_half_an_image() -> None:
    # (0 + 0.5) / (9 + 1) = 0.05, whose logit is log(1 / 19).
    assert logit([0.0, 1.0], counts=9) == pytest.approx([-math.log(19), math.log(19)])
    # One of nine correct is further in than that and stays.
    assert logit([1 / 9], counts=9) == pytest.approx([-math.log(8)])


def test_each_column_has_its_own_number_of_images() -> None:
    found = logit([[0.0, 0.0], [1.0, 0.5]], counts=[9, 4])
    assert found == pytest.approx(np.array([[-math.log(19), -math.log(9)], [math.log(19), 0]]))


def test_without_counts_eps_stands_in() -> None:
    assert logit([0.0, 1.0], eps=0.01) == pytest.approx([-math.log(99), math.log(99)])
    assert logit(0.0) == pytest.approx(math.log(EPS / (1 - EPS)))


@given(
    values=st.lists(st.floats(0, 1), min_size=2, max_size=20),
    count=st.none() | st.integers(1, 100_000),
)
def test_logit_keeps_the_order_and_is_finite(values: list[float], count: int | None) -> None:
    found = logit(np.sort(values), counts=count)
    assert np.isfinite(found).all()
    assert (np.diff(found) >= 0).all()


def test_line_by_hand() -> None:
    # Slope = sum(x y) / sum(x^2) = 2 / 2, intercept = mean(y) = 1/3; residuals -1/3, 2/3, -1/3
    # with one degree of freedom: sqrt(2/3). All in units of ln 3.
    line = fit_baseline(*by_hand())
    assert line.weights == pytest.approx((1.0,))
    assert line.intercept == pytest.approx(LN3 / 3)
    assert line.residual_std == pytest.approx(math.sqrt(2 / 3) * LN3)
    assert (line.n_models, line.names, line.counts) == (3, ("set 1",), None)
    # At logit 0 the line is at ln(3) / 3, an accuracy of 3^(1/3) / (1 + 3^(1/3)).
    expected = CUBE_ROOT / (1 + CUBE_ROOT)
    assert predict(line, [0.5]) == pytest.approx([expected])
    assert effective_robustness(line, [0.5, 0.5], [0.75, 0.5]) == pytest.approx(
        [0.75 - expected, 0.5 - expected]
    )


def test_plane_over_two_sets_by_hand() -> None:
    # Orthogonal logits (-1, 1, -1, 1) and (-1, -1, 1, 1) against (-1, 1, 1, 1): each weight is
    # 2 / 4, the intercept 2 / 4, every residual +-1/2 with one degree of freedom.
    in_distribution = np.array([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    line = fit_baseline(in_distribution, [0.25, 0.75, 0.75, 0.75], names=["real", "imagenet"])
    assert line.weights == pytest.approx((0.5, 0.5))
    assert line.intercept == pytest.approx(0.5 * LN3)
    assert line.residual_std == pytest.approx(LN3)
    assert line.names == ("real", "imagenet")
    # Both at logit 0: 0.5 ln 3, an accuracy of sqrt(3) / (1 + sqrt(3)).
    assert predict(line, [[0.5, 0.5]]) == pytest.approx([math.sqrt(3) / (1 + math.sqrt(3))])


def test_one_set_counts_as_a_column() -> None:
    real, sketch = by_hand()
    assert fit_baseline(real, sketch) == fit_baseline(real[:, None], sketch)


def test_counts_decide_where_zero_lies() -> None:
    # In distribution 0 of 9 is log(1 / 19), out of it 0 of 4 is log(1 / 9); the line through
    # those and the middle twice is determined by hand: slope ln 9 / ln 19.
    line = fit_baseline([0.0, 0.5, 1.0], [0.0, 0.5, 1.0], counts=[9, 4])
    assert line.weights == pytest.approx((math.log(9) / math.log(19),))
    assert line.intercept == pytest.approx(0, abs=1e-12)
    assert line.counts == (9,)
    # 0 is predicted as 0.5 / 5; the accuracy itself enters as it is.
    assert predict(line, [0.0]) == pytest.approx([0.1])
    assert effective_robustness(line, [0.0], [0.0]) == pytest.approx([-0.1])


@given(slope=slopes, intercept=intercepts, percent=percents)
@settings(deadline=None)
def test_a_line_is_recovered_and_models_on_it_have_no_effective_robustness(
    slope: float, intercept: float, percent: list[int]
) -> None:
    real = np.array(percent) / 100
    sketch = inverse_logit(slope * logit(real) + intercept)
    line = fit_baseline(real, sketch)
    assert line.weights == pytest.approx((slope,), abs=1e-9)
    assert line.intercept == pytest.approx(intercept, abs=1e-9)
    assert line.residual_std == pytest.approx(0, abs=1e-9)
    assert effective_robustness(line, real, sketch) == pytest.approx(np.zeros(len(real)), abs=1e-9)


@given(weights=st.tuples(slopes, slopes, slopes), intercept=st.floats(-1, 1))
@settings(deadline=None)
def test_a_plane_over_three_sets_is_recovered(
    weights: tuple[float, float, float], intercept: float
) -> None:
    accuracies = np.random.default_rng(3).uniform(0.25, 0.75, size=(12, 3))
    sketch = inverse_logit(logit(accuracies) @ np.array(weights) + intercept)
    line = fit_baseline(accuracies, sketch)
    assert line.weights == pytest.approx(weights, abs=1e-9)
    assert line.intercept == pytest.approx(intercept, abs=1e-9)
    unseen = np.random.default_rng(4).uniform(0.25, 0.75, size=(5, 3))
    assert predict(line, unseen) == pytest.approx(
        inverse_logit(logit(unseen) @ np.array(weights) + intercept)
    )


@given(real=st.floats(0, 1), sketch=st.floats(0, 0.9), gain=st.floats(0.001, 0.1))
def test_accuracy_out_of_distribution_raises_effective_robustness_by_as_much(
    real: float, sketch: float, gain: float
) -> None:
    line = fit_baseline(*by_hand())
    before, after = effective_robustness(line, [real, real], [sketch, sketch + gain])
    assert after - before == pytest.approx(gain)


@given(real=st.floats(0.05, 0.9), gain=st.floats(0.001, 0.05))
def test_accuracy_in_distribution_lowers_it_where_the_slope_is_positive(
    real: float, gain: float
) -> None:
    line = fit_baseline(*by_hand())
    before, after = effective_robustness(line, [real, real + gain], [0.5, 0.5])
    assert after < before


def test_a_baseline_that_is_better_everywhere_asks_for_more() -> None:
    real, sketch = by_hand()
    lower, higher = fit_baseline(real, sketch), fit_baseline(real, sketch + 0.1)
    assert (predict(higher, real) > predict(lower, real)).all()


@given(order=st.permutations(range(7)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_models_does_not_matter(order: list[int]) -> None:
    generator = np.random.default_rng(8)
    frame = pd.DataFrame(
        generator.uniform(0.1, 0.9, size=(7, 3)), columns=["real", "imagenet", "sketch"]
    )
    shuffled = frame.iloc[order]
    first = robustness_table(frame, "sketch", ["real", "imagenet"], range(6), 30, 1)
    second = robustness_table(
        shuffled, "sketch", ["real", "imagenet"], [row for row in order if row < 6], 30, 1
    )
    pd.testing.assert_frame_equal(second.loc[frame.index], first, check_exact=True)


def test_a_baseline_can_be_compared_but_not_changed() -> None:
    line = fit_baseline(*by_hand())
    assert line == fit_baseline(*by_hand())
    with pytest.raises(AttributeError):
        line.intercept = 0.0  # type: ignore[misc]


def test_relative_robustness_is_the_gain_itself() -> None:
    assert relative_robustness([0.5, 0.25], [0.25, 0.5]) == pytest.approx([0.25, -0.25])
    assert relative_robustness([0.5, 0.25], 0.25) == pytest.approx([0.25, 0.0])
    assert relative_robustness(0.5, 0.25) == pytest.approx(0.25)


def test_table_has_the_line_and_the_models_in_their_order() -> None:
    table = table_by_hand()
    # The line of test_line_by_hand at logits -1, 0 and 1.
    odds = [CUBE_ROOT / 3, CUBE_ROOT, CUBE_ROOT * 3, CUBE_ROOT]
    predicted = np.array([odd / (1 + odd) for odd in odds])
    accuracy = np.array([0.25, 0.75, 0.75, 0.9])
    assert table.index.tolist() == ["small", "medium", "large", "odd"]
    assert table["accuracy"].tolist() == accuracy.tolist()
    assert table["predicted"].to_numpy() == pytest.approx(predicted)
    assert table["effective_robustness"].to_numpy() == pytest.approx(accuracy - predicted)
    assert table["baseline"].tolist() == [True, True, True, False]
    assert (table["low"] <= table["effective_robustness"]).all()
    assert (table["effective_robustness"] <= table["high"]).all()


@pytest.mark.parametrize(
    ("confidence", "low", "high"),
    [
        (0.95, 0.15, 0.4),
        (0.4, 0.15, 0.9 - CUBE_ROOT / (1 + CUBE_ROOT)),
    ],
)
def test_interval_by_hand(confidence: float, low: float, high: float) -> None:
    # Of 27 draws of three models, 3 hold one model only and are drawn again; the other 24 are, 6
    # times each, all three (ln 3 / 3 at logit 0) and the three pairs (ln 3, ln 3 and 0 there). So
    # a model at logit 0 is expected at 0.75 in half of the draws, and at the line's 0.59 and at
    # 0.5 in a quarter each: 0.9 less those is 0.15, 0.31 and 0.4.
    row = table_by_hand(confidence=confidence).loc["odd"]
    assert row["low"] == pytest.approx(low)
    assert row["high"] == pytest.approx(high)


def test_models_on_one_line_leave_nothing_to_chance() -> None:
    real = np.linspace(0.2, 0.8, 6)
    frame = pd.DataFrame({"real": real, "sketch": inverse_logit(0.8 * logit(real) - 1)})
    table = robustness_table(frame, "sketch", ["real"], range(6), 50, 0)
    for column in ("effective_robustness", "low", "high"):
        assert table[column].to_numpy() == pytest.approx(np.zeros(6), abs=1e-9)


def test_a_seed_fixes_the_table_and_another_changes_the_interval() -> None:
    frame = pd.DataFrame(
        np.random.default_rng(2).uniform(0.2, 0.8, size=(10, 2)), columns=["real", "sketch"]
    )

    def table(seed: int) -> pd.DataFrame:
        return robustness_table(frame, "sketch", ["real"], range(8), 100, seed)

    pd.testing.assert_frame_equal(table(1), table(1), check_exact=True)
    kept = ["accuracy", "predicted", "effective_robustness", "baseline"]
    pd.testing.assert_frame_equal(table(1)[kept], table(2)[kept], check_exact=True)
    assert not np.array_equal(table(1)["low"], table(2)["low"])


def test_table_takes_the_number_of_images_by_name() -> None:
    frame = pd.DataFrame({"sketch": [0.0, 0.5, 1.0], "real": [0.0, 0.5, 1.0]})
    counts = {"real": 9, "sketch": 4, "unused": 1}
    table = robustness_table(frame, "sketch", ["real"], range(3), 10, 0, counts=counts)
    assert table["predicted"].to_numpy() == pytest.approx([0.1, 0.5, 0.9])


def test_draws_that_are_always_impossible_come_to_an_end() -> None:
    accuracies = np.random.default_rng(6).uniform(0.2, 0.8, size=(20, 19))
    frame = pd.DataFrame(accuracies, columns=[f"set {number}" for number in range(19)])
    sets = [str(name) for name in frame.columns]
    with pytest.raises(
        UserError, match=r"20 baseline models do not determine.*add baseline models"
    ):
        robustness_table(frame, sets[0], sets[1:], range(20), 10, 0)


@pytest.mark.parametrize(
    ("in_distribution", "out_of_distribution", "options", "message"),
    [
        ([0.2, 0.4, math.nan], [0.1] * 3, {}, "in-distribution accuracies: nan is not a fraction"),
        ([0.2, 0.4, 45.3], [0.1] * 3, {}, "45.3 is not a fraction.*divide percentages by 100"),
        ([0.2, 0.4, 0.5], [0.1, 0.2, -0.1], {}, "out-of-distribution accuracies: -0.1"),
        ([0.2, 0.4, "many"], [0.1] * 3, {}, "'many' is not a number"),
        ([0.2, 0.4, None], [0.1] * 3, {}, "is not a fraction"),
        ([[0.2], [0.4, 0.5]], [0.1] * 2, {}, r"\[0.2\] is not a number"),
        ([0.2, 0.4], [0.1, 0.2], {}, "2 baseline models for 1 .* at least 3: add models"),
        ([[0.2, 0.4], [0.4, 0.2], [0.3, 0.7]], [0.1] * 3, {}, "3 baseline models for 2 .* least 4"),
        ([], [], {}, "0 baseline models"),
        (0.5, 0.5, {}, r"shape \(\); give one row a model"),
        ([[], [], []], [0.1] * 3, {}, r"shape \(3, 0\)"),
        ([0.2, 0.4, 0.6], [0.1, 0.2], {}, r"shape \(2,\) for 3 models"),
        ([0.2, 0.4, 0.6], [[0.1, 0.2, 0.3]], {}, r"shape \(1, 3\) for 3 models"),
        ([0.3] * 4, [0.1, 0.2, 0.3, 0.4], {"names": ["real"]}, "'real': all 4 .* leave the set"),
        ([0.0] * 4, [0.1, 0.2, 0.3, 0.4], {}, "'set 1': all 4"),
        ([0.2, 0.4, 0.6], [0.1] * 3, {"names": ["a", "b"]}, r"names \['a', 'b'\] for 1"),
        ([0.2, 0.4, 0.6], [0.1] * 3, {"counts": [10]}, "give 2 numbers of images"),
        ([0.2, 0.4, 0.6], [0.1] * 3, {"counts": [10, 0]}, r"counts \[10, 0\]: .* at least 1"),
        ([0.2, 0.4, 0.6], [0.1] * 3, {"counts": [10, 2.5]}, "whole numbers"),
    ],
)
def test_a_line_that_cannot_be_fitted_is_refused(
    in_distribution: Any, out_of_distribution: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        fit_baseline(in_distribution, out_of_distribution, **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "second", [lambda x: x, lambda x: 1 - x, lambda x: inverse_logit(2 * logit(x) + 1)]
)
def test_sets_that_say_the_same_are_refused(second: Callable[[Any], Any]) -> None:
    first = np.array([0.2, 0.3, 0.5, 0.6, 0.7])
    both = np.column_stack([first, second(first)])
    with pytest.raises(UserError, match=r"sets real, clipart: .* 5 baseline models .* leave one"):
        fit_baseline(both, first, names=["real", "clipart"])


def test_one_name_twice_is_refused() -> None:
    accuracies = np.random.default_rng(0).uniform(0.2, 0.8, size=(6, 2))
    with pytest.raises(UserError, match="each once"):
        fit_baseline(accuracies, accuracies[:, 0], names=["real", "real"])


def test_models_that_do_not_fit_the_line_are_refused() -> None:
    line = Baseline((1.0, 0.5), 0.0, 0.1, 9, ("real", "imagenet"), None)
    with pytest.raises(UserError, match=r"on 1 .* fitted on 2 \(real, imagenet\)"):
        predict(line, [0.5, 0.6])
    with pytest.raises(UserError, match=r"shape \(1,\) for 2 models"):
        effective_robustness(line, [[0.5, 0.6], [0.4, 0.3]], [0.5])
    with pytest.raises(UserError, match=r"1\.5 is not a fraction"):
        effective_robustness(line, [[0.5, 0.6]], [1.5])


def test_accuracies_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(UserError, match=r"shape \(2,\), without it \(3,\)"):
        relative_robustness([0.5, 0.6], [0.5, 0.6, 0.7])
    with pytest.raises(UserError, match=r"accuracies without the change: 50\.0 is not"):
        relative_robustness([0.5], [50])


@pytest.mark.parametrize("eps", [0, 0.5, -1, math.nan])
def test_an_eps_out_of_range_is_refused(eps: float) -> None:
    with pytest.raises(UserError, match="eps is"):
        logit(0.5, eps=eps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ood": "sketsch"}, "unknown test set 'sketsch'; did you mean 'sketch'"),
        ({"id_sets": ["photo"]}, "unknown test set 'photo'"),
        ({"id_sets": []}, "at least one in-distribution set"),
        ({"id_sets": ["sketch"]}, "name each once"),
        ({"id_sets": ["real", "real"]}, "name each once"),
        ({"baseline_rows": ["small", "larg"]}, "unknown model 'larg'; did you mean 'large'"),
        ({"baseline_rows": ["small", "large", "small"]}, "'small' is named twice"),
        ({"baseline_rows": ["small", "large"]}, "2 baseline models"),
        ({"baseline_rows": []}, "0 baseline models"),
        ({"resamples": 0}, "resamples is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"confidence": 95}, "confidence is 95"),
        ({"counts": {"real": 10}}, "no entry 'sketch'"),
        ({"counts": {"real": 10, "sketch": 0}}, "at least 1"),
    ],
)
def test_mistakes_in_the_table_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        table_by_hand(**options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.2, 0.4, 0.6, math.nan], "model 'odd', test set 'real': nan"),
        ([0.2, 80, 0.6, 0.4], "model 'medium', test set 'real': 80.0 is not a fraction"),
        (pd.array([0.2, 0.4, 0.6, None], dtype="Float64"), "model 'odd', test set 'real': "),
        (["0.2", "0.4", "0.6", "-"], "model 'odd', test set 'real': '-' is not a number"),
    ],
)
def test_a_table_of_other_things_than_fractions_is_refused(values: Any, message: str) -> None:
    frame = pd.DataFrame(
        {"real": values, "sketch": [0.1, 0.2, 0.3, 0.4]}, index=["small", "medium", "large", "odd"]
    )
    with pytest.raises(UserError, match=message) as refused:
        table_by_hand(frame=frame)
    assert "\n" not in str(refused.value)


def test_a_model_with_two_rows_is_refused() -> None:
    frame = pd.DataFrame(
        {"real": [0.2, 0.4, 0.6], "sketch": [0.1, 0.2, 0.3]}, index=["small", "large", "small"]
    )
    with pytest.raises(UserError, match="'small' has more than one row"):
        table_by_hand(frame=frame)


def test_a_test_set_with_two_columns_is_refused() -> None:
    frame = pd.DataFrame([[0.1, 0.2, 0.3]], columns=["real", "sketch", "real"], index=["small"])
    with pytest.raises(UserError, match="'real' has more than one column"):
        table_by_hand(frame=frame)


def test_a_table_without_models_is_refused() -> None:
    with pytest.raises(UserError, match="0 baseline models"):
        table_by_hand(frame=pd.DataFrame({"real": [], "sketch": []}), baseline_rows=[])
