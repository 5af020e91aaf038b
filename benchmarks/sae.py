"""Time the training of a sparse autoencoder, as published and ours, in one run.

    python benchmarks/sae.py

Both train 1024 -> 4096 with batches of 2048, from the published start, on features made up as
CLIP's are: unit length, half precision, sums of few directions. The published pipeline is restated
from its description: an fp32 store in memory, torch's DataLoader row by row, a module with an axis
of components, autograd, a hook on the decoder's gradient. Ours reads memory-mapped shards. At first
both are given the same batches, and the losses of every step must agree to 1e-5; then both are
timed with their own input, a step in turn. How many codes are active decides the time, so training
is timed at its start and after ours has trained on. The medians over steps are what to read. More
threads than one want a machine of their own: else every operation waits for the slowest of them.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset

from clip_mixtures.mechanisms.config import SaeConfig
from clip_mixtures.mechanisms.sae import SparseAutoencoder, backward
from clip_mixtures.mechanisms.sae_training import make_optimizer
from clip_mixtures.mechanisms.shards import (
    ShardSet,
    ordered_batches,
    shuffled_batches,
    write_shards,
)

INPUTS, EXPANSION, BATCH = 1024, 4, 2048
_COMPARED = 5
_TOLERANCE = 1e-5


def _features(rows: int) -> Iterator[torch.Tensor]:
    """Yield unit vectors, each a sum of 20 of 8192 directions and a common one, with noise."""
    generator = torch.Generator().manual_seed(0)
    directions = normalize(torch.randn((8192, INPUTS), generator=generator), dim=1)
    common = normalize(torch.randn((1, INPUTS), generator=generator), dim=1)
    # Some directions are common and most are rare, as concepts are.
    frequency = 1 / torch.arange(1, 8193).float()
    for first in range(0, rows, BATCH):
        count = min(BATCH, rows - first)
        chosen = torch.multinomial(frequency.expand(count, -1), 20, generator=generator)
        weights = torch.rand((count, 20, 1), generator=generator) + 0.2
        made = (directions[chosen] * weights).sum(dim=1) + 2 * common
        noise = 0.02 * torch.randn((count, INPUTS), generator=generator)
        yield normalize(made + noise, dim=1).half()


class _Store(Dataset[torch.Tensor]):
    """Features in memory, (rows, 1, n) fp32, handed out a row at a time."""

    def __init__(self, shards: ShardSet) -> None:
        self.rows = torch.cat(list(ordered_batches(shards, BATCH)))[:, None]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.rows[index]


class _Published(torch.nn.Module):
    """The published autoencoder and its step, with an axis of one component."""

    def __init__(self, start: SparseAutoencoder, config: SaeConfig) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(start.tied_bias.detach().clone()[None])
        self.encoder = torch.nn.Parameter(start.encoder_weight.detach().clone()[None])
        self.encoder_bias = torch.nn.Parameter(start.encoder_bias.detach().clone()[None])
        self.decoder = torch.nn.Parameter(start.dictionary.detach().T.clone()[None])
        self.decoder.register_hook(self._projected)
        self.l1 = config.l1
        self.fired = torch.zeros((1, start.units), dtype=torch.int64)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=config.learning_rate)

    def _projected(self, gradient: torch.Tensor) -> torch.Tensor:
        unit = normalize(self.decoder.detach(), dim=1)
        along = torch.einsum("cnm,cnm->cm", unit, gradient)
        return gradient - torch.einsum("cm,cnm->cnm", along, unit)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = torch.einsum("bcn,cmn->bcm", inputs - self.bias, self.encoder)
        codes = torch.relu(codes + self.encoder_bias)
        return codes, torch.einsum("bcm,cnm->bcn", codes, self.decoder) + self.bias

    def step(self, inputs: torch.Tensor) -> float:
        self.optimizer.zero_grad()
        codes, reconstructions = self(inputs)
        penalty = self.l1 * codes.abs().sum(dim=-1)
        error = (inputs - reconstructions).square().mean(dim=-1)
        total = (penalty.mean(dim=0) + error.mean(dim=0)).mean()
        with torch.no_grad():
            self.fired += (codes > 0).sum(dim=0)
        torch.autograd.backward(total)
        self.optimizer.step()
        with torch.no_grad():
            self.decoder.copy_(normalize(self.decoder, dim=1))
        return float(total.detach())


class _Ours:
    """Our autoencoder and its step."""

    def __init__(self, start: SparseAutoencoder, config: SaeConfig) -> None:
        self.model = SparseAutoencoder(INPUTS, EXPANSION, kind=start.kind, k=start.k)
        self.model.load_state_dict(start.state_dict())
        self.l1 = config.l1
        self.fired = torch.zeros(start.units, dtype=torch.int64)
        self.optimizer = make_optimizer(self.model, config)

    def step(self, inputs: torch.Tensor) -> float:
        found = backward(self.model, inputs, self.l1)
        self.optimizer.step()
        self.model.renormalise()
        self.fired += found.fired
        return float(found.losses.total)


def _check(start: SparseAutoencoder, config: SaeConfig, batches: list[torch.Tensor]) -> float:
    """Return the largest relative difference between the losses of the same steps."""
    theirs, ours = _Published(start, config), _Ours(start, config)
    largest = 0.0
    for batch in batches:
        published = theirs.step(batch[:, None])
        largest = max(largest, abs(ours.step(batch) - published) / published)
    if not largest < _TOLERANCE:
        raise SystemExit(f"losses differ by {largest:.1e}; nothing here is worth timing")
    return largest


def _seconds(step: Callable[[torch.Tensor], float], batches: Iterator[torch.Tensor]) -> float:
    """Return the seconds of a step, its input included."""
    start = time.perf_counter()
    step(next(batches))
    return time.perf_counter() - start


def _endless(shards: ShardSet) -> Iterator[torch.Tensor]:
    for epoch in itertools.count():
        for batch in shuffled_batches(shards, BATCH, seed=0, epoch=epoch):
            if len(batch) == BATCH:
                yield batch


def _endless_loader(store: _Store) -> Iterator[torch.Tensor]:
    loader = DataLoader(store, batch_size=BATCH, shuffle=True)
    for _ in itertools.count():
        for batch in loader:
            if len(batch) == BATCH:
                yield batch


def _roofline(rounds: int) -> tuple[float, float]:
    """Return milliseconds of one of the matrix products by torch.mm and by our encoder."""
    inputs, weight = torch.randn(BATCH, INPUTS), torch.randn(INPUTS * EXPANSION, INPUTS)
    model = SparseAutoencoder(INPUTS, EXPANSION)
    plain: list[float] = []
    encoder: list[float] = []
    with torch.no_grad():
        for _ in range(rounds):
            start = time.perf_counter()
            torch.mm(inputs, weight.T)
            between = time.perf_counter()
            model._activations(inputs)
            plain.append(1000 * (between - start))
            encoder.append(1000 * (time.perf_counter() - between))
    return statistics.median(plain), statistics.median(encoder)


def _compare(
    title: str, start: SparseAutoencoder, config: SaeConfig, shards: ShardSet, store: _Store,
    rounds: int, steps: int,
) -> None:  # fmt: skip
    batches = list(itertools.islice(_endless(shards), _COMPARED))
    with torch.no_grad():
        active = float((start.encode(batches[0]) > 0).sum(dim=1).float().mean())
    difference = _check(start, config, batches)
    # Every round begins at the same weights, for the number of active codes changes fast. Steps
    # take turns, so that both suffer the same from whatever else the machine is doing.
    seconds: dict[str, list[float]] = {"published": [], "ours": []}
    loaders = {"published": _endless_loader(store), "ours": _endless(shards)}
    for _ in range(rounds):
        trainers: dict[str, _Published | _Ours] = {
            "published": _Published(start, config),
            "ours": _Ours(start, config),
        }
        for turn in range(steps + 1):
            for name, trainer in trainers.items():
                spent = _seconds(trainer.step, loaders[name])
                if turn:  # the first one makes the state of the optimiser
                    seconds[name].append(spent)
    rate = {name: BATCH / statistics.median(times) for name, times in seconds.items()}
    best = {name: BATCH / min(times) for name, times in seconds.items()}
    print(
        f"| {title} | {active:.0f} | {rate['published']:,.0f} | {rate['ours']:,.0f} "
        f"| {rate['ours'] / rate['published']:.1f} | {best['ours'] / best['published']:.1f} "
        f"| {difference:.0e} |",
        flush=True,
    )


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=65_536)
    parser.add_argument("--train", type=int, nargs="*", default=[150, 300], help="steps before")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = SaeConfig(epochs=1, batch_size=BATCH, learning_rate=1e-4, l1=3e-4)
    with tempfile.TemporaryDirectory() as name:
        shards = write_shards(Path(name), _features(args.rows), rows_per_shard=16_384)
        store = _Store(shards)
        plain, encoder = _roofline(2 * args.rounds)
        flops = 2 * BATCH * INPUTS * INPUTS * EXPANSION
        print(
            f"One product of {flops / 1e9:.1f} GFlop: torch.mm {plain:.0f} ms, encoder "
            f"{encoder:.0f} ms ({flops / encoder / 1e6:,.0f} GFlop/s). The published step has six, "
            f"ours five while codes are dense and one when they are sparse: at most "
            f"{1000 * BATCH / encoder:,.0f} rows/s.\n"
        )
        print(
            "| weights | active codes | published rows/s | our rows/s | ratio | ratio of the best "
            "| losses differ by |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
        )
        generator = torch.Generator().manual_seed(0)
        start = SparseAutoencoder(INPUTS, EXPANSION, protocol="published", generator=generator)
        _compare("published start", start, config, shards, store, args.rounds, args.steps)
        trainer, batches, done = _Ours(start, config), _endless(shards), 0
        for steps in args.train:
            for batch in itertools.islice(batches, steps - done):
                trainer.step(batch)
            done = steps
            title = f"after {steps:,} steps"
            _compare(title, trainer.model, config, shards, store, args.rounds, args.steps)


if __name__ == "__main__":
    main()
