"""Commands around checkpoints: import-checkpoint, export-checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clip_mixtures.errors import UserError

_IMPORT = """\
Turn a CLIP checkpoint in open_clip's format into one that can be evaluated here. No code in the
file is executed. Weights do not say which activation they were trained with: RN50 is open_clip's
RN50, with GELU; weights trained with QuickGELU, as OpenAI's, need RN50-quickgelu.
"""
_EXPORT = "Write a checkpoint so that open_clip.create_model(..., pretrained=FILE.pt) loads it."


def _import(args: argparse.Namespace) -> None:
    from clip_mixtures.training.architectures import check_architecture

    check_architecture(args.architecture, "--architecture")
    if args.epoch is not None and args.epoch < 0:
        raise UserError(f"--epoch: is {args.epoch}; must be 0 or more")

    from clip_mixtures.training.checkpoints import import_checkpoint

    made = import_checkpoint(args.checkpoint, args.architecture, args.out, args.epoch)
    for name in made.dropped:
        print(f"left out: {name!r}")
    if made.filled:
        print(f"set to zero: {len(made.filled)} counters that the file lacks, {made.filled[0]} ...")
    print(f"{made.path}: {made.tensors} tensors, epoch {made.epoch}")


def _export(args: argparse.Namespace) -> None:
    from clip_mixtures.training.checkpoints import epoch_of_checkpoint, export_checkpoint

    epoch = epoch_of_checkpoint(args.checkpoint)
    name = args.out.stem if args.name is None else args.name
    export_checkpoint(args.checkpoint, args.out, epoch, name)
    print(f"{args.out}: epoch {epoch}, named {name!r}")


def add_to(commands: Any) -> None:
    """Add the commands to a parser's."""
    imported = commands.add_parser(
        "import-checkpoint",
        help="turn an open_clip checkpoint into one of this project",
        description=_IMPORT,
    )
    imported.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="FILE",
        help=".pt or .pth of open_clip, or .safetensors",
    )
    imported.add_argument("--architecture", required=True, metavar="NAME", help="such as RN50")
    imported.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="where epoch_NNN.safetensors goes"
    )
    imported.add_argument(
        "--epoch",
        type=int,
        metavar="N",
        help="epochs behind the weights (what the file says, or its name epoch_N.pt)",
    )
    imported.set_defaults(run=_import)

    export = commands.add_parser(
        "export-checkpoint", help="write a checkpoint for open_clip", description=_EXPORT
    )
    export.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FILE.safetensors", help="of a run"
    )
    export.add_argument("--out", type=Path, required=True, metavar="FILE.pt", help="file to write")
    export.add_argument("--name", help="of the run, written into the file (that of FILE.pt)")
    export.set_defaults(run=_export)
