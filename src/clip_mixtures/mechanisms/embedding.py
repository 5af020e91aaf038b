"""How the images of all domains lie in the embedding: a sample of them, laid out in a plane.

CLIP classifies by direction, so every function here scales the features to unit length first.
A map shows neighbourhoods; how far apart two clusters lie on it means little. The numbers are in
``clip_mixtures.mechanisms.distances`` and ``clip_mixtures.mechanisms.separation``.

The study draws up to 2000 test images a domain and maps them twice: all domains, and all but one.
It draws them without a seed, so that its maps cannot be drawn again; here the seed fixes both.

Sources:
    The study, Figure 5 and the analysis of the embedding around it.
    McInnes, L., Healy, J. and Melville, J. (2018). UMAP: Uniform Manifold Approximation and
        Projection for Dimension Reduction. arXiv:1802.03426.
    Narayan, A., Berger, B. and Cho, H. (2021). Assessing single-cell transcriptomic variability
        through density-preserving data visualization. Nature Biotechnology 39, 765-774. (densMAP)
"""

from __future__ import annotations

import warnings
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clip_mixtures.errors import unknown

Features = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

# Below this UMAP's own start, the eigenvectors of the neighbour graph, does not exist.
_FEWEST_POINTS = 4


def unit_features(features: Features) -> npt.NDArray[np.float64]:
    """Scale every row to unit length, after a check that this is possible.

    Args:
        features: image embeddings, shape (N, D), floating point of any precision.

    Returns:
        Rows of length 1, shape (N, D), float64: single precision would tell equal rows apart.

    Raises:
        ValueError: not of shape (N, D), no rows, rows that are not finite, or rows of zeros.
    """
    array = np.asarray(features)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"features has shape {array.shape}; give one row an image, (N, D)")
    rows = array.astype(np.float64)
    strange = int((~np.isfinite(rows)).any(axis=1).sum())
    if strange:
        raise ValueError(
            f"features of {strange} of {len(rows)} images are not finite (NaN or infinite); "
            "look for a diverged checkpoint or an overflow in half precision"
        )
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    empty = int((lengths == 0).sum())
    if empty:
        raise ValueError(f"features of {empty} of {len(rows)} images are all zero; embed them anew")
    rows /= lengths
    return rows


def group_codes(labels: npt.ArrayLike, images: int, what: str) -> tuple[IntArray, list[Any]]:
    """Number the groups of the images by first appearance.

    Args:
        labels: a name or id an image, shape (N,).
        images: N, the number of images.
        what: what the groups are, for messages: ``"domain"`` or ``"class"``.

    Returns:
        Number of each image's group, shape (N,), int64, and the name of each number.

    Raises:
        ValueError: not one label an image, or images without a label.
    """
    array = np.asarray(labels)
    if array.shape != (images,):
        raise ValueError(f"{what} labels have shape {array.shape}; give one an image, ({images},)")
    codes, names = pd.factorize(array)
    missing = int((codes < 0).sum())
    if missing:
        raise ValueError(f"{missing} of {images} images have no {what}; leave them out")
    return codes.astype(np.int64), names.tolist()


