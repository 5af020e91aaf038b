"""Commands around mixtures: mixtures, mixture, audit, export."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_mixtures.corpora.captions import DOMAIN_ORDER
from clip_mixtures.errors import UserError, unknown
from clip_mixtures.mixtures.spec import (
    DOMAINS,
    DUPLICATE_POLICIES,
    PUBLISHED_HELD_OUT,
    Checks,
    Mixture,
)

DEFAULT_PARAMS = Path("params.yaml")
# What stands before a "=" is an index if it cannot be part of a path or address.
_INDEX_NAME = re.compile(r"[A-Za-z0-9_-]+")


def _mixtures(args: argparse.Namespace) -> None:
    from clip_mixtures.mixtures.published import published_settings

    if not args.published:
        for key, params in _params(args.params)["mixtures"].items():
            print(f"{key}\t{_flow(params)}")
        return
    print("identifier\tgroup\toptions")
    for setting in published_settings():
        options = setting.params | {"held_out": PUBLISHED_HELD_OUT}
        print(f"{setting.identifier}\t{setting.group}\t{_flow(options)}")


def _flow(params: Any) -> str:
    """Write parameters as one line of YAML, to be pasted into params.yaml."""
    if isinstance(params, dict):
        return "{" + ", ".join(f"{key}: {_flow(value)}" for key, value in params.items()) + "}"
    if isinstance(params, Sequence) and not isinstance(params, str):
        return "[" + ", ".join(map(_flow, params)) + "]"
    return str(params).lower() if isinstance(params, bool) else str(params)


def _mixture(args: argparse.Namespace) -> None:
    from clip_mixtures.index import read_index
    from clip_mixtures.mixtures.make import make_mixture

    columns = ["domain", "class_id", "class_name"]
    index = read_index(args.index / f"{DOMAINS}.parquet", columns=columns)
    mixture = _find(args, index.domains(), index.class_names())
    checks = _checks(args)
    made = make_mixture(args.index, mixture, args.out, args.verification, checks)
    print(made.counts.to_string(index=False))
    for reason, count in made.dropped.items():
        print(f"left out: {count} {reason}")
    if args.verification is None:
        print("images not compared, unreadable ones not left out (no --verification)")
    print(f"{args.out}: {sum(made.counts['images'])} training images")


def _checks(args: argparse.Namespace) -> Checks:
    """Return how strict the audit is: by command line, parameters or custom."""
    path = args.params or (DEFAULT_PARAMS if DEFAULT_PARAMS.is_file() else None)
    said = (_params(path).get("audit") if path else None) or {}
    if not isinstance(said, dict):
        raise UserError(f"{path}: audit: is {said!r}, not a mapping")
    usual = Checks()
    duplicates = args.duplicates or said.get("duplicates", usual.duplicates)
    if duplicates not in DUPLICATE_POLICIES:
        raise unknown("duplicates", duplicates, DUPLICATE_POLICIES, f"{path}: audit.duplicates")
    near_bits = args.near_bits if args.near_bits is not None else said.get("near_bits")
    if near_bits is not None and not isinstance(near_bits, int):
        raise UserError(f"{path}: audit.near_bits: is {near_bits!r}; allowed: 0 to 64")
    return Checks(duplicates, usual.near_bits if near_bits is None else near_bits)


def _find(args: argparse.Namespace, domains: Sequence[str], classes: Sequence[str]) -> Mixture:
    """Return the mixture of a key in a parameter file, or of a published identifier."""
    from clip_mixtures.mixtures.published import REAL_ONLY, params_of
    from clip_mixtures.mixtures.spec import mixture_from_params

    path = args.params or (DEFAULT_PARAMS if DEFAULT_PARAMS.is_file() else None)
    params = _params(path) if path else {"mixtures": {}}
    if args.mixture in params["mixtures"]:
        defaults = params.get("test") or {}
        if not isinstance(defaults, dict):
            raise UserError(f"{path}: test: is {defaults!r}, not a mapping")
        wanted = params["mixtures"][args.mixture]
        return mixture_from_params(args.mixture, wanted, defaults, domains, classes)
    if not args.mixture.startswith("lso-"):
        where = f"{path}: mixtures" if path else "--mixture"
        raise unknown("mixture", args.mixture, [*params["mixtures"], REAL_ONLY, "lso-..."], where)
    if set(domains) != set(DOMAIN_ORDER):
        raise UserError(
            f"{args.mixture}: stands for DomainNet's six domains, and {args.index} has "
            f"{', '.join(domains)}; index all of them, or define a mixture of your own (--params)"
        )
    defaults = {"test_domain": "sketch", "held_out": PUBLISHED_HELD_OUT}
    wanted = params_of(args.mixture)
    return mixture_from_params(args.mixture, wanted, defaults, domains, classes)


def _params(path: Path) -> dict[str, Any]:
    from clip_mixtures.files import read_yaml

    params = dict(read_yaml(path))
    if not isinstance(params.get("mixtures"), dict):
        raise UserError(f"{path}: has no mapping `mixtures`")
    return params


def _audit(args: argparse.Namespace) -> None:
    from clip_mixtures.files import atomic_write_json
    from clip_mixtures.mixtures.audit import audit, check_report
    from clip_mixtures.mixtures.store import read_mixture

    stored = read_mixture(args.mixture)
    if args.duplicates == "remove":
        raise UserError("--duplicates: an audit removes nothing; build the mixture anew with it")
    usual = Checks()
    near_bits = usual.near_bits if args.near_bits is None else args.near_bits
    checks = Checks(args.duplicates or usual.duplicates, near_bits)
    rows = stored.rows("train")
    report = audit(stored.mixture, stored.indices, rows, args.verification, checks)
    out = args.out or args.mixture / "audit.json"
    if args.verification is not None or args.out is not None or not out.is_file():
        # A report in which images were compared is not replaced by one in which they were not.
        atomic_write_json(out, report)
    check_report(report)
    duplicates = report["duplicates"]
    found = (
        f"{duplicates['exact_held_out']} exact and {duplicates['near_held_out']} near duplicates "
        "of held-out test images"
        if duplicates["compared"]
        else "images not compared (no --verification)"
    )
    print(f"{out}: no leaks; {found}")


def _export(args: argparse.Namespace) -> None:
    from clip_mixtures.mixtures.export import export
    from clip_mixtures.mixtures.store import read_mixture

    stored = read_mixture(args.mixture)
    roots: dict[str, str] = {}
    for text in args.root or []:
        name, given, prefix = text.partition("=")
        if given and _INDEX_NAME.fullmatch(name):
            roots[name] = prefix
        else:
            roots[""] = text
    rows = export(stored, args.split, args.out, roots, progress=args.split)
    print(f"{args.out}: {rows} rows")


def _add_checks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verification",
        type=Path,
        help="folder that `verify` wrote: compare images, leave out unreadable ones",
    )
    parser.add_argument(
        "--duplicates",
        choices=DUPLICATE_POLICIES,
        help="what training images with the bytes of a held-out test image mean (error)",
    )
    parser.add_argument(
        "--near-bits",
        type=int,
        help="differing bits of near duplicates' hashes (4)",
    )


def add_to(commands: Any) -> None:
    """Add the commands to a parser's."""
    listing = commands.add_parser("mixtures", help="list mixtures and what makes them")
    listing.add_argument("--published", action="store_true", help="the study's 105")
    listing.add_argument(
        "--params", type=Path, default=DEFAULT_PARAMS, help="YAML with `mixtures` (%(default)s)"
    )
    listing.set_defaults(run=_mixtures)

    mixture = commands.add_parser("mixture", help="choose the rows of one mixture")
    mixture.add_argument("--index", type=Path, required=True, help="folder that `index` wrote")
    mixture.add_argument(
        "--mixture", required=True, metavar="KEY", help="key in params.yaml, or published name"
    )
    mixture.add_argument(
        "--params",
        type=Path,
        help="YAML with `mixtures` (and `test`, `audit`); params.yaml, where there is one",
    )
    mixture.add_argument("--out", type=Path, required=True, help="folder to make")
    _add_checks(mixture)
    mixture.set_defaults(run=_mixture)

    audit = commands.add_parser("audit", help="look for leaks in a mixture")
    audit.add_argument("--mixture", type=Path, required=True, help="folder of the mixture")
    audit.add_argument("--out", type=Path, help="report (audit.json in the folder)")
    _add_checks(audit)
    audit.set_defaults(run=_audit)

    export = commands.add_parser("export", help="write a mixture as the published TSV")
    export.add_argument("--mixture", type=Path, required=True, help="folder of the mixture")
    export.add_argument(
        "--split", choices=("train", "val"), required=True, help="training or validation rows"
    )
    export.add_argument("--out", type=Path, required=True, metavar="FILE.tsv", help="file to write")
    export.add_argument(
        "--root",
        action="append",
        metavar="[INDEX=]PREFIX",
        help="what paths begin with; once for all, or once for each index",
    )
    export.set_defaults(run=_export)
