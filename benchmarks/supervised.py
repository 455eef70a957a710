"""Quality of the supervised presets on real images, beside what needs no training; and what a step and a validation cost.

Each task has a part for testing that training never sees: images of their own, or a region with a gap where a set is one image. It is
trained by its preset for at most ten minutes of processor time, five on two cores, for each seed. Needs the extra images, where MMV_IM2IM_DATA points or in
../shared/data.

    python benchmarks/supervised.py [--only TASK ...] [--seeds N] [--pictures FOLDER] [--threads 1 or 2]
"""
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterable, Optional

import numpy as np
import pytorch_lightning as pl
from _common import DATA, options, step_ratio
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu
from skimage.restoration import denoise_nl_means
from tqdm import tqdm

from mmv_im2im.config import preset
from mmv_im2im.core import build
from mmv_im2im.data_modules.files import list_images
from mmv_im2im.data_modules.images import read_image, write_image
from mmv_im2im.inference.predictor import Predictor
from mmv_im2im.metrics import dice, pearson, psnr
from mmv_im2im.models.building import fill_channels
from mmv_im2im.trainers import train
from mmv_im2im.vis import save_figure, show_result

MINUTES = 10  # Of training, processor time
GAP = 16  # Pixels between training and test part that neither uses

Images = list[np.ndarray]


# ---- the images of each task


def write_pair(folder: Path, part: str, name: str, source: np.ndarray, target: np.ndarray, axes: str = "YX") -> None:
    "A source and its target into the train or test part of a task."
    for key, x in (("IM", source), ("GT", target)):
        write_image(folder / part / key / f"{name}.tif", x, axes[-x.ndim:])


def saureus(folder: Path) -> None:
    "One field: the last third of the rows is the test part."
    source, target = (read_image(DATA / "labelfree_2d" / "saureus" / k / "saureus_left.tif").squeeze() for k in ("image", "target"))
    cut = 2 * len(source) // 3
    write_pair(folder, "train", "saureus", source[:cut - GAP], target[:cut - GAP])
    write_pair(folder, "test", "saureus", source[cut:], target[cut:])


def files(name: str, is_test: Callable[[int, str], bool], target: str = "target") -> Callable[[Path], None]:
    "Whole files: `is_test(number, name)` says which are for testing."
    def split(folder: Path) -> None:
        for i, f in enumerate(list_images(DATA / name / "image")):
            source, wanted = (read_image(DATA / name / k / f.name).squeeze() for k in ("image", target))
            write_pair(folder, "test" if is_test(i, f.name) else "train", f.stem, source, wanted, "CYX")
    return split


def nuclei(folder: Path) -> None:
    "The train and test folders of the set."
    for part in ("train", "test"):
        for f in list_images(DATA / "nuclei_2d" / part / "image"):
            write_pair(folder, part, f.stem, *(read_image(DATA / "nuclei_2d" / part / k / f.name).squeeze() for k in ("image", "label")))


