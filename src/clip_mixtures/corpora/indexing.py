"""From places on disk to a folder of indices: one Parquet file for each corpus.

``domains.parquet`` holds the domains, ``base-<name>.parquet`` a base set, ``imagenet_sketch``,
``imagenet_train`` and ``imagenet_validation`` what their names say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clip_mixtures.corpora.base import BaseIndex
from clip_mixtures.corpora.captions import DOMAIN_ORDER
from clip_mixtures.corpora.conceptual_captions import index_tsv, index_webdataset
from clip_mixtures.corpora.domainnet import index_lists, read_lists
from clip_mixtures.corpora.folder import lists_from_folders
from clip_mixtures.corpora.imagenet import index_imagenet
from clip_mixtures.corpora.imagenet_captions import index_imagenet_captions
from clip_mixtures.corpora.imagenet_sketch import index_imagenet_sketch
from clip_mixtures.corpora.sources import Domains, Sources
from clip_mixtures.errors import UserError
from clip_mixtures.index import BASE_PREFIX, Index, write_index


def _imagenet_captions(name: str, **source: Any) -> BaseIndex:
    return index_imagenet_captions(
        source["captions"], source.get("images"), split=source.get("split")
    )


def _tsv(name: str, **source: Any) -> BaseIndex:
    return index_tsv(
        name,
        source["train"],
        source.get("validation"),
        source.get("images"),
        quoted=source.get("quoted", False),
    )


def _webdataset(name: str, **source: Any) -> BaseIndex:
    return index_webdataset(
        name,
        source["shards"],
        validation_per_mille=source.get("validation_per_mille", 0),
        progress=f"listing {name}",
    )


_READERS: dict[str, Callable[..., BaseIndex]] = {
    "imagenet_captions": _imagenet_captions,
    "tsv": _tsv,
    "webdataset": _webdataset,
}


def index_all(sources: Sources) -> Iterator[tuple[str, Index, Mapping[str, int]]]:
    """Index every corpus there is.

    Yields:
        Name of the index file, the index, and what was left out of it by reason.

    Raises:
        UserError: for anything that cannot be read.
    """
    if sources.domains is not None:
        yield "domains", index_domains(sources.domains), {}
    for name, source in sources.bases.items():
        keys = {key: value for key, value in source.items() if key != "format"}
        base = _READERS[source["format"]](name, **keys)
        yield f"{BASE_PREFIX}{name}", base.index, base.left_out
    if sources.imagenet_sketch is not None:
        yield "imagenet_sketch", index_imagenet_sketch(sources.imagenet_sketch), {}
    if sources.imagenet_train is not None:
        yield "imagenet_train", index_imagenet(sources.imagenet_train, "train"), {}
    if sources.imagenet_validation is not None:
        index = index_imagenet(sources.imagenet_validation, "val", sources.imagenet_labels)
        yield "imagenet_validation", index, {}


def write_indices(sources: Sources, out: Path) -> list[str]:
    """Index every corpus there is, write ``<out>/<name>.parquet``, and say in lines what is there.

    Raises:
        UserError: for anything that cannot be read, or when there is nothing to index.
    """
    lines = []
    for name, index, left_out in index_all(sources):
        told = [f"{len(index)} images"]
        if name == "domains":
            told.append(f"{len(index.class_names())} classes in {len(index.domains())} domains")
        write_index(out / f"{name}.parquet", index)
        empty = int((index.frame["caption"] == "").sum())
        if empty and name.startswith(BASE_PREFIX):
            told.append(f"{empty} of them with an empty caption")
        told += [f"{count} left out {reason}" for reason, count in left_out.items()]
        lines.append(f"{name}: {', '.join(told)}")
    if not lines:
        raise UserError("nothing to index; name a corpus")
    return lines


def domain_lists(domains: Domains) -> dict[tuple[str, str], list[str]]:
    """Return the split lists of the domains, read or derived from their folders.

    Raises:
        UserError: for lists or folders that cannot be read.
    """
    if domains.layout == "domainnet":
        return read_lists(domains.root, domains.names or DOMAIN_ORDER)
    return lists_from_folders(domains.root, domains.names, domains.test_share)


def index_domains(domains: Domains) -> Index:
    """Index the domains.

    Raises:
        UserError: for anything that cannot be read.
    """
    return index_lists(domains.root, domain_lists(domains), domains.images)
