"""Runs that are killed with -9 at random moments, and go on each time: identical weights and figures, no broken file.

    python tests/faults/kills.py [--kills 20] [--only FCN Pix2Pix CycleGAN] [--seed 0]
"""
import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from chain import GAMES, SEGMENT, same_weights, start, write_yaml

from mmv_im2im.checkpoints import load_checkpoint, read_metrics
from mmv_im2im.data_modules.samples import simulate_set

FRAMEWORKS = {"FCN": SEGMENT} | GAMES
# Steps take a while, so that a kill comes within an epoch; a file says when the first began
SLOWLY = """
import time
from pathlib import Path
from mmv_im2im.models.base import Im2ImModule
seed_step = Im2ImModule.seed_step
def slowly(self, batch_idx):
    Path({mark!r}).touch()
    time.sleep(0.02)
    seed_step(self, batch_idx)
Im2ImModule.seed_step = slowly
"""


def trains(command: tuple, mark: Path, seconds: float | None) -> bool:
    "Train to the end, or for so many seconds after the first step and then kill; whether it came to its end."
    mark.unlink(missing_ok=True)
    process = start(*command, prelude=SLOWLY.format(mark=str(mark)))
    while process.poll() is None and not mark.exists(): time.sleep(0.005)
    if seconds is not None:
        time.sleep(seconds)
        process.kill()
    said, err = process.communicate()
    assert process.returncode in (0, -9), err
    return process.returncode == 0


def whole(folder: Path) -> None:
    "Every checkpoint can be read, and the table too."
    for f in (folder / "checkpoints").glob("[!.]*.ckpt"): load_checkpoint(f)
    read_metrics(folder / "metrics.csv")


def kill_often(name: str, kills: int, rng: random.Random, folder: Path) -> int:
    "Kill runs of a framework so many times in all; how many runs it took."
    pairs = simulate_set(folder / "pairs", 6, (64, 64), source="nuclei", target="labels")
    trainer = {"max_epochs": 6, "checkpoint_every_n_steps": 3, "ema": 0.9}
    cfg = write_yaml(folder / "c.yaml", FRAMEWORKS[name], trainer=trainer)
    command = "--config", cfg, "--data.path", pairs, "--out"
    assert trains((*command, folder / "whole"), folder / "mark", None)
    runs, done = 0, 0
    with tqdm(total=kills, desc=name, unit="kill") as bar:
        while done < kills:
            runs += 1
            run, over = folder / f"run-{runs}-killed", False
            while not over:
                over = trains((*command, run), folder / "mark", rng.uniform(0, 0.6) if done < kills else None)
                whole(run)
                done += not over
                bar.update(not over)
            assert same_weights(folder / "whole", run) and same_weights(folder / "whole", run, "best")
            assert read_metrics(run / "metrics.csv") == read_metrics(folder / "whole" / "metrics.csv")
            left = [p.name for p in run.rglob("*") if p.name.startswith(".") and p.suffix == ".ckpt"]
            assert not left, f"half-written files are left: {left}"
    return runs


def main() -> None:
    "Print a line for each framework."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=list(FRAMEWORKS), choices=list(FRAMEWORKS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.only:
        with tempfile.TemporaryDirectory() as d:
            runs = kill_often(name, args.kills, random.Random(args.seed), Path(d))
        print(f"figure kills_{name.lower()}: {args.kills} (in {runs} runs; weights and figures identical, no broken file)", flush=True)


if __name__ == "__main__":
    main()
