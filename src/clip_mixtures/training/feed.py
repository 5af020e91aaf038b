"""Where batches come from: packed pixels, or images decoded anew in every epoch.

*Packed*: every image is decoded once, brought to the network's size and put into one file of uint8
pixels that the processes of a machine map; a batch is a gather, and cropping is resampling on the
device. For small images. *Decoded*: worker processes read an image out of its archive, decode it,
crop and resize it, in every epoch anew. For large ones.

Nothing is kept as Python objects: a row is a number into NumPy and Arrow columns, so the memory of
a worker does not grow, however long it runs.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from clip_mixtures.errors import UserError
from clip_mixtures.images import ImageReader
from clip_mixtures.index import Index
from clip_mixtures.training.augmentation import Augmentation, apply_maps
from clip_mixtures.training.decoding import crop_to
from clip_mixtures.training.loop import Batch
from clip_mixtures.training.models import Normalisation, to_pixels

Rows = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class PackedFeed:
    """Batches from packed pixels.

    Attributes:
        images: (N, S, S, 3) uint8, possibly a memory map.
        targets: (N, ...) integers, token ids or labels.
        augmentation: crops and mirror images.
        normalisation: of the network's input, on its device.
    """

    images: npt.NDArray[np.uint8]
    targets: torch.Tensor
    augmentation: Augmentation
    normalisation: Normalisation

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, rows: torch.Tensor, draws: torch.Tensor) -> Iterator[Batch]:
        """Yield batches; see :class:`loop.Feed`."""
        for chosen, drawn in zip(rows, draws, strict=True):
            images = torch.from_numpy(self.images[chosen.numpy()])
            if self.normalisation.device.type == "cuda":
                # Out of other memory a copy waits until the GPU has nothing else to do.
                images = images.pin_memory()
            pixels = to_pixels(images.to(self.normalisation.device, non_blocking=True))
            pixels = apply_maps(pixels, self.augmentation.maps(drawn))
            targets = self.targets[chosen].long()
            yield Batch(
                self.normalisation.apply(pixels),
                targets.to(self.normalisation.device, non_blocking=True),
            )


class Places(NamedTuple):
    """Where the images of several indices lie, as columns.

    Attributes:
        source: (N,) int16, which of ``roots`` and ``archives``.
        roots: root folder of each source.
        archives: archive of each source, None for files of their own.
        paths: (N,) Arrow strings.
        offset: (N,) int64, -1 for a file of its own.
        length: (N,) int64, likewise.
        deflated: (N,) bool.
    """

    source: npt.NDArray[np.int16]
    roots: tuple[Path, ...]
    archives: tuple[str | None, ...]
    paths: pa.ChunkedArray
    offset: Rows
    length: Rows
    deflated: npt.NDArray[np.bool_]


class _Row(NamedTuple):
    """An index row, for the reader."""

    path: str
    archive: str | None
    offset: int
    length: int
    compression: str | None


def places_of(parts: Sequence[tuple[Index, Rows]]) -> Places:
    """Return where chosen rows of several indices lie, in order."""
    sources: dict[tuple[Path, str | None], int] = {}
    source, paths, offset, length, deflated = [], [], [], [], []
    for index, rows in parts:
        frame = index.frame.iloc[rows]
        archive = frame["archive"]
        names = [None if pd.isna(name) else str(name) for name in archive.unique()]
        for name in names:
            sources.setdefault((index.root, name), len(sources))
        inside = {name: sources[index.root, name] for name in names if name is not None}
        alone = sources.get((index.root, None), -1)
        source.append(archive.map(inside).fillna(alone).to_numpy(dtype=np.int16))
        paths.append(pa.array(frame["path"], pa.large_string()))
        offset.append(frame["offset"].fillna(-1).to_numpy(dtype=np.int64))
        length.append(frame["length"].fillna(-1).to_numpy(dtype=np.int64))
        deflated.append((frame["compression"] == "deflate").to_numpy(dtype=bool))
    return Places(
        np.concatenate(source),
        tuple(root for root, _ in sources),
        tuple(archive for _, archive in sources),
        pa.chunked_array(paths, pa.large_string()),
        np.concatenate(offset),
        np.concatenate(length),
        np.concatenate(deflated),
    )


class _Decoder(Dataset["torch.Tensor | UserError"]):
    """What a worker does with a row and its draws.

    A user's mistake is handed over as a value: raised in a worker, its one line would come out
    wrapped in the worker's traceback.
    """

    def __init__(self, places: Places, size: int, augmentation: Augmentation, decoder: str) -> None:
        self._places, self._size = places, size
        self._augmentation, self._decoder = augmentation, decoder
        self._readers: dict[Path, ImageReader] = {}

    def __getitem__(self, item: Any) -> torch.Tensor | UserError:
        row, *draws = item
        try:
            return self._pixels(int(row), draws)
        except UserError as error:
            return error

    def _pixels(self, row: int, draws: list[float]) -> torch.Tensor:
        place = self._place(row)
        root = self._places.roots[self._places.source[row]]
        # Opened in the worker that reads.
        if root not in self._readers:
            self._readers[root] = ImageReader(root)
        data = self._readers[root].read(place)
        try:
            pixels = crop_to(data, self._size, self._augmentation, draws, self._decoder)
        except Exception as error:
            where = root / (place.archive or place.path)
            raise UserError(
                f"{where}: {place.path} is not a readable image ({error}); the stage `verify` "
                "finds such images, and mixtures leave them out"
            ) from error
        return torch.from_numpy(pixels)

    def _place(self, row: int) -> _Row:
        places = self._places
        return _Row(
            places.paths[row].as_py(),
            places.archives[places.source[row]],
            int(places.offset[row]),
            int(places.length[row]),
            "deflate" if places.deflated[row] else None,
        )


def _together(items: list[torch.Tensor | UserError]) -> torch.Tensor | UserError:
    """Make a batch of images, or return the first mistake among them."""
    mistakes = [item for item in items if isinstance(item, UserError)]
    return mistakes[0] if mistakes else default_collate(items)


class _Plan:
    """The batches of an epoch, handed to the workers; another plan for every epoch."""

    def __init__(self) -> None:
        self.rows = torch.empty(0, 0, dtype=torch.int64)
        self.draws = torch.empty(0, 5, 0)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[list[tuple[float, ...]]]:
        for rows, draws in zip(self.rows, self.draws, strict=True):
            yield [
                (row, *numbers)
                for row, numbers in zip(rows.tolist(), draws.T.tolist(), strict=True)
            ]


def _workers_context() -> Any:
    """Return how workers start: off a process that shares no locks or threads with one on a GPU.

    It imports what they need once, and they share that memory.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class DecodedFeed:
    """Batches of images that worker processes decode.

    Args:
        places: where the images are.
        targets: (N, ...) integers, token ids or labels.
        size: side of the square images in pixels.
        augmentation: crops and mirror images.
        decoder: "exact" or "fast"; see :func:`decoding.crop_to`.
        normalisation: of the network's input, on its device.
        workers: processes that decode; 0 decodes in this one.
    """

    def __init__(
        self,
        places: Places,
        targets: torch.Tensor,
        size: int,
        augmentation: Augmentation,
        decoder: str,
        normalisation: Normalisation,
        workers: int,
    ) -> None:
        self._targets, self._normalisation = targets, normalisation
        self._plan = _Plan()
        self._loader: DataLoader[Any] = DataLoader(
            _Decoder(places, size, augmentation, decoder),
            batch_sampler=self._plan,
            collate_fn=_together,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=normalisation.device.type == "cuda",
            multiprocessing_context=_workers_context() if workers else None,
            prefetch_factor=4 if workers else None,
        )

    def __len__(self) -> int:
        return len(self._targets)

    def batches(self, rows: torch.Tensor, draws: torch.Tensor) -> Iterator[Batch]:
        """Yield batches; see :class:`loop.Feed`."""
        self._plan.rows, self._plan.draws = rows, draws
        device = self._normalisation.device
        for chosen, images in zip(rows, self._loader, strict=True):
            if isinstance(images, UserError):
                raise images
            pixels = to_pixels(images.to(device, non_blocking=True))
            targets = self._targets[chosen].long().to(device, non_blocking=True)
            yield Batch(self._normalisation.apply(pixels), targets)