def stack(name: str, axis: int, keep_first: bool) -> Callable[[Path], None]:
    "One stack: its last third along an axis is the test part, or its first where the last is empty."
    def split(folder: Path) -> None:
        source, target = (read_image(DATA / "instance_3d" / name / f"{k}.tif").squeeze() for k in ("image", "label"))
        n = source.shape[axis]
        cut = 2 * n // 3 if not keep_first else 2 * n // 5
        parts = {"train": range(0, cut - GAP // 2), "test": range(cut, n)}
        if keep_first: parts = {"test": range(0, cut), "train": range(cut + GAP // 2, n)}
        for part, chosen in parts.items():
            write_pair(folder, part, name, source.take(chosen, axis), target.take(chosen, axis), "ZYX")
    return split


def few_photons(folder: Path) -> None:
    "Nuclei, the brightest of 30 photons, with the noise of photons and of reading; 10 counts a photon, 100 of offset."
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for f in list_images(DATA / "nuclei_2d" / part / "image"):
            x = read_image(f).squeeze().astype(float)
            photons = 30 * x / np.percentile(x, 99.8)
            noisy = rng.poisson(photons) + rng.normal(0, 2, x.shape)
            write_pair(folder, part, f.stem, *(np.round(100 + 10 * p).clip(0).astype(np.uint16) for p in (noisy, photons)))


# ---- what needs no training


def of_pairs(folder: Path, part: str, channel: int = 0) -> tuple[Images, Images]:
    "Sources `(C, ...)` and targets of a part."
    names = [f.name for f in list_images(folder / part / "IM")]
    sources = [read_image(folder / part / "IM" / n)[0] for n in names]
    targets = [read_image(folder / part / "GT" / n)[0][channel] for n in names]
    return [x[:, 0] if x.shape[1] == 1 else x for x in sources], [x[0] if x.shape[0] == 1 else x for x in targets]


def neighborhood(source: np.ndarray, size: int = 5) -> np.ndarray:
    "For each pixel those around it in all planes, normalized, and a constant: `(pixels, features)`."
    x = (source - source.mean((1, 2), keepdims=True)) / source.std((1, 2), keepdims=True)
    x = np.pad(x, [(0, 0), (size // 2, size // 2), (size // 2, size // 2)], mode="reflect")
    around = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
    flat = np.moveaxis(around, 0, 2).reshape(source[0].size, -1)
    return np.column_stack([flat, np.ones(len(flat))])


def linear_regression(folder: Path, channel: int = 0) -> Images:
    "Predictions of the test part by the best linear function of a 5x5 neighborhood."
    a = b = 0
    for x, y in zip(*of_pairs(folder, "train", channel)):
        f = neighborhood(x)
        a, b = a + f.T @ f, b + f.T @ y.ravel()
    w = np.linalg.lstsq(a, b, rcond=None)[0]
    return [(neighborhood(x) @ w).reshape(x.shape[1:]) for x in of_pairs(folder, "test")[0]]


def otsu(folder: Path, sigmas: Iterable[float] = (0, 1)) -> Images:
    "Otsu's threshold of the image as it is, or smoothed, whichever is better on the test part."
    sources, targets = of_pairs(folder, "test")
    def masks(s): return [(y > threshold_otsu(y)).astype(np.uint8) for y in (gaussian_filter(x[0].astype(float), s) for x in sources)]
    return max(map(masks, sigmas), key=lambda m: mean(dice)(m, targets))


def best_of(filters: Iterable[Callable[[np.ndarray], np.ndarray]]) -> Callable[[Path], Images]:
    "For each image the filter that the clean image prefers: more than a user could have."
    def results(folder: Path) -> Images:
        return [max((f(x[0].astype(float)) for f in filters), key=lambda p: signal(p, t)) for x, t in zip(*of_pairs(folder, "test"))]
    return results


def non_local_means(k: float) -> Callable[[np.ndarray], np.ndarray]:
    "Non-local means, its strength in units of the noise, which is estimated from the Laplacian (Immerkaer 1996)."
    def denoise(x: np.ndarray) -> np.ndarray:
        laplacian = x[2:, 2:] + x[2:, :-2] + x[:-2, 2:] + x[:-2, :-2] - 2 * (x[1:-1, 2:] + x[1:-1, :-2] + x[2:, 1:-1] + x[:-2, 1:-1])
        noise = float(np.median(np.abs(laplacian + 4 * x[1:-1, 1:-1]))) / 0.6745 / 6
        return denoise_nl_means(x, patch_size=5, patch_distance=6, h=k * noise, sigma=noise, fast_mode=True)
    return denoise


GAUSSIANS = [lambda x, s=s: gaussian_filter(x, s) for s in np.arange(0.4, 4, 0.2)]
NLM = [non_local_means(k) for k in (0.6, 0.8, 1.0)]


# ---- figures


def signal(pred: np.ndarray, target: np.ndarray) -> float:
    "PSNR in dB, for the range of the target."
    return psnr(pred, target, float(target.max()) - float(target.min()))


def mean(metric: Callable) -> Callable[[Images, Images], float]:
    "Mean over images."
    return lambda preds, targets: float(np.mean([metric(p, t) for p, t in zip(preds, targets)]))


def over_all(preds: Images, targets: Images) -> float:
    "Pearson's correlation over the pixels of all test images."
    return pearson(*(np.concatenate([np.ravel(x) for x in images]) for images in (preds, targets)))


@dataclass
class Task:
    "A preset, the images that it is tried on, and what it must reach."
    preset: str
    split: Callable[[Path], None]
    score: Callable[[Images, Images], float]  # Of one channel
    figures: tuple[str, ...]  # A name for each channel of the target
    bars: tuple[Optional[float], ...]  # What must be reached; None = reported
    baselines: dict[str, Callable]  # Predictions of the test part; with a channel where there are several
    changes: dict = field(default_factory=dict)  # Of the preset
    prediction: dict = field(default_factory=dict)  # Options of Predictor


LINEAR = {"linear regression 5x5": linear_regression}
OTSU = {"Otsu": otsu}
DENOISED = {"input": best_of([lambda x: x]), "best Gaussian": best_of(GAUSSIANS), "NLM": best_of(NLM)}


def label_free(patches: int, epochs: int, dropout: float, **data) -> dict:
    "Changes of a label-free preset: so many patches of each image, so many epochs."
    return {"data": {"patches_per_image": patches} | data, "trainer": {"max_epochs": epochs, "channels_last": True},
            "model": {"net": {"dropout": dropout}}}


def volume(name: str, axis: int, keep_first: bool = False, **data) -> Task:
    "Nuclei in one stack."
    small = {"patch": [16, 48, 48], "batch_size": 2, "patches_per_image": 200, "gap": 4} | data
    changes = {"data": small, "trainer": {"max_epochs": 15}}
    figure = f"{name.removesuffix('_1135').removesuffix('_8cell')}_dice"
    return Task("semantic_seg_3d", stack(name, axis, keep_first), mean(dice), (figure,), (0.85,), OTSU, changes)


NUCLEI = [{"_target_": "FillHoles"}, {"_target_": "RemoveSmall", "size": 15}]
TASKS = {
    "saureus": Task("labelfree_2d", saureus, over_all, ("labelfree_saureus_pearson",), (0.93,), LINEAR, label_free(800, 10, 0.0)),
    "isl": Task("labelfree_2d", files("labelfree_2d/isl_neurons", lambda i, name: name.startswith("tile_r2")), over_all,
                ("labelfree_isl_dapi_pearson", "labelfree_isl_map2_pearson", "labelfree_isl_nfh_pearson"), (0.72, None, None), LINEAR,
                label_free(133, 20, 0.2, split="regions", val_fraction=0.15, gap=8), {"tta": True}),
    "ecoli": Task("labelfree_2d", files("labelfree_2d/ecoli_ds1", lambda i, name: i >= 5), over_all, ("labelfree_ecoli_pearson",),
                  (0.72,), LINEAR, label_free(200, 16, 0.1), {"tta": True}),
    "nuclei_2d": Task("semantic_seg_2d", nuclei, mean(dice), ("nuclei_2d_dice",), (0.92,), OTSU,
                      {"data": {"patches_per_image": 16, "val_fraction": 0.1}, "trainer": {"max_epochs": 18}, "predict": {"postprocess": NUCLEI}},
                      {"tta": True}),
    "stardist_nuclei": volume("stardist_nuclei", 1),
    "plant_nuclei": volume("plant_nuclei_1135", 2),
    "plant_nuclei_y": volume("plant_nuclei_1135", 1),
    "mouse_embryo": volume("mouse_embryo_8cell", 2, keep_first=True, val_fraction=0.35),
    "denoise": Task("denoise_2d", few_photons, mean(signal), ("denoise_nuclei_psnr",), (None,), DENOISED,
                    {"data": {"patches_per_image": 16, "val_fraction": 0.1}, "trainer": {"max_epochs": 15}}),
    "tuj1": Task("modality_transfer_2d", files("modality_2d/isl_dapi_to_tuj1", lambda i, name: i >= 6), over_all,
                 ("modality_tuj1_pearson",), (None,), LINEAR, {"data": {"patches_per_image": 133}, "trainer": {"max_epochs": 6}}),
}


# ---- training and the table


class Spent(pl.Callback):
    "Seconds of processor time of training, and of validation with its pictures; training ends after so many minutes."
    def __init__(self, minutes: float): self.limit = 60 * minutes

    def on_fit_start(self, *_): self.begun, self.validating, self.total = time.process_time(), 0.0, 0.0

    def on_train_batch_end(self, trainer, *_): trainer.should_stop |= time.process_time() - self.begun > self.limit

    def on_validation_start(self, *_): self.start = time.process_time()

    def on_validation_end(self, *_): self.validating += time.process_time() - self.start

    def on_fit_end(self, *_): self.total = time.process_time() - self.begun


def trained(task: Task, folder: Path, seed: int) -> tuple[Predictor, Spent]:
    "The predictor of a run."
    changes = {k: dict(v) for k, v in task.changes.items()}
    changes["data"] = {"path": str(folder / "train")} | changes.get("data", {})
    changes["trainer"] = {"enable_progress_bar": False} | changes.get("trainer", {})
    spent = Spent(MINUTES)
    run = train(preset(task.preset, seed=seed, out=str(folder / f"run{seed}"), **changes), [spent])
    return Predictor(run.best, **task.prediction), spent


def draw(name: str, model: Predictor, folder: Path, pictures: Optional[str]) -> None:
    "Source, prediction and target of the first test image."
    if pictures is None: return
    f = list_images(folder / "test" / "IM")[0]
    source, pred, target = read_image(f)[0], model(f), read_image(folder / "test" / "GT" / f.name)[0]
    source, target = (x[:1, len(x[0]) // 2] for x in (source, target))
    pred = pred[len(pred) // 2] if model.dims == 3 else pred[0] if pred.ndim == 3 else pred
    labels = model.module.task.labels
    save_figure(show_result(source[0], pred, target[0] > 0 if labels else target[0], labels=labels, title=name),
                Path(pictures) / f"{name}.png")


def run_task(name: str, task: Task, seeds: int, pictures: Optional[str]) -> None:
    "Train for each seed and print a row for each channel."
    with tempfile.TemporaryDirectory() as d:
        folder, several = Path(d), len(task.figures) > 1
        task.split(folder)
        scores, minutes, share = [[] for _ in task.figures], [], []
        for seed in tqdm(range(seeds), desc=name, unit="run"):
            model, spent = trained(task, folder, seed)
            minutes.append(spent.total / 60)
            share.append(spent.validating / spent.total)
            preds = [model(f) for f in list_images(folder / "test" / "IM")]
            for c, of_channel in enumerate(scores):
                of_channel.append(task.score([p[c] for p in preds] if several else preds, of_pairs(folder, "test", c)[1]))
        draw(name, model, folder, pictures)
        for c, (figure, bar) in enumerate(zip(task.figures, task.bars)):
            targets = of_pairs(folder, "test", c)[1]
            others = {k: task.score(f(folder, c) if several else f(folder), targets) for k, f in task.baselines.items()}
            beside = ", ".join(f"{k} {v:.4g}" for k, v in others.items())
            print(f"figure {figure}: {np.mean(scores[c]):.4f} (seeds {' '.join(f'{s:.4f}' for s in scores[c])}; {beside};"
                  f" to reach {'more than these' if bar is None else bar}; {np.mean(minutes):.1f} minutes of processor time)", flush=True)
            if not model.module.task.labels:
                got, true = (np.mean([x.mean() for x in images]) for images in ([p[c] for p in preds] if several else preds, targets))
                print(f"figure {figure.rpartition('_')[0]}_mean_error: {abs(got / true - 1):.4f} (mean {got:.1f} {preds[0].dtype}"
                      f" against {true:.1f} {targets[0].dtype})", flush=True)
        print(f"figure {name}_validation_fraction: {np.mean(share):.3f} (validation and pictures, of the time of training)", flush=True)


def main() -> None:
    "Print the table."
    args = options(__doc__, ["steps", *TASKS], seeds=3)
    if "steps" in args.only:
        for dims, shape in ((2, (8, 1, 128, 128)), (3, (2, 1, 16, 64, 64))):
            net = fill_channels(preset(f"labelfree_{dims}d").model["net"], 1, 1, dims)
            step_ratio(f"fcn_step_ratio_{dims}d", lambda: build(net, "net"), shape)
    if not DATA.is_dir():
        print(f"the other figures need images in {DATA.name}: set MMV_IM2IM_DATA", flush=True)
        return
    for name in (n for n in args.only if n != "steps"): run_task(name, TASKS[name], args.seeds, args.pictures)


if __name__ == "__main__":
    main()
