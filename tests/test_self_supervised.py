"Learning from noisy images alone: the whole chain, hard images, an uncertainty, filters beside it."
import csv
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from chain import REGRESS, checkpoint, run, same_weights, shell, write_yaml

from mmv_im2im.checkpoints import read_metrics
from mmv_im2im.config import from_dict, preset
from mmv_im2im.core import ConfigError
from mmv_im2im.data_modules.data_module import Im2ImDataModule
from mmv_im2im.data_modules.images import read_image, write_image
from mmv_im2im.data_modules.samples import simulate_set
from mmv_im2im.inference.predictor import Predictor
from mmv_im2im.metrics import psnr_affine
from mmv_im2im.models.denoising_nets import BlurPoolUNet, PartialUNet, ZeroShotNet
from mmv_im2im.models.self_supervised import (
    BernoulliMask, BlindSpot, PairDownsample, SelfSupervised,
)
from mmv_im2im.trainers import Im2ImTrainer, train

MASKINGS = {
    "BlindSpot": {"masking": {"_target_": "BlindSpot"}, "net": {"_target_": "BlurPoolUNet", "channels": [4, 8], "pool": "max", "top_skip": True}},
    "BernoulliMask": {"masking": {"_target_": "BernoulliMask", "samples": 10}, "net": {"_target_": "PartialUNet", "channels": [6, 8]}},
    "PairDownsample": {"masking": {"_target_": "PairDownsample"}, "net": {"_target_": "ZeroShotNet", "channels": 6}},
}
ALONE = {"pairing": "source", "source": ".", "split": "pixels", "val_fraction": 0.05, "source_norm": {"_target_": "Standard"},
         "target_norm": {"_target_": "LikeSource"}, "patch": [32, 32], "patches_per_image": 12}


def denoiser(name: str, **sections) -> dict:
    "A small config of a strategy, with sections changed."
    model = {"_target_": "SelfSupervised", "optimizer": {"_target_": "AdamW", "lr": 3.0e-3}} | MASKINGS[name]
    raw = REGRESS | {"model": model, "data": {k: v for k, v in REGRESS["data"].items() if k != "target_norm"} | ALONE}
    for section, change in sections.items(): raw[section] = raw.get(section, {}) | change if isinstance(change, dict) else change
    return raw


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    "A folder with noisy images, `IM`, and clean ones, `GT`."
    folder = tmp_path_factory.mktemp("noisy")
    simulate_set(folder, 3, (64, 64), source="nuclei", target="nuclei", snr=4)
    return folder


# The whole chain

@pytest.mark.parametrize("name", MASKINGS)
def test_killed_and_continued_it_ends_with_the_same_weights(tmp_path, noisy, name):
    cfg = write_yaml(tmp_path / "c.yaml", denoiser(name, trainer={"checkpoint_every_n_steps": 2}))
    command = "--config", cfg, "--data.path", noisy / "IM"
    assert run(*command, "--out", tmp_path / "whole") == 0
    kill = ("import os\nfrom mmv_im2im.models.self_supervised import SelfSupervised\nlosses, calls = SelfSupervised.losses, []\n"
            "def counted(self, batch):\n    calls.append(1)\n    if len(calls) > 13: os.kill(os.getpid(), 9)\n    return losses(self, batch)\n"
            "SelfSupervised.losses = counted\n")
    shell(*command, "--out", tmp_path / "killed", prelude=kill, status=-signal.SIGKILL)
    assert checkpoint(tmp_path / "killed")["global_step"] == 12
    assert run(*command, "--out", tmp_path / "killed") == 0
    assert same_weights(tmp_path / "whole", tmp_path / "killed") and same_weights(tmp_path / "whole", tmp_path / "killed", "best")
    assert read_metrics(tmp_path / "whole" / "metrics.csv") == read_metrics(tmp_path / "killed" / "metrics.csv")


