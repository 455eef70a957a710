"""Each preset as it comes, with nothing changed but `data.path`: its best checkpoint, its last one, and the trivial answer.

    python benchmarks/plain_presets.py [--only PRESET ...] [--max-time DD:HH:MM:SS] [--pictures FOLDER] [--threads 1 or 2]

Every preset trains on a set that fits it and is scored on a part that training never sees; more is better for each score. The trivial
answer needs no training: a threshold, the best linear filter, the Gaussian whose width the clean image chooses, the source itself with
the target's brightness. Needs the extra images, where MMV_IM2IM_DATA points or in ../shared/data.
"""
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

import numpy as np
from _common import DATA, options
from adversarial import masks_first, matched, plankton, unpaired_nuclei
from scipy.ndimage import gaussian_filter
from skimage.color import hed2rgb, rgb2hed
from supervised import (
    Images, few_photons, files, linear_regression, mean, nuclei, of_pairs, otsu, over_all, saureus, signal, stack, write_pair,
)

from mmv_im2im.config import preset, preset_names
from mmv_im2im.data_modules.files import list_images
from mmv_im2im.data_modules.images import read_image
from mmv_im2im.data_modules.samples import simulate_set
from mmv_im2im.set_metrics import sliced_wasserstein
from mmv_im2im.inference.predictor import Predictor
from mmv_im2im.metrics import dice, psnr_affine
from mmv_im2im.trainers import Run, train
from mmv_im2im.vis import save_figure, show_images

WIDTHS = np.arange(0.4, 6, 0.2)  # Of Gaussians


# ---- sets that the other benchmarks do not have


def simulated(source: str, target: str) -> Callable[[Path], None]:
    "Simulated stacks, one view of cells out of another: the two channels of the only real stack that has two say nothing of each other."
    def split(folder: Path) -> None:
        for part, n, seed in (("train", 6, 0), ("test", 2, 1)): simulate_set(folder / part, n, (16, 96, 96), source, target, seed=seed)
    return split


def other_stain(folder: Path) -> None:
    "Tissue whose two dyes have changed places: from haematoxylin and eosin as they would be swapped."
    for i, f in enumerate(list_images(DATA / "nuclei_2d_histology" / "image")):
        rgb = np.moveaxis(read_image(f)[0, :3, 0], 0, -1)
        dyes = rgb2hed(rgb)
        swapped = (255 * hed2rgb(dyes[..., [1, 0, 2]])).round().clip(0, 255).astype(np.uint8)
        write_pair(folder, "test" if i >= 12 else "train", f.stem, *(np.moveaxis(x, -1, 0) for x in (rgb, swapped)), "CYX")


def swapped(split: Callable[[Path], None]) -> Callable[[Path], None]:
    "Targets as sources, sources as targets."
    def both(folder: Path) -> None:
        split(folder)
        for part in ("train", "test"):
            (folder / part / "IM").rename(folder / part / "images")
            (folder / part / "GT").rename(folder / part / "IM")
            (folder / part / "images").rename(folder / part / "GT")
    return both


def dark_stack(folder: Path) -> None:
    "A stack of nuclei, the brightest of 30 photons, with their noise and that of reading."
    stack("plant_nuclei_1135", 2, False)(folder)
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        clean = read_image(folder / part / "IM" / "plant_nuclei_1135.tif").squeeze().astype(float)
        photons = 30 * clean / np.percentile(clean, 99.8)
        noisy = rng.poisson(photons) + rng.normal(0, 2, clean.shape)
        write_pair(folder, part, "plant_nuclei_1135", *(np.round(100 + 10 * p).clip(0).astype(np.uint16) for p in (noisy, photons)), "ZYX")


def noisy_alone(dims: int) -> Callable[[Path], None]:
    "Noisy images and the clean ones that they are compared with: training sees the same noisy images, and no clean one."
    def split(folder: Path) -> None:
        if dims == 3: pairs = [_noisy_stack()]
        else:
            low = DATA / "denoise_2d" / "gigadb" / "low"
            pairs = [tuple(read_image(low.parent / k / f.name).squeeze() for k in ("low", "high")) for f in list_images(low)][1:3]
        for i, (x, clean) in enumerate(pairs): write_pair(folder, "test", str(i), x, clean, "ZYX"[-dims:])
        (folder / "train").symlink_to(folder / "test" / "IM")
    return split


def _noisy_stack() -> tuple[np.ndarray, np.ndarray]:
    "Nuclei with a peak of 3 photons, and without noise."
    x = read_image(DATA / "instance_3d" / "stardist_nuclei" / "image.tif").squeeze().astype(np.float32)
    low, high = np.percentile(x, (1, 99.8))
    photons = 3 * np.clip(x - low, 0, None) / (high - low)
    rng = np.random.default_rng(0)
    noisy = 10 * rng.poisson(photons) + rng.normal(0, 10, x.shape) + 100
    return noisy.astype(np.float32), (100 + 10 * photons).astype(np.float32)


