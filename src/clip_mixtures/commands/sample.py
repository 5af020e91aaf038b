"""Commands around the sample corpus and the parameters: sample, contact-sheet, preset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clip_mixtures.errors import UserError

DEFAULT_PACKAGES = Path("scratch/icon-packages")


def _sample(args: argparse.Namespace) -> None:
    from clip_mixtures.corpora import emoji

    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers: is {args.workers}; allowed: 1 or more")
    if not args.force and emoji.verify_sample(args.out):
        print(f"{args.out}: the sample corpus is there and whole")
        return
    if args.force and args.out.exists():
        if not (args.out / emoji.MANIFEST).is_file():
            raise UserError(
                f"{args.out}: no {emoji.MANIFEST} in it, so --force does not replace it"
            )
        if foreign := emoji.foreign_files(args.out):
            raise UserError(
                f"{args.out / foreign[0]}: no part of the sample ({len(foreign)} such files); "
                "move them away, --force replaces the folder"
            )
        kept = emoji.set_changed_aside(args.out)
        if kept:
            print(f"{kept}: what differed from the sample was kept here")
    packages = emoji.fetch_packages(args.packages)
    emoji.build_sample(args.out, packages, args.workers)
    print(f"{args.out}: sample corpus built, fingerprint {emoji.sample_fingerprint(args.out)[:16]}")


def _contact_sheet(args: argparse.Namespace) -> None:
    from clip_mixtures.index import read_index
    from clip_mixtures.report.contact_sheet import write_contact_sheet

    index = read_index(args.index)
    names = index.class_names()
    if args.rows < 1 or args.each < 1:
        raise UserError(f"--rows {args.rows} --each {args.each}: both must be 1 or more")
    step = max(len(names) // args.rows, 1)
    classes = args.classes or names[::step][: args.rows]
    write_contact_sheet(index, classes, args.out, each=args.each)
    print(
        f"{args.out}: {', '.join(classes)}; domains {', '.join(index.domains())}, train then test"
    )


def _preset(args: argparse.Namespace) -> None:
    from clip_mixtures.presets import apply_preset

    changed = apply_preset(args.folder / f"{args.name}.yaml", args.params)
    print(f"{args.params}: preset {args.name} sets {', '.join(changed) or 'nothing new'}")


def add_to(commands: Any) -> None:
    """Add the commands to a parser's."""
    sample = commands.add_parser("sample", help="build the sample corpus of real images")
    sample.add_argument(
        "--out", type=Path, default=Path("data"), help="folder to make (%(default)s)"
    )
    sample.add_argument(
        "--packages",
        type=Path,
        default=DEFAULT_PACKAGES,
        help="where the icon packages are kept or fetched to (%(default)s)",
    )
    sample.add_argument("--workers", type=int, help="processes to draw with (all cores)")
    sample.add_argument("--force", action="store_true", help="replace a sample that is there")
    sample.set_defaults(run=_sample)

    sheet = commands.add_parser("contact-sheet", help="draw images of each domain, to look at them")
    sheet.add_argument(
        "--index",
        type=Path,
        default=Path("build/index/domains.parquet"),
        help="of the domains (%(default)s)",
    )
    sheet.add_argument(
        "--out", type=Path, default=Path("contact_sheet.png"), help="PNG to write (%(default)s)"
    )
    sheet.add_argument("--classes", nargs="+", metavar="NAME", help="class names (evenly chosen)")
    sheet.add_argument(
        "--rows", type=int, default=8, help="how many classes to choose (%(default)s)"
    )
    sheet.add_argument("--each", type=int, default=1, help="images of each split (%(default)s)")
    sheet.set_defaults(run=_contact_sheet)

    preset = commands.add_parser("preset", help="write a preset into params.yaml")
    preset.add_argument("name", help="small, sample, or another file of the presets folder")
    preset.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="file to change (%(default)s)"
    )
    preset.add_argument(
        "--folder", type=Path, default=Path("presets"), help="where presets lie (%(default)s)"
    )
    preset.set_defaults(run=_preset)
