"""Time circuits of a ResNet-50 against the published procedure, and show how exact they are.

    OMP_NUM_THREADS=1 python benchmarks/circuits.py edges
    OMP_NUM_THREADS=1 python benchmarks/circuits.py nodes exact rules half memory

Parts, each a table in Markdown for docs/benchmarks.md:

edges    all 20 pairs of neighbours at 224 pixels, the top 10 % of units each
nodes    all 22 submodules at 224 pixels
exact    the same numbers in double precision at 64 pixels, published procedure and ours
rules    error of completeness against steps, for every quadrature
half     what half precision without loss scaling does to the gradients, at 224 pixels
memory   peak memory against its bound, nodes of 8 images at 224 pixels

The published procedure is restated here from its formulas, with hooks: the whole network runs for
every submodule, and again for every downstream unit of every pair; all gradients of parameters are
taken and kept; the steps of all images are one batch. It is measured on a sample of its units and
submodules and scaled to all of them; ours does all of the work. Both run in one process, in CPU
seconds. The ResNet-50 is random, its residual branches are alive, and its batch normalisation has
the statistics of images like those it sees. The embedding of the class has a cosine of 0.25 to the
mean feature, as in CLIP.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import open_clip
import torch
from open_clip.model import convert_weights_to_lp
from open_clip.modified_resnet import Bottleneck, ModifiedResNet
from torch.nn import functional

from clip_mixtures.mechanisms.circuits import (
    RULES,
    attribute_nodes,
    edge_attributions,
    node_attributions,
    top_units,
)
from clip_mixtures.mechanisms.towers import tower_of

STEPS = 10
_PAIR = ("resblock8", "resblock9")
_PAIR_UNITS = 20  # downstream, in the row of a single pair

Values = dict[str, torch.Tensor]


def _resnet50(size: int) -> tuple[ModifiedResNet, torch.Tensor, torch.Tensor]:
    """Return a random ResNet-50 in evaluation mode, images (8, 3, size, size), text (2, 1024)."""
    torch.manual_seed(0)
    visual = ModifiedResNet([3, 4, 6, 3], 1024, 32, size, 64)
    for module in visual.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, -0.1, 0.4)
            module.momentum = None  # a plain mean of the batches
    for module in visual.modules():
        if isinstance(module, Bottleneck):
            torch.nn.init.uniform_(module.bn3.weight, 0.1, 0.5)
    images = _images(8, size)
    with torch.no_grad():
        visual.train()(images)
        mean = functional.normalize(visual.eval()(images), dim=1).mean(dim=0)
    mean = functional.normalize(mean, dim=0)
    other = torch.randn(1024)
    other = functional.normalize(other - (other @ mean) * mean, dim=0)
    return visual, images, torch.stack([0.25 * mean + math.sqrt(1 - 0.25**2) * other, other])


def _images(count: int, size: int) -> torch.Tensor:
    """Make smooth patterns with some noise."""
    coarse = torch.randn(count, 3, size // 16, size // 16)
    smooth = functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return smooth + 0.2 * torch.randn(count, 3, size, size)


def _trained() -> tuple[ModifiedResNet, list[tuple[torch.Tensor, int]], torch.Tensor]:
    """Train a small ResNet to tell ten shifted patterns from each other.

    Returns:
        It, images (8, 3, 64, 64) of some classes, and the embeddings of the classes (10, 64).
    """
    torch.manual_seed(0)
    visual = ModifiedResNet([1, 1, 1, 1], 64, 4, 64, 16)
    text = functional.normalize(torch.randn(10, 64), dim=1)
    patterns = functional.interpolate(torch.randn(10, 3, 8, 8), size=(64, 64), mode="bilinear")
    optimizer = torch.optim.AdamW(visual.parameters(), 1e-3)

    def batch(labels: torch.Tensor) -> torch.Tensor:
        shifts = torch.randint(64, (len(labels), 2)).tolist()
        pairs = zip(patterns[labels], shifts, strict=True)
        shifted = torch.stack([pattern.roll(shift, (1, 2)) for pattern, shift in pairs])
        return 1.5 * torch.rand(len(labels), 1, 1, 1) * shifted + 0.7 * torch.randn_like(shifted)

    for _ in range(300):
        labels = torch.randint(10, (64,))
        logits = 20 * functional.normalize(visual(batch(labels)), dim=1) @ text.T
        optimizer.zero_grad()
        functional.cross_entropy(logits, labels).backward()
        optimizer.step()
    trials = [(batch(torch.full((8,), label)), label) for label in range(6)]
    return visual.eval(), trials, text


class _Published:
    """The published procedure on one network."""

    def __init__(self, visual: ModifiedResNet, images: torch.Tensor, direction: torch.Tensor):
        self.visual, self.images, self.direction = visual, images, direction
        blocks = [*visual.layer1, *visual.layer2, *visual.layer3, *visual.layer4]
        self.modules: dict[str, torch.nn.Module] = {
            "act1": visual.act1,
            "act2": visual.act2,
            "act3": visual.act3,
            "avgpool": visual.avgpool,
            **{f"resblock{number}": block for number, block in enumerate(blocks, start=1)},
            "attnpool": visual.attnpool,
        }
        self.clean: Values = {"input": images}
        with contextlib.ExitStack() as hooks, torch.no_grad():
            for name, module in self.modules.items():
                hooks.enter_context(_hooked(module, self._keep(self.clean, name)))
            visual(images)
        self.repeated = images.repeat(STEPS, 1, 1, 1)

    @staticmethod
    def _keep(values: Values, name: str) -> Callable[..., None]:
        def keep(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
            values[name] = output.clone()

        return keep

    def _inserted(self, name: str) -> torch.Tensor:
        clean = self.clean[name]
        steps = [(1 - step / STEPS) * clean for step in range(STEPS)]
        return torch.cat(steps).requires_grad_()

    @contextlib.contextmanager
    def _replaced(self, name: str, value: torch.Tensor) -> Iterator[None]:
        if name == "input":
            hook = self.visual.conv1.register_forward_pre_hook(lambda *_: (value,))
        else:
            hook = self.modules[name].register_forward_hook(lambda *_: value)
        with hook:
            yield

    def nodes(self, name: str) -> torch.Tensor:
        """Return the effects of a submodule's units, (channels,)."""
        inserted = self._inserted(name)
        with self._replaced(name, inserted):
            features = self.visual(self.repeated)
        (functional.normalize(features, dim=1) @ self.direction).sum().backward()
        return self._effect(inserted, name).flatten(2).sum(dim=2).mean(dim=0)

    def edges(self, up: str, down: str, unit: int, sources: Sequence[int]) -> torch.Tensor:
        """Return the edges of a downstream unit from upstream units, (sources,)."""
        inserted = self._inserted(up)
        found: Values = {}
        with (
            self._replaced(up, inserted),
            _hooked(self.modules[down], self._keep(found, "down")),
        ):
            self.visual(self.repeated)
        error = found["down"][:, unit] - self.clean[down][:, unit].repeat(
            STEPS, *[1] * (self.clean[down].ndim - 2)
        )
        error.square().view(STEPS, -1).mean(dim=1).sum().backward()
        effect = self._effect(inserted, up).flatten(2)
        return torch.stack([effect[:, unit].sum(dim=1).mean() for unit in sources])

    def _effect(self, inserted: torch.Tensor, name: str) -> torch.Tensor:
        assert inserted.grad is not None
        clean = self.clean[name]
        gradient = inserted.grad.view(STEPS, *clean.shape).mean(dim=0)
        return (
            (gradient * (0 - clean)).flatten(2 if clean.ndim > 2 else 1).view(*clean.shape[:2], -1)
        )


