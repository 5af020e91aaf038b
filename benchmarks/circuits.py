"""Time nodes and edges of a circuit of RN50 against the published procedure, in one run.

    python benchmarks/circuits.py --images 2

RN50 at 224 with random weights, batch statistics and living residual branches; single precision,
one thread, CPU seconds. The published procedure is restated here from its description: for every
submodule, and for every downstream neuron of an edge, the whole network runs on ten steps of every
image with the submodule's output replaced, and gradients flow back through it to all parameters as
well. It is timed on some submodules and neurons, whose cost is all alike, and scaled; on those the
numbers must be the same. Rows for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import functools
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import normalize

from clip_mixtures.mechanisms.circuits import (
    attribute_nodes,
    edge_attributions,
    top_units,
)
from clip_mixtures.mechanisms.towers import tower_of
from clip_mixtures.training.models import create_clip

_LABEL, _CLASSES, _STEPS = 2, 5, 10
_NODES = ("act3", "resblock4", "resblock12")
_PAIR, _NEURONS = ("resblock8", "resblock9"), 2


def _network() -> torch.nn.Module:
    torch.manual_seed(0)
    visual: torch.nn.Module = create_clip("RN50").network.get_submodule("visual")
    for module in visual.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return visual.eval()


def _module(visual: torch.nn.Module, name: str) -> torch.nn.Module:
    if not name.startswith("resblock"):
        return visual.get_submodule(name)
    layers = (visual.get_submodule(f"layer{number}") for number in range(1, 5))
    blocks = [block for layer in layers for block in layer.children()]
    return blocks[int(name.removeprefix("resblock")) - 1]


class _Published:
    """The whole network with one output replaced, as a tracing framework runs it."""

    def __init__(self, visual: torch.nn.Module, images: torch.Tensor, text: torch.Tensor) -> None:
        self._visual, self._images, self._text = visual, images, text

    def _clean(self, name: str) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        hook = _module(self._visual, name).register_forward_hook(
            lambda _, __, out: kept.append(out.detach().clone())
        )
        with torch.no_grad():
            self._visual(self._images)
        hook.remove()
        return kept[0]

    def _replaced(self, name: str, clean: torch.Tensor, watched: str) -> tuple[Any, Any, Any]:
        """Run all steps at once; return what was put in, what came out, and a watched output."""
        scales = torch.tensor([1 - step / _STEPS for step in range(_STEPS)])
        put = (scales.view(-1, *[1] * clean.ndim) * clean).flatten(0, 1).requires_grad_()
        seen: list[torch.Tensor] = []
        hooks = [
            _module(self._visual, name).register_forward_hook(lambda *_: put * 1.0),
            _module(self._visual, watched).register_forward_hook(
                lambda _, __, out: seen.append(out)
            ),
        ]
        out = self._visual(self._images.repeat(_STEPS, 1, 1, 1))
        for hook in hooks:
            hook.remove()
        return put, out, seen[-1]

    def node(self, name: str) -> torch.Tensor:
        clean = self._clean(name)
        put, out, _ = self._replaced(name, clean, name)
        (normalize(out, dim=-1) @ self._text).sum().backward()
        return self._effects(put, clean)

    def edge(self, up: str, down: str, neuron: int, sources: torch.Tensor) -> torch.Tensor:
        clean, wanted = self._clean(up), self._clean(down)[:, neuron]
        put, _, found = self._replaced(up, clean, down)
        errors = (found[:, neuron].view(_STEPS, *wanted.shape) - wanted).square()
        errors.mean(dim=(1, 2, 3)).sum().backward()
        return self._effects(put, clean)[sources]

    def _effects(self, put: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        assert put.grad is not None
        slopes = put.grad.view(_STEPS, *clean.shape).mean(dim=0)
        return (slopes * -clean).sum(dim=(2, 3)).mean(dim=0)


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def main() -> None:
    """Time both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    visual = _network()
    images = torch.randn(args.images, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    texts = normalize(
        torch.randn(_CLASSES, 1024, generator=torch.Generator().manual_seed(2)), dim=1
    )
    tower = tower_of(visual)
    seconds, found = _timed(
        lambda: attribute_nodes(tower, texts, images, _LABEL, protocol="published")
    )
    nodes, units = found.values, top_units(found.values)
    edge_seconds, edges = _timed(
        lambda: edge_attributions(tower, texts, images, _LABEL, units=units)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    published = _Published(visual, images, texts[_LABEL])
    node_times, node_differences = [], []
    for name in _NODES:
        spent, theirs = _timed(functools.partial(published.node, name))
        node_times.append(spent)
        node_differences.append(_difference(nodes[name], theirs))
    up, down = _PAIR
    edge_times, edge_differences = [], []
    for row, neuron in enumerate(units[down][:_NEURONS].tolist()):
        spent, theirs = _timed(functools.partial(published.edge, up, down, neuron, units[up]))
        edge_times.append(spent)
        edge_differences.append(_difference(edges[_PAIR][row], theirs))
    neurons = sum(len(edges[pair]) for pair in edges)
    whole_nodes = sum(node_times) / len(node_times) * len(tower.names)
    whole_edges = sum(edge_times) / len(edge_times) * neurons

    print("| work | published, CPU s | ours, CPU s | ratio | largest difference |")
    print("| --- | ---: | ---: | ---: | ---: |")
    print(
        f"| nodes of {len(tower.names)} submodules | {whole_nodes:.0f} ({len(_NODES)} timed) | "
        f"{seconds:.0f} | {whole_nodes / seconds:.1f} | {max(node_differences):.0e} |"
    )
    print(
        f"| edges of {len(edges)} pairs, {neurons:,} downstream neurons | {whole_edges:,.0f} "
        f"({_NEURONS} timed) | {edge_seconds:.0f} | {whole_edges / edge_seconds:.0f} | "
        f"{max(edge_differences):.0e} |"
    )
    print(f"\nOurs peaked at {peak:.1f} GB of memory in all.")
    print("\n| steps | left | midpoint | gauss-legendre |")
    print("| ---: | ---: | ---: | ---: |")
    for steps in (3, 5, 10):
        cells = []
        for rule in ("left", "midpoint", "gauss-legendre"):
            errors = attribute_nodes(
                tower, texts, images[:1], _LABEL,
                protocol="corrected", steps=steps, rule=rule, layers=_NODES,
            ).errors  # fmt: skip
            cells.append(f"{100 * sorted(errors.values())[len(errors) // 2]:.1f} %")
        print(f"| {steps} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
