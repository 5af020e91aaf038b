"""Commands that bring the corpora in: download, index, verify."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clip_mixtures.corpora.sources import check_name
from clip_mixtures.errors import UserError


def _download(args: argparse.Namespace) -> None:
    from clip_mixtures.corpora.download import download_dataset

    files = download_dataset(args.dataset, args.out, only=args.only, mirror=args.mirror)
    print(f"{args.out}: {len(files)} files of {args.dataset} are there and whole")


def _index(args: argparse.Namespace) -> None:
    from clip_mixtures.corpora.indexing import write_indices
    from clip_mixtures.corpora.sources import Domains, Sources

    _check_companions(args)
    if args.domainnet and args.folders:
        raise UserError("--domainnet and --folders: both make domains.parquet; give one of them")
    domains = None
    names = tuple(args.domains) if args.domains else None
    if args.domainnet:
        domains = Domains(args.domainnet, names, images=not args.no_images)
    elif args.folders:
        if args.no_images:
            raise UserError("--no-images: with --folders the images are the lists; leave it out")
        domains = Domains(args.folders, names, "folders", test_share=args.test_share)
    sources = Sources(
        domains=domains,
        bases=_bases(args),
        imagenet_sketch=args.imagenet_sketch,
        imagenet_train=args.imagenet_train,
        imagenet_validation=args.imagenet_validation,
        imagenet_labels=args.imagenet_labels,
    )
    for line in write_indices(sources, args.out):
        print(line)


def _check_companions(args: argparse.Namespace) -> None:
    """Refuse an option whose corpus is not given."""
    companions = {
        "--imagenet-images": (args.imagenet_images, args.imagenet_captions),
        "--split-file": (args.split_file, args.imagenet_captions),
        "--tsv-images": (args.tsv_images, args.tsv),
        "--tsv-validation": (args.tsv_validation, args.tsv),
        "--quoted": (args.quoted, args.tsv),
        "--validation-per-mille": (args.validation_per_mille, args.webdataset),
        "--imagenet-labels": (args.imagenet_labels, args.imagenet_validation),
    }
    for option, (given, corpus) in companions.items():
        if given and not corpus:
            raise UserError(f"{option}: belongs to a corpus that is not given")


def _bases(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the base sets that the command line names."""
    bases: dict[str, dict[str, Any]] = {}
    if args.imagenet_captions:
        bases["imagenet-captions"] = {
            "format": "imagenet_captions",
            "captions": args.imagenet_captions,
            "images": args.imagenet_images,
            "split": args.split_file,
        }
    for name, _ in (args.tsv or []) + (args.webdataset or []):
        check_name(name, "base set")
    names = [name for name, _ in (args.tsv or []) + (args.webdataset or [])] + list(bases)
    if len(set(names)) < len(names):
        raise UserError(f"base sets {', '.join(names)}: two have one name")
    if len(args.tsv or []) > 1 and (args.tsv_images or args.tsv_validation):
        raise UserError(
            "--tsv-images, --tsv-validation: belong to one --tsv; index them one by one"
        )
    for name, tsv in args.tsv or []:
        bases[name] = {"format": "tsv", "train": Path(tsv), "images": args.tsv_images}
        bases[name] |= {"validation": args.tsv_validation, "quoted": args.quoted}
    for name, shards in args.webdataset or []:
        bases[name] = {"format": "webdataset", "shards": Path(shards)}
        bases[name]["validation_per_mille"] = args.validation_per_mille
    return bases


