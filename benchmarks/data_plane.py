"""Time the data plane on DomainNet's real split lists: indices, mixtures, memory, bytes on disk.

    python benchmarks/data_plane.py --lists data/domainnet
    python benchmarks/data_plane.py --lists data/domainnet --images 20000   # reading as well

The lists are enough; nothing is read from images but those the script makes for itself. Every step
runs in a process of its own, so that its peak memory is its own; the median of the repetitions is
printed as rows for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import statistics
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

REPEATS = 3
_READS = 20_000


def _captions(lists: Path, _: Path) -> dict[str, float]:
    from clip_mixtures.corpora.captions import DOMAIN_ORDER, published_captions
    from clip_mixtures.corpora.domainnet import read_lists

    read = read_lists(lists, DOMAIN_ORDER)
    start = time.perf_counter()
    captions = published_captions(read)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "rows": sum(map(len, captions.values()))}


def _index(lists: Path, work: Path) -> dict[str, float]:
    from clip_mixtures.corpora.captions import DOMAIN_ORDER
    from clip_mixtures.corpora.domainnet import index_domainnet
    from clip_mixtures.index import write_index

    start = time.perf_counter()
    index = index_domainnet(lists, DOMAIN_ORDER, images=False)
    write_index(work / "domains.parquet", index)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": (work / "domains.parquet").stat().st_size}


def _mixtures(work: Path, count: int) -> dict[str, float]:
    from clip_mixtures.corpora.captions import DOMAIN_ORDER
    from clip_mixtures.index import read_index
    from clip_mixtures.mixtures.build import choose_rows, stratify
    from clip_mixtures.mixtures.published import published_settings
    from clip_mixtures.mixtures.spec import mixture_from_params
    from clip_mixtures.mixtures.store import write_rows

    defaults = {"test_domain": "sketch", "held_out": "published"}
    out = work / f"mixtures-{count}"
    start = time.perf_counter()
    columns = ["path", "domain", "class_name", "split"]
    strata = stratify(read_index(work / "domains.parquet", columns=columns).frame)
    for setting in published_settings()[:count]:
        mixture = mixture_from_params("m", setting.params, defaults, DOMAIN_ORDER)
        rows = choose_rows(strata, mixture)
        write_rows(out / setting.identifier / "train.parquet", {"domains": rows.train})
        write_rows(out / setting.identifier / "validation.parquet", {"domains": rows.validation})
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": sum(p.stat().st_size for p in out.rglob("*.parquet"))}


def _default_mixtures(_: Path, work: Path) -> dict[str, float]:
    return _mixtures(work, 27)


def _all_mixtures(_: Path, work: Path) -> dict[str, float]:
    return _mixtures(work, 105)


def _export(_: Path, work: Path) -> dict[str, float]:
    from clip_mixtures.mixtures.export import export
    from clip_mixtures.mixtures.make import make_mixture
    from clip_mixtures.mixtures.published import params_of
    from clip_mixtures.mixtures.spec import mixture_from_params
    from clip_mixtures.mixtures.store import read_mixture

    identifier = "lso-cipqrs-noquickdrawclasses"
    defaults = {"test_domain": "sketch", "held_out": "published"}
    domains = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    mixture = mixture_from_params(identifier, params_of(identifier), defaults, domains)
    make_mixture(work, mixture, work / identifier)
    start = time.perf_counter()
    rows = export(read_mixture(work / identifier), "train", work / "train.tsv")
    return {"seconds": time.perf_counter() - start, "rows": rows}


def _scan_zip(archives: Path, _: Path) -> dict[str, float]:
    from clip_mixtures.archives import list_members

    start = time.perf_counter()
    members = list_members(archives / "images.zip")
    return {"seconds": time.perf_counter() - start, "rows": len(members)}


def _scan_tar(archives: Path, _: Path) -> dict[str, float]:
    from clip_mixtures.archives import list_members

    start = time.perf_counter()
    members = list_members(archives / "images.tar")
    return {"seconds": time.perf_counter() - start, "rows": len(members)}


def _scan_folder(archives: Path, _: Path) -> dict[str, float]:
    from clip_mixtures.archives import list_folder

    start = time.perf_counter()
    members = list_folder(archives / "images")
    return {"seconds": time.perf_counter() - start, "rows": len(members)}


def _read_zip(archives: Path, _: Path) -> dict[str, float]:
    return _read(archives, "images.zip")


def _read_tar(archives: Path, _: Path) -> dict[str, float]:
    return _read(archives, "images.tar")


def _read_files(archives: Path, _: Path) -> dict[str, float]:
    return _read(archives, "images")


def _read(root: Path, source: str) -> dict[str, float]:
    """Read images in random order, their bytes alone; the operating system's cache is warm."""
    from clip_mixtures.archives import list_files
    from clip_mixtures.images import ImageReader

    members = list_files(root / source)
    inside = source if (root / source).is_file() else None
    order = np.random.default_rng(0).permutation(len(members))[:_READS]
    rows = [_Row(members[place].name, inside, members[place]) for place in order]
    with ImageReader(root) as reader:
        for row in rows:
            reader.read(row)
        start = time.perf_counter()
        total = sum(len(reader.read(row)) for row in rows)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "rows": len(rows), "bytes": total}


