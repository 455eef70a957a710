"""Quality of the adversarial presets on real images, beside what needs no game; and what their steps cost.

Each has a part for testing that training never sees. A minute on two cores is two minutes of processor time, which is what limits
training and what is printed. Needs the extra images, where MMV_IM2IM_DATA points or in ../shared/data.

    python benchmarks/adversarial.py [--only TASK ...] [--seeds N] [--pictures FOLDER] [--threads 1 or 2]
"""
import logging
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import torch
from _common import DATA, Clock, options
from supervised import Spent, label_free, mean, nuclei, of_pairs, otsu, over_all, saureus
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from mmv_im2im.config import preset
from mmv_im2im.data_modules.files import list_images
from mmv_im2im.data_modules.images import read_image, write_image
from mmv_im2im.set_metrics import gradient_correlation, sliced_wasserstein, spectrum_distance
from mmv_im2im.inference.predictor import Predictor
from mmv_im2im.metrics import dice, pearson
from mmv_im2im.trainers import Im2ImTrainer, Run, train
from mmv_im2im.vis import save_figure

Images = list[np.ndarray]
FASTER = {"channels_last": True}  # On a processor, too


def run(name: str, folder: Path, minutes: float, seed: int = 0, **changes) -> tuple[Run, float]:
    "Train a preset on the train part of a folder for so many minutes of two cores; the run, and its minutes of processor time."
    spent = Spent(2 * minutes)
    changes["trainer"] = {"enable_progress_bar": False} | changes.get("trainer", {})
    changes["data"] = {"path": str(folder / "train")} | changes.get("data", {})
    made = train(preset(name, seed=seed, out=str(folder / f"{name}-{seed}"), **changes), [spent])
    return made, spent.total / 60


def predictions(model: Predictor, folder: Path, part: str = "test") -> Images:
    "Results for the sources of a part."
    return [model(f) for f in list_images(folder / part / "IM")]


def apart(preds: Images, targets: Images) -> float:
    "Distance of power spectra, in decades, image by image; the mean."
    return mean(spectrum_distance)([p[None] for p in preds], [t[None] for t in targets])


def by_own_range(model: Predictor, preds: Images, targets: Images) -> tuple[Images, Images]:
    "Predictions and targets as training compares them: a mask does not tell how bright an image is."
    norm, stats = model.preprocessing.target_norm, model.preprocessing.target_stats
    return [norm(p[None], stats)[0] for p in preds], [norm(t[None])[0] for t in targets]


def draw(name: str, images: dict[str, np.ndarray], pictures: Optional[str]) -> None:
    "Images side by side."
    if pictures is None: return
    import matplotlib.pyplot as plt
    fig, axs = plt.subplots(1, len(images), figsize=(4 * len(images), 4), squeeze=False)
    for ax, (title, x) in zip(axs[0], images.items()):
        x = (np.moveaxis(x, 0, -1) if x.ndim == 3 else x).astype(float)
        low, high = np.percentile(x, (0.5, 99.8))
        ax.imshow(np.clip((x - low) / max(high - low, 1e-8), 0, 1), cmap="gray")
        ax.set_title(title)
        ax.set_axis_off()
    save_figure(fig, Path(pictures) / f"{name}.png")


# ---- pairs: mask to image, and a stain that looks like one


def masks_first(folder: Path) -> None:
    "Nuclei with their labels as sources."
    nuclei(folder)
    for part in ("train", "test"):
        (folder / part / "IM").rename(folder / part / "images")
        (folder / part / "GT").rename(folder / part / "IM")
        (folder / part / "images").rename(folder / part / "GT")


def noisy(preds: Images, sigma: float) -> Images:
    "Predictions with white noise."
    rng = np.random.default_rng(0)
    return [p + rng.normal(0, sigma, p.shape) for p in preds]


def calibrated(model: Predictor, folder: Path) -> float:
    "The white noise that brings predictions of training images nearest to their targets' spectra."
    preds, targets = by_own_range(model, predictions(model, folder, "train"), of_pairs(folder, "train")[1])
    return min(np.geomspace(1e-3, 0.3, 25), key=lambda s: apart(noisy(preds, s), targets))


