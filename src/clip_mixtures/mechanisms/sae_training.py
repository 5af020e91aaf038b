"""Training of sparse autoencoders: recipe, resumable loop, curves, new life for dead units.

Everything random follows from the seed and the step's number, so a run that is killed anywhere and
started again ends on the CPU with the same bits. The recipe of the paper (appendix C.1) is Adam at
a constant rate; see :mod:`clip_mixtures.mechanisms.sae` for the loss.

The published code never gives dead units a new life: its interval is meant in samples and counted
in pieces of the data. ``resample_every: 0`` is the same; otherwise it is counted in steps. What a
unit is given is as published. Training data are the caller's choice; the published features hold
all of DomainNet, also classes and domains that the analysed model never saw.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dvclive import Live
from torch.nn.functional import normalize
from tqdm import tqdm

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.config import SaeConfig
from clip_mixtures.mechanisms.sae import (
    SparseAutoencoder,
    backward,
    loss,
    loss_per_item,
    save_sae,
)
from clip_mixtures.mechanisms.shards import (
    ShardSet,
    ordered_batches,
    shuffled_batches,
    steps_per_epoch,
)
from clip_mixtures.settings import settings_from_params
from clip_mixtures.training.checkpoints import load_state, save_state
from clip_mixtures.training.layout import CURVES, STATE
from clip_mixtures.training.loop import CURVE_POINTS, SECONDS_BETWEEN_STATES

# A unit is brought back with an encoder row of this share of the usual length.
_RESAMPLED_NORM = 0.2
_METRICS = ("l1", "penalty", "reconstruction", "loss")


def sae_config_from_params(params: Any, where: str = "sae") -> SaeConfig:
    """Make a recipe from a section of the parameters; see :func:`settings_from_params`."""
    return settings_from_params(SaeConfig, params, where)


def make_optimizer(model: SparseAutoencoder, config: SaeConfig) -> torch.optim.Adam:
    """Make the optimiser of the paper."""
    return torch.optim.Adam(
        model.parameters(),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def train_sae(
    shards: ShardSet,
    config: SaeConfig,
    seed: int,
    scratch: Path,
    out: Path,
    validation: ShardSet | None = None,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Train on features, leaving the autoencoder in ``out`` and its curves in ``scratch``.

    Args:
        shards: the features.
        config: the recipe.
        seed: of weights, order and resampling.
        scratch: folder of this run and no other; a state found in it is continued.
        out: the ``.safetensors`` file to write.
        validation: features to judge the autoencoder by at the end of every epoch.
        device: where to train; the CPU when it is None.

    Returns:
        Facts of the run: ``steps``, ``rows_seen``, and the last point of the curves (see
        :func:`evaluate` for the metrics; those of the validation begin with ``validation_``).

    Raises:
        UserError: when the loss is not finite, no unit fires any more, the state belongs to
            another run, validation features have another width, or the disk is full.
    """
    if validation is not None and validation.width != shards.width:
        raise UserError(
            f"{validation.folder}: rows are {validation.width} wide, those of {shards.folder} "
            f"{shards.width}; extract both with the same model"
        )
    run = _Run(shards, config, seed, validation, device or torch.device("cpu"))
    run.resume(scratch / STATE)
    with _progress(run) as bar, _curves(scratch / CURVES, run.history) as live:
        while run.step < run.total_steps:
            for point in run.epoch(bar):
                _log(live, point)
                run.save(scratch / STATE)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_sae(out, run.model)
    last = {name: round(value, 6) for name, value in run.history[-1].items()}
    return {"steps": run.total_steps, "rows_seen": config.epochs * len(shards), **last}