@pytest.mark.parametrize("change", [{"share": 0.2}, {"fill": "random"}, {"fill": "mean"}, {"radius": 1}, {"line": "X"}, {"line": "X", "reach": 1}],
                         ids=str)
def test_every_setting_of_a_blind_spot_changes_the_weights(tmp_path, noisy, change):
    other = {"line": "X"} if "reach" in change else {}
    cfgs = [denoiser("BlindSpot", model={"masking": {"_target_": "BlindSpot"} | c}, trainer={"max_epochs": 1}, data={"path": str(noisy / "IM")})
            for c in (other, change)]
    for i, c in enumerate(cfgs): train(from_dict(c | {"out": str(tmp_path / f"{i}")}))
    assert not same_weights(tmp_path / "0", tmp_path / "1")


def test_workers_change_nothing(tmp_path, noisy):
    for n in (0, 2): train(from_dict(denoiser("BlindSpot", data={"path": str(noisy / "IM"), "num_workers": n}, out=str(tmp_path / f"{n}"))))
    assert same_weights(tmp_path / "0", tmp_path / "2")


def test_bf16_trains(tmp_path, noisy):
    for name in MASKINGS:
        cfg = denoiser(name, data={"path": str(noisy / "IM")}, trainer={"precision": "bf16-mixed", "max_epochs": 1}, out=str(tmp_path / name))
        assert np.isfinite(train(from_dict(cfg)).result["best_score"])


@pytest.mark.parametrize("name", MASKINGS)
def test_a_network_made_by_hand_predicts_again(tmp_path, noisy, name):
    masking = {"BlindSpot": BlindSpot(0.1), "BernoulliMask": BernoulliMask(samples=8), "PairDownsample": PairDownsample(0.5)}[name]
    kinds = {"BlindSpot": BlurPoolUNet, "BernoulliMask": PartialUNet, "PairDownsample": ZeroShotNet}
    made = lambda: kinds[name](2, 1, 1, 4 if name == "PairDownsample" else (4, 8))
    data = Im2ImDataModule(noisy / "IM", **{k: v for k, v in ALONE.items() if k != "pairing"}, pairing="source")
    trainer = Im2ImTrainer(tmp_path, max_epochs=1, accelerator="cpu", enable_progress_bar=False, pictures=0)
    model = SelfSupervised(made(), masking)
    trainer.fit(model, data)
    again = Predictor(tmp_path / "checkpoints" / "last.ckpt", net=made(), device="cpu")
    assert again.module.strategy == masking
    image = read_image(noisy / "IM" / sorted(p.name for p in (noisy / "IM").iterdir())[0]).squeeze()
    x = torch.from_numpy(data.preprocessing.normalize("IM", image[None]))[None]
    assert np.allclose(again(image), data.preprocessing.source_norm.inverse(model.eval().predict_raw(x)[0].numpy(), data.preprocessing.source_norm.stats(image[None]))[0], rtol=1e-4, atol=1e-2)


# The noise that is left

class Keeps(torch.nn.Module):
    "A denoiser that learns nothing and leaves part of the noise, in 2D and 3D."
    def __init__(self, spatial_dims, in_channels, out_channels, part=0.4):
        super().__init__()
        self.part, self.w = part, torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        from mmv_im2im.models.risk import smooth
        return self.w * (self.part * x + (1 - self.part) * smooth(x, (1.5,) * (x.ndim - 2)))


def blurred_cells(seed: int, dims: int = 2, channels: int = 1) -> np.ndarray:
    "Clean structures, as optics leave them: `(C, [Z,] Y, X)`."
    from scipy.ndimage import gaussian_filter
    rng = np.random.default_rng(seed)
    shape = (8, 96, 96)[-dims:]
    x = np.stack([gaussian_filter((rng.random(shape) < 0.004).astype(float), 2.0) for _ in range(channels)])
    return x / x.max()


