"""Small networks for tests of circuits, and the published formulas in the plainest form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch.nn import functional

from clip_mixtures.mechanisms.towers import INPUT, Submodule, Tower

Values = dict[str, torch.Tensor]


def small_resnet(
    layers: Sequence[int] = (1, 1, 1, 1), width: int = 4, size: int = 32, seed: int = 0
) -> ModifiedResNet:
    """Make a ModifiedResNet in double precision whose batch normalisation does something."""
    torch.manual_seed(seed)
    visual = ModifiedResNet(list(layers), 8, 2, size, width)
    for norm in visual.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.normal_(norm.bias, 0, 0.3)
            for name, statistics in norm.named_buffers():
                if name == "running_mean":
                    torch.nn.init.normal_(statistics, 0, 0.3)
                elif name == "running_var":
                    torch.nn.init.uniform_(statistics, 0.5, 1.5)
    return visual.double().eval()


def small_images(count: int = 2, size: int = 32, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)


def text_rows(width: int = 8, classes: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    return functional.normalize(rows, dim=1)


def ray_tower() -> Tower:
    """Make a tower that hands answers can follow: pixels (p, q, r), feature (p + 2 q, 1)."""
    weights = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)

    def head(value: torch.Tensor) -> torch.Tensor:
        sums = value.flatten(1) @ weights
        return torch.stack([sums, torch.ones_like(sums)], dim=1)

    return Tower((Submodule(INPUT, lambda value: value, 1),), head)


def product_tower() -> Tower:
    """Make a tower of ``input``, ``pair`` (p, q) and ``product`` p q, for hand answers."""
    return Tower(
        (
            Submodule(INPUT, lambda value: value, 1),
            Submodule("pair", lambda value: value[:, :2], 1),
            Submodule("product", lambda value: value[:, :1] * value[:, 1:], 1),
        ),
        lambda value: torch.cat([value.flatten(1), torch.ones_like(value.flatten(1))], dim=1),
    )


def plain_nodes(
    tower: Tower, direction: torch.Tensor, images: torch.Tensor, scales: Sequence[float]
) -> Values:
    """Integrate gradients submodule by submodule, step by step, with equal weights."""
    found = {}
    with torch.no_grad():
        values = tower.values(images, tower.names)
    for name, clean in values.items():
        average = torch.zeros_like(clean)
        for scale in scales:
            inserted = (scale * clean).requires_grad_()
            score = functional.normalize(tower.run(inserted, name), dim=1) @ direction
            average += torch.autograd.grad(score.sum(), inserted)[0] / len(scales)
        effect = tower[name].neurons(average * (0 - clean))
        found[name] = effect.sum(dim=1).mean(dim=0)
    return found


def plain_edges(
    tower: Tower, images: torch.Tensor, up: str, down: str, units: Values, scales: Sequence[float]
) -> torch.Tensor:
    """Integrate gradients of every downstream neuron's error, step by step, as published."""
    with torch.no_grad():
        values = tower.values(images, [up, down])
    clean, aim = values[up], tower[down].neurons(values[down])
    found = torch.zeros(len(units[down]), len(units[up]), dtype=clean.dtype)
    for scale in scales:
        inserted = (scale * clean).requires_grad_()
        reached = tower[down].neurons(tower[down].function(inserted))
        for row, unit in enumerate(units[down]):
            score = functional.mse_loss(reached[..., unit], aim[..., unit])
            gradient = torch.autograd.grad(score, inserted, retain_graph=True)[0]
            effect = tower[up].neurons(gradient * (0 - clean)).sum(dim=1).mean(dim=0)
            found[row] += effect[units[up]] / len(scales)
    return found
