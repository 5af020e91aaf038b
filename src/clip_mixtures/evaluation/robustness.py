"""Effective robustness: accuracy beyond what the in-distribution accuracy lets expect.

Models that are better on the images they were trained for are better on shifted images too, and
over many models the two accuracies lie close to a line once both are on the logit scale,
logit(p) = log(p / (1 - p)). A change of the training data helps against the shift only as far as
it lifts a model off the line that ordinary models, the *baseline models*, follow:

    beta(acc_ID) = inverse_logit(w_1 logit(acc_ID_1) + ... + w_k logit(acc_ID_k) + b)
    effective robustness = acc_OOD - beta(acc_ID)

Taori et al. have one in-distribution set (k = 1). Models that were trained on different data need
several, or else whichever set the others were trained on decides the result (Shi et al.).

The line is a description of the baseline models; it says little outside the range of their
accuracies, and it can be no better than their choice. They should be ordinary models that differ
in accuracy: other sizes, fewer images, earlier checkpoints.

Sources:
    Taori, R., Dave, A., Shankar, V., Carlini, N., Recht, B. and Schmidt, L. (2020). Measuring
        Robustness to Natural Distribution Shifts in Image Classification. NeurIPS, section 2.
        (effective robustness rho, relative robustness tau, the fit on the logit scale)
    Shi, Z., Carlini, N., Balashankar, A., Schmidt, L., Hsieh, C.-J., Beutel, A. and Qin, Y.
        (2023). Effective Robustness against Natural Distribution Shifts for Models with Different
        Training Data. NeurIPS. (several in-distribution sets)
    Haldane, J. B. S. (1956). The estimation and significance of the logarithm of a ratio of
        frequencies. Annals of Human Genetics 20, 309-311. (half a count added to each side)
    Efron, B. and Tibshirani, R. J. (1993). An Introduction to the Bootstrap. Chapman & Hall,
        section 9.5. (resampling the observations of a regression)
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

from clip_mixtures.errors import UserError, unknown

FloatArray = npt.NDArray[np.float64]

# Half an image in 5000; chance among the study's 1345 classes is seven times as much.
EPS = 1e-4
# Singular values below this share of the largest are rounding: one image more or less in the
# 50 000 of ImageNet makes a share a hundred times as large.
_RANK_TOLERANCE = 1e-8
_CONSTANT_LOGITS = 1e-6
_TRIES = 100


@dataclass(frozen=True)
class Baseline:
    """The line that the baseline models follow on the logit scale.

    Attributes:
        weights: slope of each in-distribution set, length k, in logits per logit.
        intercept: in logits.
        residual_std: scatter of the baseline models around the line in logits, with m - k - 1
            degrees of freedom: sqrt(sum of squared residuals / (m - k - 1)).
        n_models: number m of baseline models.
        names: of the k in-distribution sets, in the order of ``weights``.
        counts: images in each in-distribution set, or None where they are not known; they decide
            how far accuracies of 0 and 1 are moved in (see ``logit``).
    """

    weights: tuple[float, ...]
    intercept: float
    residual_std: float
    n_models: int
    names: tuple[str, ...]
    counts: tuple[int, ...] | None


def logit(
    accuracies: npt.ArrayLike, counts: npt.ArrayLike | None = None, eps: float = EPS
) -> FloatArray:
    """Return log(p / (1 - p)), with accuracies of 0 and 1 moved in to stay finite.

    With n images, k = 0 and k = n correct ones are taken as (k + 0.5) / (n + 1), which is half an
    image away from the end (Haldane 1956). Without n, accuracies stay at least ``eps`` away from
    the ends. Either is a limit, not a shift: anything nearer to the end than that is moved up to
    it, so that the order of accuracies is kept, and all others are left as they are.

    Args:
        accuracies: fractions in [0, 1], any shape.
        counts: images that each accuracy rests on, at least 1, broadcast against ``accuracies``:
            one number for all, or one for each column.
        eps: nearest to 0 and 1 that an accuracy may be where ``counts`` is not given.

    Returns:
        Logits in the shape of ``accuracies``.

    Raises:
        UserError: for a value that is no fraction, a count below 1 or an ``eps`` out of range.
    """
    shares = _fractions(accuracies, "accuracies")
    if not 0 < eps < 0.5:
        raise UserError(f"eps is {eps}; give a small fraction above 0 and below 0.5, as {EPS}")
    end = eps if counts is None else 0.5 / (_checked_counts(counts) + 1)
    return np.asarray(special.logit(np.clip(shares, end, 1 - end)), dtype=np.float64)


def inverse_logit(logits: npt.ArrayLike) -> FloatArray:
    """Return 1 / (1 + exp(-x)), the accuracy with the given logit."""
    return np.asarray(special.expit(np.asarray(logits, dtype=np.float64)), dtype=np.float64)


def fit_baseline(
    in_distribution: npt.ArrayLike,
    out_of_distribution: npt.ArrayLike,
    counts: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> Baseline:
    """Fit logit(acc_OOD) = sum_i w_i logit(acc_ID_i) + b to the baseline models.

    Ordinary least squares, each model with the same weight. At least k + 2 models are asked for:
    k + 1 would lie on the line whatever they are, and leave no scatter to judge the fit by.

    Args:
        in_distribution: accuracies of m models on k sets, shape (m, k), or (m,) for one set.
        out_of_distribution: accuracies of the same models on the shifted set, shape (m,).
        counts: k + 1 numbers of images, of the in-distribution sets and then of the shifted set.
        names: of the k in-distribution sets; by default ``set 1`` and so on.

    Returns:
        The line and the scatter around it.

    Raises:
        UserError: for values that are no fractions, shapes that do not match, fewer than k + 2
            models, and in-distribution accuracies that do not determine the line: constant over
            the models, or one a linear function of the others on the logit scale.
    """
    columns = _columns(in_distribution)
    target = _matching(columns, out_of_distribution)
    models, sets = columns.shape
    labels = _set_names(names, sets)
    images = _counts_of_sets(counts, sets)
    if models < sets + 2:
        raise UserError(
            f"{models} baseline models for {sets} in-distribution sets; a line and its scatter "
            f"need at least {sets + 2}: add models or leave out sets"
        )
    id_images, ood_images = (None, None) if images is None else (images[:-1], images[-1])
    design = _with_intercept(logit(columns, id_images))
    logits = logit(target, ood_images)
    coefficients = _least_squares(design, logits)
    if coefficients is None:
        raise _undetermined(design, labels)
    residuals = logits - design @ coefficients
    return Baseline(
        weights=tuple(float(weight) for weight in coefficients[:-1]),
        intercept=float(coefficients[-1]),
        residual_std=math.sqrt(float(residuals @ residuals) / (models - sets - 1)),
        n_models=models,
        names=labels,
        counts=id_images,
    )


def predict(baseline: Baseline, in_distribution: npt.ArrayLike) -> FloatArray:
    """Return the accuracy on the shifted set that the line gives to models.

    Args:
        baseline: the fitted line.
        in_distribution: accuracies of n models on the k sets of the line, in their order, shape
            (n, k), or (n,) if k is 1.

    Returns:
        Expected accuracies, shape (n,), fractions between 0 and 1.

    Raises:
        UserError: for values that are no fractions, or another number of sets than the line has.
    """
    columns = _columns(in_distribution)
    if columns.shape[1] != len(baseline.weights):
        raise UserError(
            f"accuracies on {columns.shape[1]} in-distribution sets, but the line was fitted on "
            f"{len(baseline.weights)} ({', '.join(baseline.names)}); give one column for each"
        )
    coefficients = np.array([*baseline.weights, baseline.intercept])
    return inverse_logit(_with_intercept(logit(columns, baseline.counts)) @ coefficients)


def effective_robustness(
    baseline: Baseline, in_distribution: npt.ArrayLike, out_of_distribution: npt.ArrayLike
) -> FloatArray:
    """Return rho(f) = acc_OOD(f) - beta(acc_ID(f)): how far models lie above the line.

    The difference is one of accuracies, not of logits: 0.05 is five percentage points more than
    the line lets expect. The accuracy enters as it is, even if it is 0 or 1 (Taori et al. 2020,
    section 2; Shi et al. 2023 for several in-distribution sets).

    Args:
        baseline: the fitted line.
        in_distribution: accuracies of n models, shape (n, k), or (n,) if k is 1.
        out_of_distribution: accuracies of the same models on the shifted set, shape (n,).

    Returns:
        Effective robustness, shape (n,), in (-1, 1).

    Raises:
        UserError: as ``predict``, and where the numbers of models differ.
    """
    predicted = predict(baseline, in_distribution)
    return _matching(_columns(in_distribution), out_of_distribution) - predicted


def relative_robustness(changed: npt.ArrayLike, standard: npt.ArrayLike) -> FloatArray:
    """Return tau(f') = acc_OOD(f') - acc_OOD(f): what a change gains on the shifted set itself.

    A change is useful if it has both: effective robustness alone can be had by losing accuracy
    in distribution (Taori et al. 2020, section 2).

    Args:
        changed: accuracies on the shifted set of the models with the change, any shape.
        standard: accuracies of the same models without it, in the same shape, or one for all.

    Returns:
        Differences in the shape of ``changed``.

    Raises:
        UserError: for values that are no fractions, or shapes that do not match.
    """
    after = _fractions(changed, "accuracies with the change")
    before = _fractions(standard, "accuracies without the change")
    if before.shape not in ((), after.shape):
        raise UserError(
            f"accuracies with the change have shape {after.shape}, without it {before.shape}; "
            "give the same models in the same order, or one standard model"
        )
    return np.asarray(after - before, dtype=np.float64)


def robustness_table(
    frame: pd.DataFrame,
    ood: str,
    id_sets: Sequence[str],
    baseline_rows: Sequence[Hashable],
    resamples: int,
    seed: int,
    *,
    counts: Mapping[str, int] | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return the effective robustness of every model, with a bootstrap interval.

    Each resample draws as many baseline models as there are, with replacement, and fits the line
    anew (Efron and Tibshirani 1993, section 9.5). Draws with too few different models for a line
    are thrown away and drawn again. The ends are percentiles of the resampled values, widened to
    include the estimate should they miss it. The interval speaks of the choice of baseline models
    only, not of the test images nor of the training seed of the model itself. A baseline model
    pulls the line towards itself, so its own value is nearer to 0 than if it had been left out.
    The order of models does not matter.

    Args:
        frame: one row a model, its index their names, each once; a column of accuracies, fractions
            in [0, 1], for each test set.
        ood: column of the shifted set.
        id_sets: columns of the in-distribution sets, at least one.
        baseline_rows: index labels of the baseline models, each once, at least k + 2; of a
            yes-or-no column they are ``frame.index[frame[column]]``.
        resamples: number of bootstrap resamples, at least 1.
        seed: seed of the random generator; the same seed gives the same table.
        counts: images in every test set named, by column; None where they are not known.
        confidence: coverage aimed at, between 0 and 1.

    Returns:
        One row a model, in the order and with the index of ``frame``: ``accuracy`` (on the shifted
        set), ``predicted`` (by the line), ``effective_robustness`` (their difference), ``low`` and
        ``high`` (its interval), ``baseline`` (whether the model is a baseline model).

    Raises:
        UserError: for names that ``frame`` does not have, values that are no fractions, options
            out of range, a line that cannot be fitted (see ``fit_baseline``), and baseline models
            so few that draws which determine a line are too rare.
    """
    _check_options(resamples, seed, confidence)
    sets = [*id_sets, ood]
    accuracies = _accuracies_of(frame, sets)
    rows = _positions(frame, baseline_rows)
    images = _counts_by_name(counts, sets)
    chosen = accuracies[rows]
    # By value, so that the draws do not depend on the order of models.
    chosen = chosen[np.lexsort(chosen.T)]
    line = fit_baseline(chosen[:, :-1], chosen[:, -1], counts=images, names=list(id_sets))
    predicted = predict(line, accuracies[:, :-1])
    robustness = accuracies[:, -1] - predicted
    design = _with_intercept(logit(accuracies[:, :-1], line.counts))
    lines = _resampled_lines(logit(chosen, images), resamples, seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(
        accuracies[:, -1] - inverse_logit(lines @ design.T), [tail, 1 - tail], axis=0
    )
    return pd.DataFrame(
        {
            "accuracy": accuracies[:, -1],
            "predicted": predicted,
            "effective_robustness": robustness,
            "low": np.minimum(low, robustness),
            "high": np.maximum(high, robustness),
            "baseline": np.isin(np.arange(len(frame)), rows),
        },
        index=frame.index,
    )


def _resampled_lines(logits: FloatArray, resamples: int, seed: int) -> FloatArray:
    """Fit a line to each resample of baseline models, shape (resamples, k + 1).

    The shifted set is the last column of ``logits``.
    """
    generator = np.random.default_rng(seed)
    return np.stack([_resampled_line(logits, generator) for _ in range(resamples)])


def _resampled_line(logits: FloatArray, generator: np.random.Generator) -> FloatArray:
    models = len(logits)
    for _ in range(_TRIES):
        drawn = logits[generator.integers(models, size=models)]
        line = _least_squares(_with_intercept(drawn[:, :-1]), drawn[:, -1])
        if line is not None:
            return line
    raise UserError(
        f"{_TRIES} resamples in a row of the {models} baseline models do not determine a line over "
        f"{logits.shape[1] - 1} in-distribution sets; add baseline models or leave out sets"
    )


def _least_squares(design: FloatArray, target: FloatArray) -> FloatArray | None:
    """Return the coefficients, or None if the columns of ``design`` are linearly dependent."""
    coefficients, _, rank, _ = np.linalg.lstsq(design, target, rcond=_RANK_TOLERANCE)
    return np.asarray(coefficients, dtype=np.float64) if rank == design.shape[1] else None


def _with_intercept(logits: FloatArray) -> FloatArray:
    return np.column_stack([logits, np.ones(len(logits))])


def _undetermined(design: FloatArray, names: Sequence[str]) -> UserError:
    """Build the error for in-distribution accuracies that do not determine the line."""
    spread = np.ptp(design[:, :-1], axis=0)
    for name, width in zip(names, spread, strict=True):
        if width < _CONSTANT_LOGITS:
            return UserError(
                f"in-distribution set {name!r}: all {len(design)} baseline models have the same "
                "accuracy; leave the set out or add models that differ in it"
            )
    listed = ", ".join(names)
    return UserError(
        f"in-distribution sets {listed}: over the {len(design)} baseline models the logit of one is"
        " a linear function of the others; leave one out or add models that tell them apart"
    )


def _fractions(values: npt.ArrayLike, what: str) -> FloatArray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        wrong_kind = _not_a_number(values)
        raise UserError(f"{what}: {wrong_kind!r} is not a number; give fractions") from None
    wrong = array[~((array >= 0) & (array <= 1))]  # NaN is neither
    if wrong.size:
        raise UserError(
            f"{what}: {float(wrong[0])} is not a fraction in [0, 1]; divide percentages by 100 and "
            "leave out models without a value"
        )
    return array


def _not_a_number(values: npt.ArrayLike) -> object:
    """Return the first of ``values`` that cannot be read as a number."""
    for value in np.ravel(np.asarray(values, dtype=object)):
        try:
            float(value)
        except (TypeError, ValueError):
            return value
    return values


def _columns(in_distribution: npt.ArrayLike) -> FloatArray:
    """Return accuracies of models on sets in shape (models, sets)."""
    array = _fractions(in_distribution, "in-distribution accuracies")
    if array.ndim == 1:
        return array[:, None]
    if array.ndim != 2 or array.shape[1] == 0:
        raise UserError(
            f"in-distribution accuracies have shape {array.shape}; give one row a model and one "
            "column a set, at least one"
        )
    return array


def _matching(columns: FloatArray, out_of_distribution: npt.ArrayLike) -> FloatArray:
    array = _fractions(out_of_distribution, "out-of-distribution accuracies")
    if array.shape != (len(columns),):
        raise UserError(
            f"out-of-distribution accuracies have shape {array.shape} for {len(columns)} models "
            "in distribution; give one accuracy a model, in the same order"
        )
    return array


def _set_names(names: Sequence[str] | None, sets: int) -> tuple[str, ...]:
    if names is None:
        return tuple(f"set {number + 1}" for number in range(sets))
    if len(names) != sets or len(set(names)) != sets:
        raise UserError(
            f"names {list(names)} for {sets} in-distribution sets; give one name a set, each once"
        )
    return tuple(names)


def _counts_of_sets(counts: Sequence[int] | None, sets: int) -> tuple[int, ...] | None:
    if counts is None:
        return None
    if len(counts) != sets + 1:
        raise UserError(
            f"counts {list(counts)} for {sets} in-distribution sets; give {sets + 1} numbers of "
            "images, that of the shifted set last"
        )
    _checked_counts(counts)
    return tuple(int(count) for count in counts)


def _checked_counts(counts: npt.ArrayLike) -> npt.NDArray[np.int64]:
    array = np.asarray(counts)
    if not np.issubdtype(array.dtype, np.integer) or (array < 1).any():
        raise UserError(f"counts {array.tolist()}: give whole numbers of images, at least 1")
    return array.astype(np.int64)


def _counts_by_name(counts: Mapping[str, int] | None, sets: Sequence[str]) -> list[int] | None:
    if counts is None:
        return None
    for name in sets:
        if name not in counts:
            raise UserError(f"counts has no entry {name!r}; give the images of every set, or none")
    return [counts[name] for name in sets]


def _accuracies_of(frame: pd.DataFrame, sets: Sequence[str]) -> FloatArray:
    """Return the columns of the test sets, shape (models, sets)."""
    if len(sets) < 2 or len(set(sets)) != len(sets):
        raise UserError(
            f"test sets {list(sets)}: name each once, at least one in-distribution set and then "
            "the shifted one"
        )
    for name in sets:
        if name not in frame.columns:
            raise unknown("test set", name, map(str, frame.columns), "columns of the accuracies")
        if list(frame.columns).count(name) > 1:
            raise UserError(f"test set {name!r} has more than one column of accuracies; keep one")
    if not frame.index.is_unique:
        twice = frame.index[frame.index.duplicated()][0]
        raise UserError(f"model {twice!r} has more than one row of accuracies; keep one")
    cells = [
        _fractions(value, f"model {label!r}, test set {name!r}")
        for label, row in zip(frame.index, frame[list(sets)].itertuples(index=False), strict=True)
        for name, value in zip(sets, row, strict=True)
    ]
    return np.array(cells, dtype=np.float64).reshape(len(frame), len(sets))


def _positions(frame: pd.DataFrame, baseline_rows: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    rows = list(baseline_rows)
    for position, label in enumerate(rows):
        if label not in frame.index:
            raise unknown("model", label, map(str, frame.index), "baseline_rows")
        if label in rows[:position]:
            raise UserError(f"baseline_rows: model {label!r} is named twice; name it once")
    return np.array([frame.index.get_loc(label) for label in rows], dtype=np.int64)


def _check_options(resamples: int, seed: int, confidence: float) -> None:
    if resamples < 1:
        raise UserError(f"resamples is {resamples}; draw at least 1 (1000 is a good start)")
    if seed < 0:
        raise UserError(f"seed is {seed}; give a whole number from 0 up")
    if not 0 < confidence < 1:
        raise UserError(f"confidence is {confidence}; give a fraction between 0 and 1, as 0.95")
