"A framework that fills the table of mmv_im2im.models.base and nothing else: trained, validated, predicted in tiles, resumed, in two processes."
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from chain import checkpoint, same_weights, shell, start, write_yaml
from frameworks import Flow, Generator, Styled, Vectors, conv
from pytest import approx
from torch import nn

from mmv_im2im.config import from_dict
from mmv_im2im.core import ConfigError
from mmv_im2im.data_modules.images import write_image
from mmv_im2im.inference.predictor import Predictor
from mmv_im2im.metrics import pearson
from mmv_im2im.models.base import Im2ImModule
from mmv_im2im.models.fcn import FCN
from mmv_im2im.models.pix2pix import Pix2Pix
from mmv_im2im.trainers import train

SLOW = """
import time, frameworks
losses = frameworks.{name}.losses
def slowly(self, batch):
    time.sleep(0.1)
    return losses(self, batch)
frameworks.{name}.losses = slowly
"""
SIZES = {2: (48, 56), 3: (16, 32, 40)}
PATCH = {2: [32, 32], 3: [8, 16, 16]}


def smooth(dims: int, seed: int) -> np.ndarray:
    "A smooth field, `([Z,] Y, X)`."
    x = torch.rand(1, 1, *SIZES[dims], generator=torch.Generator().manual_seed(seed))
    pool = nn.functional.avg_pool2d if dims == 2 else nn.functional.avg_pool3d
    return 10 * pool(x, 5, 1, 2)[0, 0].numpy()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "By name and dimensions, pairs that each framework learns from: twice the source, or its gradient."
    top = tmp_path_factory.mktemp("contract")
    for dims in (2, 3):
        axes = "ZYX"[-dims:]
        for i in range(4):
            x = smooth(dims, i)
            for name, y, y_axes in (("Generator", 2 * x, axes), ("Styled", 2 * x, axes), ("Vectors", np.stack(np.gradient(x)), "C" + axes)):
                folder = top / f"{name}{dims}"
                write_image(folder / "IM" / f"{i}.tif", x, axes)
                write_image(folder / "GT" / f"{i}.tif", y.astype(np.float32), y_axes)
    return top


def config(folders, name: str, dims: int, out, **trainer) -> dict:
    "A run of one of the frameworks, in seconds."
    return {
        "data": {"path": str(folders / f"{name}{dims}"), "patch": PATCH[dims], "batch_size": 4, "patches_per_image": 8,
                 "augment": [], "val_fraction": 0.25},
        "model": {"_target_": f"frameworks.{name}", "net": {"_target_": "frameworks.Small"}, "optimizer": {"_target_": "AdamW", "lr": 0.02}},
        "trainer": {"max_epochs": 12, "accelerator": "cpu", "enable_progress_bar": False, "pictures": 0} | trainer,
        "out": str(out),
    }


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["Generator", "Styled", "Vectors"])
def test_trains_validates_and_predicts_in_tiles(folders, tmp_path, name, dims):
    run = train(from_dict(config(folders, name, dims, tmp_path / "run")))
    found = [m["val/pearson"] for m in run.metrics if "val/pearson" in m]
    assert found[-1] > max(0.4, found[0])
    model, x = Predictor(run.best, device="cpu"), smooth(dims, 9)
    tile = (24, 24) if dims == 2 else (8, 16, 16)
    whole, tiled = model(x), Predictor(run.best, tile=tile, device="cpu")(x)
    assert whole.shape == tiled.shape and pearson(whole, tiled) > 0.98
    np.testing.assert_array_equal(whole, model(x))
    if name == "Vectors":
        assert model.module.monitor == "val/angle" and run.metrics[-1]["val/angle"] < run.metrics[0]["val/angle"]
    else:
        mean, spread = model(x, uncertainty=True)
        assert (spread > 0).all() and np.array_equal(mean, whole)


def test_one_noise_field_is_shared_by_all_tiles():
    torch.manual_seed(0)
    for made, dims, tile in ((Generator(nn.Conv2d(2, 1, 1)), 2, (16, 16)), (Generator(nn.Conv3d(2, 1, 1)), 3, (8, 16, 16)), (Styled(nn.Conv2d(1, 1, 1)), 2, (16, 16))):
        x = torch.rand(2, 1, *SIZES[dims])
        whole, tiled = made.predict_raw(x, blend="none"), made.predict_raw(x, tile)
        torch.testing.assert_close(whole, tiled, atol=1e-5, rtol=0)
        torch.testing.assert_close(whole[1:], made.predict_raw(x[1:], tile), atol=1e-5, rtol=0)


def test_samples_come_from_a_generator_that_is_an_argument():
    made, x = Generator(), torch.rand(1, 1, 32, 32)
    seeded = lambda seed, **more: made.predict_raw(x, generator=torch.Generator().manual_seed(seed), **more)
    assert torch.equal(seeded(1), seeded(1)) and not torch.equal(seeded(1), seeded(2))
    assert not torch.equal(seeded(1, samples=1), seeded(1, samples=8))
    mean, spread = seeded(1, samples=64, spread=True).chunk(2, 1)
    each = torch.cat([seeded(k, samples=1) for k in range(64)])
    assert float(spread.mean()) == approx(float(each.std(0).mean()), rel=0.2)
    assert float((mean - each.mean(0)).abs().mean()) < float(spread.mean())


