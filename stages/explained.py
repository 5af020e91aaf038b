"""What the comparison shows of the cells that were looked into: tables and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clip_mixtures.mechanisms.completeness import completeness_quartiles
from clip_mixtures.mechanisms.graph_tables import graph_from_tables
from clip_mixtures.mechanisms.sae_curves import read_curves
from clip_mixtures.report import (
    ablation_figures,
    circuit_figures,
    cka_figures,
    embedding_figures,
    sae_figures,
    similarity_figures,
)
from clip_mixtures.report.document import MISSING, Column, Entry, Table
from clip_mixtures.report.drawings import Drawing
from evaluated import existing, read_json
from experiment import MECHANISMS, Cell, Experiment
from mechanism_params import Mechanisms

# Units of the last cell that the page shows, and domains side by side.
_SHOWN_UNITS, _SHOWN_DOMAINS = 6, 8
# Panels of a figure.
_PANELS = 12


_MEASURES = [
    *("run", "mixture", "model", "seed", "test_domain"),
    *("measure", "of", "estimate", "low", "high", "chance"),
]


def measures(experiment: Experiment, mechanisms: Mechanisms) -> pd.DataFrame:
    """Return the numbers of all cells that were looked into.

    Returns:
        A row a cell and measure: run, mixture, model, seed, test_domain, measure, of, estimate,
        low, high and chance.
    """
    rows = []
    for cell in mechanisms.cells:
        facts = _facts(experiment, cell)
        found = _table(cell, "representation", "separation.csv")
        rows.append(_with_facts(found, facts))
        score = _score(cell)
        shared = {"measure": "sharing", "of": "test domain", **score["score"]}
        rows.append(_with_facts(pd.DataFrame([{**shared, "chance": score["chance"]}]), facts))
    for cell in mechanisms.circuit_cells:
        error = {
            "measure": "completeness error",
            "of": "median over layers and circuits",
            **completeness_quartiles(_table(cell, "circuits", "completeness.parquet")),
        }
        rows.append(_with_facts(pd.DataFrame([error]), _facts(experiment, cell)))
    found = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
    return found.reindex(columns=_MEASURES)


def measures_table(measured: pd.DataFrame) -> Table:
    """Tabulate the numbers of :func:`measures`, a row a cell."""
    parts = list(dict.fromkeys(zip(measured["measure"], measured["of"], strict=True)))
    columns = [Column("Run", heads_row=True)]
    differs = set()
    for measure, of in parts:
        rows = (measured["measure"] == measure) & (measured["of"] == of)
        chances = {_chance(chance) for chance in measured.loc[rows, "chance"].dropna()}
        if len(chances) > 1:
            differs.add((measure, of))
        beside = f" (chance {chances.pop()})" if len(chances) == 1 else ""
        columns.append(Column(f"{_words(measure)}, {of}{beside}", is_number=True))
    rows_of_table = []
    for run, found in measured.groupby("run", sort=False):
        by_part = found.set_index(["measure", "of"]).to_dict("index")
        entries = [_measure(by_part.get(part), part in differs) for part in parts]
        rows_of_table.append((Entry(str(run)), *entries))
    return Table(
        "Measures",
        "What was measured in the last checkpoints, with 95 % intervals; of the completeness error "
        "of circuits, the quartiles over layers, without the last one, and circuits. Chance: what "
        "an embedding without a trace of the group would give; of sharing, what the domain shares "
        "with other classes of the other domains.",
        tuple(columns),
        tuple(rows_of_table),
    )


def _measure(found: Mapping[Any, Any] | None, with_chance: bool) -> Entry:
    if found is None:
        return Entry(MISSING)
    note = "" if pd.isna(found["low"]) else f"[{found['low']:.2f}, {found['high']:.2f}]"
    if with_chance and not pd.isna(found["chance"]):
        note = f"{note} chance {_chance(found['chance'])}".strip()
    return Entry(f"{found['estimate']:.2f}", round(float(found["estimate"]), 6), note)


def _chance(level: float) -> str:
    """Write a chance level with two digits, and one that they would make nothing of as such."""
    return "below 0.01" if 0 < level < 0.005 else f"{level:.2f}"


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def drawings(experiment: Experiment, mechanisms: Mechanisms) -> dict[str, list[Drawing]]:
    """Return the figures of the cells that were looked into, by the part of the report."""
    parts = {
        "Embeddings": (_embedding, mechanisms.cells),
        "Layers": (_layers, mechanisms.cells),
        "Shared units": (_units, mechanisms.cells),
        "Circuits": (_circuits, mechanisms.circuit_cells),
    }
    return {
        name: [
            dataclasses.replace(drawing, name=f"mechanisms/{drawing.name}")
            for drawing in (part(experiment, cells) if cells else ())
        ]
        for name, (part, cells) in parts.items()
    }


def _embedding(experiment: Experiment, cells: tuple[Cell, ...]) -> Iterator[Drawing]:
    maps = {cell.run: _table(cell, "representation", "maps.parquet") for cell in cells}
    for domain, names in _by_test_domain(experiment, cells).items():
        shown = {name: maps[name] for name in names}
        for part, words in (("all", "all domains"), ("without", f"all domains but {domain}")):
            panels = {name: found[found["map"] == part] for name, found in shown.items()}
            for suffix, chosen in _pages(panels):
                yield Drawing(
                    f"embedding_{part}_{domain}{suffix}",
                    f"The embedding of {words}{_part(suffix)}",
                    "A map of test images, one dot an image: what lies together is alike to the "
                    "network; how far apart two clusters lie means little.",
                    partial(
                        embedding_figures.embedding_maps,
                        chosen,
                        test_domain=domain if part == "all" else None,
                    ),
                    is_beside=_is_further(suffix),
                )
    for name, heading, caption in (
        (
            "class_distances",
            "How far the domains lie apart",
            "Distance between the means of a class in two domains, averaged over classes, with "
            "95 % intervals over classes.",
        ),
        (
            "distances",
            "How far the means of domains lie apart",
            "Distance between the means of all images of two domains.",
        ),
    ):
        distances = {cell.run: _table(cell, "representation", f"{name}.csv") for cell in cells}
        for suffix, chosen in _pages(distances):
            yield Drawing(
                f"{name}{suffix}",
                heading + _part(suffix),
                caption,
                partial(embedding_figures.distance_heatmaps, chosen),
                is_beside=name != "class_distances" or _is_further(suffix),
            )
    for cell in cells:
        found = _table(cell, "representation", "mean_difference.csv")
        by_domain = {str(name): part for name, part in found.groupby("domain", sort=False)}
        yield Drawing(
            f"mean_difference_{cell.run}",
            f"Dimensions that tell a domain: {cell.run}",
            "Mean of each domain minus the mean of the others, dimension by dimension, sorted.",
            partial(embedding_figures.mean_difference, by_domain),
            run=cell.run,
        )
        domain = experiment.mixture(cell.mixture).test_domain
        yield Drawing(
            f"top_dimensions_{cell.run}",
            f"The two dimensions that tell {domain} most: {cell.run}",
            "One dot an image.",
            partial(
                embedding_figures.top_dimensions,
                _table(cell, "representation", "top_dimensions.parquet"),
            ),
            run=cell.run,
        )


def _layers(experiment: Experiment, cells: tuple[Cell, ...]) -> Iterator[Drawing]:
    tables = {
        cell.run: _table(cell, "representation", "cka.csv").assign(run=cell.run) for cell in cells
    }
    for domain, names in _by_test_domain(experiment, cells).items():
        found = pd.concat([tables[name] for name in names], ignore_index=True)
        # What has no note reads back as a number that is none.
        found["note"] = found["note"].fillna("")
        for subset in found["subset"].unique():
            for kernel in found["kernel"].unique():
                yield Drawing(
                    f"cka_{kernel}_{subset}_{domain}",
                    f"How alike {domain} and the other domains are represented, layer by layer: "
                    f"{str(subset).replace('_', '-')} classes, {kernel} kernel",
                    "Centred kernel alignment of class means between two domains.",
                    partial(
                        cka_figures.cka_curves,
                        found[found["subset"] == subset],
                        apart=domain,
                        kernel=kernel,
                    ),
                    is_beside=subset != "held_out" or kernel != "linear",
                )


def _units(experiment: Experiment, cells: tuple[Cell, ...]) -> Iterator[Drawing]:
    curves = {cell.run: read_curves(MECHANISMS / "sae" / cell.run / "curves") for cell in cells}
    yield Drawing(
        "sae_training",
        "Sparse autoencoders",
        "How the autoencoders trained; hollow dots: test images.",
        partial(sae_figures.sae_training_curves, curves),
    )
    sharing = {cell.run: _table(cell, "sharing", "sharing.csv") for cell in cells}
    for suffix, chosen in _pages(sharing):
        yield Drawing(
            f"sharing{suffix}",
            f"Units that two domains share{_part(suffix)}",
            "Share of the most frequent units of a held-out class that two domains have in common, "
            "averaged over classes. In brackets, chance: the same between different classes, which "
            "have the units in common that fire for nearly every image.",
            partial(
                sae_figures.sharing_matrices,
                chosen,
                resamples=experiment.evaluate.resamples,
                seed=experiment.evaluate.seed,
            ),
            is_beside=_is_further(suffix),
        )
    scores = pd.DataFrame(
        [
            {
                "run": cell.run,
                "test_domain": found["test_domain"],
                **_numbers({**found["score"], "chance": found["chance"]}),
            }
            for cell in cells
            for found in [_score(cell)]
        ]
    )
    yield Drawing(
        "sharing_scores",
        "What the test domain shares with the others",
        "Mean over the other domains and the held-out classes, with 95 % intervals over classes, "
        "beside chance: what a class of the test domain shares with other classes of the other "
        "domains.",
        partial(sae_figures.sharing_scores, scores),
    )
    for cell in cells:
        domain = experiment.mixture(cell.mixture).test_domain
        yield from _examples(cell, domain)


def _circuits(experiment: Experiment, cells: tuple[Cell, ...]) -> Iterator[Drawing]:
    nodes = {cell.run: _table(cell, "circuits", "node_similarity.parquet") for cell in cells}
    graphs = {cell.run: _table(cell, "circuits", "graph_similarity.parquet") for cell in cells}
    for domain, names in _by_test_domain(experiment, cells).items():
        found = pd.concat([nodes[name].assign(run=name) for name in names], ignore_index=True)
        yield Drawing(
            f"node_similarity_{domain}",
            f"Units that the circuits of {domain} and of the other domains have in common",
            "Jaccard index of the strongest units of a held-out class in two domains, layer by "
            "layer.",
            partial(
                similarity_figures.node_similarity_curves,
                found[found["group"] == "held_out"],
                apart=domain,
            ),
        )
    for suffix, chosen in _pages(graphs):
        together = pd.concat(
            [found.assign(run=name) for name, found in chosen.items()], ignore_index=True
        )
        for score in together["score"].unique():
            yield Drawing(
                f"graph_similarity_{score}{suffix}",
                f"Edges that the circuits of two domains have in common{_part(suffix)}"
                if score == "jaccard"
                else f"Kernel of the circuits of two domains, {score}{_part(suffix)}",
                "Jaccard index of the edges of a held-out class in two domains, averaged over "
                "classes, with 95 % intervals over classes."
                if score == "jaccard"
                else "Weisfeiler-Lehman kernel of the circuits of a held-out class in two domains.",
                partial(
                    similarity_figures.similarity_matrices, together, score=score, group="held_out"
                ),
                is_beside=score != "jaccard" or _is_further(suffix),
            )
    for cell in cells:
        yield _example_circuits(cell)
        ablation = _table(cell, "circuits", "ablation.parquet")
        for mode, words in (("ablate", "taken away"), ("keep", "all that is left")):
            yield Drawing(
                f"ablation_{mode}_{cell.run}",
                f"What a circuit causes when it is {words}: {cell.run}",
                "How far the margin of the class and its accuracy fall on images of each domain "
                f"when the circuit is {words}, beside random units of the same number. Of all "
                f"domains: the units that all circuits have. {images_known(ablation)}",
                partial(
                    ablation_figures.ablation_dots,
                    ablation,
                    mode=mode,
                    group="held_out",
                ),
                run=cell.run,
            )


def images_known(ablation: pd.DataFrame) -> str:
    """Say in which domains the images of the held-out classes are ones that circuits know."""
    own = ablation[
        (ablation["group"] == "held_out") & (ablation["source"] == ablation["target"])
    ].drop_duplicates("target")
    known = own[own["in_sample"] > 0]
    if known.empty:
        return "No image is one that a circuit was found on."
    listed = ", ".join(
        f"{row['in_sample']} of {row['images']} images of {row['target']}"
        for row in known.to_dict("records")
    )
    return f"The circuit of the same domain was found on these very images: {listed}."


def _example_circuits(cell: Cell) -> Drawing:
    units, edges = (_table(cell, "circuits", f"{name}.parquet") for name in ("units", "edges"))
    label = units["class_id"].iloc[0]
    units, edges = units[units["class_id"] == label], edges[edges["class_id"] == label]
    graphs = {
        str(domain): graph_from_tables(part, edges[edges["domain"] == domain])
        for domain, part in units.groupby("domain", sort=False)
    }
    path = existing(MECHANISMS / "circuits" / cell.run / "examples.npz")
    with np.load(path, allow_pickle=False) as file:
        pictures = dict(zip(file["domains"].tolist(), file["images"], strict=True))
        name = str(file["class_name"])
    return Drawing(
        f"circuits_{cell.run}",
        f"The circuits of a held-out class: {name} in {cell.run}",
        "The strongest units of each layer and the edges between them; a unit has the same place "
        "in all domains, and is the darker the more of them have it.",
        partial(
            circuit_figures.circuits_side_by_side,
            graphs,
            {domain: pictures_there(pictures[domain]) for domain in graphs},
            title=name,
        ),
        run=cell.run,
    )


def pictures_there(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return pictures (n, H, W, 3) less the white ones at the end, which stand for none.

    There are more places than images that a circuit is traced on; the first is always one of them.
    """
    seen = np.flatnonzero((images < 255).any(axis=(1, 2, 3)))
    return images[: seen[-1] + 1 if len(seen) else 1]


