"Adversarial frameworks in the whole chain: killed runs, trainer keys, dtypes, two processes, directions, distances."
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from chain import checkpoint, run, same_weights, shell, write_yaml

from mmv_im2im.checkpoints import load_checkpoint, read_metrics
from mmv_im2im.config import from_dict, preset
from mmv_im2im.core import ConfigError, find_class
from mmv_im2im.data_modules.images import read_image, write_image
from mmv_im2im.data_modules.samples import simulate_set
from mmv_im2im.inference.folders import mean_row
from mmv_im2im.inference.predictor import Predictor
from mmv_im2im.trainers import prepare, train

NET = {"_target_": "UNet", "channels": [4, 8], "strides": [2], "num_res_units": 0, "norm": "batch"}
JUDGE = {"_target_": "PatchGAN", "channels": 4, "layers": 2, "norm": None}
ADAM = {"_target_": "Adam", "lr": 1.0e-3, "betas": [0.5, 0.999]}
COMMON = {
    "data": {"target_kind": "image", "patch": [32, 32], "batch_size": 2, "patches_per_image": 2,
             "target_norm": {"_target_": "Percentile"}},
    "trainer": {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False, "pictures": 0},
    "predict": {"device": "cpu"},
}
MODELS = {
    "Pix2Pix": {"_target_": "Pix2Pix", "net": NET, "discriminator": JUDGE | {"scales": 2}, "feature_weight": 1.0,
                "optimizer": ADAM, "metrics": ["pearson", "spectrum"]},
    "CycleGAN": {"_target_": "CycleGAN", "net": NET, "discriminator": JUDGE, "replay": 3, "optimizer": ADAM},
}
BOTH = pytest.mark.parametrize("name", list(MODELS))


def raw(name, **sections):
    "A small config of a framework, with sections changed."
    out = COMMON | {"model": MODELS[name]}
    if name == "CycleGAN": out = out | {"data": out["data"] | {"pairing": "unpaired"}}
    for k, v in sections.items(): out[k] = out.get(k, {}) | v if isinstance(v, dict) else v
    return out


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    "Six pairs of brightfield and nuclei."
    return simulate_set(tmp_path_factory.mktemp("pairs"), 6, (48, 48), n_cells=3)


def trained(name, out, path, **sections):
    "A run."
    sections["data"] = {"path": str(path)} | sections.get("data", {})
    return train(from_dict(raw(name, out=str(out), **sections)))


def weights(made, part="net"):
    "The weights of one network after a run."
    return {k: v for k, v in load_checkpoint(made.last)["state_dict"].items() if k.startswith(f"{part}.")}


def apart(a, b):
    "Largest difference between two sets of weights."
    return max(float((a[k].float() - b[k].float()).abs().max()) for k in a)


# Nothing lost

KILL = """
import os, signal
from mmv_im2im.models.{module} import {name}
play, calls = {name}.play, []
def counted(self, batch):
    calls.append(1)
    if len(calls) > {n}: os.kill(os.getpid(), signal.SIGKILL)
    return play(self, batch)
{name}.play = counted
"""


