"""Images for evaluation: the pixels of open_clip's transform, and mistakes named."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_mixtures.archives import list_members
from clip_mixtures.corpora.generated import jpegs
from clip_mixtures.errors import UserError
from clip_mixtures.evaluation.pixels import centre, pack
from clip_mixtures.index import placed

Pixels = npt.NDArray[np.uint8]


def transformed(image: Image.Image, size: int) -> Pixels:
    """Return what open_clip's evaluation transform makes, as bytes."""
    # With this deviation a tensor from 0 to 1 comes out as grey levels.
    transform = open_clip.image_transform(size, is_train=False, mean=(0,) * 3, std=(1 / 255,) * 3)
    made: Any = transform(image)
    return np.asarray(made.permute(1, 2, 0).numpy().round(), dtype=np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([8, 15, 32]))
def test_pixels_are_those_of_open_clips_transform(height: int, width: int, size: int) -> None:
    stream = np.random.default_rng(height * 100 + width)
    pixels = stream.integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = centre(pixels, size)
    assert found.shape == (size, size, 3)
    assert (found == transformed(Image.fromarray(pixels), size)).all()


def test_the_longer_side_is_rounded_down_and_margins_to_even() -> None:
    # 10 x 17 to 10 x 17: margins of 3.5 become 4.
    pixels = np.arange(10 * 17 * 3, dtype=np.int64).reshape(10, 17, 3).astype(np.uint8)
    assert (centre(pixels, 10) == pixels[:, 4:14]).all()
    # 20 x 35 to 10 x 17 (not 18) before that.
    tall = np.repeat(np.repeat(pixels, 2, axis=0), 2, axis=1)
    wide = np.concatenate([tall, tall[:, -1:]], axis=1)
    assert (centre(wide, 10) == transformed(Image.fromarray(wide), 10)).all()


def archive_of(folder: Path, images: dict[str, bytes]) -> pd.DataFrame:
    with zipfile.ZipFile(folder / "images.zip", "w") as file:
        for name, data in images.items():
            file.writestr(name, data)
    members = list_members(folder / "images.zip")
    return pd.DataFrame({"path": list(images), **placed(members, "images.zip")})


def test_jpegs_of_an_archive_are_decoded_as_pillow_does(tmp_path: Path) -> None:
    data = jpegs(3)
    grey = io.BytesIO()
    Image.open(io.BytesIO(data[0])).convert("L").save(grey, "JPEG")
    images = {f"{number}.jpg": each for number, each in enumerate([*data, grey.getvalue()])}
    out = np.zeros((4, 64, 64, 3), dtype=np.uint8)
    pack(archive_of(tmp_path, images), tmp_path, 64, out)
    for found, each in zip(out, images.values(), strict=True):
        assert (found == transformed(Image.open(io.BytesIO(each)), 64)).all()


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    frame = archive_of(tmp_path, {"a.jpg": jpegs(1)[0], "b/c.jpg": b"no image"})
    out = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(UserError, match=r"images\.zip: b/c\.jpg is not a readable image"):
        pack(frame, tmp_path, 8, out)
    (tmp_path / "d.jpg").write_bytes(jpegs(1)[0][:1000])
    alone = pd.DataFrame({"path": ["d.jpg"], "archive": [None]})
    with pytest.raises(UserError, match=r"d\.jpg is not a readable image"):
        pack(alone, tmp_path, 8, out)
