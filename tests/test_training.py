"""Training: the recipe, the same data for any number of processes, and runs that survive a kill."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from corpora_factory import make_domainnet, make_tsv_base
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_mixtures.corpora.domainnet import index_domainnet
from clip_mixtures.errors import UserError
from clip_mixtures.images import pack
from clip_mixtures.index import Index, read_index, write_index
from clip_mixtures.mixtures.spec import Mixture
from clip_mixtures.mixtures.store import write_mixture
from clip_mixtures.scratch import exclusive
from clip_mixtures.training import clip, loop
from clip_mixtures.training import run as run_module
from clip_mixtures.training.architectures import known_architectures
from clip_mixtures.training.augmentation import DRAWS, Augmentation, apply_maps
from clip_mixtures.training.checkpoints import (
    checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    load_state,
    save_checkpoint,
    save_state,
)
from clip_mixtures.training.config import (
    TrainConfig,
    per_process_batch,
    train_config_from_params,
)
from clip_mixtures.training.data import fingerprint, source_hash, tokenize
from clip_mixtures.training.feed import PackedFeed
from clip_mixtures.training.models import ClipModel, Normalisation, create_clip, to_pixels
from clip_mixtures.training.processes import Processes
from clip_mixtures.training.run import Run, publish, train_run

CONFIG = TrainConfig(
    epochs=3, global_batch_size=8, learning_rate=1e-3, warmup_steps=2, weight_decay=0.1,
    beta1=0.9, beta2=0.98, epsilon=1e-8, crop_scale=0.8, flip=True, checkpoint_every=2,
)  # fmt: skip
ALONE = Processes(rank=0, world_size=1, device=torch.device("cpu"))
PARAMS = dataclasses.asdict(CONFIG)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    # The order of sums, and so the last bits, may depend on the number of threads.
    torch.set_num_threads(1)


def make_model(seed: int = 0) -> ClipModel:
    torch.manual_seed(seed)
    return create_clip("sample-RN")


def make_data(
    model: ClipModel, count: int = 20, augmentation: Augmentation | None = None
) -> PackedFeed:
    images = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    tokens = tokenize([f"a photo of {n}" for n in range(count)], model.tokenizer)
    normalisation = Normalisation(model.mean, model.std, torch.device("cpu"))
    return PackedFeed(
        images, tokens, augmentation or Augmentation((0.8, 1.0), flip=True), normalisation
    )


def train(
    model: ClipModel,
    data: PackedFeed,
    config: TrainConfig,
    seed: int,
    folder: Path,
    processes: Processes,
) -> dict[str, Any]:
    """Train CLIP on packed images, as a run does."""
    objective = clip.Contrastive(model.network, config, processes)
    return loop.train(objective, data, config, seed, folder, processes)


def weights(folder: Path, epoch: int) -> dict[str, torch.Tensor]:
    model = make_model(seed=99)
    load_checkpoint(checkpoint_path(folder / "checkpoints", epoch), model.network)
    return dict(model.network.state_dict())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_checkpoints_begin_before_training_and_end_with_it(tmp_path: Path) -> None:
    model = make_model()
    start = {name: value.clone() for name, value in model.network.state_dict().items()}
    facts = train(model, make_data(model), CONFIG, 0, tmp_path, ALONE)
    assert list(list_checkpoints(tmp_path / "checkpoints")) == [0, 2, 3]
    assert same(weights(tmp_path, 0), start)
    assert same(weights(tmp_path, 3), dict(model.network.state_dict()))
    assert not same(weights(tmp_path, 2), weights(tmp_path, 3))
    # 20 pairs make two full batches of 8 an epoch.
    assert (facts["steps"], facts["images_seen"]) == (6, 48)
    curve = pd.read_csv(tmp_path / "curves" / "plots" / "metrics" / "loss.tsv", sep="\t")
    assert curve["step"].tolist() == [1, 2, 3, 4, 5, 6]


def test_the_loss_falls_when_there_is_something_to_learn(tmp_path: Path) -> None:
    model = make_model()
    config = dataclasses.replace(CONFIG, epochs=15, checkpoint_every=15)
    train(model, make_data(model, 16), config, 0, tmp_path, ALONE)
    curve = pd.read_csv(tmp_path / "curves" / "plots" / "metrics" / "loss.tsv", sep="\t")["loss"]
    assert curve.iloc[-5:].mean() < curve.iloc[:5].mean() - 0.3


def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    model = make_model()
    train(model, make_data(model), CONFIG, 0, whole, ALONE)

    monkeypatch.setattr(loop, "SECONDS_BETWEEN_STATES", 0)
    genuine = save_checkpoint

    def die(folder: Path, epoch: int, network: torch.nn.Module) -> None:
        genuine(folder, epoch, network)
        if epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", die)
    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        train(model, make_data(model), CONFIG, 0, killed, ALONE)
    monkeypatch.setattr(loop, "save_checkpoint", genuine)
    state = load_state(killed / "state.pt")
    assert state is not None
    # Saved at the last point before the end of the second epoch.
    assert state["step"] == 3
    # Another start shows that everything comes from the state.
    model = make_model(seed=5)
    train(model, make_data(model), CONFIG, 0, killed, ALONE)
    for epoch in (0, 2, 3):
        assert same(weights(whole, epoch), weights(killed, epoch)), epoch
    for name in ("loss", "learning_rate", "logit_scale"):
        file = Path("curves") / "plots" / "metrics" / f"{name}.tsv"
        assert (whole / file).read_text() == (killed / file).read_text()


def test_seeds_and_order_matter(tmp_path: Path) -> None:
    finals = []
    for seed in (0, 1):
        model = make_model()
        train(model, make_data(model), CONFIG, seed, tmp_path / str(seed), ALONE)
        finals.append(weights(tmp_path / str(seed), 3))
    assert not same(*finals)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_good(tmp_path: Path) -> None:
    model = make_model()
    data = make_data(model)
    config = dataclasses.replace(CONFIG, learning_rate=1e30, warmup_steps=0, epochs=5)
    with pytest.raises(UserError, match=r"loss is nan at step .* Lower learning_rate"):
        train(model, data, config, 0, tmp_path, ALONE)
    for path in list_checkpoints(tmp_path / "checkpoints").values():
        fresh = make_model()
        load_checkpoint(path, fresh.network)
        assert all(value.isfinite().all() for value in fresh.network.state_dict().values())


def test_more_batch_than_images_is_refused(tmp_path: Path) -> None:
    model = make_model()
    with pytest.raises(UserError, match=r"global_batch_size: 8 is more than the 5"):
        train(model, make_data(model, 5), CONFIG, 0, tmp_path, ALONE)


def test_the_first_step_is_that_of_open_clip(tmp_path: Path) -> None:
    """Loss and update of one step against open_clip's loss and a plain AdamW, without crops."""
    whole = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    config = dataclasses.replace(
        CONFIG, epochs=1, crop_scale=1.0, flip=False, warmup_steps=1, checkpoint_every=1
    )
    model = make_model()
    data = make_data(model, 8, whole)
    train(model, data, config, 0, tmp_path, ALONE)
    curve = pd.read_csv(tmp_path / "curves" / "plots" / "metrics" / "loss.tsv", sep="\t")["loss"]

    reference = make_model()
    network = reference.network.train()
    pixels = to_pixels(torch.from_numpy(data.images))
    features = network(data.normalisation.apply(pixels), data.targets.long())
    loss = open_clip.ClipLoss()(*features[:3])
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in network.parameters() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in network.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1e-3, betas=(0.9, 0.98), eps=1e-8,
    )  # fmt: skip
    loss.backward()
    optimizer.step()
    assert curve.iloc[0] == pytest.approx(loss.item(), rel=1e-4)
    trained = weights(tmp_path, 1)["logit_scale"]
    assert trained.item() == pytest.approx(network.get_parameter("logit_scale").item(), abs=1e-5)