def _examples(cell: Cell, test_domain: str) -> Iterator[Drawing]:
    units = _table(cell, "sharing", "units.csv").head(_SHOWN_UNITS)
    if units.empty:
        return
    with np.load(MECHANISMS / "sharing" / cell.run / "examples.npz", allow_pickle=False) as file:
        images = file["images"][: len(units)]
    domains = list(_table(cell, "sharing", "sharing.csv")["domain_a"].unique())
    shown = sorted(range(len(domains)), key=lambda place: domains[place] != test_domain)
    shown = sorted(shown[:_SHOWN_DOMAINS])
    domains = [domains[place] for place in shown]
    yield Drawing(
        f"units_{cell.run}",
        f"Units that all domains share: {cell.run}",
        "The images of each domain that activate a unit most. Behind its number stands the class "
        "for which the domains share it most"
        + (", and the word nearest to it." if "name" in units else "."),
        partial(
            sae_figures.unit_examples,
            images[:, shown],
            units["unit"].tolist(),
            domains,
            _notes(units),
        ),
        run=cell.run,
    )


def _notes(units: pd.DataFrame) -> list[str]:
    if "name" not in units:
        return units["class"].astype(str).tolist()
    return [f"{row['class']} ({row['name']})" for row in units.to_dict("records")]


