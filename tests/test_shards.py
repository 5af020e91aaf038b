"""Shards of features: the shuffle, resuming in it, and files that went wrong."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_mixtures.errors import UserError
from clip_mixtures.mechanisms.shards import (
    ShardSet,
    open_shards,
    ordered_batches,
    shuffled_batches,
    steps_per_epoch,
    verify_shards,
    write_shards,
)


def numbered(rows: int, width: int = 3) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Rows whose first number is their place, exact in half precision up to 2048."""
    table = np.zeros((rows, width), dtype=np.float32)
    table[:, 0] = np.arange(rows)
    return table


def pieces(rows: int, *sizes: int) -> Iterator[np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
    table, first, turn = numbered(rows), 0, 0
    while first < rows:
        size = sizes[turn % len(sizes)]
        yield table[first : first + size]
        first, turn = first + size, turn + 1


def make(folder: Path, rows: int = 100, per_shard: int = 30) -> ShardSet:
    return write_shards(folder, pieces(rows, 17, 64), rows_per_shard=per_shard)


def places(batches: Iterator[torch.Tensor]) -> list[list[int]]:
    return [batch[:, 0].long().tolist() for batch in batches]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_written_is_read_back(tmp_path: Path, dtype: str) -> None:
    table = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    batches: list[Any] = [table[:17], torch.from_numpy(table[17:70]), table[70:]]
    written = write_shards(tmp_path, batches, dtype=dtype, rows_per_shard=30)
    found = open_shards(tmp_path, width=3)
    assert found == written
    assert [shard.rows for shard in found.shards] == [30, 30, 30, 10]
    assert len(found) == 100
    read = torch.cat(list(ordered_batches(found, 8)))
    assert read.dtype == torch.float32
    assert np.array_equal(read.numpy(), table.astype(dtype).astype(np.float32))
    verify_shards(found)


def test_the_fingerprint_is_of_the_content_and_not_of_the_batches(tmp_path: Path) -> None:
    first = write_shards(tmp_path / "a", pieces(50, 7), rows_per_shard=20)
    second = write_shards(tmp_path / "b", pieces(50, 50), rows_per_shard=20)
    third = write_shards(tmp_path / "c", pieces(51, 50), rows_per_shard=20)
    assert first.fingerprint == second.fingerprint != third.fingerprint


@given(
    rows=st.integers(1, 200),
    per_shard=st.integers(1, 90),
    batch=st.integers(1, 70),
    block=st.integers(1, 20),
    pool=st.integers(1, 6),
    start=st.integers(0, 8),
)
@settings(max_examples=40, deadline=None)
def test_an_epoch_holds_every_row_once_and_can_begin_anywhere(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    per_shard: int,
    batch: int,
    block: int,
    pool: int,
    start: int,
) -> None:
    shards = make(tmp_path_factory.mktemp("shards"), rows, per_shard)
    order: dict[str, Any] = {"seed": 1, "epoch": 2, "block_rows": block, "pool_blocks": pool}
    whole = places(shuffled_batches(shards, batch, **order))
    assert sorted(itertools.chain(*whole)) == list(range(rows))
    assert [len(one) for one in whole[:-1]] == [batch] * (len(whole) - 1)
    assert len(whole) == steps_per_epoch(shards, batch)
    assert places(shuffled_batches(shards, batch, start=start, **order)) == whole[start:]


def test_seed_and_epoch_decide_the_order(tmp_path: Path) -> None:
    shards = make(tmp_path, 400, 90)

    def order(seed: int, epoch: int) -> list[list[int]]:
        return places(shuffled_batches(shards, 50, seed=seed, epoch=epoch, block_rows=8))

    assert order(1, 1) == order(1, 1)
    assert len({str(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1, 2)}) == 6


def test_rows_of_a_single_block_have_another_order_in_every_epoch(tmp_path: Path) -> None:
    # With one block in one pool, only the shuffle within the pool can tell epochs apart.
    shards = make(tmp_path, 50, 50)
    orders = {
        str(places(shuffled_batches(shards, 50, seed=seed, epoch=epoch)))
        for seed in (1, 2)
        for epoch in (0, 1, 2)
    }
    assert len(orders) == 6


def test_a_batch_mixes_rows_of_the_whole_set(tmp_path: Path) -> None:
    # Eight shards, as of eight domains; a batch of 64 rows of a full shuffle holds 8 of each, with
    # a standard deviation of 2.6. Pools of 32 of the 128 blocks come nearly as close.
    shards = make(tmp_path, 2048, 256)
    batches = places(shuffled_batches(shards, 64, seed=0, epoch=0, block_rows=16, pool_blocks=32))
    counts = np.array([np.bincount(np.array(one) // 256, minlength=8) for one in batches])
    assert counts.std() < 2 * 2.6
    # Within a batch, neighbours in the files are not neighbours in the order.
    steps = np.abs(np.diff(np.array(batches), axis=1))
    assert (steps == 1).mean() < 0.02


def test_reading_skips_what_a_resumed_run_has_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clip_mixtures.mechanisms import shards as module

    found = make(tmp_path, 400, 100)
    reads: list[int] = []
    read = module._read

    def counted(*arguments: object) -> torch.Tensor:
        rows: torch.Tensor = read(*arguments)  # type: ignore[arg-type]
        reads.append(len(rows))
        return rows

    monkeypatch.setattr(module, "_read", counted)
    options: dict[str, Any] = {"seed": 0, "epoch": 0, "block_rows": 10, "pool_blocks": 5}
    list(shuffled_batches(found, 20, start=15, **options))
    # 300 rows are skipped, six pools of 50; two pools remain.
    assert sum(reads) == 100


def test_a_stream_that_fails_leaves_no_manifest(tmp_path: Path) -> None:
    def failing() -> Iterator[np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
        yield numbered(70)
        raise RuntimeError("the model fell over")

    make(tmp_path)
    with pytest.raises(RuntimeError, match="fell over"):
        write_shards(tmp_path, failing(), rows_per_shard=30)
    with pytest.raises(UserError, match=r"shards\.json: absent, so .* extract them first"):
        open_shards(tmp_path)
    assert not list(tmp_path.glob("*.part"))


def test_leftover_shards_of_a_larger_set_go(tmp_path: Path) -> None:
    make(tmp_path, 100)
    make(tmp_path, 40)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "shard-00000.npy",
        "shard-00001.npy",
        "shards.json",
    ]


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shards\.json: absent"):
        open_shards(tmp_path)
    with pytest.raises(ValueError, match="no features to write"):
        write_shards(tmp_path, [])


def test_another_width_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=r"shards\.json: rows are 3 wide, expected 1024"):
        open_shards(tmp_path, width=1024)
    with pytest.raises(ValueError, match=r"from row 5 have shape \(2, 4\); expected \(rows, 3\)"):
        write_shards(tmp_path, [numbered(5), numbered(2, 4)])
    with pytest.raises(ValueError, match=r"from row 0 have shape \(5,\); expected \(rows, width\)"):
        write_shards(tmp_path, [np.zeros(5, dtype=np.float32)])


@pytest.mark.parametrize("keep", [0, 20, 150, -1])
def test_a_shard_that_was_cut_short_is_named(tmp_path: Path, keep: int) -> None:
    make(tmp_path)
    path = tmp_path / "shard-00002.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"shard-00002\.npy: (cut short|not a NumPy file)"):
        open_shards(tmp_path)


def test_an_absent_or_exchanged_shard_is_named(tmp_path: Path) -> None:
    shards = make(tmp_path)
    path = tmp_path / "shard-00001.npy"
    np.save(path, numbered(30).astype(np.float64))
    with pytest.raises(UserError, match=r"shard-00001\.npy: holds \(30, 3\) float64, expected"):
        open_shards(tmp_path)
    np.save(path, numbered(30).astype(np.float16)[::-1].copy())
    open_shards(tmp_path)  # shape and type are right; only the bytes tell
    with pytest.raises(UserError, match=r"shard-00001\.npy: changed since it was written"):
        verify_shards(shards)
    path.unlink()
    with pytest.raises(UserError, match=r"shard-00001\.npy: absent"):
        open_shards(tmp_path)


def test_rows_that_are_not_finite_are_named(tmp_path: Path) -> None:
    table = numbered(40)
    table[33, 2] = np.nan
    with pytest.raises(ValueError, match="row 33 are not finite in float16"):
        write_shards(tmp_path, [table[:20], table[20:]])
    table[33, 2] = 1e6  # finite, but not in half precision
    with pytest.raises(ValueError, match="row 33 are not finite in float16"):
        write_shards(tmp_path, [table])
    write_shards(tmp_path, [table], dtype="float32", rows_per_shard=30)
    path = tmp_path / "shard-00001.npy"
    table[33, 1] = np.inf
    np.save(path, table[30:])
    shards = open_shards(tmp_path)
    with pytest.raises(UserError, match=r"shard-00001\.npy: row 3 holds a number that is not"):
        list(ordered_batches(shards, 8))
    with pytest.raises(UserError, match=r"shard-00001\.npy: row 3 holds a number that is not"):
        list(shuffled_batches(shards, 8, seed=0, epoch=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 99}, "rows or dtype"),
        ({"dtype": "int8"}, "rows or dtype"),
        ({"shards": [{"file": "a"}]}, "not a list of shards"),
        ({"shards": []}, "rows or dtype"),
    ],
)
def test_a_damaged_manifest_is_named(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    make(tmp_path)
    path = tmp_path / "shards.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=rf"shards\.json: .*{message}"):
        open_shards(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match=r"shards\.json: not a list of shards"):
        open_shards(tmp_path)


def test_impossible_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype is 'int8'; choose one of float16, float32"):
        write_shards(tmp_path, [numbered(3)], dtype="int8")
    with pytest.raises(ValueError, match="rows_per_shard is 0"):
        write_shards(tmp_path, [numbered(3)], rows_per_shard=0)