@contextlib.contextmanager
def _hooked(module: torch.nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    with module.register_forward_hook(hook):
        yield


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return function(), time.process_time() - start


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _common(effects: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the share of the top 10 % that two lists of effects have in common."""
    chosen, theirs = (set(top_units({"": values})[""].tolist()) for values in (effects, expected))
    return len(chosen & theirs) / len(theirs)


def _drawn_units(values: Values) -> Values:
    """Draw a tenth of the units; which does not matter to the work."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randperm(value.shape[1], generator=generator)[: math.ceil(0.1 * value.shape[1])]
        for name, value in values.items()
    }


def edges(images: int, sample: int) -> None:
    """Print the time of edges."""
    visual, pixels, text = _resnet50(224)
    pixels = pixels[:images]
    published = _Published(visual, pixels, text[0])
    units = _drawn_units(published.clean)
    ours, our_seconds = _timed(lambda: edge_attributions(visual, text, pixels, 0, units=units))
    few = {**units, _PAIR[1]: units[_PAIR[1]][:_PAIR_UNITS]}
    _, pair_seconds = _timed(
        lambda: edge_attributions(visual, text, pixels, 0, units=few, pairs=[_PAIR])
    )
    whole, rows, differences = 0.0, 0, []
    for up, down in ours:
        spent = []
        for row, unit in enumerate(units[down][:sample].tolist()):
            of_unit = functools.partial(published.edges, up, down, unit, units[up].tolist())
            expected, seconds = _timed(of_unit)
            spent.append(seconds)
            differences.append(_difference(ours[up, down][row], expected))
        rows += len(units[down])
        whole += statistics.mean(spent) * len(units[down])
        if (up, down) == _PAIR:
            pair = statistics.mean(spent) * _PAIR_UNITS
    print(f"\n{images} images; published procedure: {sample} downstream unit(s) of every pair\n")
    print("| edges | published, CPU s | ours, CPU s | ratio |\n| --- | ---: | ---: | ---: |")
    names = f"{_PAIR[0]} to {_PAIR[1]}, {_PAIR_UNITS} x {len(units[_PAIR[0]])} units"
    for title, theirs, own in (
        (names, pair, pair_seconds),
        (f"all {len(ours)} pairs, {rows:,} downstream units", whole, our_seconds),
    ):
        print(f"| {title} | {theirs:,.0f} | {own:.1f} | {theirs / own:,.0f} |")
    print(
        f"\nLargest difference of a row, relative to its largest edge: median "
        f"{statistics.median(differences):.0e}, largest {max(differences):.0e}."
    )


def nodes(images: int, every: int) -> None:
    """Print the time of nodes."""
    visual, pixels, text = _resnet50(224)
    pixels = pixels[:images]
    ours, our_seconds = _timed(lambda: node_attributions(visual, text, pixels, 0))
    published = _Published(visual, pixels, text[0])
    names = list(ours)[::every]
    spent, differences, same = [], [], []
    for name in names:
        expected, seconds = _timed(functools.partial(published.nodes, name))
        spent.append(seconds)
        differences.append(_difference(ours[name], expected))
        same.append(_common(ours[name], expected))
    theirs = statistics.mean(spent) * len(ours)
    print(f"\n{images} images; published procedure: {len(names)} of {len(ours)} submodules\n")
    print("| nodes | published, CPU s | ours, CPU s | ratio |\n| --- | ---: | ---: | ---: |")
    print(
        f"| all {len(ours)} submodules | {theirs:.0f} | {our_seconds:.0f} "
        f"| {theirs / our_seconds:.1f} |"
    )
    print(
        f"\nLargest difference, relative to the submodule's largest effect: median "
        f"{statistics.median(differences):.0e}, largest {max(differences):.0e}; of the top 10 % "
        f"at least {100 * min(same):.0f} % are the same units."
    )


def exact() -> None:
    """Print how far the numbers are apart in double precision."""
    visual, pixels, text = _resnet50(64)
    visual, pixels, text = visual.double(), pixels[:2].double(), text.double()
    published = _Published(visual, pixels, text[0])
    effects = node_attributions(visual, text, pixels, 0)
    node = max(_difference(values, published.nodes(name)) for name, values in effects.items())
    units = top_units(effects)
    found = edge_attributions(visual, text, pixels, 0, units=units)
    edge = max(
        _difference(
            values[row], published.edges(*pair, int(units[pair[1]][row]), units[pair[0]].tolist())
        )
        for pair, values in found.items()
        for row in range(min(2, len(values)))
    )
    print(
        f"\nDouble precision, 64 pixels, 2 images: effects of all {len(effects)} submodules differ "
        f"by at most {node:.0e}, edges of two units of every pair by {edge:.0e} (relative to the "
        f"largest)."
    )


def rules(steps: Sequence[int]) -> None:
    """Print errors of completeness."""
    visual, images, text = _resnet50(64)
    trained, trials, embeddings = _trained()
    for title, network, pairs, rows in (
        ("ResNet-50, random", visual, [(images, 0)], text),
        ("small ResNet, trained", trained, trials, embeddings),
    ):
        print(f"\n| {title} | " + " | ".join(f"{count} steps" for count in steps) + " |")
        print("| --- |" + " ---: |" * len(steps))
        for rule in RULES:
            errors = [_completeness(network, pairs, rows, rule, count) for count in steps]
            print(
                f"| {rule} | " + " | ".join(f"{error:.3f}" for error in errors) + " |", flush=True
            )


def _completeness(
    visual: ModifiedResNet,
    trials: Sequence[tuple[torch.Tensor, int]],
    text: torch.Tensor,
    rule: str,
    steps: int,
) -> float:
    """Return the error of completeness, a median over submodules and classes."""
    errors: list[float] = []
    for images, label in trials:
        found = attribute_nodes(
            visual, text, images, label, protocol="corrected", steps=steps, rule=rule
        )
        # No rule sees the jump of the cosine at the end of the feature's own path.
        errors += list(found.errors.values())[:-1]
    return statistics.median(errors)


def half() -> None:
    """Print what underflows in half precision, in a network as it is initialised and in ours."""
    torch.manual_seed(0)
    initial = open_clip.create_model("RN50").visual.eval()
    alive, pixels, text = _resnet50(224)
    found = [_halved(network, pixels[:1], text[0]) for network in (initial, alive)]
    print("\n| layer | zero, initial network | zero, branches alive | same units |")
    print("| --- | ---: | ---: | ---: |")
    for (name, (lost, _)), (lost_alive, same) in zip(
        found[0].items(), found[1].values(), strict=True
    ):
        print(f"| {name} | {100 * lost:.1f} % | {100 * lost_alive:.1f} % | {same:.2f} |")


def _halved(
    visual: ModifiedResNet, images: torch.Tensor, direction: torch.Tensor
) -> dict[str, tuple[float, float]]:
    """Return of each submodule the share of gradients that vanish, and of top units that stay."""
    single = _gradients(visual, images, direction)
    convert_weights_to_lp(visual, dtype=torch.float16)
    low = _gradients(visual, images.half(), direction.half())
    found = {}
    for name, (value, gradient) in single.items():
        low_value, low_gradient = (part.float() for part in low[name])
        lost = ((low_gradient == 0) & (gradient != 0)).sum() / (gradient != 0).sum()
        same = _common(_summed(low_gradient * low_value), _summed(gradient * value))
        found[name] = (float(lost), same)
    return found


def _summed(effects: torch.Tensor) -> torch.Tensor:
    """Sum the effects of one image (1, C, ...) over positions."""
    return effects.view(*effects.shape[:2], -1).sum(dim=(0, 2))


def _gradients(
    visual: ModifiedResNet, images: torch.Tensor, direction: torch.Tensor
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return the values of all submodules and the gradients of the score there."""
    tower = tower_of(visual)
    values = tower.values(images.clone().requires_grad_(), tower.names)
    score = (functional.normalize(values["attnpool"], dim=1) @ direction).sum()
    gradients = torch.autograd.grad(score, list(values.values()))
    return {
        name: (value.detach(), gradient)
        for (name, value), gradient in zip(values.items(), gradients, strict=True)
    }


def memory(bounds: Sequence[int]) -> None:
    """Print peak memory; every bound has a process of its own."""
    print("\n| bound | nodes, peak | edges, peak |\n| ---: | ---: | ---: |")
    for bound in bounds:
        peaks = [
            subprocess.run(
                [sys.executable, __file__, what, "--bounds", str(bound)],
                check=True, capture_output=True, text=True,
            ).stdout
            for what in ("peak-nodes", "peak-edges")
        ]  # fmt: skip
        print(f"| {bound} MiB | " + " | ".join(peak.strip() for peak in peaks) + " |", flush=True)


def _peak(what: str, bound: int) -> None:
    visual, pixels, text = _resnet50(224)
    layers = ["act1", "act2", "resblock8", "resblock9"]
    resting = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if what == "peak-nodes":
        node_attributions(
            visual, text, pixels, 0, 4, "corrected", layers=layers, memory_bytes=bound << 20
        )
    else:
        with torch.no_grad():
            units = _drawn_units(tower_of(visual).values(pixels[:1], tower_of(visual).names))
        pairs = [("act2", "act3"), ("resblock3", "resblock4"), ("resblock13", "resblock14")]
        edge_attributions(
            visual, text, pixels, 0, 4, units=units, pairs=pairs, memory_bytes=bound << 20
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{(peak - resting) / 1024:.0f} MiB")


def main() -> None:
    """Print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", metavar="PART", help="see above")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--sample", type=int, default=1, help="published downstream units a pair")
    parser.add_argument("--every", type=int, default=3, help="of the published submodules")
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 5, 10, 20])
    parser.add_argument("--bounds", type=int, nargs="+", default=[512, 1024, 2048], help="MiB")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], None]] = {
        "edges": lambda: edges(args.images, args.sample),
        "nodes": lambda: nodes(args.images, args.every),
        "exact": exact,
        "rules": lambda: rules(args.steps),
        "half": half,
        "memory": lambda: memory(args.bounds),
        "peak-nodes": lambda: _peak("peak-nodes", args.bounds[0]),
        "peak-edges": lambda: _peak("peak-edges", args.bounds[0]),
    }
    for part in args.parts:
        if part not in parts:
            parser.error(f"unknown part {part!r}; choose from {', '.join(parts)}")
        parts[part]()


if __name__ == "__main__":
    main()