def run_processes(folder: Path, processes: int) -> None:
    script = Path(__file__).parent / "train_in_processes.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    subprocess.run(
        [*command, "--nproc-per-node", str(processes), str(script), str(folder)],
        check=True, capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip


def test_two_processes_share_the_batch_of_one(tmp_path: Path) -> None:
    for processes in (1, 2):
        run_processes(tmp_path / str(processes), processes)
    curves = [
        pd.read_csv(tmp_path / str(n) / "curves" / "plots" / "metrics" / "loss.tsv", sep="\t")
        for n in (1, 2)
    ]
    # Batch normalisation sees half a batch in each process, so the losses agree only about.
    assert curves[0]["step"].tolist() == curves[1]["step"].tolist()
    assert curves[1]["loss"].iloc[0] == pytest.approx(curves[0]["loss"].iloc[0], rel=0.15)
    facts = [json.loads((tmp_path / str(n) / "facts.json").read_text()) for n in (1, 2)]
    assert facts[0]["images_seen"] == facts[1]["images_seen"] == 48


TOY = Mixture("toy", "domains", "sketch", ("ant",), ("real",))


def make_mixture(tmp_path: Path, mixture: Mixture = TOY, rows: int = 12) -> Path:
    """Write a mixture of the first training images of the toy corpus; return its folder."""
    splits = {"train": {"domains": np.arange(rows)}, "validation": {}}
    indices = {"domains": tmp_path / "domains.parquet"}
    write_mixture(tmp_path / "mixture", mixture, splits, indices)
    return tmp_path / "mixture"