class _Row:
    """An index row, for the reader."""

    def __init__(self, path: str, archive: str | None, member: Any) -> None:
        self.path, self.archive = path, archive
        self.offset, self.length = member.offset, member.length
        self.compression = member.compression


def _make_archives(folder: Path, count: int) -> None:
    """Make the same ``count`` files as a zip, a tar and a folder; 12 kB each, of noise."""
    import tarfile

    stream = np.random.default_rng(0)
    source = folder / "images"
    for number in range(count):
        path = source / f"{number % 345:03}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.bytes(int(stream.integers(4_000, 20_000))))
    files = sorted(source.rglob("*.jpg"))
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for path in files:
            archive.write(path, path.relative_to(folder).as_posix())
    with tarfile.open(folder / "images.tar", "w") as tar:
        for path in files:
            tar.add(path, path.relative_to(folder).as_posix())


def _measure(step: Callable[[Path, Path], dict[str, float]], first: Path, second: Path) -> Any:
    """Run a step in a process of its own; return its figures and peak memory in MB."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(step.__name__, first, second, sender))
    process.start()
    figures = receiver.recv()
    process.join()
    return figures


def _run(name: str, first: Path, second: Path, sender: Any) -> None:
    figures = globals()[name](first, second)
    figures["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sender.send(figures)


def _row(title: str, runs: list[dict[str, float]]) -> str:
    seconds = statistics.median(run["seconds"] for run in runs)
    memory = max(run["memory"] for run in runs)
    rate = f"{runs[0]['rows'] / seconds:,.0f} rows/s" if "rows" in runs[0] else ""
    size = f"{runs[0]['bytes'] / 1e6:,.2f} MB" if "bytes" in runs[0] else ""
    return f"| {title} | {seconds:.2f} s | {memory:,.0f} MB | {size} | {rate} |"


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lists", type=Path, required=True, help="folder with the split lists")
    parser.add_argument("--images", type=int, default=0, help="made for reading (none)")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    args = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(
        f"commit {commit or 'unknown'}, {time.strftime('%Y-%m-%d')}, Python "
        f"{platform.python_version()}, median of {args.repeats}\n"
    )
    print("| step | time | peak memory | on disk | rate |\n| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        steps: list[tuple[str, Callable[[Path, Path], dict[str, float]]]] = [
            ("published captions, lists in memory", _captions),
            ("index from the lists, both kinds of captions", _index),
            ("27 default mixtures from the index", _default_mixtures),
            ("all 105 mixtures from the index", _all_mixtures),
            ("export of one mixture as published text", _export),
        ]
        for title, step in steps:
            runs = [_measure(step, args.lists, work) for _ in range(args.repeats)]
            print(_row(title, runs), flush=True)
        if args.images:
            _make_archives(work, args.images)
            scans: list[tuple[str, Callable[[Path, Path], dict[str, float]]]] = [
                ("listing a zip", _scan_zip),
                ("listing a tar", _scan_tar),
                ("listing a folder", _scan_folder),
                ("random reads from the zip", _read_zip),
                ("random reads from the tar", _read_tar),
                ("random reads of files", _read_files),
            ]
            for title, step in scans:
                runs = [_measure(step, work, work) for _ in range(args.repeats)]
                print(_row(f"{title} of {args.images:,} images", runs), flush=True)


if __name__ == "__main__":
    main()