def _verify(args: argparse.Namespace) -> None:
    import pandas as pd

    from clip_mixtures.files import atomic_write_text, sha256_file
    from clip_mixtures.index import read_index
    from clip_mixtures.judgement import MEANINGS
    from clip_mixtures.verification import check_share, quarantine, remarks, write_verification

    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers: is {args.workers}; allowed: 1 or more")
    files = sorted(args.index.glob("*.parquet")) if args.index.is_dir() else [args.index]
    if not files:
        raise UserError(f"{args.index}: no index in it; the command `index` makes one")
    lists: list[pd.DataFrame] = []
    for path in files:
        index = read_index(path)
        table = write_verification(
            index,
            args.out / path.name,
            args.scratch,
            workers=args.workers,
            progress=f"verifying {path.stem}",
            index_hash=sha256_file(path),
        )
        unreadable = quarantine(table, index)
        print(f"{path.stem}: {len(table)} images, {len(unreadable)} unreadable, {remarks(table)}")
        for reason, name in list(zip(unreadable["reason"], unreadable["path"], strict=True))[:20]:
            print(f"  {reason} ({MEANINGS[reason]}): {name}")
        lists.append(unreadable.assign(index=path.stem))
        listed = pd.concat(lists, ignore_index=True).to_csv(index=False, lineterminator="\n")
        atomic_write_text(args.out / "quarantine.csv", listed)
        check_share(table, args.unreadable_share, path.stem)


def add_to(commands: Any) -> None:
    """Add the commands to a parser's."""
    from clip_mixtures.corpora.download import datasets

    download = commands.add_parser("download", help="fetch a public corpus, or go on fetching it")
    download.add_argument("dataset", choices=datasets(), help="which corpus")
    download.add_argument("--out", type=Path, required=True, help="folder to put it in")
    download.add_argument("--only", nargs="+", metavar="FILE", help="these files alone")
    download.add_argument("--mirror", metavar="URL", help="where the files lie by their bare names")
    download.set_defaults(run=_download)

    index = commands.add_parser("index", help="list every image of the corpora once")
    index.add_argument("--out", type=Path, required=True, help="folder for the indices")
    index.add_argument("--domainnet", type=Path, help="folder with DomainNet's lists and zips")
    index.add_argument("--folders", type=Path, help="folder of <domain>/<class>/<image>, or zips")
    index.add_argument("--domains", nargs="+", metavar="NAME", help="these domains alone")
    index.add_argument(
        "--no-images", action="store_true", help="index DomainNet's lists without the images"
    )
    index.add_argument(
        "--test-share",
        type=float,
        default=0.3,
        help="of --folders' images of a class in a domain, to the nearest number (%(default)s)",
    )
    index.add_argument(
        "--imagenet-captions", type=Path, metavar="JSON", help="the corpus' JSON of captions"
    )
    index.add_argument("--imagenet-images", type=Path, help="tar or folder of its images")
    index.add_argument("--split-file", type=Path, help="JSON naming its train and val files")
    index.add_argument(
        "--tsv", nargs=2, action="append", metavar=("NAME", "TSV"), help="a base set such as CC3M"
    )
    index.add_argument("--tsv-images", type=Path, help="archive or folder of its images")
    index.add_argument("--tsv-validation", type=Path, help="its validation rows")
    index.add_argument("--quoted", action="store_true", help="its fields are quoted where needed")
    index.add_argument(
        "--webdataset",
        nargs=2,
        action="append",
        metavar=("NAME", "SHARDS"),
        help="a base set of tar shards such as CC12M",
    )
    index.add_argument(
        "--validation-per-mille", type=int, default=0, help="of --webdataset (%(default)s)"
    )
    index.add_argument("--imagenet-sketch", type=Path, help="folder or zip")
    index.add_argument("--imagenet-train", type=Path, help="tar of tars or folder")
    index.add_argument("--imagenet-validation", type=Path, help="tar or folder")
    index.add_argument(
        "--imagenet-labels",
        type=Path,
        help="of --imagenet-validation: devkit or CSV, for a flat tar",
    )
    index.set_defaults(run=_index)

    verify = commands.add_parser("verify", help="open every image once; list what is unreadable")
    verify.add_argument("--index", type=Path, required=True, help="an index or a folder of them")
    verify.add_argument("--out", type=Path, required=True, help="folder for the tables")
    verify.add_argument(
        "--scratch",
        type=Path,
        default=Path("scratch") / "verification",
        help="folder for what is unfinished (%(default)s)",
    )
    verify.add_argument("--workers", type=int, help="processes to read with (all cores)")
    verify.add_argument(
        "--unreadable-share", type=float, default=0.001, help="more is an error (%(default)s)"
    )
    verify.set_defaults(run=_verify)
