"""Denoising without clean images on real and simulated noise, beside what needs no training; and what a step costs.

Each image is denoised by a model that was trained on it alone, by its preset, for at most ten minutes of processor time, five on two cores.
Needs the extra images, where MMV_IM2IM_DATA points or in ../shared/data.

    python benchmarks/self_supervised.py [--only PART ...] [--methods NAME ...] [--pictures FOLDER] [--threads 1 or 2]
"""
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import pytorch_lightning as pl
import torch
from _common import DATA, options, step_ratio
from scipy.ndimage import gaussian_filter

from mmv_im2im.config import preset
from mmv_im2im.data_modules.files import list_images
from mmv_im2im.data_modules.images import read_image, write_image
from mmv_im2im.inference.comparison import classical_denoisers
from mmv_im2im.inference.predictor import Predictor
from mmv_im2im.metrics import psnr_affine
from mmv_im2im.models.denoising_nets import BlurPoolUNet
from mmv_im2im.models.self_supervised import BlindSpot, SelfSupervised
from mmv_im2im.trainers import train
from mmv_im2im.vis import save_figure, show_images

MINUTES = 10  # Of training, processor time
METHODS = ("n2v", "self2self", "zsn2n")
WIDTHS = np.arange(0.4, 6, 0.2)  # Of the Gaussian whose width the clean image chooses


def signal(pred: np.ndarray, clean: np.ndarray) -> float:
    "PSNR in dB after an affine fit; the range is that of 8 bits for those, else the clean image's own."
    return psnr_affine(np.asarray(pred, float), clean, 255.0 if clean.dtype == np.uint8 else float(np.ptp(clean)))


def denoise(name: str, image: np.ndarray, axes: str, **trainer) -> tuple[np.ndarray, float]:
    "The image by a model that learned from it alone, and the seconds of processor time that training took."
    with tempfile.TemporaryDirectory() as d:
        write_image(Path(d) / "noisy" / "image.tif", image, axes)
        quiet = {"enable_progress_bar": False, "pictures": 0, "logger": False}
        cfg = preset(f"{name}_{len(axes)}d", data={"path": f"{d}/noisy"}, trainer=quiet | trainer, out=f"{d}/run")
        begin = time.process_time()
        run = train(cfg)
        seconds = time.process_time() - begin
        if seconds > 60 * MINUTES: print(f"  over the time: {seconds / 60:.1f} minutes", flush=True)
        return Predictor(run.best, device="cpu")(image), seconds


