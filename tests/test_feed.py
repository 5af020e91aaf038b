"""Batches from packed pixels and from images that are decoded anew in every epoch."""

from __future__ import annotations

import dataclasses
import io
import multiprocessing
import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from corpora_factory import tar_bytes, tiny_image
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_training import make_run, published
from torchvision.transforms import InterpolationMode, functional

from clip_mixtures.archives import list_files
from clip_mixtures.corpora.png import encode_png
from clip_mixtures.errors import UserError
from clip_mixtures.index import Index, placed, read_index, write_index
from clip_mixtures.training import feed as feed_module
from clip_mixtures.training.augmentation import DRAWS, Augmentation
from clip_mixtures.training.decoding import crop_to
from clip_mixtures.training.feed import DecodedFeed, PackedFeed, places_of
from clip_mixtures.training.loop import Batch
from clip_mixtures.training.models import Normalisation
from clip_mixtures.training.processes import decoding_workers
from clip_mixtures.training.run import train_run

Pixels = npt.NDArray[np.uint8]
Parts = list[tuple[Index, npt.NDArray[np.int64]]]

CPU = torch.device("cpu")
NORMALISATION = Normalisation((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), CPU)
EVERYTHING = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=True)
CROPS = Augmentation(scale=(0.3, 1.0), flip=True)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# Corpora


def make_index(root: Path, source: str, members: dict[str, bytes]) -> Index:
    """Write images as a folder or an archive, by the ending of its name, and index them.

    Args:
        root: of the corpus.
        source: name of the folder, ``.tar``, ``.zip`` (stored) or ``deflated.zip``.
        members: file name to bytes.
    """
    root.mkdir(parents=True, exist_ok=True)
    path = root / source
    if path.suffix == ".tar":
        path.write_bytes(tar_bytes(members))
    elif path.suffix == ".zip":
        kind = zipfile.ZIP_DEFLATED if "deflated" in source else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", kind) as file:
            for name, data in members.items():
                file.writestr(name, data)
    else:
        path.mkdir()
        for name, data in members.items():
            (path / name).write_bytes(data)
    found = list_files(path)
    columns = {
        "path": [member.name for member in found], "corpus": "toy", "domain": "real",
        "class_id": 0, "class_name": "ant", "caption": "an ant", "aligned_caption": "an ant",
        "split": "train", **placed(found, source if path.is_file() else None),
    }  # fmt: skip
    return Index(pd.DataFrame(columns), root)


def joined(path: Path, *indices: Index) -> Index:
    """Write several indices of one root as one, and read it back as training does."""
    frame = pd.concat([index.frame for index in indices], ignore_index=True)
    write_index(path, Index(frame, indices[0].root))
    return read_index(path)


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Two corpora of every kind of source, and rows of both in an order of their own.

    Attributes:
        parts: indices and rows.
        images: the pixels of the rows, in their order.
    """

    parts: Parts
    images: list[Pixels]


def make_mixed(root: Path, size: int | None = None) -> Mixed:
    """Write the corpora, with images of one size, or of many."""
    sizes = np.random.default_rng(0)
    pixels: dict[tuple[str, str], Pixels] = {}
    indices = []
    # Archives of the same name in both corpora must not be taken for one another.
    for corpus, sources in {
        "one": ("stored.zip", "deflated.zip", "plain.tar", "folder"),
        "two": ("folder", "stored.zip"),
    }.items():
        of_corpus = []
        for source in sources:
            names = [f"{source.partition('.')[0]}{number}.png" for number in range(4)]
            for name in names:
                width, height = (size, size) if size else sizes.integers(20, 50, 2)
                whole = tiny_image(f"{corpus}/{name}", 50)[:height, :width]
                pixels[corpus, name] = np.ascontiguousarray(whole)
            members = {name: encode_png(pixels[corpus, name]) for name in names}
            of_corpus.append(make_index(root / corpus, source, members))
        indices.append(joined(root / f"{corpus}.parquet", *of_corpus))
    one, two = indices
    # Every source of both; some rows are left out, and sources take turns.
    rows = [np.array([9, 0, 14, 5, 2, 4, 13, 8, 7, 1, 15]), np.array([6, 3, 0, 5, 7])]
    parts = list(zip(indices, rows, strict=True))
    images = [
        pixels[index.root.name, Path(str(index.frame["path"].iloc[row])).name]
        for index, chosen in parts
        for row in chosen
    ]
    assert len({image.tobytes() for image in images}) == len(images) == 16
    assert (len(one), len(two)) == (16, 8)
    return Mixed(parts, images)


def decoded(
    parts: Parts,
    size: int,
    augmentation: Augmentation = CROPS,
    decoder: str = "exact",
    workers: int = 0,
) -> DecodedFeed:
    places = places_of(parts)
    targets = 10 * torch.arange(len(places.source))
    return DecodedFeed(places, targets, size, augmentation, decoder, NORMALISATION, workers)


def plan(count: int, steps: int, batch: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows (steps, batch) and draws (steps, 5, batch) of a made-up epoch."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)[: steps * batch]
    return order.view(steps, batch), torch.rand((steps, DRAWS, batch), generator=generator)


def grey_levels(batch: Batch) -> Pixels:
    """Undo the normalisation: (B, S, S, 3) uint8."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (NORMALISATION.mean, NORMALISATION.std))
    levels = (batch.images * std + mean) * 255
    assert (levels - levels.round()).abs().max() < 1e-2
    return levels.round().permute(0, 2, 3, 1).to(torch.uint8).numpy()


