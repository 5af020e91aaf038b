"""Train two tiny towers, as many processes as torchrun started; not a test itself."""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from clip_mixtures.scratch import end_with_parent
from clip_mixtures.training import loop
from clip_mixtures.training.augmentation import Augmentation
from clip_mixtures.training.clip import Contrastive
from clip_mixtures.training.config import TrainConfig
from clip_mixtures.training.feed import PackedFeed
from clip_mixtures.training.models import Normalisation
from clip_mixtures.training.processes import Processes, join_processes, leave_processes

SIZE, LENGTH, WORDS, WIDTH = 8, 6, 50, 16
TOY = TrainConfig(
    epochs=3, global_batch_size=8, learning_rate=1e-2, warmup_steps=2, weight_decay=0.1,
    beta1=0.9, beta2=0.98, epsilon=1e-6, crop_scale=0.8, flip=True, checkpoint_every=1,
)  # fmt: skip
CPU = torch.device("cpu")
ALONE = Processes(rank=0, world_size=1, device=CPU)


class Towers(torch.nn.Module):
    """An image and a text tower that answer as open_clip's do.

    Args:
        norm: put batch normalisation and dropout into the image tower, so that a run has more to
            keep than weights.
    """

    def __init__(self, norm: bool) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = [torch.nn.Conv2d(3, WIDTH, 4, stride=2)]
        if norm:
            layers += [torch.nn.BatchNorm2d(WIDTH), torch.nn.Dropout(0.1)]
        layers += [torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(9 * WIDTH, WIDTH)]
        self.visual = torch.nn.Sequential(*layers)
        self.text = torch.nn.EmbeddingBag(WORDS, WIDTH)
        self.text_projection = torch.nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.0))
        self.output_dict = False

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> Any:
        """Return features of unit length and the scale, by name if open_clip's trainer asks."""
        features = {
            "image_features": functional.normalize(self.visual(images), dim=-1),
            "text_features": functional.normalize(self.text(tokens) @ self.text_projection, dim=-1),
            "logit_scale": self.logit_scale.exp(),
        }
        return features if self.output_dict else tuple(features.values())


def make_towers(seed: int = 0, norm: bool = False) -> Towers:
    torch.manual_seed(seed)
    return Towers(norm)


def make_feed(count: int = 20) -> PackedFeed:
    """Make random images and random captions of them."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    tokens = torch.from_numpy(random.integers(0, WORDS, (count, LENGTH)))
    normalisation = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), CPU)
    return PackedFeed(images, tokens, Augmentation((0.8, 1.0), flip=True), normalisation)


class Faulty(Contrastive):
    """Dies, or waits, after every step or one of them, counted from where the process began."""

    def __init__(
        self,
        network: torch.nn.Module,
        config: TrainConfig,
        processes: Processes = ALONE,
        dies_after: int = 0,
        waits: float = 0.0,
    ) -> None:
        super().__init__(network, config, processes)
        self.steps, self.dies_after, self.waits = 0, dies_after, waits

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def after_step(self) -> None:
        super().after_step()
        self.steps += 1
        time.sleep(self.waits)
        if self.steps == self.dies_after:
            self.die()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--norm", action="store_true")
    parser.add_argument("--dies-after", type=int, default=0)
    parser.add_argument("--waits", type=float, default=0.0)
    parser.add_argument("--device-batch", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    loop.SECONDS_BETWEEN_STATES = 0
    end_with_parent()
    processes = join_processes()
    network = make_towers(norm=given.norm)
    objective = Faulty(network, TOY, processes, given.dies_after, given.waits)
    loop.train(objective, make_feed(), TOY, 0, given.folder, processes, given.device_batch)
    leave_processes(processes)


if __name__ == "__main__":
    main()