@BOTH
@pytest.mark.parametrize("model, trainer", [
    ({}, {}),
    ({"scheduler": {"_target_": "LinearDecay"}, "scheduler_interval": "step"},
     {"checkpoint_every_n_steps": 1, "accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "ema": 0.9}),
], ids=["epochs", "steps, clipped, accumulated, averaged"])
def test_a_killed_run_continues_to_the_same_weights(tmp_path, pairs, name, model, trainer):
    cfg = write_yaml(tmp_path / "c.yaml", raw(name), model=model, trainer=trainer)
    command = "--config", cfg, "--data.path", pairs
    assert run(*command, "--out", tmp_path / "whole") == 0
    prelude = KILL.format(module=name.lower(), name=name, n=13)  # in the third epoch, of five batches and three steps
    shell(*command, "--out", tmp_path / "killed", prelude=prelude, status=-signal.SIGKILL)
    stopped_at, steps = (checkpoint(tmp_path / f)["global_step"] for f in ("killed", "whole"))
    assert 0 < stopped_at < steps
    if trainer: assert stopped_at % (steps // 3) != 0, "the checkpoint lies within an epoch"
    assert run(*command, "--out", tmp_path / "killed") == 0
    assert "continue from" in (tmp_path / "killed" / "run.log").read_text()
    for which in ("last", "best"): assert same_weights(tmp_path / "whole", tmp_path / "killed", which)
    whole, killed = (checkpoint(tmp_path / f) for f in ("whole", "killed"))
    for a, b in zip(whole["optimizer_states"], killed["optimizer_states"]):
        assert all(torch.equal(a["state"][i]["exp_avg"], b["state"][i]["exp_avg"]) for i in a["state"])
    if name == "CycleGAN":
        (a,), (b,) = (c["im2im"]["replay"] for c in (whole, killed))
        for k, images in a.items(): assert len(images) == 3 and all(map(torch.equal, images, b[k]))
    assert read_metrics(tmp_path / "killed" / "metrics.csv") == read_metrics(tmp_path / "whole" / "metrics.csv")


# The trainer's keys

@BOTH
def test_trainer_keys_do_for_a_game_what_they_do_elsewhere(tmp_path, pairs, name):
    made = {}
    sgd = {"optimizer": {"_target_": "SGD", "lr": 0.01}}
    cases = {"plain": {}, "clipped": {"gradient_clip_val": 1e-3}, "accumulated": {"accumulate_grad_batches": 3},
             "bf16": {"precision": "bf16-mixed"}, "ema": {"ema": 0.99}, "swa": {"swa": 0.5}, "steps": {"max_steps": 4}}
    for k, trainer in cases.items(): made[k] = trained(name, tmp_path / k, pairs, trainer={"max_epochs": 2} | trainer, model=sgd)
    begin = {k: v for k, v in prepare(from_dict(raw(name, data={"path": str(pairs)})))[1].state_dict().items()}
    moved = lambda k: apart({n: v for n, v in weights(made[k]).items() if "running" not in n and "num" not in n}, begin)
    assert moved("clipped") < 0.1 * moved("plain")
    plain, third = made["plain"].result["steps"], made["accumulated"].result["steps"]
    assert plain % 2 == 0 and third == 2 * -(-(plain // 2) // 3)
    assert 0 < apart(weights(made["bf16"]), weights(made["plain"])) < 0.1
    latest = load_checkpoint(made["ema"].last)["current_model_state"]
    assert all(torch.equal(v, latest[k]) for k, v in weights(made["plain"]).items()), "training itself goes on as it did"
    for k in ("ema", "swa"): assert apart(weights(made[k]), weights(made["plain"])) > 0
    assert made["steps"].result["steps"] == 4, "a step of both players is one step"
    figures = made["plain"].metrics[-1]
    assert {"train/generator_gradient", "train/discriminator_gradient", "train/accuracy", "train/spread"} <= figures.keys()
    assert made["clipped"].metrics[0]["train/generator_gradient"] > 1e-3, "logged as it was before clipping"


@BOTH
def test_other_number_formats(tmp_path, pairs, name):
    plain = trained(name, tmp_path / "32", pairs, trainer={"max_steps": 2})
    for precision in ("bf16-true", "64-true"):
        made = trained(name, tmp_path / precision, pairs, trainer={"max_steps": 2, "precision": precision})
        assert apart(weights(made), weights(plain)) < 0.1
    with pytest.raises(ConfigError, match="bf16-mixed"):
        trained(name, tmp_path / "16", pairs, trainer={"precision": "16-mixed", "accumulate_grad_batches": 2})


@BOTH
def test_a_trainer_can_be_used_twice(tmp_path, name):
    from mmv_im2im.trainers import Im2ImTrainer
    trainer = Im2ImTrainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False, gradient_clip_val=0.5, accumulate_grad_batches=2)
    batch = {"IM": torch.rand(2, 1, 32, 32), "GT": torch.rand(2, 1, 32, 32)}
    cls = find_class(name, "framework")
    for _ in range(2):
        model = cls.from_config(MODELS[name], 1, 1, 2)[0]
        trainer.fit_loop.max_epochs = trainer.current_epoch + 1
        trainer.fit(model, torch.utils.data.DataLoader([batch] * 4, batch_size=None))
        assert (model.clip_val, model.accumulate_grad_batches, trainer.gradient_clip_val, trainer.accumulate_grad_batches) == (0.5, 2, 0.5, 2)


@BOTH
def test_what_a_game_cannot_have_is_refused_before_it_begins(tmp_path, pairs, name):
    for callback, instead in (("StochasticWeightAveraging", "`trainer.swa`"), ("GradientAccumulationScheduler", "`trainer.accumulate_grad"),
                              ("LearningRateFinder", "2e-4")):
        more = {"StochasticWeightAveraging": {"swa_lrs": 0.1}, "GradientAccumulationScheduler": {"scheduling": {1: 2}}}
        callbacks = [{"_target_": callback} | more.get(callback, {})]
        with pytest.raises(ConfigError, match="trainer.callbacks") as e:
            trained(name, tmp_path / "run", pairs, trainer={"callbacks": callbacks})
        assert instead in str(e.value) and not (tmp_path / "run").exists()


@BOTH
def test_a_patch_too_small_for_the_discriminator_is_refused_before_it_begins(tmp_path, pairs, name):
    with pytest.raises(ConfigError, match="at least 64 pixels along each axis, got .32, 32."):
        trained(name, tmp_path / "run", pairs, model={"discriminator": JUDGE | {"layers": 6}})
    assert not (tmp_path / "run").exists()


@BOTH
def test_early_stopping_by_a_validation_metric(tmp_path, pairs, name):
    stop = {"_target_": "EarlyStopping", "monitor": "val/spectrum", "patience": 1, "min_delta": 100.0}
    made = trained(name, tmp_path / "run", pairs, trainer={"max_epochs": 9, "callbacks": [stop]})
    assert made.result["epochs"] == 2
    assert made.result["monitor"] == {"Pix2Pix": "val/pearson", "CycleGAN": "val/swd"}[name]


def test_begins_from_a_trained_fcn(tmp_path, pairs):
    fcn = {"_target_": "FCN", "net": NET, "loss": {"_target_": "L1Loss"}}
    first = train(from_dict(COMMON | {"model": fcn, "out": str(tmp_path / "fcn"), "data": COMMON["data"] | {"path": str(pairs)}}))
    frozen = {"optimizer": {"_target_": "SGD", "lr": 0.0}}
    made = trained("Pix2Pix", tmp_path / "gan", pairs, trainer={"init_from": str(first.folder), "max_epochs": 1}, model=frozen)
    same = {k: v for k, v in weights(first).items() if "running" not in k and "num" not in k}
    now = weights(made)
    best = load_checkpoint(first.best)["state_dict"]
    assert all(torch.equal(now[k], best[k]) for k in same)


# The game is watched

def test_a_won_game_and_a_collapse_are_said(tmp_path, pairs):
    still = {"optimizer": {"_target_": "SGD", "lr": 0.0}, "discriminator_optimizer": {"_target_": "Adam", "lr": 0.02},
             "net": {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": 1}}
    made = trained("Pix2Pix", tmp_path / "won", pairs, model=still, trainer={"max_epochs": 12})
    said = (made.folder / "run.log").read_text()
    assert made.metrics[-1]["train/accuracy"] > 0.99 and "a discriminator has won" in said and "discriminator_optimizer" in said
    assert "has won" not in (trained("Pix2Pix", tmp_path / "even", pairs).folder / "run.log").read_text()
    dead = tmp_path / "dead"
    for i in range(6):
        write_image(dead / "IM" / f"{i}.tif", np.full((48, 48), 7, np.float32), "YX")
        write_image(dead / "GT" / f"{i}.tif", np.random.default_rng(i).normal(9, 2, (48, 48)).astype(np.float32), "YX")
    made = trained("Pix2Pix", tmp_path / "collapsed", dead, model=still | {"discriminator_optimizer": None}, trainer={"max_epochs": 4})
    assert "the generator has collapsed" in (made.folder / "run.log").read_text()


# Channels, dimensions, dtypes

CASES = [(1, 1, 2, "uint16"), (2, 1, 2, "uint16"), (1, 3, 2, "uint8"), (3, 1, 2, "uint8"), (3, 3, 2, "uint8"), (1, 2, 2, "float32"),
         (1, 1, 3, "uint16"), (2, 1, 3, "float32"), (1, 3, 3, "uint8")]


@BOTH
@pytest.mark.parametrize("sources, targets, dims, dtype", CASES)
def test_channels_and_number_formats(tmp_path, name, sources, targets, dims, dtype):
    size, axes, rng = {2: (40, 44), 3: (12, 24, 28)}[dims], "C" + "ZYX"[-dims:], np.random.default_rng(0)
    low, high = {"uint16": (2000, 40000), "uint8": (20, 200), "float32": (-3, 5)}[dtype]
    for i in range(3):
        base = rng.random(size)
        for key, n in (("IM", sources), ("GT", targets)):
            x = np.stack([low + (high - low) * (base if c == 0 else 1 - base) for c in range(n)])
            write_image(tmp_path / "in" / key / f"{i}.tif", x.astype(dtype), axes)
    data = {"patch": [16, 16] if dims == 2 else [8, 16, 16], "patches_per_image": 2, "batch_size": 1, "gap": 0}
    made = trained(name, tmp_path / "run", tmp_path / "in", data=data, trainer={"max_steps": 2})
    odd = rng.uniform(low, high, (sources, *[n - 3 for n in size])).astype(dtype)
    out = Predictor(made.best, device="cpu")(odd, axes=axes)
    assert out.shape == ((targets,) if targets > 1 else ()) + odd.shape[1:] and out.dtype == dtype
    if name == "Pix2Pix": return
    coming = rng.uniform(low, high, (targets, *odd.shape[1:])).astype(dtype)
    back = Predictor(made.best, device="cpu", direction="B2A")(coming, axes=axes)
    assert back.shape == ((sources,) if sources > 1 else ()) + odd.shape[1:] and back.dtype == dtype


@BOTH
def test_intensities_come_back_in_the_targets_units(tmp_path, name):
    "A generator that changes nothing: a prediction has the level and the spread of the targets."
    rng = np.random.default_rng(0)
    for i in range(6):
        write_image(tmp_path / "in" / "IM" / f"{i}.tif", rng.normal(500, 50, (48, 48)).astype(np.uint16), "YX")
        write_image(tmp_path / "in" / "GT" / f"{i}.tif", rng.normal(30000, 3000, (48, 48)).astype(np.uint16), "YX")
    nothing = {"net": {"_target_": "torch.nn.Conv2d", "kernel_size": 1}}
    norms = {f"{k}_norm": {"_target_": "Standard"} for k in ("source", "target")}
    made = trained(name, tmp_path / "run", tmp_path / "in", data=norms, model=nothing | {"optimizer": {"_target_": "SGD", "lr": 0.0}},
                   trainer={"max_steps": 1})
    for direction, mean, spread in (("A2B", 30000, 3000), ("B2A", 500, 50)):
        if direction == "B2A" and name == "Pix2Pix": continue
        model = Predictor(made.last, device="cpu", direction=direction)
        with torch.no_grad():
            model.module.network.weight.fill_(1.0)
            model.module.network.bias.fill_(0.0)
        x = read_image(next((tmp_path / "in" / ("IM" if direction == "A2B" else "GT")).iterdir())).squeeze()
        out = model(x).astype(float)
        assert abs(out.mean() / mean - 1) < 0.02 and abs(out.std() / spread - 1) < 0.05


# Both ways, and figures without pairs

@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    "An unsupervised segmentation that has trained a little, and its images."
    folder = simulate_set(tmp_path_factory.mktemp("seg"), 6, (48, 48), source="nuclei", target="labels", n_cells=3)
    model = {"task": "segmentation", "net": {"_target_": "ResNetGenerator", "channels": 4, "downs": 1, "n_blocks": 1, "residual": True}}
    return trained("CycleGAN", tmp_path_factory.mktemp("seg") / "run", folder,
                   data={"target_kind": "label", "target_norm": None}, model=model), folder


def test_masks_one_way_images_the_other(segmenter):
    made, folder = segmenter
    image, labels = (read_image(next((folder / k).iterdir())).squeeze() for k in ("IM", "GT"))
    mask = Predictor(made.last, device="cpu")(image)
    assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}
    p = Predictor(made.last, device="cpu")(image, probabilities=True)
    assert ((p > 0.5) == mask).all()
    picture = Predictor(made.last, device="cpu", direction="B2A")(labels)
    assert picture.dtype == image.dtype and picture.std() > 0
    with pytest.raises(ConfigError, match="'A2B' or 'B2A'"): Predictor(made.last, direction="back")


def test_direction_is_for_frameworks_of_two_ways(tmp_path, pairs):
    made = trained("Pix2Pix", tmp_path / "run", pairs, trainer={"max_steps": 1})
    with pytest.raises(ConfigError, match="Pix2Pix goes one way only"): Predictor(made.last, direction="B2A")


@pytest.mark.parametrize("name", ["cyclegan_2d", "synthesis_unpaired_2d", "unsupervised_seg_2d"])
def test_presets_without_pairs_go_both_ways(tmp_path, name):
    source, target = {"unsupervised_seg_2d": ("nuclei", "labels"), "synthesis_unpaired_2d": ("labels", "nuclei")}.get(name, ("brightfield", "nuclei"))
    folder = simulate_set(tmp_path / "in", 4, (40, 48), source=source, target=target, n_cells=3)
    made = train(preset(name, out=str(tmp_path / "run"), trainer={"max_steps": 1, "accelerator": "cpu", "pictures": 0, "enable_progress_bar": False},
                        data={"path": str(folder), "patch": [32, 32], "batch_size": 1, "patches_per_image": 1, "gap": 0}))
    for direction, key in (("A2B", "IM"), ("B2A", "GT")):
        image = read_image(next((folder / key).iterdir())).squeeze()
        model = Predictor(made.last, device="cpu", direction=direction)
        assert model(image).shape == image.shape
        assert model.evaluate(folder, progress=False)[1].set_metrics["swd_plain"] >= 0


def test_evaluate_with_and_without_pairs(tmp_path, pairs, segmenter, capsys):
    made = trained("CycleGAN", tmp_path / "run", pairs, trainer={"max_epochs": 1})
    model = Predictor(made.last, device="cpu")
    rows, outcome = model.evaluate(pairs, progress=False)
    assert {"pearson", "ssim"} <= rows[0].keys() and set(outcome.set_metrics) >= {"swd", "spectrum", "structure"}
    rows, outcome = Predictor(made.last, device="cpu").evaluate(pairs, progress=False, pairing="unpaired")
    assert rows[0].keys() == {"image"} and outcome.set_metrics["swd"] > 0 and len(rows) == 6
    back, there = (Predictor(made.last, device="cpu", direction=d).evaluate(pairs, progress=False)[1].set_metrics["swd"] for d in ("B2A", "A2B"))
    assert back != there
    assert run("--config", made.folder, "--mode", "evaluate", "--data.path", pairs, "--predict.direction", "B2A") == 0
    assert "structure" in capsys.readouterr().out
    seg, folder = segmenter
    rows, outcome = Predictor(seg.last, device="cpu").evaluate(folder, progress=False)
    assert 0 <= mean_row(rows)["dice"] <= 1 and "swd_plain" in outcome.set_metrics


def test_pictures_of_collections_without_pairs(tmp_path):
    "Images of other sizes and channels side by side, for masks and for colors."
    rng = np.random.default_rng(0)
    for i in range(6):
        write_image(tmp_path / "in" / "IM" / f"{i}.tif", rng.integers(0, 255, (40, 48), np.uint8), "YX")
        write_image(tmp_path / "in" / "GT" / f"other{i}.tif", rng.integers(0, 255, (3, 52, 36), np.uint8), "CYX")
        write_image(tmp_path / "in" / "masks" / f"{i}.tif", rng.integers(0, 3, (36, 60), np.uint8), "YX")
    kinds = {"colour": ({}, {}), "masks": ({"target": "masks", "target_kind": "label", "target_norm": None}, {"task": "segmentation"})}
    for name, (data, model) in kinds.items():
        made = trained("CycleGAN", tmp_path / name, tmp_path / "in", data=data, model=model, trainer={"max_steps": 5, "max_epochs": 1, "pictures": 1})
        assert [p.suffix for p in (made.folder / "pictures").iterdir()] == [".png"]


def test_a_model_made_by_hand_is_given_both_networks(tmp_path, pairs):
    from monai.networks.nets import UNet

    from mmv_im2im.data_modules.data_module import Im2ImDataModule
    from mmv_im2im.models.adversarial import PatchGAN
    from mmv_im2im.models.cyclegan import CycleGAN
    from mmv_im2im.trainers import Im2ImTrainer
    net = lambda: UNet(2, 1, 1, channels=(4, 8), strides=(2,))
    judge = lambda: PatchGAN(2, 1, channels=4, layers=2)
    data = Im2ImDataModule(pairs, patch=(32, 32), batch_size=2, patches_per_image=2, pairing="unpaired")
    trainer = Im2ImTrainer(tmp_path / "hand", max_epochs=1, accelerator="cpu", enable_progress_bar=False, pictures=0, gradient_clip_val=1.0)
    model = CycleGAN(net(), net(), judge(), judge())
    trainer.fit(model, datamodule=data)
    assert model.clip_val == 1.0
    image = read_image(next((pairs / "IM").iterdir())).squeeze()
    out = Predictor(tmp_path / "hand", net=(net(), net()), device="cpu")(image)
    with torch.no_grad(): expected = model.eval().predict_raw(torch.from_numpy(data.preprocessing.normalize("IM", image[None]))[None])[0, 0]
    assert np.allclose(out, expected.numpy() if out.dtype == np.float32 else np.round(expected.numpy().clip(0)), atol=1)


# Two processes

@BOTH
def test_two_processes_learn_what_one_does(tmp_path, pairs, name):
    "Twice half a batch in two processes is one batch in one: the same weights up to rounding."
    plain = NET | {"norm": None}
    model = {"net": plain, "optimizer": {"_target_": "SGD", "lr": 0.02}} | ({"replay": 0} if name == "CycleGAN" else {"loss_weight": 1.0})
    data = {"batch_size": 4, "patches_per_image": 8, "path": str(pairs)}
    cfg = write_yaml(tmp_path / "c.yaml", raw(name), model=model, data=data, trainer={"max_epochs": 2})
    assert run("--config", cfg, "--out", tmp_path / "one") == 0
    command = [sys.executable, "-m", "mmv_im2im.cli", "--config", cfg, "--out", tmp_path / "two", "--data.batch_size", 2,
               "--trainer.devices", 2]  # the strategy that follows from it is ddp
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (load_checkpoint(tmp_path / k / "checkpoints" / "last.ckpt") for k in ("one", "two"))
    assert one["global_step"] == two["global_step"] > 0
    for k, v in one["state_dict"].items(): assert torch.allclose(v, two["state_dict"][k], rtol=1e-3, atol=1e-5), k
    rows = [read_metrics(tmp_path / k / "metrics.csv") for k in ("one", "two")]
    assert rows[0][-1]["train/loss"] == pytest.approx(rows[1][-1]["train/loss"], rel=1e-3)
