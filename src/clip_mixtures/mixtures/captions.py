"""Which caption a mixture gives to an image."""

from __future__ import annotations

import pandas as pd

from clip_mixtures.corpora.captions import corrected_captions
from clip_mixtures.corpora.imagenet_sketch import corrected_sketch_captions
from clip_mixtures.errors import UserError
from clip_mixtures.mixtures.spec import DOMAINS, SKETCHES, Mixture

COLUMNS = ("path", "class_id", "caption", "aligned_caption")


def captions_of(name: str, frame: pd.DataFrame, mixture: Mixture) -> list[str]:
    """Return the captions that a mixture gives to rows of an index.

    Args:
        name: of the index; images of "domains" and of ImageNet-Sketch are captioned by the
            mixture's protocol, those of base sets keep the text they have.
        frame: :data:`COLUMNS`.
        mixture: its captions ("standard" or "aligned") and protocol.

    Raises:
        UserError: when aligned captions are asked for and the domains have none.
    """
    aligned = mixture.captions == "aligned"
    if name == SKETCHES and mixture.corrected:
        return corrected_sketch_captions(frame["class_id"], frame["path"])
    if name != DOMAINS:
        return [str(text) for text in frame["caption"]]
    if mixture.corrected:
        return corrected_captions(frame["path"], aligned)
    column = "aligned_caption" if aligned else "caption"
    if frame[column].isna().any():
        first = frame.loc[frame[column].isna(), "path"].iloc[0]
        raise UserError(
            f"mixtures.{mixture.key}.captions: is {mixture.captions!r}, and {first!r} has no such "
            "caption; index the corpus again, or say captions: standard"
        )
    return [str(text) for text in frame[column]]
