"""Circuits class by class: which images, what a kill leaves, and the way through the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from clip_mixtures.corpora.png import encode_png
from clip_mixtures.errors import UserError
from clip_mixtures.evaluation.predictions import EvaluationSet
from clip_mixtures.mechanisms.ablation_table import ablation_table
from clip_mixtures.mechanisms.checkpoint import Checkpoint, load_last
from clip_mixtures.mechanisms.circuit_tables import compare_circuits
from clip_mixtures.mechanisms.class_circuits import (
    SHARED,
    ClassCircuits,
    ClassImages,
    channels_of,
    classes_to_trace,
    node_arrays,
    once,
    shared_units_of,
    trace_class,
)
from clip_mixtures.mechanisms.completeness import completeness_quartiles
from clip_mixtures.mechanisms.config import CircuitsConfig
from clip_mixtures.mechanisms.graph_tables import edge_table, graph_from_tables, unit_table
from clip_mixtures.mechanisms.graphs import circuit_graph
from clip_mixtures.training.checkpoints import save_checkpoint
from clip_mixtures.training.models import create_clip

DOMAINS = ["real", "sketch"]
CONFIG = CircuitsConfig(images_per_class=2, steps=2, draws=1, fill="zero")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> EvaluationSet:
    """Three classes of four images in two domains; sketches of the last class are not there."""
    root = tmp_path_factory.mktemp("images")
    stream = np.random.default_rng(0)
    rows = [
        (domain, label)
        for domain in DOMAINS
        for label in range(3)
        for _ in range(4)
        if (domain, label) != ("sketch", 2)
    ]
    for number in range(len(rows)):
        pixels = stream.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        (root / f"{number}.png").write_bytes(encode_png(pixels))
    frame = pd.DataFrame(rows, columns=["domain", "class_id"]).assign(
        path=[f"{number}.png" for number in range(len(rows))], archive=None
    )
    frame.index = frame.index + 100
    return EvaluationSet("domains", frame, root)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    network = create_clip("sample-RN").network
    for name, weight in network.named_parameters():
        # A fresh network's residual branches give nothing.
        if name.endswith("bn3.weight"):
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    save_checkpoint(folder, 1, network)
    return load_last("sample-RN", folder, torch.device("cpu"))


@pytest.fixture(scope="module")
def texts() -> torch.Tensor:
    return normalize(torch.randn(3, 128, generator=torch.Generator().manual_seed(1)), dim=1)


@pytest.fixture(scope="module")
def traced(
    checkpoint: Checkpoint, images: EvaluationSet, texts: torch.Tensor
) -> dict[int, ClassCircuits]:
    chosen = ClassImages(images, CONFIG.images_per_class, CONFIG.seed)
    found = {}
    for label in range(3):
        images_of = chosen.of_class(label, DOMAINS, checkpoint)
        others = chosen.of_class(label, DOMAINS, checkpoint, others=True)
        found[label] = trace_class(checkpoint.tower, texts, images_of, label, CONFIG, others)
    return found


def test_which_images_does_not_depend_on_what_was_done_before(images: EvaluationSet) -> None:
    chosen, again = ClassImages(images, 2, 42), ClassImages(images, 2, 42)
    again.rows(0, "real")
    assert np.array_equal(chosen.rows(1, "sketch"), again.rows(1, "sketch"))
    drawn = chosen.rows(1, "sketch")
    found = images.frame.iloc[drawn]
    assert (found["domain"] == "sketch").all()
    assert (found["class_id"] == 1).all()
    others = {tuple(ClassImages(images, 2, seed).rows(1, "sketch")) for seed in range(20)}
    assert len(others) > 1
    assert len(ClassImages(images, 50, 42).rows(1, "sketch")) == 2
    assert len(ClassImages(images, 50, 42, "published").rows(1, "sketch")) == 4


def of_size(count: int) -> EvaluationSet:
    """Make a list of so many images of one class, of which nothing is read."""
    return EvaluationSet(
        "domains", pd.DataFrame({"domain": "real", "class_id": [0] * count}), Path()
    )


@pytest.mark.parametrize("most", [1, 2, 3, 50])
@pytest.mark.parametrize("count", [2, 3, 4, 7, 50, 51, 99, 100, 130])
def test_no_image_is_both_traced_and_ablated(count: int, most: int) -> None:
    chosen = ClassImages(of_size(count), most, 42)
    traced, ablated = (chosen.rows(0, "real", others=others) for others in (False, True))
    assert not set(traced) & set(ablated)
    # Half of a small class each, the odd one traced; of a large one as many as are wanted.
    assert len(traced) == min(most, -(-count // 2))
    assert len(ablated) == min(most, count - len(traced))
    assert set(traced) | set(ablated) <= set(range(count))


def test_a_single_image_is_both() -> None:
    chosen = ClassImages(of_size(1), 50, 42)
    assert chosen.rows(0, "real").tolist() == chosen.rows(0, "real", others=True).tolist() == [0]
    assert len(ClassImages(of_size(0), 50, 42).rows(0, "real", others=True)) == 0


@pytest.mark.parametrize(
    ("count", "traced", "ablated"), [(40, 40, 40), (50, 50, 50), (51, 50, 1), (130, 50, 50)]
)
def test_published_circuits_are_traced_on_as_many_images_as_there_are(
    count: int, traced: int, ablated: int
) -> None:
    chosen = ClassImages(of_size(count), 50, 42, "published")
    first, second = (set(chosen.rows(0, "real", others=others)) for others in (False, True))
    assert (len(first), len(second)) == (traced, ablated)
    assert first == second if count <= 50 else not first & second
    with pytest.raises(UserError, match="protocol 'new'"):
        ClassImages(of_size(count), 50, 42, "new")


@pytest.mark.parametrize(("protocol", "known"), [("corrected", 0), ("published", 4)])
def test_effects_tell_images_that_the_circuit_was_found_on(
    images: EvaluationSet, checkpoint: Checkpoint, texts: torch.Tensor, protocol: str, known: int
) -> None:
    chosen = ClassImages(images, 4, 42, protocol)
    pixels, others = (
        chosen.of_class(0, DOMAINS, checkpoint, others=others) for others in (False, True)
    )
    effects = trace_class(checkpoint.tower, texts, pixels, 0, CONFIG, others).effects
    assert effects["in_sample"].dtype == bool
    own = effects[(effects["source"] == effects["target"]) | (effects["source"] == SHARED)]
    assert own["in_sample"].all() if known else not own["in_sample"].any()
    assert not effects.drop(own.index)["in_sample"].any()
    table = ablation_table(effects)
    counted = table[table["source"] == table["target"]]
    assert (counted["in_sample"] == known).all()
    assert (counted["images"] == (4 if known else 2)).all()


def test_a_domain_without_images_of_a_class_is_left_out(
    images: EvaluationSet, checkpoint: Checkpoint
) -> None:
    chosen = ClassImages(images, 2, 42)
    assert set(chosen.of_class(2, DOMAINS, checkpoint)) == {"real"}
    assert set(chosen.of_class(1, DOMAINS, checkpoint)) == set(DOMAINS)
    with pytest.raises(UserError, match="class 2 has no test images in sketch"):
        chosen.of_class(2, ["sketch"], checkpoint)
    pictures = chosen.thumbnails(2, DOMAINS, 3, 16)
    assert pictures.shape == (2, 3, 16, 16, 3)
    assert (pictures[0, 2] == 255).all()
    assert (pictures[1] == 255).all()
    assert not (pictures[0, 0] == 255).all()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [4, 1]),
        ({"most_classes": 1}, [4]),
        ({"classes": "all"}, [4, 1, 0, 2, 3]),
        ({"classes": "all", "most_classes": 3}, [4, 1, 0]),
    ],
)
def test_held_out_classes_come_first(options: dict[str, object], wanted: list[int]) -> None:
    assert classes_to_trace(CircuitsConfig(**options), [4, 1], 5) == wanted  # type: ignore[arg-type]


def test_published_circuits_have_their_own_rule() -> None:
    assert CircuitsConfig(protocol="published", rule="left").rule == "left"
    with pytest.raises(UserError, match=r"circuits\.rule: is 'midpoint'"):
        CircuitsConfig(protocol="published", rule="midpoint")


def test_units_of_all_domains() -> None:
    units = {
        "real": {"act1": torch.tensor([3, 1]), "act2": torch.tensor([0])},
        "sketch": {"act1": torch.tensor([1, 5]), "act2": torch.tensor([2])},
    }
    found = shared_units_of(units)
    assert {layer: members.tolist() for layer, members in found.items()} == {
        "act1": [1], "act2": [],
    }  # fmt: skip


def test_a_graph_comes_back_from_its_tables() -> None:
    units = {"act1": torch.tensor([4, 2]), "act2": torch.tensor([0, 7, 1])}
    edges = {("act1", "act2"): torch.tensor([[1.0, -2.0], [0.0, 3.0], [0.5, 0.0]])}
    graph = circuit_graph(units, edges, 1)
    back = graph_from_tables(unit_table(graph), edge_table(graph))
    assert list(back.nodes(data=True)) == list(graph.nodes(data=True))
    assert sorted(back.edges(data="weight")) == sorted(graph.edges(data="weight"))


def test_what_is_traced(traced: dict[int, ClassCircuits], checkpoint: Checkpoint) -> None:
    found = traced[0]
    inner = [name for name in checkpoint.tower.names if name != "input"]
    assert list(found.nodes) == DOMAINS
    assert list(channels_of(found)) == inner
    counts = found.units.groupby(["domain", "layer"], sort=False).size()
    for layer, channels in channels_of(found).items():
        assert (counts.xs(layer, level="layer") == -(-channels // 10)).all()
    assert set(found.completeness["layer"]) == set(checkpoint.tower.names)
    assert (found.completeness["images"] == 2).all()
    assert set(found.effects["source"]) == {*DOMAINS, SHARED}
    arrays = node_arrays(traced)
    assert arrays["sketch/act1"].shape == (3, channels_of(found)["act1"])
    assert np.isnan(arrays["sketch/act1"][2]).all()
    assert np.allclose(arrays["real/act1"][0], found.nodes["real"]["act1"].numpy())


def test_the_error_of_the_last_layer_is_one_by_construction_and_does_not_count(
    traced: dict[int, ClassCircuits], checkpoint: Checkpoint
) -> None:
    table = pd.concat([found.completeness for found in traced.values()], ignore_index=True)
    last = table["layer"] == checkpoint.tower.names[-1]
    assert np.allclose(table.loc[last, "error"], 1, atol=1e-3)
    found = completeness_quartiles(table)
    assert found["estimate"] == table.loc[~last, "error"].median()
    assert found["low"] <= found["estimate"] <= found["high"]


def test_quartiles_of_the_error_by_hand() -> None:
    """Two circuits of three layers, the last of them off by all of the change."""
    table = pd.DataFrame(
        {"layer": ["act1", "act2", "attnpool"] * 2, "error": [0.1, 0.2, 1.0, 0.3, 0.4, 1.0]}
    )
    assert completeness_quartiles(table) == pytest.approx(
        {"estimate": 0.25, "low": 0.175, "high": 0.325}
    )
    with pytest.raises(ValueError, match="errors of completeness of 1 layers"):
        completeness_quartiles(table[table["layer"] == "act1"])


def test_a_class_is_traced_once_and_a_kill_leaves_no_half_of_it(
    tmp_path: Path, traced: dict[int, ClassCircuits], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def make() -> ClassCircuits:
        calls.append(1)
        return traced[0]

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    folder = tmp_path / "class-0"
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", die)
        with pytest.raises(Killed):
            once(folder, make)
    assert not folder.exists()
    first, second = once(folder, make), once(folder, make)
    assert len(calls) == 2
    for found in (first, second):
        pd.testing.assert_frame_equal(found.effects, traced[0].effects)
        pd.testing.assert_frame_equal(found.edges, traced[0].edges)
        for domain, layers in traced[0].nodes.items():
            assert list(found.nodes[domain]) == list(layers)
            for layer, values in layers.items():
                assert torch.equal(found.nodes[domain][layer], values)
    edges = folder / "edges.parquet"
    edges.write_bytes(edges.read_bytes()[:50])
    with pytest.raises(UserError, match=r"class-0: circuits of a class are not whole.*trace again"):
        once(folder, make)


def test_classes_are_compared(traced: dict[int, ClassCircuits]) -> None:
    units, edges, effects = (
        pd.concat(
            [getattr(found, name).assign(class_id=label) for label, found in traced.items()],
            ignore_index=True,
        )
        for name in ("units", "edges", "effects")
    )
    channels = channels_of(traced[0])
    compared = compare_circuits(units, edges, effects, channels, [0, 1], resamples=100)
    nodes = compared["node_similarity"]
    assert set(nodes["group"]) == {"all", "held_out"}  # class 2 is in one domain alone
    assert nodes["similarity"].between(0, 1).all()
    assert set(compared["graph_similarity"]["score"]) == {"jaccard", "wl_h1", "wl_h2", "wl_h3"}
    assert set(compared["ablation"]["kind"]) == {"circuit", "random", "difference"}
