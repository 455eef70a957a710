"""Figures of the main job: the cost of a step, of asking for help, of importing. The quality of results is in supervised.py."""
import subprocess
import sys
import time

from _common import step_ratio

from mmv_im2im.config import preset
from mmv_im2im.core import build
from mmv_im2im.models.building import fill_channels

HELP = "from mmv_im2im.cli import main; main(['--help'])"


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
    step_ratio("fcn_step_ratio", lambda: build(fill_channels(preset("labelfree_2d").model["net"], 1, 1, 2), "net"), (8, 1, 128, 128))