def unpaired(split: Callable[[Path], None]) -> Callable[[Path], None]:
    "Pairs whose training part is torn: names no longer say who belongs to whom."
    def torn(folder: Path) -> None:
        split(folder)
        found = list_images(folder / "train" / "GT")
        for i, f in enumerate(found):
            if len(found) > 1: (folder / "train" / ("GT" if i % 2 else "IM") / f.name).unlink()
    return torn


# ---- trivial answers


def linear(folder: Path) -> Images:
    "The best linear filter of 5 x 5 pixels, learned from the training part; in 3D plane by plane."
    sources, targets = of_pairs(folder, "train")
    if sources[0].ndim == 3: return linear_regression(folder)
    a = b = 0
    for x, y in zip(sources, targets):
        f = of_planes(x[0])
        a, b = a + f.T @ f, b + f.T @ y.ravel()
    w = np.linalg.lstsq(a, b, rcond=None)[0]
    return [(of_planes(x[0]) @ w).reshape(x[0].shape) for x in of_pairs(folder, "test")[0]]


def of_planes(x: np.ndarray) -> np.ndarray:
    "For each voxel of a stack those around it in its plane, and a constant: `(voxels, 26)`."
    x = (x - x.mean()) / x.std()
    around = np.lib.stride_tricks.sliding_window_view(np.pad(x, [(0, 0), (2, 2), (2, 2)], mode="reflect"), (5, 5), (1, 2))
    return np.column_stack([around.reshape(x.size, -1), np.ones(x.size)])


def otsu_alone(folder: Path) -> Images:
    "Otsu's threshold of each image."
    return otsu(folder, (0,))


def smoothed(score: Callable[[Images, Images], float]) -> Callable[[Path], Images]:
    "For each image the Gaussian that brings it nearest to the clean image."
    def results(folder: Path) -> Images:
        pairs = zip(*of_pairs(folder, "test"))
        return [max((gaussian_filter(x.squeeze().astype(float), s) for s in WIDTHS), key=lambda p: score([p], [y])) for x, y in pairs]
    return results


def colors(folder: Path, part: str, key: str) -> Images:
    "Images `(C, Y, X)`, or stacks `(C, Z, Y, X)`."
    found = [read_image(f)[0].astype(float) for f in list_images(folder / part / key)]
    return [x[:, 0] if x.shape[1] == 1 else x for x in found]


def with_brightness(folder: Path) -> Images:
    "The sources with mean and spread of the training targets."
    sources, known = colors(folder, "test", "IM"), colors(folder, "train", "GT")
    if len(sources[0]) == len(known[0]): return [_like(x, known) for x in sources]
    return matched(sources, known)


def _like(x: np.ndarray, known: Images) -> np.ndarray:
    "Each channel with mean and spread of those of other images."
    out = []
    for c, channel in enumerate(x):
        other = np.concatenate([k[c].ravel() for k in known])
        out.append((channel - channel.mean()) * other.std() / max(channel.std(), 1e-8) + other.mean())
    return np.stack(out)


# ---- scores, more is better


def nearness(preds: Images, targets: Images) -> float:
    "Minus the sliced Wasserstein distance of the sets, brightness included; of stacks, of their planes."
    def flat(images): return [p for x in images for p in (np.moveaxis(x, 1, 0) if x.ndim == 4 else [x if x.ndim == 3 else x[None]])]
    return -sliced_wasserstein(flat(preds), flat(targets), normalize=False)


def affine(preds: Images, targets: Images) -> float:
    "PSNR in dB after an affine fit."
    def one(p, t): return psnr_affine(np.asarray(p, float), t, 255.0 if t.dtype == np.uint8 else float(np.ptp(t)))
    return mean(one)(preds, targets)


PSNR, DICE = mean(signal), mean(dice)


@dataclass
class Plain:
    "A set for a preset, its score, and the trivial answer."
    split: Callable[[Path], None]
    score: Callable[[Images, Images], float]
    trivial: Callable[[Path], Images]
    bar: Optional[float] = None  # What must be reached besides the trivial answer
    channels: bool = False  # Targets keep their axis of channels