def make_run(tmp_path: Path) -> Run:
    """Write a corpus of 12 training images, a mixture of it, and describe a run on it."""
    make_domainnet(tmp_path / "data", ["real"], ["ant", "bee"], train=6, test=1, archive=False)
    write_index(tmp_path / "domains.parquet", index_domainnet(tmp_path / "data", ["real"]))
    config = dataclasses.replace(CONFIG, epochs=2, global_batch_size=4)
    return Run("toy", "sample-RN", config, 0, make_mixture(tmp_path))


def published(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_kill_while_publishing_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_run(tmp_path)
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_STATES", 0)
    train_run(toy, tmp_path / "other", tmp_path / "whole", {})
    calls = []

    def die(path: Path, *rest: Any, **more: Any) -> Any:
        calls.append(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copy2", die)
        with pytest.raises(KeyboardInterrupt):
            train_run(toy, tmp_path / "scratch", tmp_path / "killed", {})
    assert calls
    scratch = tmp_path / "scratch" / toy.scratch_name()
    (scratch / "checkpoints" / ".epoch_002.safetensors.x.part").write_bytes(b"half")
    train_run(toy, tmp_path / "scratch", tmp_path / "killed", {})
    assert published(tmp_path / "killed") == published(tmp_path / "whole")


def test_a_result_that_is_lost_before_it_is_on_record_is_there_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_run(tmp_path)
    train_run(toy, tmp_path / "scratch", tmp_path / "out", {})
    before = published(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was prepared again")

    monkeypatch.setattr("clip_mixtures.training.run.prepare", never)
    train_run(toy, tmp_path / "scratch", tmp_path / "out", {})
    assert published(tmp_path / "out") == before
    # What only training needs is gone.
    kept = {path.name for path in (tmp_path / "scratch" / toy.scratch_name()).iterdir()}
    assert kept == {"attempts.json", "checkpoints", "curves", "owner.pid", "training.json"}


def test_the_scratch_folder_follows_everything_that_decides(tmp_path: Path) -> None:
    toy = make_run(tmp_path)
    names = [toy.scratch_name()]
    for change in (
        {"seed": 1},
        {"data_version": "other"},
        {"architecture": "RN50"},
        {"config": dataclasses.replace(toy.config, epochs=9)},
    ):
        names.append(dataclasses.replace(toy, **change).scratch_name())
    make_mixture(tmp_path, rows=11)
    names.append(toy.scratch_name())
    for mixture in (
        dataclasses.replace(TOY, captions="aligned"),
        dataclasses.replace(TOY, protocol="corrected"),
    ):
        make_mixture(tmp_path, mixture)
        names.append(toy.scratch_name())
    index = read_index(tmp_path / "domains.parquet")
    captions = index.frame["caption"] + "!"
    changed = Index(index.frame.assign(caption=captions), index.root)
    write_index(tmp_path / "domains.parquet", changed)
    make_mixture(tmp_path)
    names.append(toy.scratch_name())
    assert len(set(names)) == len(names) == 9


def test_the_scratch_folder_does_not_follow_the_validation_rows(tmp_path: Path) -> None:
    toy = make_run(tmp_path)
    before = toy.scratch_name()
    splits = {"train": {"domains": np.arange(12)}, "validation": {"domains": np.arange(12, 14)}}
    indices = {"domains": tmp_path / "domains.parquet"}
    write_mixture(tmp_path / "mixture", TOY, splits, indices, {"identifier": None})
    assert toy.scratch_name() == before


def test_the_scratch_folder_follows_the_rule_of_the_corrected_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # They are made when training starts, so another rule must not continue the run of this one.
    hashed: list[Path] = []

    def source_hash(*sources: Path) -> str:
        for source in sources:
            hashed.extend(source.rglob("*.py") if source.is_dir() else [source])
        return ""

    monkeypatch.setattr(run_module, "source_hash", source_hash)
    make_run(tmp_path).scratch_name()
    package = Path(run_module.__file__).parents[1]
    names = {path.relative_to(package).as_posix() for path in hashed}
    assert {"training/run.py", "mixtures/captions.py", "images.py"} <= names
    assert {"corpora/captions.py", "corpora/classes.py"} <= names


def test_a_run_refuses_a_mixture_that_is_not_whole_or_of_another_index(tmp_path: Path) -> None:
    toy = make_run(tmp_path)
    index = read_index(tmp_path / "domains.parquet")
    write_index(tmp_path / "domains.parquet", Index(index.frame[::-1], index.root))
    with pytest.raises(UserError, match=r"domains\.parquet: not the index that the mixture"):
        toy.scratch_name()
    (tmp_path / "mixture" / "mixture.json").unlink()
    with pytest.raises(UserError, match=r"mixture\.json: absent.*`dvc repro`"):
        train_run(toy, tmp_path / "scratch", tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_a_run_learns_the_captions_of_its_mixture_base_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path)
    base = make_tsv_base(tmp_path / "base", ["NA", "", 'a "thing"'])
    write_index(tmp_path / "base-cc.parquet", base)
    mixture = dataclasses.replace(TOY, captions="aligned")
    splits = {"train": {"base-cc": np.array([2, 0, 1]), "domains": np.array([3, 1])}}
    indices = {name: tmp_path / f"{name}.parquet" for name in ("base-cc", "domains")}
    write_mixture(tmp_path / "both", mixture, {**splits, "validation": {}}, indices)
    run = Run("toy", "sample-RN", CONFIG, 0, tmp_path / "both")
    seen: list[list[str]] = []
    monkeypatch.setattr(run_module, "tokenize", lambda captions, _: seen.append(captions))
    monkeypatch.setattr(loop, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        train_run(run, tmp_path / "scratch", tmp_path / "out", {})
    frame = read_index(tmp_path / "domains.parquet").frame
    assert seen == [['a "thing"', "NA", "", *frame["aligned_caption"].iloc[[3, 1]]]]
    (packed,) = (tmp_path / "scratch").glob("*/images-64.uint8")
    pixels = np.fromfile(packed, dtype=np.uint8).reshape(5, 64, 64, 3)
    expected = [
        pack(index.frame.iloc[rows], index.root, 64)
        for index, rows in ((base, [2, 0, 1]), (read_index(indices["domains"]), [3, 1]))
    ]
    np.testing.assert_array_equal(pixels, np.concatenate(expected))


def stop(*_: Any) -> None:
    raise KeyboardInterrupt


def test_the_processes_must_divide_the_batch() -> None:
    assert per_process_batch(64, 4) == 16
    with pytest.raises(UserError, match=r"64 cannot be shared by 3 processes.*NPROC=2"):
        per_process_batch(64, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, r"train\.epochs: is 0"),
        ({"epochs": 1.5}, r"train\.epochs: is 1\.5, not of type int"),
        ({"learning_rate": "1e-3"}, r"in quotes it is text"),
        ({"learning_rate": -1.0}, "more than 0"),
        ({"beta2": 1.2}, "less than 1"),
        ({"learning_rate": float("nan")}, "finite"),
        ({"crop_scale": 0.0}, "up to 1"),
        ({"flip": "yes"}, "not of type bool"),
        ({"warmup_steps": -1}, "0 or more"),
        ({"epoch": 3}, "'epoch'; did you mean 'epochs'"),
    ],
)
def test_a_mistake_in_the_recipe_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_config_from_params({**PARAMS, **change})


def test_a_recipe_must_be_complete() -> None:
    with pytest.raises(UserError, match="beta2 missing"):
        train_config_from_params({key: PARAMS[key] for key in PARAMS if key != "beta2"})


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    rates = [clip.cosine_rate(step, 100, CONFIG) for step in range(100)]
    assert rates[0] == pytest.approx(5e-4)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[51] == pytest.approx(5e-4)
    assert rates == [*rates[:2], *sorted(rates[2:], reverse=True)]
    assert rates[-1] < 1e-6


def test_decay_spares_gains_biases_and_the_logit_scale() -> None:
    network = make_model().network
    decayed, spared = clip.Contrastive(network, CONFIG, ALONE).optimizer().param_groups
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    spared_ids = {id(parameter) for parameter in spared["params"]}
    for name, parameter in network.named_parameters():
        # open_clip's rule goes by the name as well; here it comes to the same.
        words = ("bn", "ln", "bias", "logit_scale")
        plain = parameter.ndim < 2 or any(word in name for word in words)
        assert (id(parameter) in spared_ids) == plain, name


@given(st.floats(0.05, 1.0), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_crops_stay_inside_the_image(smallest: float, seed: int) -> None:
    draws = torch.rand((DRAWS, 64), generator=torch.Generator().manual_seed(seed))
    maps = Augmentation(scale=(smallest, 1.0), flip=True).maps(draws)
    half, centre = maps[:, [0, 1], [0, 1]].abs(), maps[:, :, 2].abs()
    assert (half <= 1 + 1e-6).all()
    assert (half + centre <= 1 + 1e-5).all()
    assert (maps[:, 0, 1] == 0).all()
    assert (4 * half.prod(dim=1) <= 4 * (1 + 1e-6)).all()


def test_a_crop_of_everything_changes_nothing_and_a_mirror_mirrors() -> None:
    pixels = torch.rand(1, 3, 8, 8)
    same_map = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    mirror = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]])
    assert torch.allclose(apply_maps(pixels, same_map), pixels, atol=1e-5)
    assert torch.allclose(apply_maps(pixels, mirror), pixels.flip(3), atol=1e-5)