def _by_test_domain(experiment: Experiment, cells: tuple[Cell, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for cell in cells:
        found.setdefault(experiment.mixture(cell.mixture).test_domain, []).append(cell.run)
    return found


def _facts(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    return {
        "run": cell.run,
        "mixture": cell.mixture,
        "model": cell.model,
        "seed": cell.seed,
        "test_domain": experiment.mixture(cell.mixture).test_domain,
    }


def _with_facts(table: pd.DataFrame, facts: Mapping[str, Any]) -> pd.DataFrame:
    numbers = table.drop(columns="n", errors="ignore")
    return pd.concat([pd.DataFrame([facts] * len(table)), numbers], axis=1)


def _part(suffix: str) -> str:
    return f" ({suffix[1:]})" if suffix else ""


def _is_further(suffix: str) -> bool:
    """Whether a figure continues another one: the page shows the first and links to the others."""
    return suffix not in ("", "_1")


def _pages(tables: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Share panels among figures: one of ninety would be too large to look at, or to draw."""
    names = list(tables)
    for start in range(0, len(names), _PANELS):
        suffix = "" if len(names) <= _PANELS else f"_{start // _PANELS + 1}"
        yield suffix, {name: tables[name] for name in names[start : start + _PANELS]}


def _table(cell: Cell, family: str, name: str) -> pd.DataFrame:
    path = existing(MECHANISMS / family / cell.run / name)
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def _score(cell: Cell) -> dict[str, Any]:
    return read_json(MECHANISMS / "sharing" / cell.run / "score.json")


def _numbers(interval: Mapping[str, float | None]) -> dict[str, float]:
    ends = {name: interval[name] for name in ("estimate", "low", "high", "chance")}
    return {name: np.nan if value is None else value for name, value in ends.items()}