@pytest.mark.parametrize("dims, channels", [(2, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("noise", ["white", "photons", "along X", "clipped"])
def test_noise_that_is_left_is_taken_away(dims, channels, noise):
    clean = torch.from_numpy(blurred_cells(1, dims, channels)).float()[None]
    torch.manual_seed(0)
    n = torch.randn_like(clean)
    if noise == "along X": n = (n + 0.5 * n.roll(1, -1)) / 1.25 ** 0.5
    y = clean + n * ((0.002 + 0.03 * clean).sqrt() if noise == "photons" else 0.12)
    if noise == "clipped": y = (y - 0.1).clamp_min(0)
    target = clean if noise != "clipped" else None  # what is clipped is brighter on average
    model = SelfSupervised(Keeps(dims, channels, channels), BlindSpot(line="X", reach=1) if noise == "along X" else None).eval()
    error = lambda: float(((model.predict_raw(y) - target) ** 2).mean())
    before = error() if target is not None else None
    found, said = model.calibrate([{"IM": y}])
    assert found["blur"].max() > 0 and "model.smoothing" in said
    if target is not None: assert error() < 0.8 * before


def test_a_result_without_noise_is_left_alone():
    clean = torch.from_numpy(blurred_cells(2)).float()[None]
    y = clean + 0.02 * torch.randn_like(clean)
    model = SelfSupervised(Keeps(2, 1, 1, part=1.0)).eval()
    model.net.forward = lambda x: clean + 0.02 * (x - clean) if x.shape == clean.shape else x
    found, said = model.calibrate([{"IM": y}])
    assert not found["blur"].any() and said is None


@pytest.mark.parametrize("name", MASKINGS)
def test_the_blur_travels_with_the_weights(tmp_path, noisy, name, monkeypatch):
    "By itself in both checkpoints; a number is obeyed; none, and weights from before there was one, change nothing."
    image = read_image(next((noisy / "IM").iterdir())).squeeze()
    cfg = lambda smoothing, out: from_dict(denoiser(name, model={"smoothing": smoothing}, data={"path": str(noisy / "IM")}, trainer={"max_epochs": 1}, out=str(tmp_path / out)))
    monkeypatch.setattr("mmv_im2im.models.self_supervised.best_smoothing", lambda images, denoise, line: (0.7, 0.7))
    runs = {out: train(cfg(s, out)) for out, s in {"auto": "auto", "none": 0, "same": 0.7}.items()}
    blurs = {k: [checkpoint(r.folder, c)["state_dict"]["blur"].tolist()[1:] for c in ("best", "last")] for k, r in runs.items()}
    assert np.allclose(blurs["auto"], 0.7) and np.allclose(blurs["none"], 0) and np.allclose(blurs["same"], 0.7)
    results = {k: Predictor(r, device="cpu")(image) for k, r in runs.items()}
    assert np.allclose(results["auto"], results["same"]) and not np.allclose(results["auto"], results["none"])
    assert "blurred by 0.7 pixels" in (tmp_path / "auto" / "run.log").read_text()
    assert runs["auto"].result["best_score"] == runs["none"].result["best_score"]  # validation goes without
    old = checkpoint(tmp_path / "none")
    del old["state_dict"]["blur"]
    torch.save(old, tmp_path / "old.ckpt")
    assert np.allclose(Predictor(tmp_path / "old.ckpt", device="cpu")(image), results["none"])


@pytest.mark.parametrize("value", [-1, "much", True, 100, [1, 1]])
def test_a_blur_that_is_none_is_refused(tmp_path, noisy, value):
    with pytest.raises(ConfigError, match="model.smoothing"):
        train(from_dict(denoiser("BlindSpot", model={"smoothing": value}, data={"path": str(noisy / "IM")}, out=str(tmp_path / "r"))))
    assert not (tmp_path / "r").exists()


def test_noise_to_noise_is_fcn_on_two_noisy_takes(tmp_path):
    clean = read_image(next((simulate_set(tmp_path / "clean", 1, (96, 96), source="nuclei", target="nuclei", snr=None) / "GT").iterdir())).squeeze()
    for key, seed in (("IM", 1), ("GT", 2)): write_image(tmp_path / "takes" / key / "a.tif", np.float32(clean + np.random.default_rng(seed).normal(0, clean.std(), clean.shape)), "YX")
    cfg = preset("denoise_2d", data={"path": str(tmp_path / "takes"), "patch": [32, 32], "gap": 4}, trainer={"max_epochs": 5, "enable_progress_bar": False, "pictures": 0},
                 out=str(tmp_path / "run"))
    noisy = read_image(tmp_path / "takes" / "IM" / "a.tif").squeeze()
    assert psnr_affine(Predictor(train(cfg).best)(noisy), clean, np.ptp(clean)) > psnr_affine(noisy, clean, np.ptp(clean)) + 3


# What stops it, and what it is told about

def test_it_stops_where_held_back_pixels_say_so(tmp_path):
    "Nothing can be learned from noise: the error of held-back pixels soon falls no more."
    write_image(tmp_path / "noise" / "a.tif", np.random.default_rng(0).normal(100, 10, (64, 64)).astype(np.float32), "YX")
    cfg = denoiser("BlindSpot", data={"path": str(tmp_path / "noise")}, trainer={"max_epochs": 60, "early_stopping": 4}, out=str(tmp_path / "run"))
    result = train(from_dict(cfg))
    figures = [r["val/holdout"] for r in result.metrics]
    assert result.result["epochs"] < 60 and result.result["monitor"] == "val/holdout"
    assert checkpoint(tmp_path / "run", "best")["epoch"] == int(np.argmin(figures))


def test_clean_images_are_measured_and_never_learnt_from(tmp_path, noisy):
    alone, beside = ({"path": str(noisy / "IM")}, {"path": str(noisy), "pairing": "paired", "source": "IM"})
    for i, data in enumerate((alone, beside)): train(from_dict(denoiser("BlindSpot", data=data, out=str(tmp_path / f"{i}"))))
    assert same_weights(tmp_path / "0", tmp_path / "1")
    rows = [read_metrics(tmp_path / f"{i}" / "metrics.csv")[-1] for i in range(2)]
    assert rows[0]["val/holdout"] == pytest.approx(rows[1]["val/holdout"]) and "val/pearson" in rows[1] and "val/pearson" not in rows[0]


@pytest.mark.parametrize("masking", [BlindSpot(0.2), BernoulliMask(), PairDownsample(consistency=0)], ids=lambda m: type(m).__name__)
def test_held_back_pixels_are_no_targets(noisy, masking):
    "Whatever stands there, the loss of a network that gives zeros is the same."
    batch = next(iter(Im2ImDataModule(noisy / "IM", **ALONE).train_dataloader()))
    zeros = {PairDownsample: lambda x: x}.get(type(masking), lambda x, mask=None: 0 * x)  # what it takes away
    losses = []
    for x in (batch["IM"], batch["IM"] + 100 * (batch["CM"] == 0)):
        torch.manual_seed(0)
        losses.append(float(masking.loss(zeros, x, batch["CM"], torch.nn.MSELoss())))
    assert (batch["CM"] == 0).any() and losses[0] > 0 and losses[1] == pytest.approx(losses[0])


def test_one_sample_is_repeated_exactly(noisy):
    model = SelfSupervised(PartialUNet(2, 1, 1, (4, 8)), BernoulliMask(samples=1)).eval()
    x = torch.rand(1, 1, 32, 32)
    assert torch.equal(model.predict_raw(x), model.predict_raw(x))


# Hard images

HARD = {
    "dark": lambda rng: rng.poisson(5 * np.exp(-((np.indices((64, 64)) - 32) ** 2).sum(0) / 200)) + 100,
    "sparse": lambda rng: 100 + rng.poisson(3, (64, 64)) + 4000 * (rng.random((64, 64)) < 0.002),
    "saturated": lambda rng: np.clip(rng.normal(240, 30, (64, 64)), 0, 255),
    "16 bit": lambda rng: rng.poisson(60000 * np.ones((64, 64))),
    "constant": lambda rng: np.full((64, 64), 137),
}


@pytest.mark.parametrize("name", MASKINGS)
@pytest.mark.parametrize("kind", HARD)
def test_background_and_signal_are_kept(tmp_path, kind, name):
    image = HARD[kind](np.random.default_rng(0)).astype(np.uint16)
    write_image(tmp_path / "hard" / "a.tif", image, "YX")
    model = Predictor(train(from_dict(denoiser(name, data={"path": str(tmp_path / "hard")}, out=str(tmp_path / "run")))).best, device="cpu")
    pred = model(image)
    assert np.isfinite(pred).all() and pred.mean() == pytest.approx(image.mean(), rel=0.01)
    if kind == "constant": assert (pred == 137).all()
    else: assert pred.std() < image.std() or kind == "sparse"
    assert (model(np.full((40, 50), 9, np.uint16)) == 9).all(), "a constant is given back by any model"


@pytest.mark.parametrize("channels", ["together", "alone"])
def test_channels_and_time_points(tmp_path, channels):
    movie = np.random.default_rng(0).normal(100, 10, (3, 2, 48, 48)).astype(np.float32)
    write_image(tmp_path / "movies" / "a.tif", movie[:, :, None], "TCZYX")
    cfg = denoiser("BlindSpot", model={"channels": channels}, data={"path": str(tmp_path / "movies"), "time_points": True}, out=str(tmp_path / "run"))
    model = Predictor(train(from_dict(cfg)).best, device="cpu")
    assert next(model.module.net.parameters()).shape[1] == (2 if channels == "together" else 1)
    assert model(tmp_path / "movies" / "a.tif").shape == (3, 2, 48, 48)
    other = movie[:1].copy()
    other[:, 1] += 50 * np.random.default_rng(1).random((48, 48)).astype(np.float32)
    first = [model(x, axes="TCYX")[0, 0] for x in (movie[:1], other)]
    assert np.allclose(*first, atol=1e-3) == (channels == "alone"), "the other channel has a say, or has none"


def test_one_image_file_is_enough(tmp_path, noisy, capsys):
    file = sorted((noisy / "IM").iterdir())[0]
    cfg = write_yaml(tmp_path / "c.yaml", denoiser("PairDownsample", trainer={"max_epochs": 1}))
    assert run("--config", cfg, "--data.path", file, "--out", tmp_path / "run") == 0
    assert run("--config", cfg, "--data.path", file, "--check") == 0
    assert "1 source image without a target" in capsys.readouterr().out


# Uncertainty, and filters beside it

@pytest.fixture(scope="module")
def averaged(tmp_path_factory, noisy):
    "A run whose results are means of many predictions."
    out = tmp_path_factory.mktemp("averaged")
    return train(from_dict(denoiser("BernoulliMask", data={"path": str(noisy / "IM")}, out=str(out / "run"))))


def test_an_uncertainty_is_written_beside_the_result(tmp_path, averaged, noisy):
    assert run("--config", averaged.folder, "--mode", "predict", "--predict.path", noisy / "IM", "--predict.out", tmp_path / "out", "--predict.uncertainty", "true") == 0
    files = sorted((noisy / "IM").iterdir())
    model = Predictor(averaged.best, device="cpu")
    for f in files:
        pred, spread = model(f, uncertainty=True)
        assert pred.shape == spread.shape == (64, 64) and (spread > 0).all()
        assert np.allclose(pred, model(f))
        stem = f.name.split(".")[0]
        assert np.allclose(read_image(tmp_path / "out" / f"{stem}_uncertainty.ome.tif").squeeze(), spread)
        assert np.allclose(read_image(tmp_path / "out" / f"{stem}.ome.tif").squeeze(), pred)
    ten_times = model(10.0 * read_image(files[0]).squeeze(), uncertainty=True)[1]
    assert np.allclose(ten_times, 10 * model(files[0], uncertainty=True)[1], rtol=1e-2), "in the image's unit"
    import dask.array as da
    lazy = model(da.from_array(read_image(files[0]).squeeze()), uncertainty=True)
    assert np.allclose(lazy[1].compute(), model(files[0], uncertainty=True)[1])


def test_a_model_of_one_prediction_has_no_uncertainty(tmp_path, noisy):
    cfg = denoiser("BlindSpot", data={"path": str(noisy / "IM")}, trainer={"max_epochs": 1}, out=str(tmp_path / "run"))
    model = Predictor(train(from_dict(cfg)).best, device="cpu")
    with pytest.raises(ConfigError, match="BernoulliMask"): model(np.zeros((32, 32), np.float32), uncertainty=True)


@pytest.mark.parametrize("pairing, figures", [("source", {"holdout", "residual"}), ("paired", {"psnr_affine", "ssim", "holdout", "residual"})])
def test_evaluate_puts_filters_beside_it(tmp_path, averaged, noisy, capsys, pairing, figures):
    path = (noisy / "IM", "--data.source", ".") if pairing == "source" else (noisy, "--data.source", "IM")
    command = "--config", averaged.folder, "--mode", "evaluate", "--data.pairing", pairing, "--data.path", *path, "--predict.out", tmp_path / "out"
    assert run(*command) == 0
    said = capsys.readouterr().out
    with open(tmp_path / "out" / "comparison.csv") as f: rows = {r["method"]: r for r in csv.DictReader(f)}
    assert set(rows) == {"model", "input", *(f"gaussian {s:g}" for s in (0.5, 1, 1.5, 2, 3)), "median", "non-local means"}
    assert all(m in said for m in rows) and set(rows["model"]) == {"method", *figures}
    with open(tmp_path / "out" / "metrics.csv") as f: table = list(csv.DictReader(f))
    assert len(table) == 4 and {"holdout", "residual"} < set(table[0])
    assert float(table[-1]["holdout"]) == pytest.approx(float(rows["model"]["holdout"]), rel=1e-6)
    shutil.rmtree(tmp_path / "out")
    assert run(*command, "--predict.compare", "false") == 0
    assert not (tmp_path / "out" / "comparison.csv").exists()


# What cannot be

@pytest.mark.parametrize("change, said", [
    ({"data": {"val_fraction": 0.2}}, "at most 0.1"),
    ({"data": {"pairing": "unpaired"}}, "pixels of the training images"),
    ({"data": {"target_kind": "label", "target_norm": None}}, "learns from targets of kind 'image'"),
    ({"model": {"masking": {"_target_": "BlindSpots"}}}, "BlindSpot"),
    ({"model": {"masking": {"_target_": "BlindSpot", "share": 2}}}, "`model.masking.share`"),
    ({"model": {"channels": "single"}}, "'together' or 'alone'"),
    ({"model": {"net": {"_target_": "BlurPoolUNet", "out_channels": 3}}}, "`model.net.out_channels` is 3"),
])
def test_what_cannot_be_is_refused_with_a_sentence(tmp_path, noisy, change, said, capsys):
    cfg = write_yaml(tmp_path / "c.yaml", denoiser("BlindSpot", **change))
    assert run("--config", cfg, "--data.path", noisy / "IM", "--out", tmp_path / "run") == 2
    assert said in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "run" / "checkpoints").exists()


def test_it_learns_in_two_processes(tmp_path, noisy):
    cfg = write_yaml(tmp_path / "c.yaml", denoiser("BernoulliMask", trainer={"devices": 2, "strategy": "ddp", "max_epochs": 1}))
    command = [sys.executable, "-m", "mmv_im2im.cli", "--config", cfg, "--data.path", noisy / "IM", "--out", tmp_path / "run"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert np.isfinite(read_metrics(tmp_path / "run" / "metrics.csv")[-1]["val/holdout"])