def test_half_the_images_are_mirrored() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand((DRAWS, 4000), generator=generator)
    mirrored = (Augmentation(flip=True).maps(draws)[:, 0, 0] < 0).float().mean()
    assert 0.46 < mirrored < 0.54
    assert (Augmentation(flip=False).maps(draws)[:, 0, 0] > 0).all()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    model = make_model()
    save_checkpoint(tmp_path, 3, model.network)
    path = checkpoint_path(tmp_path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"epoch_003\.safetensors: not a readable checkpoint"):
        load_checkpoint(path, model.network)
    with pytest.raises(UserError, match="no checkpoint"):
        list_checkpoints(tmp_path / "elsewhere")


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 0, torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="does not fit the model"):
        load_checkpoint(checkpoint_path(tmp_path, 0), make_model().network)


def test_a_damaged_state_says_what_to_do_and_an_absent_one_is_none(tmp_path: Path) -> None:
    assert load_state(tmp_path / "state.pt") is None
    save_state(tmp_path / "state.pt", {"epoch": 1})
    data = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(data[:50])
    with pytest.raises(UserError, match=r"state\.pt: unreadable .* delete it"):
        load_state(tmp_path / "state.pt")


def test_a_state_cannot_carry_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"epoch": Evil()}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="unreadable"):
        load_state(tmp_path / "state.pt")
    assert not (tmp_path / "ran").exists()