def test_averaging_ends_when_the_mean_changes_no_more():
    made, n = Generator(), []
    made.samples = 50
    made.net.register_forward_hook(lambda *_: n.append(1))
    made.probe(2, 2)
    x = torch.rand(1, 1, 32, 32)
    for tolerance, drawn in ((0.0, 50), (100.0, 8)):
        made.tolerance = tolerance
        n.clear()
        made.predict_raw(x)
        assert len(n) == drawn


@pytest.mark.parametrize("dims", [2, 3])
def test_vectors_are_turned_back_in_mirrors(dims):
    "A network that gives the gradient itself gives it with mirror averaging, too, which plain numbers would cancel."
    class Gradient(nn.Module):
        def forward(self, x): return torch.cat(torch.gradient(x, dim=list(range(2, x.ndim)), edge_order=1), 1)

    made, x = Vectors(Gradient()), torch.from_numpy(smooth(dims, 3))[None, None]
    want, mirrored = made.predict_raw(x, blend="none"), made.predict_raw(x, blend="none", tta=True)
    torch.testing.assert_close(want, mirrored, atol=1e-5, rtol=1e-4)
    plain = FCN(Gradient()).predict_raw(x, blend="none", tta=True)
    assert plain[:, -1].abs().max() < 1e-4  # as numbers, the components along X cancel
    field = torch.rand(1, dims, *SIZES[dims])
    assert torch.equal(Flow().turned_back(Flow().turned_back(field, (-1,)), (-1,)), field)


@pytest.mark.parametrize("name", ["Generator", "Vectors"])
def test_goes_on_where_it_was_and_in_two_processes(folders, tmp_path, monkeypatch, name):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]))
    cfg = write_yaml(tmp_path / "c.yaml", config(folders, name, 2, tmp_path / "a", max_epochs=3, checkpoint_every_n_steps=2))
    begun = start("--config", cfg, prelude=SLOW.format(name=name))
    while begun.poll() is None and not (tmp_path / "a" / "checkpoints" / "last.ckpt").exists(): time.sleep(0.02)
    begun.send_signal(signal.SIGINT)
    assert begun.wait(120) == 130 and checkpoint(tmp_path / "a")["global_step"] < 18
    shell("--config", cfg)
    shell("--config", cfg, "--out", tmp_path / "whole")
    assert same_weights(tmp_path / "a", tmp_path / "whole")
    command = [sys.executable, "-m", "mmv_im2im.cli", "--config", cfg, "--out", tmp_path / "two", "--trainer.devices", "2"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    x = smooth(2, 9)
    one, two = (Predictor(tmp_path / k, device="cpu")(x) for k in ("whole", "two"))
    assert pearson(one, two) > 0.5


def test_predict_samples_changes_what_comes_out(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]))
    run = train(from_dict(config(folders, "Generator", 2, tmp_path / "run", max_epochs=1)))
    x = smooth(2, 9)
    results = {k: Predictor(run.best, device="cpu", **k_)(x) for k, k_ in
               {"usual": {}, "four": {"samples": 4}, "one": {"samples": 1}, "other": {"samples": 1, "seed": 5}}.items()}
    np.testing.assert_array_equal(results["usual"], results["four"])
    assert not np.array_equal(results["one"], results["four"]) and not np.array_equal(results["one"], results["other"])
    write_image(tmp_path / "in" / "a.tif", x, "YX")
    for n in (1, 4):
        shell("--config", tmp_path / "run", "--mode", "predict", "--predict.path", tmp_path / "in", "--predict.out", tmp_path / f"out{n}",
              "--predict.samples", n, "--predict.device", "cpu")
    from mmv_im2im.data_modules.images import read_image
    for n, k in ((1, "one"), (4, "four")):
        np.testing.assert_allclose(read_image(tmp_path / f"out{n}" / "a.ome.tif").squeeze(), results[k], atol=1e-5)
    with pytest.raises(ConfigError, match="an uncertainty is the spread"): Predictor(run.best, samples=1, device="cpu")(x, uncertainty=True)


def test_samples_of_a_model_that_does_not_sample(tmp_path):
    "Dropout makes any network sample; without it there is nothing to average."
    drops = Pix2Pix(nn.Sequential(conv(2, 1, 4), nn.Dropout(0.5), nn.Conv2d(4, 1, 1)))
    torch.save({"state_dict": drops.state_dict(), "im2im": {"config": None, "patch": [32, 32], "framework": "Pix2Pix", "settings": {}}}, tmp_path / "m.ckpt")
    x = np.random.default_rng(0).random((32, 32), np.float32)
    fixed = Predictor(tmp_path / "m.ckpt", net=drops, device="cpu")
    np.testing.assert_array_equal(fixed(x), fixed(x))
    with pytest.raises(ConfigError, match="each prediction of this model is the same"): Predictor(tmp_path / "m.ckpt", net=drops, samples=4, device="cpu")
    mean, spread = Predictor(tmp_path / "m.ckpt", net=drops, samples=16, dropout=True, device="cpu")(x, uncertainty=True)
    assert spread.mean() > 0 and not np.array_equal(mean, fixed(x))
    assert np.array_equal(fixed(x), Predictor(tmp_path / "m.ckpt", net=drops, device="cpu")(x)), "the module that was handed over is as it was"


def test_names_that_nothing_calls_are_refused():
    for old, name in (("finish", "to_image"), ("compare", "validation_losses"), ("rehearse", "sanity_check")):
        with pytest.raises(ConfigError, match=f"it is `{name}`"): type("Old", (Im2ImModule,), {old: lambda self: None})
    with pytest.raises(ConfigError, match="must be an object, such as Regression"): type("Old", (Im2ImModule,), {"task": "segmentation"})
