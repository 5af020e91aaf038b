"""Sketches of other things: ImageNet-Sketch in the place of domain images (paper appendix E).

*Adding* puts every ImageNet-Sketch image of a class that DomainNet has not into a mixture and takes
as many domain images away at random. *Mixing* keeps the test domain's own images of some of its
classes only, adds the same ImageNet-Sketch images, and takes away as many images of the other
domains as are then too many. Either way the mixture keeps its size.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from clip_mixtures.errors import UserError
from clip_mixtures.index import Rows
from clip_mixtures.mixtures.build import random_keys
from clip_mixtures.mixtures.spec import ONE_CLASS, Mixture

_PUBLISHED_SEED = 42
# The study made its mixed sets in this order, all from one random stream.
PUBLISHED_SHARES: tuple[float | str, ...] = (0.5, 0.25, 0.3, 0.1, 0.05, 0.01, ONE_CLASS)


def exchange(frame: pd.DataFrame, rows: Rows, mixture: Mixture, added: Rows) -> tuple[Rows, Rows]:
    """Put ImageNet-Sketch rows into a mixture in the place of domain rows.

    Args:
        frame: the domain index (columns path, domain, class_name).
        rows: (n,) the mixture's rows of it.
        mixture: with ``add_sketches`` or ``mix_sketches``.
        added: (k,) the ImageNet-Sketch rows of classes without a counterpart.

    Returns:
        The domain rows that stay, in the published order (other domains, then the test domain's
        images class by class), and the ImageNet-Sketch rows; n together.

    Raises:
        UserError: when there are fewer rows to take away than to add, or the other way round, or a
            published share is not one of the study's.
    """
    if mixture.mix_sketches is None:
        return _thinned(frame, rows, len(added), mixture), added
    is_tested = (frame["domain"].iloc[rows] == mixture.test_domain).to_numpy(dtype=bool)
    own, other = rows[is_tested], rows[~is_tested]
    codes, names = pd.factorize(frame["class_name"].iloc[own])
    by_class = {str(name): own[codes == code] for code, name in enumerate(names)}
    spare = len(added) - len(own)
    if mixture.corrected:
        classes = _random_classes(list(by_class), mixture)
        staying = _joined(by_class, classes)
        others = _thinned(frame, other, spare + len(staying), mixture)
    else:
        others, staying = _published_mix(by_class, other, spare, mixture)
    return np.concatenate([others, staying]), added


def _thinned(frame: pd.DataFrame, rows: Rows, count: int, mixture: Mixture) -> Rows:
    """Take ``count`` of ``rows`` away at random; the others stay in order."""
    _checked(mixture, count, len(rows))
    if not mixture.corrected:
        return _drop(rows, count, random.Random(_PUBLISHED_SEED))
    keys = random_keys(frame["path"].iloc[rows], mixture.subsample_seed)
    return rows[np.sort(np.argsort(keys, kind="stable")[count:])]


def _checked(mixture: Mixture, count: int, available: int) -> int:
    """Return how many rows are to go, if that many can."""
    if count < 0:
        raise UserError(
            f"mixtures.{mixture.key}: ImageNet-Sketch has {-count} images too few to replace those "
            f"of {mixture.test_domain} that go; raise mix_sketches"
        )
    if count > available:
        raise UserError(
            f"mixtures.{mixture.key}: {count} domain images are to go and there are {available}; "
            "ImageNet-Sketch is larger than what it is to replace"
        )
    return count


def _drop(rows: Rows, count: int, stream: random.Random) -> Rows:
    staying = np.ones(len(rows), dtype=bool)
    staying[stream.sample(range(len(rows)), k=count)] = False
    return rows[staying]


def _random_classes(names: list[str], mixture: Mixture) -> list[str]:
    """Choose the classes whose images stay; a smaller share's are among a larger one's."""
    share = mixture.mix_sketches
    count = 1 if share == ONE_CLASS else max(1, round(float(share or 0) * len(names)))
    order = np.argsort(random_keys(names, mixture.subsample_seed), kind="stable")
    return [names[place] for place in sorted(order[:count])]


def _published_mix(
    by_class: Mapping[str, Rows], other: Rows, spare: int, mixture: Mixture
) -> tuple[Rows, Rows]:
    """Repeat the study's draws until the share that is asked for.

    Returns:
        The rows of other domains that stay, and those of the test domain.
    """
    stream = random.Random(_PUBLISHED_SEED)
    for share, classes in _published_classes(list(by_class), stream).items():
        staying = _joined(by_class, classes)
        others = _drop(other, _checked(mixture, spare + len(staying), len(other)), stream)
        if share == mixture.mix_sketches:
            return others, staying
    raise UserError(
        f"mixtures.{mixture.key}.mix_sketches: is {mixture.mix_sketches!r}; protocol: published "
        f"has {', '.join(map(str, PUBLISHED_SHARES))}"
    )


def _published_classes(names: list[str], stream: random.Random) -> dict[float | str, list[str]]:
    """Draw the classes of every share as the study did, most of them from an earlier share's.

    The study took the last classes of its 30 % from an unordered set, so they changed from run to
    run; here the set is sorted, which gives one of its possible outcomes.
    """
    count = len(names)
    half = stream.sample(names, k=count // 2)
    quarter = stream.sample(half, k=count // 4)
    more = sorted(set(half) - set(quarter))
    thirty = quarter + stream.sample(more, k=int(0.3 * count) - count // 4)
    tenth = stream.sample(quarter, k=int(0.1 * count))
    twentieth = stream.sample(tenth, k=int(0.05 * count))
    hundredth = stream.sample(twentieth, k=int(0.01 * count))
    one = stream.sample(hundredth, k=min(1, len(hundredth)))
    return dict(
        zip(
            PUBLISHED_SHARES, (half, quarter, thirty, tenth, twentieth, hundredth, one), strict=True
        )
    )


def _joined(by_class: Mapping[str, Rows], classes: Sequence[str]) -> Rows:
    parts = [by_class[name] for name in classes]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