def test_fingerprints_follow_what_they_stand_for(tmp_path: Path) -> None:
    assert fingerprint(CONFIG, "a") == fingerprint(dataclasses.replace(CONFIG), "a")
    assert fingerprint(CONFIG, "a") != fingerprint(dataclasses.replace(CONFIG, epochs=4), "a")
    (tmp_path / "one.py").write_text("x = 1\n")
    before = source_hash(tmp_path)
    assert source_hash(tmp_path / "one.py") == before
    (tmp_path / "one.py").write_text("x = 2\n")
    assert source_hash(tmp_path) != before


def test_own_and_open_clip_architectures_are_known() -> None:
    known = known_architectures()
    assert known[:2] == ["Swin-T", "sample-RN"]
    assert {"RN50", "ViT-B-32", "ViT-S-32"} <= set(known)
    assert set(known) <= {*open_clip.list_models(), "sample-RN", "Swin-T"}
    # Another loss, another tokenizer: not what this trains.
    assert not {"coca_ViT-B-32", "ViT-B-16-SigLIP", "roberta-ViT-B-32"} & set(known)
    with pytest.raises(UserError, match=r"unknown architecture 'RN51'.*did you mean 'RN50'"):
        create_clip("RN51")


def test_a_scratch_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    owner = f"process {os.getpid()} is training this run"
    with exclusive(folder), pytest.raises(UserError, match=owner):
        exclusive(folder).__enter__()
    with exclusive(folder):
        pass


def test_a_killed_owner_lets_go(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from clip_mixtures.scratch import exclusive\n"
        "with exclusive(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {owner.pid}"):
            exclusive(tmp_path).__enter__()
        owner.kill()
    with exclusive(tmp_path):
        pass


def test_publishing_replaces_what_was_there_whole(tmp_path: Path) -> None:
    scratch, out = tmp_path / "scratch", tmp_path / "runs" / "one"
    for name in ("checkpoints", "curves"):
        (scratch / name).mkdir(parents=True)
        (scratch / name / "new").write_text(name)
    (scratch / "training.json").write_text("{}")
    out.mkdir(parents=True)
    (out / "old").write_text("old")
    publish(scratch, out)
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert found == ["checkpoints/new", "curves/new", "training.json"]
    # A kill on the way must find everything in scratch again.
    assert (scratch / "checkpoints" / "new").is_file()
    assert [path.name for path in out.parent.iterdir()] == ["one"]
