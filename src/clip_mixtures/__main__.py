"""Command line of clip-mixtures.

python -m clip_mixtures sample --out data     build the sample corpus (real images)
python -m clip_mixtures download domainnet --out data/domainnet
python -m clip_mixtures index --domainnet data/domainnet --out build/index
python -m clip_mixtures mixture --index build/index --mixture lso-rs-nosketchclasses --out cg-low
python -m clip_mixtures export --mixture cg-low --split train --out train.tsv
"""

from __future__ import annotations

import argparse

from clip_mixtures.commands import checkpoints, data, mixtures, sample
from clip_mixtures.errors import reports_user_errors


def parser() -> argparse.ArgumentParser:
    """Return the command line parser."""
    top = argparse.ArgumentParser(
        prog="python -m clip_mixtures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)
    for group in (sample, data, mixtures, checkpoints):
        group.add_to(commands)
    return top


@reports_user_errors
def main(argv: list[str] | None = None) -> None:
    """Run one command."""
    args = parser().parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
