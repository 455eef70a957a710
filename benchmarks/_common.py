"What the benchmarks share: the extra images, their options, and the time of a training step against a loop written by hand."
import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Callable, Sequence

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from mmv_im2im.core import quiet
from mmv_im2im.models.fcn import FCN
from mmv_im2im.trainers import Im2ImTrainer

DATA = Path(os.environ.get("MMV_IM2IM_DATA", Path(__file__).parents[2] / "shared" / "data"))


def options(what: str, parts: Sequence[str], seeds: int = 0, **more: dict) -> argparse.Namespace:
    "Options of the command line: which parts, seeds if there are any, pictures, threads, and `more`; libraries are quiet from then on."
    parser = argparse.ArgumentParser(description=what.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(parts), choices=list(parts))
    if seeds: parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--pictures", type=Path, help="folder for pictures")
    parser.add_argument("--threads", type=int, default=2)
    for name, how in more.items(): parser.add_argument(f"--{name.replace('_', '-')}", **how)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    quiet()
    return given


class Clock(pl.Callback):
    "Moments at which training batches end."
    def on_train_start(self, *_): self.ends = []

    def on_train_batch_end(self, *_): self.ends.append(time.perf_counter())


def supervised(net: nn.Module) -> FCN:
    "A network as the supervised framework trains it."
    return FCN(net, nn.MSELoss())


def error(net: nn.Module, batch: dict) -> torch.Tensor:
    "The loss of that, by hand."
    return nn.functional.mse_loss(net(batch["IM"]), batch["GT"])


def step_ratio(name: str, net: Callable[[], nn.Module], shape: Sequence[int], steps: int = 12, rounds: int = 7,
               framework: Callable = supervised, loss: Callable = error) -> None:
    "Seconds per step through a framework and Im2ImTrainer against a loop written by hand; rounds alternate, on one thread."
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a thread that waits for a busy core would drown what is measured
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    batch = {"IM": torch.rand(*shape), "GT": torch.rand(*shape)}
    by_hand, hand_net, ours = [], net(), []
    optimizer = torch.optim.AdamW(hand_net.parameters(), lr=1e-3)
    for _ in range(rounds):
        ends = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss(hand_net, batch).backward()
            optimizer.step()
            ends.append(time.perf_counter())
        by_hand += np.diff(ends).tolist()
        with tempfile.TemporaryDirectory() as d:
            clock = Clock()
            trainer = Im2ImTrainer(d, max_epochs=1, accelerator="cpu", callbacks=[clock], pictures=0, enable_progress_bar=False)
            trainer.fit(framework(net()), DataLoader([batch] * steps, batch_size=None), DataLoader([batch], batch_size=None))
        ours += np.diff(clock.ends).tolist()
    torch.set_num_threads(threads)
    a, b = statistics.median(ours), statistics.median(by_hand)
    print(f"figure {name}: {a / b:.3f} ({a * 1e3:.1f} ms a step against {b * 1e3:.1f} ms by hand; to reach 1.05)", flush=True)
