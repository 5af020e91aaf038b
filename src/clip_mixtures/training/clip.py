"""What CLIP learns by: the contrastive loss between images and their captions.

Each process takes its slice of a global batch that does not depend on their number, and the loss is
open_clip's, local with gathered features that carry gradients (Cherti et al. 2023; paper section
3.3). A slice that does not fit the device is encoded in parts: once without gradients for the
features of all of it, whose loss gives the features' gradients, and once more part by part to carry
these into the weights (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup"). The gradients are those of the whole slice.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import open_clip
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from clip_mixtures.training.config import TrainConfig
from clip_mixtures.training.loop import Batch
from clip_mixtures.training.precision import Precision
from clip_mixtures.training.processes import Processes

# CLIP's cap on the logit scale, ln 100 (Radford et al. 2021, section 2.5).
MAX_LOGIT_SCALE = math.log(100)
# Gains, biases and the logit scale are not decayed, by shape or by name, as in open_clip.
_SPARED = ("bn", "ln", "bias", "logit_scale")


class Contrastive:
    """The objective of CLIP.

    Args:
        network: an open_clip model.
        config: the recipe.
        processes: that share a batch.
    """

    def __init__(self, network: torch.nn.Module, config: TrainConfig, processes: Processes) -> None:
        self.network = network
        self._config = config
        self._logit_scale = network.get_parameter("logit_scale")
        self._loss = open_clip.ClipLoss(
            local_loss=True,
            gather_with_grad=True,
            rank=processes.rank,
            world_size=processes.world_size,
        )
        if config.grad_checkpointing:
            network.set_grad_checkpointing()  # type: ignore[operator]

    def optimizer(self) -> torch.optim.Optimizer:
        """Make AdamW."""
        config = self._config
        return torch.optim.AdamW(
            decay_groups(self.network, config.weight_decay),
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            fused=True,
        )

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Return the rate of a step (0-based): linear warm-up, then a half cosine to zero."""
        return cosine_rate(step, self._config.epochs * steps_per_epoch, self._config)

    def backward(
        self, network: torch.nn.Module, parts: Sequence[Batch], precision: Precision
    ) -> torch.Tensor:
        """Leave the gradients of one batch; see :class:`loop.Objective`."""
        if len(parts) == 1:
            with precision.autocast():
                image, text, scale = network(parts[0].images, parts[0].targets)[:3]
                loss: torch.Tensor = self._loss(image, text, scale)
            precision.scaled(loss).backward()
            return loss.detach()
        return self._in_parts(network, parts, precision)

    def _in_parts(
        self, network: torch.nn.Module, parts: Sequence[Batch], precision: Precision
    ) -> torch.Tensor:
        with torch.no_grad(), frozen_statistics(self.network), precision.autocast():
            encoded = [network(part.images, part.targets)[:3] for part in parts]
        image = torch.cat([features[0] for features in encoded]).requires_grad_()
        text = torch.cat([features[1] for features in encoded]).requires_grad_()
        scale = encoded[0][2].detach().requires_grad_()
        with precision.autocast():
            loss: torch.Tensor = self._loss(image, text, scale)
        of_image, of_text, of_scale = torch.autograd.grad(
            precision.scaled(loss), [image, text, scale]
        )
        sizes = [len(part.images) for part in parts]
        gradients = zip(parts, of_image.split(sizes), of_text.split(sizes), strict=True)
        for number, (part, for_image, for_text) in enumerate(gradients):
            last = number + 1 == len(parts)
            with synchronised(network, last), precision.autocast():
                features = network(part.images, part.targets)
                image_part = features[0].float() * for_image.float()
                text_part = features[1].float() * for_text.float()
                # The scale belongs to the whole batch and is to be counted once.
                scale_part = features[2] * (of_scale if last else 0)
                (image_part.sum() + text_part.sum() + scale_part).backward()
        return loss.detach()

    def trial(self, images: torch.Tensor) -> torch.Tensor:
        """Return a scalar of everything that is trained, to see how many images fit."""
        length = int(self.network.get_buffer("attn_mask").shape[0])
        tokens = torch.zeros((len(images), length), dtype=torch.long, device=images.device)
        with frozen_statistics(self.network):
            image, text = self.network(images, tokens)[:2]
        total: torch.Tensor = image.sum() + text.sum()
        return total

    def after_step(self) -> None:
        """Keep the logit scale between 1 and 100."""
        with torch.no_grad():
            self._logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def facts(self) -> dict[str, float]:
        """Return the logit scale."""
        return {"logit_scale": float(self._logit_scale.detach().exp())}


def decay_groups(network: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return parameter groups with decay on weights of two or more dimensions only.

    Gains, biases and the logit scale are left alone, by shape or by name.
    """
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    spared = [p.ndim < 2 or any(word in name for word in _SPARED) for name, p in named]
    groups: list[list[torch.nn.Parameter]] = [[], []]
    for (_, parameter), is_spared in zip(named, spared, strict=True):
        groups[is_spared].append(parameter)
    return [
        {"params": groups[0], "weight_decay": weight_decay},
        {"params": groups[1], "weight_decay": 0.0},
    ]


def cosine_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Return the rate of a step (0-based): linear warm-up, then a half cosine down to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * done)) * config.learning_rate


@contextlib.contextmanager
def frozen_statistics(network: torch.nn.Module) -> Iterator[None]:
    """Let batch normalisation see a batch without counting it in its running statistics."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    before = [module.track_running_stats for module in norms]
    for module in norms:
        # Not a momentum of 0, which would still count the batch in num_batches_tracked.
        module.track_running_stats = False
    try:
        yield
    finally:
        for module, tracked in zip(norms, before, strict=True):
            module.track_running_stats = tracked


@contextlib.contextmanager
def synchronised(network: torch.nn.Module, wanted: bool) -> Iterator[None]:
    """Exchange gradients between processes in this backward pass, or leave it to a later one."""
    if wanted or not isinstance(network, DistributedDataParallel):
        yield
    else:
        with network.no_sync():
            yield