def by_hand(image: Pixels, size: int, augmentation: Augmentation, draws: Sequence[float]) -> Pixels:
    """Crop and resize as torchvision does for open_clip, and mirror."""
    height, width = image.shape[:2]
    (left, top, right, bottom), mirrored = augmentation.box(draws, width, height)
    cut = functional.resized_crop(
        Image.fromarray(image),
        top, left, bottom - top, right - left, [size, size],
        InterpolationMode.BICUBIC,
    )  # fmt: skip
    return np.asarray(functional.hflip(cut) if mirrored else cut, dtype=np.uint8)


# What the batches hold


@pytest.mark.parametrize("decoder", ["exact", "fast"])
def test_decoded_and_packed_images_are_the_same_where_nothing_is_cut_off(
    tmp_path: Path, decoder: str
) -> None:
    mixed = make_mixed(tmp_path, size=24)
    packed = PackedFeed(np.stack(mixed.images), 10 * torch.arange(16), EVERYTHING, NORMALISATION)
    rows, draws = plan(16, 4, 4, seed=0)
    fresh = decoded(mixed.parts, 24, EVERYTHING, decoder)
    assert len(fresh) == len(packed) == 16
    mirrored = 0
    batches = zip(packed.batches(rows, draws), fresh.batches(rows, draws), strict=True)
    for number, (ours, theirs) in enumerate(batches):
        assert ours.targets.tolist() == theirs.targets.tolist() == (10 * rows[number]).tolist()
        assert ours.targets.dtype == theirs.targets.dtype == torch.int64
        torch.testing.assert_close(theirs.images, ours.images, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(grey_levels(theirs), grey_levels(ours))
        assert theirs.images.is_contiguous(memory_format=torch.channels_last)
        for position, row in enumerate(rows[number].tolist()):
            flip = bool(draws[number, 4, position] < 0.5)
            mirrored += flip
            expected = mixed.images[row][:, ::-1] if flip else mixed.images[row]
            np.testing.assert_array_equal(grey_levels(theirs)[position], expected)
    assert number == 3
    assert 0 < mirrored < 16


def check_epochs(feed: DecodedFeed, mixed: Mixed, size: int) -> None:
    """Compare three epochs, each of another length and batch, with what they are to hold."""
    for seed, (steps, batch) in enumerate([(3, 5), (8, 2), (1, 16)]):
        rows, draws = plan(16, steps, batch, seed)
        batches = list(feed.batches(rows, draws))
        assert len(batches) == steps
        for chosen, drawn, made in zip(rows, draws, batches, strict=True):
            assert made.targets.tolist() == (10 * chosen).tolist()
            expected = [
                by_hand(mixed.images[row], size, CROPS, numbers)
                for row, numbers in zip(chosen.tolist(), drawn.T.tolist(), strict=True)
            ]
            np.testing.assert_array_equal(grey_levels(made), np.stack(expected))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_any_number_of_workers_makes_the_batches_that_are_asked_for(
    tmp_path: Path, workers: int
) -> None:
    mixed = make_mixed(tmp_path)
    feed = decoded(mixed.parts, 16, workers=workers)
    before = {child.pid for child in multiprocessing.active_children()}
    rows, draws = plan(16, 2, 2, seed=9)
    list(feed.batches(rows, draws))
    started = {child.pid for child in multiprocessing.active_children()} - before
    assert len(started) == workers
    check_epochs(feed, mixed, 16)
    # The same workers serve every epoch.
    assert {child.pid for child in multiprocessing.active_children()} - before == started


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_that_was_left_early_does_not_reach_into_the_next(
    tmp_path: Path, workers: int
) -> None:
    mixed = make_mixed(tmp_path)
    feed = decoded(mixed.parts, 16, workers=workers)
    rows, draws = plan(16, 8, 2, seed=3)
    next(feed.batches(rows, draws))
    check_epochs(feed, mixed, 16)


def damage(kind: str, data: bytes) -> bytes:
    return {"cut": data[: len(data) // 2], "no image": b"<html>", "empty": b""}[kind]


def check_mistakes(parts: Parts, mistakes: dict[int, str], workers: int) -> None:
    """Train into each mistake: what comes before arrives, and the one line names the image."""
    feed = decoded(parts, 16, workers=workers)
    good = [row for row in range(len(feed)) if row not in mistakes]
    for bad, message in mistakes.items():
        rows = torch.tensor([good[0:2], good[2:4], [good[4], bad], good[0:2]])
        batches = feed.batches(rows, torch.rand(4, DRAWS, 2))
        assert len(next(batches).images) == len(next(batches).images) == 2
        with pytest.raises(UserError, match=message) as caught:
            next(batches)
        assert type(caught.value) is UserError
        assert "\n" not in str(caught.value)
    # The workers are still there for what is whole.
    assert len(list(feed.batches(torch.tensor([good[:4]]), torch.rand(1, DRAWS, 4)))) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_ends_the_epoch_in_one_line(
    tmp_path: Path, workers: int
) -> None:
    whole = {f"{number}.png": encode_png(tiny_image(f"{number}")) for number in range(5)}
    mistakes: dict[int, str] = {}
    indices = []
    for source in ("folder", "stored.zip", "deflated.zip"):
        for kind in ("cut", "no image", "empty"):
            name = f"{source.partition('.')[0]} {kind}.png"
            damaged = damage(kind, encode_png(tiny_image("damaged", 40)))
            folder = f"{kind.replace(' ', '-')}-{source}"
            members = {f"a {folder}.png": whole["0.png"], name: damaged}
            indices.append(make_index(tmp_path / "data", folder, members))
            where = rf"data/{folder}/{name}" if source == "folder" else rf"data/{folder}: {name}"
            mistakes[2 * len(indices) - 1] = rf"{where}.* is not a readable image \(.*`verify`"
    # So far each index has a good image and a bad one, in the order of their names.
    indices.append(make_index(tmp_path / "data", "gone", whole))
    (tmp_path / "data" / "gone" / "1.png").unlink()
    mistakes[2 * 9 + 1] = r"data/gone/1\.png: No such file"
    index = joined(tmp_path / "index.parquet", *indices)
    check_mistakes([(index, np.arange(len(index)))], mistakes, workers)


# Decoding


unit = st.floats(0, 1, exclude_max=True, width=32)
draws_of_an_image = st.tuples(unit, unit, unit, unit, unit)


@st.composite
def pictures(draw: st.DrawFn, noise: st.SearchStrategy[bool] = st.booleans()) -> Pixels:  # noqa: B008
    """Draw noise, or a smooth picture, of any size."""
    width, height = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    seed = draw(st.integers(0, 2**16))
    random = np.random.default_rng(seed)
    if draw(noise):
        return random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[0:height, 0:width] / 20
    waves = [np.sin(x * a + y * b + c) for a, b, c in random.uniform(-1, 1, (3, 3))]
    return np.asarray(np.stack(waves, axis=-1) * 127.5 + 127.5, dtype=np.uint8)


ANY_CROP = Augmentation(scale=(0.02, 1.0), ratio=(0.3, 3.0), flip=True)


@given(pictures(), st.integers(1, 70), draws_of_an_image)
@settings(max_examples=150, deadline=None)
def test_the_exact_decoder_is_torchvisions_crop_of_pillows_image_to_the_bit(
    image: Pixels, size: int, draws: tuple[float, ...]
) -> None:
    made = crop_to(encode_png(image), size, ANY_CROP, draws, "exact")
    np.testing.assert_array_equal(made, by_hand(image, size, ANY_CROP, draws))
    assert made.flags.c_contiguous


def decode(image: Pixels, size: int, draws: tuple[float, ...], decoder: str) -> npt.NDArray[Any]:
    made = crop_to(encode_png(image), size, ANY_CROP, draws, decoder)
    assert made.dtype == np.uint8
    assert made.shape == (size, size, 3)
    return made.astype(int)


@given(pictures(), st.integers(1, 70), draws_of_an_image)
@settings(max_examples=150, deadline=None)
def test_the_fast_decoder_is_within_two_grey_levels_of_pillow(
    image: Pixels, size: int, draws: tuple[float, ...]
) -> None:
    (left, top, right, bottom), mirrored = ANY_CROP.box(draws, image.shape[1], image.shape[0])
    fast = decode(image, size, draws, "fast")
    # From left to right first; Pillow 13 begins from top to bottom in some tall crops.
    cut = Image.fromarray(image).crop((left, top, right, bottom))
    for shape in ((size, bottom - top), (size, size)):
        cut = cut.resize(shape, Image.Resampling.BICUBIC)
    expected = np.asarray(cut, dtype=int)[:, ::-1] if mirrored else np.asarray(cut, dtype=int)
    assert np.abs(fast - expected).max() <= 2
    if right - left >= bottom - top:
        assert np.abs(fast - decode(image, size, draws, "exact")).max() <= 2


@given(pictures(noise=st.just(False)), st.integers(8, 70), draws_of_an_image)
@settings(max_examples=100, deadline=None)
def test_the_fast_decoder_is_within_two_grey_levels_of_the_exact_one_in_smooth_images(
    image: Pixels, size: int, draws: tuple[float, ...]
) -> None:
    fast, exact = (decode(image, size, draws, decoder) for decoder in ("fast", "exact"))
    assert np.abs(fast - exact).max() <= 2


@pytest.mark.parametrize("decoder", ["exact", "fast"])
@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("RGB", "WEBP")],
)
def test_images_of_every_kind_become_three_channels(mode: str, kind: str, decoder: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), (204, 102, 51)).convert(mode).save(buffer, kind)
    made = crop_to(buffer.getvalue(), 8, CROPS, [0.5] * 5, decoder)
    expected = [127, 127, 127] if mode == "L" else [204, 102, 51]
    assert made.shape == (8, 8, 3)
    np.testing.assert_allclose(made.reshape(-1, 3), np.tile(expected, (64, 1)), atol=4)


