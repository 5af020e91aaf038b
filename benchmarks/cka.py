"""Time all of CKA, 21 layers by 15 pairs of domains, against the published procedure, in one run.

    python benchmarks/cka.py --images 8 --rounds 3

Activations of a RN50's layers are made up, in half precision, for 345 classes with the same number
of test images each in six domains; one domain lacks a class. The published procedure is restated
here from its formulas: for every pair and subset, class means by a mask for each class, and for
every pair, subset and kernel both kernel matrices and three times HSIC_1 with matrix products. Ours
makes class means once a domain and calls ``cka_table``, which gives intervals too. One thread, in
torch and in NumPy; both work on the same activations in turn, layer by layer, and must give the
same numbers. Neither reads or writes files. Rows for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from clip_mixtures.mechanisms.cka import PUBLISHED_ORDER, cka_table

_CLASSES = 345
_ABSENT = 300  # of the last domain
_HELD_OUT = (0, 11, 13, 15, 25, 58, 174, 190, 197, 218, 225, 250, 305, 319, 320)
_BATCH = 512  # images: their activations stay in the processor's cache
_WIDTHS = {
    "act1": 32, "act2": 32, "act3": 64, "avgpool": 64,
    **{
        f"resblock{place + 1}": width
        for place, width in enumerate([256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3)
    },
    "attnpool": 1024,
}  # fmt: skip

Activations = list[npt.NDArray[np.float16]]
Labels = list[npt.NDArray[np.int64]]
Values = dict[tuple[str, str, str, str], float]


def _labels(images: int, stream: np.random.Generator) -> Labels:
    labels = [np.repeat(np.arange(_CLASSES), images) for _ in PUBLISHED_ORDER]
    labels[-1] = labels[-1][labels[-1] != _ABSENT]
    return [stream.permutation(of_domain) for of_domain in labels]


def _activations(width: int, labels: Labels, stream: np.random.Generator) -> Activations:
    """Make classes with an axis in common, domains that bend them, and images that scatter."""
    common = stream.normal(size=(_CLASSES, 12)).astype(np.float32)
    made = []
    for of_domain in labels:
        own = common + 0.5 * stream.normal(size=common.shape).astype(np.float32)
        means = own @ stream.normal(size=(12, width)).astype(np.float32)
        noise = stream.standard_normal((len(of_domain), width), dtype=np.float32)
        made.append(np.maximum(means[of_domain] + noise, 0).astype(np.float16))
    return made


def _hsic1(k: torch.Tensor, l: torch.Tensor) -> torch.Tensor:  # noqa: E741
    n = len(k)
    k, l = k - torch.diag(torch.diag(k)), l - torch.diag(torch.diag(l))  # noqa: E741
    product = k @ l
    trace = torch.trace(product)
    sums = k.sum() * l.sum() / ((n - 1) * (n - 2))
    return (trace + sums - 2 / (n - 2) * product.sum()) / (n * (n - 3))


def _linear(x: torch.Tensor) -> torch.Tensor:
    return x @ x.T


def _gaussian(x: torch.Tensor) -> torch.Tensor:
    gram = x @ x.T
    square = torch.diag(gram)
    distances = square[:, None] + square[None, :] - 2 * gram
    return torch.exp(distances / (-2 * torch.median(distances[distances != 0])))


def _published(activations: Activations, labels: Labels) -> tuple[Values, float]:
    """Return the numbers, and the seconds that the class means among them took."""
    acts = [torch.from_numpy(of_domain) for of_domain in activations]
    of_images = [torch.from_numpy(of_domain) for of_domain in labels]
    every = torch.unique(of_images[-1]).tolist()
    seen = [label for label in every if label not in _HELD_OUT]
    values: Values = {}
    averaging = 0.0
    for subset, classes in (("all", every), ("held_out", list(_HELD_OUT)), ("seen", seen)):
        for a, b in itertools.combinations(range(len(acts)), 2):
            start = time.perf_counter()
            x, y = (
                torch.stack([acts[d][of_images[d] == c].float().mean(dim=0) for c in classes])
                for d in (a, b)
            )
            averaging += time.perf_counter() - start
            x, y = x.double(), y.double()
            for kernel, make in (("linear", _linear), ("rbf", _gaussian)):
                k, l = make(x), make(y)  # noqa: E741
                cka = _hsic1(k, l) / torch.sqrt(_hsic1(k, k) * _hsic1(l, l))
                pair = (PUBLISHED_ORDER[a], PUBLISHED_ORDER[b])
                values[(*pair, subset, kernel)] = float(cka)
    return values, averaging


def _class_means(activations: Activations, labels: Labels) -> npt.NDArray[np.float32]:
    means = np.full((len(labels), _CLASSES, activations[0].shape[1]), np.nan, dtype=np.float32)
    for of_domain, acts, of_images in zip(means, activations, labels, strict=True):
        sums = torch.zeros(of_domain.shape)
        batches = (torch.from_numpy(array).split(_BATCH) for array in (of_images, acts))
        for labels_there, rows in zip(*batches, strict=True):
            sums.index_add_(0, labels_there, rows.float())
        images = np.bincount(of_images, minlength=_CLASSES)
        np.divide(sums.numpy(), images[:, None], out=of_domain, where=images[:, None] > 0)
    return means


def _difference(values: Values, table: pd.DataFrame) -> float:
    keys = ["domain_a", "domain_b", "subset", "kernel"]
    ours = table.set_index(keys)["cka"]
    return float((ours - pd.Series(values).rename_axis(keys)).abs().max(skipna=False))


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8, help="test images a class and domain")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    stream = np.random.default_rng(0)
    labels = _labels(args.images, stream)
    names = ("published", "published, means", "ours", "ours, means")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    worst = 0.0
    for _ in range(args.rounds):
        spent = dict.fromkeys(seconds, 0.0)
        for layer, width in _WIDTHS.items():
            activations = _activations(width, labels, stream)
            start = time.perf_counter()
            values, averaging = _published(activations, labels)
            published = time.perf_counter()
            means = _class_means(activations, labels)
            averaged = time.perf_counter()
            table = cka_table({layer: means}, PUBLISHED_ORDER, _HELD_OUT, protocol="published")
            spent["published"] += published - start
            spent["published, means"] += averaging
            spent["ours"] += time.perf_counter() - published
            spent["ours, means"] += averaged - published
            worst = float(np.maximum(worst, _difference(values, table)))  # which keeps a NaN
        for name, time_spent in spent.items():
            seconds[name].append(time_spent)
    assert worst < 1e-6, f"the numbers differ by up to {worst}"
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    theirs, ours = (
        (medians[f"{name}, means"], medians[name] - medians[f"{name}, means"], medians[name])
        for name in ("published", "ours")
    )
    count = len(_WIDTHS) * len(values)
    print(
        f"{count} numbers from {args.images} images a class, median of {args.rounds}; "
        f"largest difference {worst:.0e}\n"
    )
    print("| step | published procedure | ours | ratio |\n| --- | ---: | ---: | ---: |")
    titles = ("class means", "CKA (ours with intervals)", "both")
    for title, published, own in zip(titles, theirs, ours, strict=True):
        print(f"| {title} | {published:.1f} s | {own:.2f} s | {published / own:.1f} |")


if __name__ == "__main__":
    main()