def synthesis(pictures: Optional[str], seeds: int) -> None:
    "Masks to images: FCN and pix2pix."
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as d:
            folder = Path(d)
            masks_first(folder)
            data = {"patches_per_image": 16, "val_fraction": 0.1}
            fcn, a = run("synthesis_2d", folder, 5, seed, data=data, trainer={"max_epochs": 18} | FASTER)
            gan, b = run("synthesis_paired_2d", folder, 5, seed, data=data, trainer={"max_epochs": 8} | FASTER, model={"warmup_epochs": 1})
            models = Predictor(fcn.best, dtype="float32"), Predictor(gan.best, dtype="float32")
            sources, true = of_pairs(folder, "test")
            (smooth, targets), (sharp, _) = (by_own_range(m, predictions(m, folder), true) for m in models)
            sigma = calibrated(models[0], folder)
            s, g, w = (apart(p, targets) for p in (smooth, sharp, noisy(smooth, sigma)))
            corr = [mean(pearson)(p, targets) for p in (smooth, sharp)]
            print(f"figure synthesis_spectrum_ratio: {g / s:.3f} (seed {seed}: pix2pix {g:.3f}, FCN {s:.3f} decades; to reach 0.5; minutes"
                  f" {a:.1f}, {b:.1f})", flush=True)
            print(f"figure synthesis_spectrum_vs_noise: {g / w:.3f} (FCN with white noise of {sigma:.4f}: {w:.3f}; to reach 0.9)", flush=True)
            print(f"figure synthesis_pearson_lower_by: {corr[0] - corr[1]:.4f} (FCN {corr[0]:.4f}, pix2pix {corr[1]:.4f}; at most 0.03)", flush=True)
            i = 2
            draw(f"synthesis{seed}", {"mask": sources[i][0] > 0, "FCN": smooth[i], "pix2pix": sharp[i], "image": targets[i]}, pictures)


def stain(pictures: Optional[str], seeds: int) -> None:
    "S. aureus membrane: pix2pix that begins from an FCN."
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        saureus(folder)
        fcn, a = run("labelfree_2d", folder, 5, **label_free(800, 10, 0.0))
        same = {"net": fcn_net(), "loss": {"_target_": "MSELoss"}, "loss_weight": 30.0}
        data = {"patches_per_image": 400}
        gan, b = run("pix2pix_2d", folder, 5, data=data, model=same, trainer={"max_epochs": 8, "init_from": str(fcn.folder)} | FASTER)
        smooth, sharp = (predictions(Predictor(r.best, dtype="float32"), folder) for r in (fcn, gan))
        sources, targets = of_pairs(folder, "test")
        print(f"figure adversarial_saureus_pearson: {over_all(sharp, targets):.4f} (FCN {over_all(smooth, targets):.4f}; to reach 0.90;"
              f" minutes {a:.1f}, {b:.1f})", flush=True)
        print(f"figure adversarial_saureus_spectrum_ratio: {apart(sharp, targets) / apart(smooth, targets):.3f} (pix2pix"
              f" {apart(sharp, targets):.3f}, FCN {apart(smooth, targets):.3f} decades; below 1)", flush=True)
        crop = lambda x: x[..., :256, :256]
        draw("saureus", {"source": crop(sources[0][0]), "FCN": crop(smooth[0]), "pix2pix": crop(sharp[0]), "target": crop(targets[0])}, pictures)


def fcn_net() -> dict:
    "The network of the label-free preset, without dropout."
    return preset("labelfree_2d").model["net"] | {"dropout": 0.0}


# ---- no pairs: segmentation, and another modality


def unpaired_nuclei(folder: Path) -> None:
    "Training images of even number, masks of odd number; test pairs."
    nuclei(folder)
    for i, f in enumerate(list_images(folder / "train" / "IM")):
        (folder / "train" / ("GT" if i % 2 == 0 else "IM") / f.name).unlink()


def unsupervised(pictures: Optional[str], seeds: int) -> None:
    "Nuclei segmented without any annotated image."
    with tempfile.TemporaryDirectory() as d:
        folder, scores, took = Path(d), [], []
        unpaired_nuclei(folder)
        sources, targets = of_pairs(folder, "test")
        for seed in range(seeds):
            made, minutes = run("unsupervised_seg_2d", folder, 6, seed, data={"patches_per_image": 16}, trainer={"max_epochs": 4} | FASTER)
            preds = predictions(Predictor(made.last), folder)
            each = [dice(p, t) for p, t in zip(preds, targets)]
            scores.append(float(np.mean(each)))
            took.append(minutes)
            print(f"  seed {seed}: {' '.join(f'{v:.3f}' for v in each)}", flush=True)
            for i in (0, int(np.argmin(each))):
                draw(f"unsupervised{seed}_{i}", {"image": sources[i][0], f"Dice {each[i]:.3f}": preds[i], "truth": targets[i] > 0}, pictures)
        print(f"figure unsupervised_nuclei_dice: {min(scores):.4f} (seeds {' '.join(f'{s:.4f}' for s in scores)}; Otsu"
              f" {mean(dice)(otsu(folder, (0,)), targets):.4f}; to reach 0.83; {np.mean(took):.1f} minutes)", flush=True)