# Boxes


@pytest.mark.parametrize(
    ("scale", "draws", "width", "height", "box", "mirrored"),
    [
        # A quarter of the area is half of each side; places from 0 to 20, both included.
        (0.25, (0, 0.5, 0.5, 0.5, 0.5), 40, 40, (10, 10, 30, 30), False),
        (0.25, (0, 0.5, 0.0, 0.999, 0.4), 40, 40, (0, 20, 20, 40), True),
        # 16:9 of a share of 9 in 100 of 100 x 100 is 40 x 22.5, rounded to the even 22.
        (0.09, (0, 1.0, 0.5, 0.5, 0.9), 100, 100, (30, 39, 70, 61), False),
        (0.09, (0, 0.0, 0.5, 0.5, 0.9), 100, 100, (39, 30, 61, 70), False),
        # sqrt(5000) = 70.7: too tall for the image.
        (1.0, (0.3, 0.5, 0.999, 0.7, 0.9), 100, 50, (29, 0, 100, 50), False),
        (1.0, (0.3, 0.5, 0.1, 0.1, 0.9), 1, 1, (0, 0, 1, 1), False),
    ],
)
def test_a_box_is_what_it_is_by_hand(
    scale: float,
    draws: tuple[float, ...],
    width: int,
    height: int,
    box: tuple[int, ...],
    mirrored: bool,
) -> None:
    augmentation = Augmentation(scale=(scale, scale), ratio=(9 / 16, 16 / 9), flip=True)
    assert augmentation.box(draws, width, height) == (box, mirrored)
    plain = dataclasses.replace(augmentation, flip=False)
    assert plain.box(draws, width, height) == (box, False)


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.01, 1.0), draws_of_an_image)
@example(1, 3000, 0.01, (0.0, 0.0, 0.0, 0.0, 0.0))
@settings(max_examples=300, deadline=None)
def test_boxes_are_inside_the_image_and_have_the_share_that_is_asked_for(
    width: int, height: int, smallest: float, draws: tuple[float, ...]
) -> None:
    (left, top, right, bottom), _ = Augmentation((smallest, 1.0)).box(draws, width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    wide, tall = right - left, bottom - top
    asked = (smallest + draws[0] * (1 - smallest)) * width * height
    # Rounding moves each side by half a pixel; a side of less than one becomes one.
    slack = (wide + tall) / 2 + 1
    assert wide * tall <= asked + slack
    if wide < width and tall < height:
        assert wide * tall >= asked - slack
        # The ratio too, which is from 3:4 to 4:3.
        assert wide + 0.5 >= (tall - 0.5) * 3 / 4
        assert tall + 0.5 >= (wide - 0.5) * 3 / 4


@given(st.integers(10, 200), st.integers(10, 200), st.floats(0.05, 0.9), st.floats(0, 0.999))
@settings(max_examples=100, deadline=None)
def test_boxes_reach_every_edge(width: int, height: int, share: float, ratio: float) -> None:
    augmentation = Augmentation((share, share))
    first, _ = augmentation.box((0, ratio, 0, 0, 0), width, height)
    last, _ = augmentation.box((0, ratio, 1 - 2**-24, 1 - 2**-24, 0), width, height)
    assert first[:2] == (0, 0)
    assert last[2:] == (width, height)


# Workers in a run


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
def test_the_memory_of_a_worker_does_not_grow(tmp_path: Path) -> None:
    data = {f"{n}.png": encode_png(tiny_image(f"{n}", 64)) for n in range(32)}
    index = joined(tmp_path / "index.parquet", make_index(tmp_path / "data", "a.zip", data))
    feed = decoded([(index, np.tile(np.arange(32), 4))], 64, workers=1)
    before = {child.pid for child in multiprocessing.active_children()}
    sizes = []
    for epoch in range(30):
        for batch in feed.batches(*plan(128, 16, 8, epoch)):
            assert len(batch.images) == 8
        (worker,) = (
            child for child in multiprocessing.active_children() if child.pid not in before
        )
        sizes.append(resident(worker.pid))
    # 20 epochs decode 2,560 images of 12 KB: 31 MB, were they kept.
    assert max(sizes[20:]) - max(sizes[:10]) < 10e6


def resident(pid: int | None) -> int:
    """Return the bytes of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def test_a_run_on_decoded_images_is_the_same_with_and_without_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_run(tmp_path)
    toy = dataclasses.replace(toy, config=dataclasses.replace(toy.config, images="decoded"))
    for workers in ("0", "1"):
        monkeypatch.setenv("WORKERS", workers)
        train_run(toy, tmp_path / f"scratch-{workers}", tmp_path / workers, {})
    assert published(tmp_path / "0") == published(tmp_path / "1")
    assert "checkpoints/epoch_002.safetensors" in published(tmp_path / "0")


@pytest.mark.parametrize(
    ("siblings", "wanted", "count"),
    [
        (None, None, 8),
        ("3", None, 2),
        ("16", None, 1),
        ("2", "5", 5),
        (None, "0", 0),
        (None, "", 8),
    ],
)
def test_the_cores_are_shared_by_the_processes_of_a_machine(
    monkeypatch: pytest.MonkeyPatch, siblings: str | None, wanted: str | None, count: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, value in (("LOCAL_WORLD_SIZE", siblings), ("WORKERS", wanted)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert decoding_workers() == count


@pytest.mark.parametrize("wanted", ["-1", "two", "1.5"])
def test_a_number_of_workers_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setenv("WORKERS", wanted)
    with pytest.raises(UserError, match=rf"WORKERS: is '{wanted}'; allowed"):
        decoding_workers()


def test_workers_have_what_they_need_when_they_start() -> None:
    # What is asked needs no import, so whatever is there was there before.
    asked = "'clip_mixtures.training.decoding' in __import__('sys').modules"
    with feed_module._workers_context().Pool(1) as pool:
        assert pool.apply(eval, (asked,))
