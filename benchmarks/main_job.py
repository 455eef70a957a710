"""Figures of the main job: label-free prediction by the shipped preset, the cost of a step, the cost of importing.

Needs the extra images, where MMV_IM2IM_DATA points or in ../shared/data; without them the label-free figures are left out.
"""
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from mmv_im2im.config import preset
from mmv_im2im.core import build
from mmv_im2im.data_modules.images import list_images, read_image, write_image
from mmv_im2im.inference.predictor import Predictor, mean_row
from mmv_im2im.metrics import pearson
from mmv_im2im.models.base import fill_channels
from mmv_im2im.models.fcn import FCN
from mmv_im2im.trainers import Im2ImTrainer

DATA = Path(os.environ.get("MMV_IM2IM_DATA", Path(__file__).parents[2] / "shared" / "data")) / "labelfree_2d"
MINUTES = 3
GAP = 16  # rows between training and test part that neither uses
HELP = "from mmv_im2im.cli import main; main(['--help'])"


def run_im2im(*args: str) -> None:
    "The command line, as a user runs it."
    command = [sys.executable, "-c", "import sys; from mmv_im2im.cli import main; sys.exit(main())", *args]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def train_and_test(folder: Path, *args: str) -> tuple[float, float]:
    "Train the preset for three minutes on folder/train; Pearson on folder/test, over all its pixels and the mean of its images."
    run_im2im("--config", "labelfree_2d", "--data.path", str(folder / "train"), "--out", str(folder / "run"),
              "--trainer.max_time", f"00:00:{MINUTES:02d}:00", "--trainer.max_epochs", "-1", *args)
    model = Predictor(folder / "run")
    rows, _ = model.evaluate(folder / "test", progress=False)
    files = list_images(folder / "test" / "IM")
    preds = np.stack([model(f) for f in files])
    targets = np.stack([model.recipe.read("GT", folder / "test" / "GT" / f.name)[0] for f in files])
    return pearson(preds, targets), mean_row(rows)["pearson"]


def saureus(folder: Path) -> None:
    "One field: the last third of the rows is the test part."
    for key, name in (("IM", "image"), ("GT", "target")):
        x = read_image(DATA / "saureus" / name / "saureus_left.tif").squeeze()
        cut = 2 * len(x) // 3
        write_image(folder / "train" / key / "saureus.tif", x[:cut - GAP])
        write_image(folder / "test" / key / "saureus.tif", x[cut:])
    whole, _ = train_and_test(folder)
    print(f"figure labelfree_saureus_pearson: {whole:.4f} (phase contrast to membrane, last third of the rows, {MINUTES} minutes)", flush=True)


def isl(folder: Path) -> None:
    "Twelve tiles of one field: the last row of tiles is the test part."
    for f in list_images(DATA / "isl_neurons" / "image"):
        part = "test" if f.name.startswith("tile_r2") else "train"
        for key, name in (("IM", "image"), ("GT", "target")):
            to = folder / part / key / f.name
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(DATA / "isl_neurons" / name / f.name, to)
    whole, mean = train_and_test(folder, "--data.target_channels", "[0]")
    print(f"figure labelfree_isl_dapi_pearson: {whole:.4f} (5 phase planes to DAPI, all pixels of 4 test tiles, "
          f"{MINUTES} minutes; mean of the tiles {mean:.4f})", flush=True)


class Clock(pl.Callback):
    "Moments at which training batches end."
    def on_train_start(self, *_): self.ends = []

    def on_train_batch_end(self, *_): self.ends.append(time.perf_counter())


def net() -> nn.Module:
    return build(fill_channels(preset("labelfree_2d").model["net"], 1, 1, 2), "net")


def step_ratio(steps: int = 12, rounds: int = 7) -> None:
    "Seconds per step through FCN and Im2ImTrainer against a loop written by hand; rounds alternate, on one thread."
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a thread that waits for a busy core would drown what is measured
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    batch = {"IM": torch.rand(8, 1, 128, 128), "GT": torch.rand(8, 1, 128, 128)}
    by_hand, hand_net, ours = [], net(), []
    optimizer = torch.optim.AdamW(hand_net.parameters(), lr=1e-3)
    for _ in range(rounds):
        ends = []
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(hand_net(batch["IM"]), batch["GT"]).backward()
            optimizer.step()
            ends.append(time.perf_counter())
        by_hand += np.diff(ends).tolist()
        with tempfile.TemporaryDirectory() as d:
            clock = Clock()
            trainer = Im2ImTrainer(d, max_epochs=1, accelerator="cpu", callbacks=[clock], pictures=0, enable_progress_bar=False)
            trainer.fit(FCN(net(), nn.MSELoss()), DataLoader([batch] * steps, batch_size=None), DataLoader([batch], batch_size=None))
        ours += np.diff(clock.ends).tolist()
    a, b = statistics.median(ours), statistics.median(by_hand)
    print(f"figure fcn_step_ratio: {a / b:.3f} ({a * 1e3:.1f} ms a step against {b * 1e3:.1f} ms by hand)", flush=True)


def seconds(code: str, repeats: int = 3) -> float:
    "Best time of a fresh process."
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begun)
    return min(times)


def start() -> None:
    "Start of the command line, and of the notebook import against that of the libraries underneath."
    print(f"figure help_seconds: {seconds(HELP):.2f} s", flush=True)
    peer, ours = seconds("import torch, pytorch_lightning, monai, aicsimageio"), seconds("from mmv_im2im.all import *")
    print(f"figure import_ratio: {ours / peer:.2f} ({ours:.1f} s against {peer:.1f} s for torch, pytorch_lightning, monai, aicsimageio)", flush=True)


if __name__ == "__main__":
    start()
    step_ratio()
    if DATA.is_dir():
        with tempfile.TemporaryDirectory() as d:
            saureus(Path(d) / "saureus")
            isl(Path(d) / "isl")
    else:
        print(f"the label-free figures need the images in {DATA.name}: set MMV_IM2IM_DATA", flush=True)