def subsample(domains: npt.ArrayLike, per_domain: int, seed: int) -> IntArray:
    """Draw up to so many images of every domain, without replacement.

    The draw of a domain hangs on the seed, its name and its number of images, so that it stays
    the same when another domain comes or goes.

    Args:
        domains: the domain of each image, shape (N,), names or ids.
        per_domain: images a domain, at least 1 (2000 in the study); a smaller domain gives all.
        seed: seed of the draw, not negative.

    Returns:
        Rising row numbers, shape (n,), int64.

    Raises:
        ValueError: ``per_domain`` below 1, no images, or images without a domain.
    """
    if per_domain < 1:
        raise ValueError(f"per_domain is {per_domain}; draw at least 1 image (2000 in the study)")
    codes, names = group_codes(domains, np.size(np.asarray(domains)), "domain")
    if not names:
        raise ValueError("domains is empty; there are no images to draw from")
    drawn = []
    for code, name in enumerate(names):
        rows = np.flatnonzero(codes == code)
        generator = np.random.default_rng([seed, zlib.crc32(str(name).encode())])
        drawn.append(generator.permutation(rows)[:per_domain])
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def umap_projection(
    features: Features,
    *,
    seed: int = 42,
    densmap: bool = True,
    neighbours: int = 15,
    min_dist: float = 0.1,
) -> npt.NDArray[np.float32]:
    """Lay images out in a plane so that neighbours in the embedding stay neighbours.

    The defaults are the study's: densMAP, Euclidean distance, everything else as umap-learn has
    it. The distance is between unit vectors and so ranks neighbours as the cosine does. A seed
    makes UMAP run on one thread; the same machine and versions then give the same bits.

    Args:
        features: image embeddings, shape (n, D), scaled to unit length inside.
        seed: seed of the layout.
        densmap: also keep the local density, so that a dense cluster stays smaller than a loose
            one.
        neighbours: neighbours of a point that count as near, at least 2.
        min_dist: smallest distance of points on the map, in its own unit.

    Returns:
        Points, shape (n, 2), float32.

    Raises:
        ValueError: unusable features, too few images for the neighbours, or images that all have
            the same features.
    """
    rows = unit_features(features).astype(np.float32)
    needed = max(neighbours + 1, _FEWEST_POINTS)
    if neighbours < 2:
        raise ValueError(f"neighbours is {neighbours}; a map needs at least 2 (15 in the study)")
    if len(rows) < needed:
        raise ValueError(
            f"{len(rows)} images are too few for a map with {neighbours} neighbours, which takes "
            f"{needed}; give more images or lower neighbours"
        )
    if (rows == rows[0]).all():
        raise ValueError(f"all {len(rows)} images have the same features; there is nothing to map")
    with warnings.catch_warnings():
        # UMAP says on import that it lacks TensorFlow, which only its parametric kind uses.
        warnings.filterwarnings("ignore", message="Tensorflow not installed")
        # Domains that lie far apart make a graph of several parts. UMAP places the parts itself.
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        # Here, for the import compiles for seconds and nothing else in this module needs it.
        import umap

        layout = umap.UMAP(
            n_components=2,
            n_neighbors=neighbours,
            min_dist=min_dist,
            densmap=densmap,
            random_state=seed,
            n_jobs=1,  # what a seed demands; UMAP warns when it has to set it itself
        )
        return np.asarray(layout.fit_transform(rows), dtype=np.float32)


def domain_maps(
    features: Features,
    domains: npt.ArrayLike,
    *,
    without: Any = None,
    per_domain: int = 2000,
    seed: int = 42,
    densmap: bool = True,
    neighbours: int = 15,
    min_dist: float = 0.1,
) -> pd.DataFrame:
    """Map a sample of all domains, and the same images again without those of one domain.

    A domain that lies far from the others takes the map's room for itself; without it, how the
    others lie becomes visible.

    Args:
        features: image embeddings, shape (N, D).
        domains: the domain of each image, shape (N,), names or ids.
        without: the domain that the second map lacks, usually the test domain (``quickdraw`` in
            the study); None draws the first map alone.
        per_domain: images drawn a domain, see ``subsample``.
        seed: seed of the draw and of each layout.
        densmap: see ``umap_projection``.
        neighbours: see ``umap_projection``.
        min_dist: see ``umap_projection``.

    Returns:
        A row an image of a map: ``map`` (``"all"`` or ``"without"``), ``row`` (int64, place among
        the N images), ``domain``, ``x`` and ``y`` (float32, no unit).

    Raises:
        UserError: no image is of the domain ``without``.
        ValueError: ``without`` is the only domain; see ``subsample`` and ``umap_projection``.
    """
    codes, names = group_codes(domains, len(features), "domain")
    if without is not None and without not in names:
        raise unknown("domain", without, names, "the map without a domain")
    if without is not None and len(names) == 1:
        raise ValueError(f"{without!r} is the only domain; a map without it would be empty")
    rows = subsample(domains, per_domain, seed)
    chosen = {"all": rows}
    if without is not None:
        chosen["without"] = rows[codes[rows] != names.index(without)]
    maps = []
    for name, of_map in chosen.items():
        points = umap_projection(
            features[of_map],
            seed=seed,
            densmap=densmap,
            neighbours=neighbours,
            min_dist=min_dist,
        )
        maps.append(
            pd.DataFrame(
                {
                    "map": name,
                    "row": of_map,
                    "domain": np.asarray(names, dtype=object)[codes[of_map]],
                    "x": points[:, 0],
                    "y": points[:, 1],
                }
            )
        )
    return pd.concat(maps, ignore_index=True)