def plankton(folder: Path) -> None:
    "Holograms and brightfield images: the last 12 of each are for testing."
    for key, domain in (("IM", "domain_a_holography"), ("GT", "domain_b_brightfield")):
        found = list_images(DATA / "unpaired_2d" / "holo2bright" / domain)
        for i, f in enumerate(found):
            x = read_image(f)[0, :, 0]
            write_image(folder / ("test" if i >= len(found) - 12 else "train") / key / f"{i}.tif", x, "CYX")


def matched(images: Images, like: Images) -> Images:
    "Images of one channel as three, with mean and spread of the channels of others."
    a, b = (np.concatenate([x.reshape(len(x), -1) for x in part], 1).astype(float) for part in (images, like))
    scale = b.std(1) / a.std()
    return [(x - a.mean()) * scale[:, None, None] + b.mean(1)[:, None, None] for x in images]


def holograms(pictures: Optional[str], seeds: int) -> None:
    "Plankton holograms into brightfield images."
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        plankton(folder)
        made, minutes = run("cyclegan_2d", folder, 8, **HOLOGRAMS)
        read = lambda part, key: [read_image(f)[0, :, 0].astype(float) for f in list_images(folder / part / key)]
        holo, bright, known = read("test", "IM"), read("test", "GT"), read("train", "GT")
        preds = [p.astype(float) for p in predictions(Predictor(made.last, dtype="float32"), folder)]
        gray = [np.repeat(x, 3, 0) for x in holo]
        swd = {k: sliced_wasserstein(x, bright) for k, x in {"ours": preds, "holograms": gray, "other brightfield": known}.items()}
        plain = {k: sliced_wasserstein(x, bright, normalize=False) for k, x in {"ours": preds, "matched": matched(holo, known)}.items()}
        print(f"figure holo_swd_ratio: {swd['ours'] / swd['holograms']:.3f} (ours {swd['ours']:.3f}, holograms {swd['holograms']:.3f}, other"
              f" brightfield images {swd['other brightfield']:.3f}; to reach 0.9, aim 0.6; {minutes:.1f} minutes)", flush=True)
        print(f"figure holo_plain_ratio: {plain['ours'] / plain['matched']:.3f} (ours {plain['ours']:.3f}, holograms with matched channels"
              f" {plain['matched']:.3f}; at most 1)", flush=True)
        kept = np.mean([gradient_correlation(a, b) for a, b in zip(holo, preds)])
        print(f"figure holo_structure: {kept:.3f} (correlation of gradients with the hologram)", flush=True)
        for i in (0, 5, 9):
            draw(f"holo{i}", {"hologram": holo[i][0], "ours": preds[i], "a brightfield image": bright[i]}, pictures)


HOLOGRAMS = {"data": {"patches_per_image": 8, "batch_size": 1}, "trainer": {"max_epochs": 5}}


# ---- steps


def batches(shape: tuple[int, ...]) -> dict:
    "A batch of noise."
    torch.manual_seed(0)
    return {"IM": torch.rand(*shape), "GT": torch.rand(*shape)}


def model_of(name: str):
    "The framework of a preset, and its networks."
    from mmv_im2im.core import find_class
    cfg = preset(name)
    spec = {k: v for k, v in cfg.model.items() if k != "warmup_epochs"}  # the steps of the game are timed
    module, _ = find_class(spec["_target_"], "framework").from_config(spec, 1, 1, 2)
    return module


def still(nets, on: bool) -> None:
    "Let networks ask for gradients, or not."
    for net in nets:
        for p in net.parameters(): p.requires_grad_(on)


def adam(*nets: nn.Module) -> torch.optim.Optimizer:
    "The optimizer of the presets."
    return torch.optim.Adam([p for n in nets for p in n.parameters()], 2e-4, (0.5, 0.999))


def real(scores): return (scores.float() - 1).square().mean()


def both(a, b): return (real(a) + b.float().square().mean()) / 2


