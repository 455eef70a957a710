"Which checkpoint is the best one: every held-out image counts, a low learning rate comes first, and the last one is heard at the end."
import json
import math
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from mmv_im2im.checkpoints import find_checkpoint, load_checkpoint
from mmv_im2im.config import from_dict
from mmv_im2im.data_modules import validation
from mmv_im2im.data_modules.data_module import Im2ImDataModule
from mmv_im2im.data_modules.samples import simulate_set
from mmv_im2im.inference.predictor import Predictor
from mmv_im2im.models.fcn import FCN
from mmv_im2im.models.self_supervised import SelfSupervised
from mmv_im2im.trainers import Im2ImTrainer, prepare, train
from small import CONFIG, NET, changed

ONE_CYCLE = {"_target_": "OneCycleLR", "max_lr": 0.01}


class Scripted(FCN):
    "A framework whose validation figure is written down beforehand, for crops and for whole images."
    script: dict = {}  # By (optimization steps, whether a whole image is seen)
    monitor, monitor_mode = "val/score", "max"

    def validation_losses(self, raw, batch):
        "The figure of this step."
        whole = raw.shape[-1] == 64
        steps = int(self.state_dict()["steps"])
        return super().validation_losses(raw, batch) | {"score": torch.tensor(self.script.get((steps, whole), 0.0))}

    def on_train_batch_end(self, *_): self.steps += 1


def scripted(script: dict, scheduler=None, interval="step") -> Scripted:
    "One that follows a script."
    from mmv_im2im.core import build
    torch.manual_seed(0)
    model = Scripted(build(NET | {"in_channels": 1, "out_channels": 1}, "net"), scheduler=scheduler, scheduler_interval=interval)
    model.register_buffer("steps", torch.zeros(()))
    model.script = script
    return model


def fitted(folder: Path, pairs: Path, model: Scripted, **trainer):
    "The trainer after a run of four batches an epoch on six images of 64 x 64 pixels."
    crops = trainer.pop("crops", True)
    data = Im2ImDataModule(pairs, (32, 32), 2, patches_per_image=2, val_fraction=0.4, num_workers=0, split="files",
                           val_pixels=None if crops else 10**6)
    data.setup()
    trainer = Im2ImTrainer(folder, accelerator="cpu", enable_progress_bar=False, pictures=0, logger=False, **trainer)
    trainer.fit(model, data)
    return trainer, data


@pytest.fixture
def whole_at_the_end(monkeypatch):
    "Short runs may look at whole images, too."
    monkeypatch.setattr(validation, "_FINAL", 10)


def step_of(path: Path) -> int: return load_checkpoint(path)["global_step"]


@pytest.mark.parametrize("scheduler, interval, best", [
    (ONE_CYCLE, "step", 36),  # the peak of the script, at a high rate, does not compete
    (ONE_CYCLE | {"total_steps": 10}, "epoch", 36),
    ({"_target_": "LinearDecay", "flat": 0.5}, "step", 36),
    ({"_target_": "StepLR", "step_size": 8, "gamma": 0.1}, "epoch", 36),
    ({"_target_": "CosineAnnealingLR", "T_max": 10}, "epoch", 36),
    (None, "step", 8),  # a constant rate: all compete
    ({"_target_": "ExponentialLR", "gamma": 0.99}, "epoch", 8),  # it never comes down: all compete
])
def test_checkpoints_of_a_high_learning_rate_do_not_compete(tmp_path, pairs, scheduler, interval, best):
    script = {(8, True): 0.99, (32, True): 0.3, (36, True): 0.6, (40, True): 0.5}
    trainer, _ = fitted(tmp_path / "run", pairs, scripted(script, scheduler, interval), max_epochs=10, crops=False)
    assert trainer.global_step == 40
    assert step_of(tmp_path / "run/checkpoints/best.ckpt") == best
    assert trainer.outcome["checkpoint"] == "best" and trainer.outcome["best_score"] == pytest.approx(script[best, True])


def test_the_best_of_several_kept_are_of_the_low_rate_too(tmp_path, pairs):
    script = {(4 * i, True): v for i, v in enumerate((0, 0.9, 0.95, 0.99, 0.8, 0.1, 0.1, 0.1, 0.3, 0.2, 0.25))}
    fitted(tmp_path / "run", pairs, scripted(script, ONE_CYCLE), max_epochs=10, crops=False, save_top_k=2)
    kept = sorted(step_of(p) for p in (tmp_path / "run/checkpoints").glob("top_*.ckpt"))
    assert kept == [32, 40]