class _Run:
    """Autoencoder, optimiser and position of one run."""

    def __init__(
        self,
        shards: ShardSet,
        config: SaeConfig,
        seed: int,
        validation: ShardSet | None,
        device: torch.device,
    ) -> None:
        self.shards, self.config, self.seed, self.validation = shards, config, seed, validation
        self.device = device
        self.model = SparseAutoencoder(
            shards.width,
            config.expansion,
            kind=config.kind,
            k=config.k,
            protocol=config.protocol,
            generator=torch.Generator().manual_seed(seed),
        ).to(device)
        self.optimizer = make_optimizer(self.model, config)
        self.steps_per_epoch = steps_per_epoch(shards, config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.step = 0
        self.history: list[dict[str, float]] = []
        # How often each unit fired since the units were last resampled, and since the last point.
        self.fired = torch.zeros(self.model.units, dtype=torch.int64, device=device)
        self.recent = torch.zeros_like(self.fired)
        # Losses and rows of the steps since the last point.
        self.losses: list[torch.Tensor] = []
        self.rows: list[int] = []
        self.saved_at = time.monotonic()

    def identity(self) -> dict[str, Any]:
        """Return what a state must agree with."""
        return {
            "config": dataclasses.asdict(self.config),
            "seed": self.seed,
            "features": self.shards.fingerprint,
            "validation": self.validation.fingerprint if self.validation else "none",
        }

    def resume(self, path: Path) -> None:
        """Go on from a saved state, if there is one."""
        state = load_state(path)
        if state is None:
            return
        identity = self.identity()
        others = [
            name for name in identity if state.get("identity", {}).get(name) != identity[name]
        ]
        if others:
            raise UserError(
                f"{path}: of a run with other {', '.join(others)}; delete it to train from scratch"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.history = int(state["step"]), state["history"]
        self.fired = state["fired"].to(self.device)
        print(f"continuing after step {self.step} of {self.total_steps}", flush=True)

    def save(self, path: Path) -> None:
        """Save the state, if the last time was long enough ago; only right after a point."""
        if time.monotonic() - self.saved_at < SECONDS_BETWEEN_STATES:
            return
        state = {
            "identity": self.identity(),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "fired": self.fired,
        }
        save_state(path, state)
        self.saved_at = time.monotonic()

    def epoch(self, bar: tqdm[Any]) -> Iterator[dict[str, float]]:
        """Train to the end of the epoch, yielding a point of the curves every so many steps."""
        epoch, start = divmod(self.step, self.steps_per_epoch)
        every = max(self.total_steps // CURVE_POINTS, 1)
        self.model.train()
        batches = shuffled_batches(
            self.shards,
            self.config.batch_size,
            seed=self.seed,
            epoch=epoch,
            start=start,
            device=self.device,
        )
        for inputs in batches:
            self._train_on(inputs)
            bar.update()
            last = self.step % self.steps_per_epoch == 0
            if self.step % every == 0 or last:
                point = self._point(inputs, validate=last)
                bar.set_postfix(loss=f"{point['loss']:.3g}", refresh=False)
            due = self.config.resample_every and self.step % self.config.resample_every == 0
            if due and self.step + self.config.resample_every < self.total_steps:
                self._resample()
            # The state is saved after a point, so what belongs to its step must be done by then.
            if self.step % every == 0 or last:
                yield point

    def _train_on(self, inputs: torch.Tensor) -> None:
        found = backward(self.model, inputs, self.config.l1)
        self.optimizer.step()
        self.model.renormalise()
        self.fired += found.fired
        self.recent += found.fired
        self.losses.append(torch.stack(found.losses))
        self.rows.append(len(inputs))
        self.step += 1

    def _point(self, inputs: torch.Tensor, *, validate: bool) -> dict[str, float]:
        losses = torch.stack(self.losses).double().cpu()
        rows = torch.tensor(self.rows, dtype=torch.float64)
        self._check(losses)
        means = (rows @ losses / rows.sum()).tolist()
        with torch.inference_mode():
            variance = _explained(inputs, self.model(inputs)[1])
        point = {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            **dict(zip(_METRICS, means, strict=True)),
            "l0": float(self.recent.sum() / rows.sum()),
            "dead_share": float((self.recent == 0).double().mean()),
            "explained_variance": variance,
        }
        if validate and self.validation is not None:
            found = evaluate(self.model, self.validation, self.config)
            point |= {f"validation_{name}": value for name, value in found.items()}
        self.history.append(point)
        self.recent.zero_()
        self.losses, self.rows = [], []
        return point

    def _check(self, losses: torch.Tensor) -> None:
        wrong = (~torch.isfinite(losses).all(dim=1)).nonzero()
        if len(wrong):
            step = self.step - len(losses) + int(wrong[0]) + 1
            value = float(losses[int(wrong[0]), -1])
            raise UserError(f"loss is {value} at step {step}; lower sae.learning_rate")
        if not self.recent.any() and not self.config.resample_every:
            raise UserError(
                f"no unit fires any more at step {self.step}; lower sae.l1 or sae.learning_rate, "
                "or set sae.resample_every"
            )

    def _resample(self) -> None:
        dead = (self.fired == 0).nonzero().squeeze(1)
        self.fired.zero_()
        if not len(dead):
            return
        inputs, losses = self._losses_of_some()
        # The step names the stream; no order of rows has a stream of four numbers.
        generator = np.random.default_rng((self.seed, self.step, 1, 1))
        resample_units(
            self.model, self.optimizer, dead, _draw(inputs, losses, len(dead), generator)
        )

    def _losses_of_some(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (R, n) in an order of their own, and their losses (R,)."""
        wanted = self.config.resample_rows
        inputs: list[torch.Tensor] = []
        losses: list[torch.Tensor] = []
        # An order that no epoch of the training has.
        order = self.config.epochs + self.step
        for batch in shuffled_batches(
            self.shards, self.config.batch_size, seed=self.seed, epoch=order
        ):
            with torch.inference_mode():
                given = batch.to(self.device)
                codes, reconstructions = self.model(given)
                found = loss_per_item(given, codes, reconstructions, self.config.l1)
                losses.append(found.cpu())
            inputs.append(batch)
            if sum(map(len, inputs)) >= wanted:
                break
        return torch.cat(inputs)[:wanted], torch.cat(losses)[:wanted]


def _draw(
    inputs: torch.Tensor, losses: torch.Tensor, count: int, generator: np.random.Generator
) -> torch.Tensor:
    """Draw inputs with probability by squared loss, none twice."""
    if count > len(inputs):
        raise UserError(
            f"sae.resample_rows: {len(inputs)} features for {count} dead units; raise it or train "
            "on more features"
        )
    # Where the loss is nothing a feature must still be there to be drawn, last of all.
    weights = losses.double().square().clamp_min(1e-30).numpy()
    chosen = generator.choice(len(inputs), count, replace=False, p=weights / weights.sum())
    return inputs[torch.from_numpy(chosen)]


@torch.no_grad()
def resample_units(
    model: SparseAutoencoder,
    optimizer: torch.optim.Optimizer,
    dead: torch.Tensor,
    chosen: torch.Tensor,
) -> None:
    """Point dead units at badly reconstructed inputs, as the published code does when told to.

    A unit's direction becomes the input's, its encoder row the same with 0.2 times the mean length
    of the living units' rows (of all rows where none lives), its bias 0. Adam forgets them.

    Args:
        model: the autoencoder.
        optimizer: its Adam.
        dead: numbers of the units, (d,).
        chosen: an input for each, (d, n).
    """
    directions = normalize(chosen.to(model.dictionary), dim=1)
    alive = torch.ones(model.units, dtype=torch.bool, device=dead.device)
    alive[dead] = False
    norms = model.encoder_weight.norm(dim=1)
    usual = norms[alive].mean() if alive.any() else norms.mean()
    model.dictionary[dead] = directions
    model.encoder_weight[dead] = directions * (_RESAMPLED_NORM * usual)
    model.encoder_bias[dead] = 0
    for parameter in (model.dictionary, model.encoder_weight, model.encoder_bias):
        for name in ("exp_avg", "exp_avg_sq"):
            if name in optimizer.state[parameter]:
                optimizer.state[parameter][name][dead] = 0


@torch.inference_mode()
def evaluate(model: SparseAutoencoder, shards: ShardSet, config: SaeConfig) -> dict[str, float]:
    """Judge an autoencoder on features it was not trained on, as it is used in evaluation.

    Args:
        model: the autoencoder.
        shards: the features.
        config: its recipe; the batch and the coefficient of the codes are taken from it.

    Returns:
        ``l1``, ``penalty``, ``reconstruction`` and ``loss`` (see :class:`sae.Losses`), ``l0`` (mean
        number of active units), ``dead_share`` (units that no input activates) and
        ``explained_variance`` (1 - squared error / squared deviation from the mean input).
    """
    was_training = model.training
    model.eval()
    device = model.tied_bias.device
    losses = torch.zeros(len(_METRICS), dtype=torch.float64)
    fired = torch.zeros(model.units, dtype=torch.int64)
    inputs_sum = torch.zeros(model.inputs, dtype=torch.float64)
    squares = 0.0
    for batch in ordered_batches(shards, config.batch_size):
        inputs = batch.to(device)
        codes, reconstructions = model(inputs)
        found = torch.stack(loss(inputs, codes, reconstructions, config.l1))
        losses += found.double().cpu() * len(batch)
        fired += (codes > 0).sum(dim=0).cpu()
        inputs_sum += batch.double().sum(dim=0)
        squares += float(batch.double().square().sum())
    model.train(was_training)
    rows = len(shards)
    means = dict(zip(_METRICS, (losses / rows).tolist(), strict=True))
    deviation = squares - float(inputs_sum.square().sum()) / rows
    error = means["reconstruction"] * rows * model.inputs
    return {
        **means,
        "l0": float(fired.sum() / rows),
        "dead_share": float((fired == 0).double().mean()),
        "explained_variance": 1 - error / max(deviation, 1e-12),
    }


def _explained(inputs: torch.Tensor, reconstructions: torch.Tensor) -> float:
    deviation = (inputs - inputs.mean(dim=0)).double().square().sum()
    error = (inputs - reconstructions).double().square().sum()
    return 1 - float(error) / max(float(deviation), 1e-12)


def _progress(run: _Run) -> tqdm[Any]:
    return tqdm(
        total=run.total_steps,
        initial=run.step,
        desc="training sparse autoencoder",
        unit="step",
        mininterval=1,
    )


@contextlib.contextmanager
def _curves(folder: Path, history: list[dict[str, float]]) -> Iterator[Live]:
    """Open a dvclive folder that holds exactly the history, whatever a killed run left there."""
    shutil.rmtree(folder, ignore_errors=True)
    live = Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None)
    try:
        for point in history:
            _log(live, point)
        yield live
    finally:
        live.end()


def _log(live: Live, point: dict[str, float]) -> None:
    live.step = int(point["step"])
    for name, value in point.items():
        if name != "step":
            live.log_metric(name, value)
    live.make_summary()