def pix2pix_by_hand(m) -> Callable:
    "A step of pix2pix, written out."
    g, d = adam(m.net), adam(m.discriminator)
    judge = lambda x, y: m.discriminator(torch.cat([x, y], 1))[0][-1]

    def step(batch):
        x, y = batch["IM"], batch["GT"]
        fake = m.net(x)
        still([m.net], False)
        both(judge(x, y), judge(x, fake.detach())).backward()
        d.step()
        d.zero_grad()
        still([m.net], True)
        still([m.discriminator], False)
        (10 * F.l1_loss(fake, y) + real(judge(x, fake))).backward()
        g.step()
        g.zero_grad()
        still([m.discriminator], True)
    return step


def cyclegan_by_hand(m) -> Callable:
    "A step of CycleGAN, written out."
    nets, judges = (m.net, m.net_back), (m.discriminator, m.discriminator_back)
    g, d, kept = adam(*nets), adam(*judges), [[], []]

    def older(images, memory):
        out = []
        for x in images:
            if len(memory) < 50: memory.append(x.clone())
            elif torch.rand(()) < 0.5:
                i = int(torch.randint(50, ()))
                x, memory[i] = memory[i], x.clone()
            out.append(x)
        return torch.stack(out)

    def step(batch):
        a, b = batch["IM"], batch["GT"]
        there, back = nets
        still(judges, False)
        fake_b, fake_a = there(a), back(b)
        loss = real(judges[0](fake_b)[0][-1]) + real(judges[1](fake_a)[0][-1])
        loss = loss + 10 * (F.l1_loss(back(fake_b), a) + F.l1_loss(there(fake_a), b))
        loss = loss + 5 * (F.l1_loss(there(b), b) + F.l1_loss(back(a), a))
        loss.backward()
        g.step()
        g.zero_grad()
        still(judges, True)
        still(nets, False)
        fakes = older(fake_b.detach(), kept[0]), older(fake_a.detach(), kept[1])
        sum(both(j(x)[0][-1], j(f)[0][-1]) for j, x, f in zip(judges, (b, a), fakes)).backward()
        d.step()
        d.zero_grad()
        still(nets, True)
    return step


BY_HAND = {"pix2pix": ("pix2pix_2d", pix2pix_by_hand), "cyclegan": ("cyclegan_2d", cyclegan_by_hand)}


def timed(name: str, ours: bool, steps: int, out) -> None:
    "Seconds of each step, and the peak memory of the process in MiB; run in a process of its own."
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    which, by_hand = BY_HAND[name]
    m, batch = model_of(which), batches((4, 1, 128, 128))
    if ours:
        with tempfile.TemporaryDirectory() as d:
            clock = Clock()
            trainer = Im2ImTrainer(d, max_epochs=1, accelerator="cpu", callbacks=[clock], pictures=0, enable_progress_bar=False)
            trainer.fit(m, DataLoader([batch] * steps, batch_size=None), DataLoader([batch], batch_size=None))
            ends = clock.ends
    else:
        step, ends = by_hand(m.train()), []
        for _ in range(steps):
            step(batch)
            ends.append(time.perf_counter())
    out.put((np.diff(ends).tolist(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def steps(pictures: Optional[str], seeds: int) -> None:
    "Seconds of a step and peak memory, against loops written by hand; rounds alternate."
    context = multiprocessing.get_context("spawn")
    for name in BY_HAND:
        found = {True: ([], []), False: ([], [])}
        for ours in (False, True) * 4:
            queue = context.Queue()
            process = context.Process(target=timed, args=(name, ours, 10, queue))
            process.start()
            seconds, memory = queue.get()
            process.join()
            found[ours][0].extend(seconds[1:])
            found[ours][1].append(memory)
        a, b = (statistics.median(found[k][0]) for k in (True, False))
        m, n = (statistics.median(found[k][1]) for k in (True, False))
        print(f"figure {name}_step_ratio: {a / b:.3f} ({a * 1e3:.0f} ms a step against {b * 1e3:.0f} ms by hand; peak memory {m:.0f} MiB"
              f" against {n:.0f} MiB; to reach 1.05)", flush=True)


PARTS = {"steps": steps, "synthesis": synthesis, "stain": stain, "unsupervised": unsupervised, "holograms": holograms}


def main() -> None:
    "Print the table."
    args = options(__doc__, PARTS, seeds=2)
    for name in args.only:
        if name == "steps" or DATA.is_dir(): PARTS[name](args.pictures, args.seeds)
        else: print(f"{name} needs images in {DATA.name}: set MMV_IM2IM_DATA", flush=True)


if __name__ == "__main__":
    main()