def test_a_run_that_goes_on_remembers_that_the_rate_has_come_down(tmp_path, pairs):
    script = {(8, True): 0.99, (36, True): 0.6, (40, True): 0.5}
    class Die(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 38: raise SystemExit
    with pytest.raises(SystemExit):
        fitted(tmp_path / "run", pairs, scripted(script, ONE_CYCLE), max_epochs=10, crops=False, callbacks=[Die()])
    data = Im2ImDataModule(pairs, (32, 32), 2, patches_per_image=2, val_fraction=0.4, num_workers=0, split="files", val_pixels=10**6)
    trainer = Im2ImTrainer(tmp_path / "run", accelerator="cpu", enable_progress_bar=False, pictures=0, logger=False, max_epochs=10)
    trainer.fit(scripted(script, ONE_CYCLE), data, ckpt_path=tmp_path / "run/checkpoints/last.ckpt")
    assert step_of(tmp_path / "run/checkpoints/best.ckpt") == 36


@pytest.mark.parametrize("scheduler, epochs", [(ONE_CYCLE, 10), (None, 3)])
def test_early_stopping_waits_for_a_low_rate(tmp_path, pairs, scheduler, epochs):
    trainer, _ = fitted(tmp_path / "run", pairs, scripted({}, scheduler), max_epochs=10, crops=False, early_stopping=2)
    assert trainer.current_epoch == epochs


def test_the_end_compares_on_whole_images(tmp_path, pairs, whole_at_the_end):
    "Crops prefer the first epoch, whole images the last."
    script = {(4, False): 0.9, (8, False): 0.5, (4, True): 0.6, (8, True): 0.7}
    trainer, data = fitted(tmp_path / "run", pairs, scripted(script), max_epochs=2)
    assert not data.validation.whole
    assert trainer.outcome == {"checkpoint": "last", "monitor": "val/score", "best_score": pytest.approx(0.7),
                               "compared": {"best": pytest.approx(0.6), "last": pytest.approx(0.7)}}
    assert int(trainer.model.steps) == 8, "the weights of the last step are left"
    assert float(trainer.callback_metrics["val/score"]) == pytest.approx(0.5), "the figures of the run are left"


def test_smaller_can_be_better(tmp_path, pairs, monkeypatch, whole_at_the_end):
    monkeypatch.setattr(Scripted, "monitor_mode", "min")
    script = {(4, False): 0.1, (8, False): 0.5, (4, True): 0.8, (8, True): 0.7}
    trainer, _ = fitted(tmp_path / "run", pairs, scripted(script), max_epochs=2)
    assert trainer.outcome["checkpoint"] == "last" and trainer.outcome["best_score"] == pytest.approx(0.7)


def test_nan_is_never_better(tmp_path, pairs, whole_at_the_end):
    script = {(4, False): 0.1, (8, False): 0.5, (4, True): 0.2, (8, True): math.nan}
    trainer, _ = fitted(tmp_path / "run", pairs, scripted(script), max_epochs=2)
    assert trainer.outcome["checkpoint"] == "best"


@pytest.mark.parametrize("limits, steps", [({"max_steps": 6, "max_epochs": -1}, 6), ({"max_steps": 2, "max_epochs": -1}, 2), ({"max_epochs": 3, "check_val_every_n_epoch": 2}, 12)])
def test_the_end_of_a_run_is_validated_wherever_it_is(tmp_path, pairs, limits, steps):
    script = {(8, True): 0.1, (4, True): 0.2, (steps, True): 0.9}
    trainer, _ = fitted(tmp_path / "run", pairs, scripted(script), crops=False, **limits)
    assert trainer.outcome["checkpoint"] == "last" and trainer.outcome["best_score"] == pytest.approx(0.9)
    assert trainer.metrics_csv.rows[-1]["val/score"] == pytest.approx(0.9)
    assert step_of(tmp_path / "run/checkpoints/last.ckpt") == steps


class Names(pl.Callback):
    "Names of the images that each validation sees, and how large they are."
    def __init__(self): self.seen, self.sizes = [], []

    def on_validation_epoch_start(self, *_): self.seen.append([])

    def on_validation_batch_end(self, trainer, module, outputs, batch, *_):
        self.seen[-1] += list(batch["name"])
        self.sizes.append(tuple(batch["IM"].shape[2:]))


@pytest.mark.parametrize("pairing, split", [("paired", "files"), ("paired", "regions"), ("unpaired", "files"), ("source", "pixels")])
def test_every_held_out_image_counts_in_each_validation(tmp_path, pairing, split):
    folder = simulate_set(tmp_path / "set", 10, (96, 80), source="nuclei", target="nuclei", n_cells=3)
    if pairing == "unpaired":
        for f in list((folder / "GT").iterdir()): f.rename(f.with_name(f"other_{f.name}"))
    path = folder / "IM" if pairing == "source" else folder
    data = {"path": str(path), "target_kind": "image", "pairing": pairing, "split": split, "val_fraction": 0.4, "gap": 4, "patches_per_image": 4}
    if pairing == "source": data |= {"source": ".", "val_fraction": 0.05}
    kind = {"source": "SelfSupervised", "unpaired": "CycleGAN"}.get(pairing, "FCN")
    model = {"_target_": kind, "net": NET}
    if kind == "FCN": model |= {"task": "regression", "loss": {"_target_": "MSELoss"}}
    if kind == "SelfSupervised": data["target_norm"] = {"_target_": "LikeSource"}
    if kind == "CycleGAN": model |= {"discriminator": {"_target_": "PatchGAN", "channels": 4, "layers": 1}}
    cfg = from_dict(changed(CONFIG, {"data": CONFIG["data"] | data, "model": model, "trainer.max_epochs": 2, "out": str(tmp_path / "run")}))
    names = Names()
    run = train(cfg, [names])
    held = {"files": 4, "regions": 10, "pixels": 10}[split]
    assert len(names.seen) == 2 and all(len(set(seen)) == len(seen) == held for seen in names.seen)
    assert all(32 <= n for size in names.sizes for n in size) or split == "regions"
    assert run.result["checkpoint"] in ("best", "last") and run.result["monitor"]


@pytest.mark.parametrize("limit", [1, 0.5])
def test_many_images_are_validated_now_and_then(tmp_path, pairs, limit):
    "An epoch of one batch: crops of the size of the patch, and not in every epoch; but ten times a run."
    cfg = from_dict(changed(CONFIG, {"data.path": str(pairs), "data.val_fraction": 0.5, "trainer.limit_train_batches": limit, "trainer.max_epochs": 20,
                                     "out": str(tmp_path / "run")}))
    names = Names()
    run = train(cfg, [names])
    assert len(names.seen) == 10 and all(len(set(seen)) == 3 for seen in names.seen)
    assert set(names.sizes) == {(32, 32)}
    assert [r["epoch"] for r in run.metrics if "val/dice" in r] == list(range(1, 20, 2))


def test_a_run_says_which_checkpoint_it_takes(tmp_path, pairs):
    run = train(from_dict(changed(CONFIG, {"data.path": str(pairs), "out": str(tmp_path / "run")})))
    result = json.loads((run.folder / "run.json").read_text())
    for name in ("last", "best"):
        (run.folder / "run.json").write_text(json.dumps(result | {"checkpoint": name}))
        assert find_checkpoint(run.folder) == run.best == run.folder / "checkpoints" / f"{name}.ckpt"
    assert Predictor(run.folder, device="cpu").module.task.labels
    for damaged in ("", "{", "[1]", "null"):
        (run.folder / "run.json").write_text(damaged)
        assert find_checkpoint(run.folder).name == "best.ckpt"


def test_validation_of_methods_that_average_costs_more():
    assert SelfSupervised.validation_cost.fget(SelfSupervised(torch.nn.Identity(), {"_target_": "BernoulliMask", "samples": 40})) == 8
    assert SelfSupervised(torch.nn.Identity()).validation_cost == FCN(torch.nn.Identity()).validation_cost == 1


@pytest.mark.parametrize("scheduler, interval", [(ONE_CYCLE, "step"), (ONE_CYCLE, "epoch"), ({"_target_": "LinearDecay", "flat": 0.5}, "step")])
def test_a_schedule_ends_with_the_time(tmp_path, pairs, scheduler, interval):
    trainer, _ = fitted(tmp_path / "run", pairs, scripted({}, scheduler, interval), max_epochs=5000, max_time="00:00:00:03")
    assert trainer.current_epoch < 2500
    assert trainer.annealing.rate < 0.1 * trainer.annealing.highest


@pytest.mark.parametrize("scheduler, interval", [(ONE_CYCLE, "step"), (ONE_CYCLE, "epoch"), ({"_target_": "LinearDecay"}, "step")])
@pytest.mark.parametrize("gone", [0.0, 0.5, 0.99])
def test_a_schedule_that_ran_ahead_waits(tmp_path, pairs, monkeypatch, gone, scheduler, interval):
    "A slow start, then all steps within the time."
    monkeypatch.setattr("pytorch_lightning.callbacks.Timer.time_elapsed", lambda self, stage="train": 3600 * gone)
    trainer, _ = fitted(tmp_path / "run", pairs, scripted({}, scheduler, interval), max_epochs=6, max_time="00:01:00:00")
    assert trainer.global_step == 24
    assert trainer.annealing.rate < (0.1 if interval == "step" else 0.4) * trainer.annealing.highest or gone == 0.99


def test_a_budget_is_kept(tmp_path):
    folder = simulate_set(tmp_path / "set", 12, (128, 128), source="nuclei", target="labels", n_cells=3)
    _, _, data = prepare(from_dict(changed(CONFIG, {"data.path": str(folder), "data.val_fraction": 0.5, "data.val_pixels": 6 * 60 * 60})))
    sizes = [tuple(b["IM"].shape[2:]) for b in data.val_dataloader()]
    assert len(sizes) == 6 and set(sizes) == {(60, 60)}
    assert data.validation.every == 1 and "crops of 60 x 60 pixels of each" in data.summary
    plan = data.plan_validation(cost=8)
    assert plan.every == 1 and {i["crop"] for i in plan.items} == {(60, 60)}, "what is asked for is taken"