STACKS = simulated("brightfield", "nuclei")
TUJ1 = files("modality_2d/isl_dapi_to_tuj1", lambda i, name: i >= 6)
EMBRYO = stack("mouse_embryo_8cell", 2, True)
SETS = {
    "semantic_seg_2d": Plain(nuclei, DICE, otsu_alone, 0.91),
    "semantic_seg_3d": Plain(EMBRYO, DICE, otsu_alone),
    "labelfree_2d": Plain(saureus, over_all, linear),
    "labelfree_3d": Plain(STACKS, over_all, linear),
    "denoise_2d": Plain(few_photons, PSNR, smoothed(PSNR)),
    "denoise_3d": Plain(dark_stack, PSNR, smoothed(PSNR)),
    "modality_transfer_2d": Plain(TUJ1, over_all, linear),
    "modality_transfer_3d": Plain(simulated("membrane", "nuclei"), over_all, linear),
    "staining_2d": Plain(other_stain, PSNR, with_brightness, channels=True),
    "synthesis_2d": Plain(masks_first, over_all, linear),
    "synthesis_3d": Plain(swapped(EMBRYO), over_all, linear),
    "synthesis_paired_2d": Plain(masks_first, nearness, linear),
    "synthesis_unpaired_2d": Plain(unpaired(masks_first), nearness, with_brightness),
    "unsupervised_seg_2d": Plain(unpaired_nuclei, DICE, otsu_alone),
    "pix2pix_2d": Plain(saureus, over_all, linear),
    "pix2pix_3d": Plain(STACKS, over_all, linear),
    "pix2pixhd_2d": Plain(saureus, over_all, linear),
    "pix2pixhd_3d": Plain(STACKS, over_all, linear),
    "cyclegan_2d": Plain(plankton, nearness, with_brightness, channels=True),
    "cyclegan_3d": Plain(unpaired(STACKS), nearness, with_brightness, channels=True),
    "n2v_2d": Plain(noisy_alone(2), affine, smoothed(affine)),
    "n2v_3d": Plain(noisy_alone(3), affine, smoothed(affine)),
    "self2self_2d": Plain(noisy_alone(2), affine, smoothed(affine)),
    "self2self_3d": Plain(noisy_alone(3), affine, smoothed(affine)),
    "zsn2n_2d": Plain(noisy_alone(2), affine, smoothed(affine)),
}


# ---- the table


def results(checkpoint: Path, folder: Path) -> Images:
    "Predictions of the test part."
    model = Predictor(checkpoint, device="cpu")
    return [model(f) for f in list_images(folder / "test" / "IM")]


def targets_of(plain: Plain, folder: Path) -> Images:
    "Targets of the test part."
    if plain.channels: return colors(folder, "test", "GT")
    return [x.squeeze() for x in of_pairs(folder, "test")[1]]


def middle(x: np.ndarray) -> np.ndarray:
    "The middle plane of the first image, as `show_images` takes it."
    x = np.squeeze(x)
    x = x[x.shape[0] // 2] if x.ndim == 3 and x.shape[0] > 4 else x
    return x if set(np.unique(x)) <= {0, 1} else x.astype(np.float32)  # whole numbers would be drawn as labels


def run_preset(name: str, plain: Plain, max_time: Optional[str], pictures: Optional[Path]) -> None:
    "Train as it comes and print three figures."
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        plain.split(folder)
        changes = {"trainer": {"max_time": max_time}} if max_time else {}
        begin = time.process_time()
        run: Run = train(preset(name, data={"path": str(folder / "train")}, out=str(folder / "run"), **changes))
        minutes = (time.process_time() - begin) / 60
        targets = targets_of(plain, folder)
        files = {"best": run.best, "last": run.last}
        preds = {k: results(f, folder) for k, f in files.items()} | {"trivial": plain.trivial(folder)}
        scores = {k: plain.score(p, targets) for k, p in preds.items()}
        taken = run.result.get("checkpoint")
        said = f"{run.result['epochs']} epochs, {run.result['steps']} steps, {minutes:.1f} minutes of processor time; {taken}.ckpt is taken"
        good = scores["best"] >= scores["last"] - 0.005 and scores["best"] > scores["trivial"] and scores["best"] >= (plain.bar or -np.inf)
        for k, v in scores.items(): print(f"figure plain_{name}_{k}: {v:.4f}" + (f" ({said})" if k == "best" else ""), flush=True)
        print(f"  {'holds' if good else 'FALLS SHORT'}: best at least last - 0.005 and above the trivial answer"
              + (f", at least {plain.bar}" if plain.bar else ""), flush=True)
        if pictures:
            shown = {"source": colors(folder, "test", "IM")[0]} | {k: p[0] for k, p in preds.items()} | {"target": targets[0]}
            save_figure(show_images([middle(x) for x in shown.values()], list(shown)), pictures / f"{name}.png")


def main() -> None:
    "Print the table."
    args = options(__doc__, SETS, max_time={"help": "stop training after this time, DD:HH:MM:SS"})
    assert set(SETS) == set(preset_names()), "each preset has its set"
    if not DATA.is_dir():
        print(f"the figures need images in {DATA.name}: set MMV_IM2IM_DATA", flush=True)
        return
    for name in args.only: run_preset(name, SETS[name], args.max_time, args.pictures)


if __name__ == "__main__":
    main()