def beside(image: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    "What needs no training: the image, non-local means, and the Gaussian whose width was chosen with the clean image."
    best = max(signal(gaussian_filter(image.astype(float), s), clean) for s in WIDTHS)
    local = classical_denoisers()["non-local means"](image.astype(np.float32))
    return {"input": signal(image, clean), "non-local means": signal(local, clean), "best Gaussian": best}


def pairs(images: list[tuple[str, np.ndarray, np.ndarray]], axes: str, methods: list[str], pictures: Optional[Path]) -> list[dict[str, float]]:
    "PSNR of each method on each image, printed."
    rows = []
    for name, noisy, clean in images:
        row, shown = beside(noisy, clean), {"noisy": noisy}
        for m in methods:
            shown[m], seconds = denoise(m, noisy, axes)
            row[m] = signal(shown[m], clean)
            kept = shown[m].mean() / noisy.mean() - 1
            print(f"  {name}, {m}: {row[m]:.2f} dB, {seconds / 60:.1f} minutes of processor time, mean changed by {kept:+.2%}", flush=True)
        print(f"  {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in row.items()), flush=True)
        rows.append(row)
        if pictures:
            middle = {k: (x if x.ndim == 2 else x[len(x) // 2])[:256, :256] for k, x in (shown | {"clean": clean}).items()}
            save_figure(show_images(list(middle.values()), list(middle)), pictures / f"{name}.png")
    return rows


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    "The mean of each column."
    return {k: float(np.mean([r[k] for r in rows])) for k in rows[0]}


def gigadb(methods: list[str], pictures: Optional[Path]) -> None:
    "Five real pairs of few and many photons."
    folder = DATA / "denoise_2d" / "gigadb"
    images = [(f.stem, *(read_image(folder / k / f.name).squeeze() for k in ("low", "high"))) for f in list_images(folder / "low")]
    means = mean(pairs(images, "YX", methods, pictures))
    others = ", ".join(f"{k} {v:.2f}" for k, v in means.items() if k not in methods)
    bars = {"n2v": "; to reach 31.6", "self2self": "; to reach 30.0", "zsn2n": ""}
    for m in methods: print(f"figure {m}_gigadb_psnr: {means[m]:.2f} dB ({others}{bars[m]})", flush=True)


def dark(methods: list[str], pictures: Optional[Path]) -> None:
    "Nuclei of 5, 10 and 30 photons over a background of 100 counts, two images each."
    files, rng, images = list_images(DATA / "nuclei_2d" / "test" / "image"), np.random.default_rng(0), []
    for photons in (5, 10, 30):
        for f in (files[0], files[7]):
            x = read_image(f).squeeze().astype(float)
            clean = (100 + photons * x / np.percentile(x, 99.8)).astype(np.float32)
            noisy = 100 + rng.poisson(clean - 100) + rng.normal(0, 1, x.shape)
            images.append((f"dark{photons}_{f.stem[:8]}", noisy.round().clip(0).astype(np.uint16), clean))
    rows = pairs(images, "YX", methods, pictures)
    for m in methods:
        gains, local = [r[m] - r["input"] for r in rows], [r[m] - r["non-local means"] for r in rows]
        print(f"figure {m}_dark_least_gain: {min(gains):.2f} dB (of any image above its input; to reach 0)", flush=True)
        print(f"figure {m}_dark_above_nlm: {np.mean(local):.2f} dB (mean above non-local means; to reach 0)", flush=True)


def stacks(methods: list[str], pictures: Optional[Path]) -> None:
    "Stacks of nuclei with the noise of 3 photons: the 3D network, the 2D network plane by plane, the best Gaussian."
    # so few that what is added is above the noise of the stacks themselves, which a filter that keeps it is rewarded for
    rng, gains = np.random.default_rng(0), []
    for name in ("stardist_nuclei", "plant_nuclei_1135"):
        path = next(f for f in list_images(DATA / "instance_3d" / name) if f.stem.startswith("image"))
        clean = read_image(path).squeeze().astype(np.float32)
        photons = 3 * np.clip(clean - np.percentile(clean, 1), 0, None) / (np.percentile(clean, 99.8) - np.percentile(clean, 1))
        noisy = (10 * rng.poisson(photons) + rng.normal(0, 10, clean.shape) + 100).astype(np.float32)
        truth = 100 + 10 * photons
        row = beside(noisy, truth)
        row["n2v in 3D"], seconds = denoise("n2v", noisy, "ZYX")
        row["n2v in 3D"] = signal(row["n2v in 3D"], truth)
        with tempfile.TemporaryDirectory() as d:
            for i, plane in enumerate(noisy): write_image(Path(d) / "planes" / f"{i:03d}.tif", plane, "YX")
            quiet = {"enable_progress_bar": False, "pictures": 0, "logger": False}
            flat = Predictor(train(preset("n2v_2d", data={"path": f"{d}/planes", "patch": [48, 48]}, trainer=quiet, out=f"{d}/run")).best)
            row["n2v in 2D"] = signal(np.stack([flat(p) for p in noisy]), truth)
        print(f"  {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in row.items()) + f" ({seconds / 60:.1f} minutes)", flush=True)
        gains.append((row["n2v in 3D"] - row["best Gaussian"], row["n2v in 3D"] - row["n2v in 2D"]))
    print(f"figure n2v_3d_gain_db: {min(g for g, _ in gains):.2f} dB (above the best Gaussian, the lower of two stacks; to reach 0)", flush=True)
    print(f"figure n2v_3d_above_2d_db: {min(g for _, g in gains):.2f} dB (above the 2D network plane by plane; to reach 0)", flush=True)


def sizes(*_) -> None:
    "One image of 2048 x 2048 and a folder of 500 files through the same preset, two epochs each."
    rng = np.random.default_rng(0)
    for name, number, size in (("image of 2048 x 2048", 1, 2048), ("folder of 500 files of 128 x 128", 500, 128)):
        with tempfile.TemporaryDirectory() as d:
            for i in range(number):
                light = gaussian_filter(rng.random((size, size)), 4, mode="wrap")
                write_image(Path(d) / "noisy" / f"{i:03d}.tif", rng.poisson(2000 * (light - light.min())).astype(np.uint16), "YX")
            trainer = {"enable_progress_bar": False, "pictures": 0, "logger": False, "max_epochs": 2}
            begin = time.perf_counter()
            run = train(preset("n2v_2d", data={"path": f"{d}/noisy"}, trainer=trainer, out=f"{d}/run"))
            trained = time.perf_counter()
            outcome = Predictor(run.best, device="cpu").predict_folder(f"{d}/noisy", f"{d}/denoised", progress=False)
            done = time.perf_counter()
            print(f"figure n2v_{number}_files: {len(outcome.done)} predicted ({name}; training {trained - begin:.0f} s of {run.result['steps']}"
                  f" steps, prediction {done - trained:.0f} s)", flush=True)


def steps(*_) -> None:
    "Seconds of a step of Noise2Void through the framework and the trainer against a loop written by hand."
    masking = BlindSpot()

    def by_hand(net: torch.nn.Module, batch: dict) -> torch.Tensor:
        "Squared error at hidden pixels."
        seen, guessed = masking.hide(batch["IM"])
        weight = guessed.float()
        return ((net(seen) - batch["IM"]) ** 2 * weight).sum() / weight.sum()

    net = partial(BlurPoolUNet, 2, 1, 1, (24, 48, 96), "max", True)
    step_ratio("n2v_step_ratio", net, (8, 1, 64, 64), framework=partial(SelfSupervised, masking=masking), loss=by_hand)


PARTS: dict[str, Callable] = {"gigadb": gigadb, "dark": dark, "stacks": stacks, "sizes": sizes, "steps": steps}


def main() -> None:
    "Print the figures."
    args = options(__doc__, PARTS, methods={"nargs": "*", "default": list(METHODS), "choices": METHODS})
    pl.seed_everything(0, verbose=False)
    for part in args.only:
        print(f"{part}: {PARTS[part].__doc__}", flush=True)
        PARTS[part](args.methods, args.pictures)


if __name__ == "__main__": main()
