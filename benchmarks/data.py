"""Figures of the data modules: patches per second from the cache, memory of a portion, the pause of a reload, 125,000 images, killed writers.

Everything is simulated below a temporary folder (about 4 GB on disk, 13 GB of memory for loading all of 200 pairs once).
"""
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import tifffile
import torch
from monai.data import PersistentDataset
from monai.transforms import Compose, RandSpatialCropd, Transform

from mmv_im2im.data_modules.caching import DiskCache, SampleStore, cache_key, prepare_samples
from mmv_im2im.data_modules.data_module import Im2ImDataModule
from mmv_im2im.data_modules.normalization import Standard

SHAPE, PATCH = (16, 700, 700), (16, 64, 64)  # a pair of such stacks in uint16 is two files of 15 MB
SETTINGS = {"benchmark": "killed writers"}
STEP = 0.05  # seconds of a simulated training step


def write_pairs(folder: Path, n: int, shape=SHAPE) -> Path:
    "Pairs of noisy stacks in layout 2."
    rng = np.random.default_rng(0)
    for key in ("IM", "GT"):
        (folder / key).mkdir(parents=True)
        for i in range(n):
            tifffile.imwrite(folder / key / f"{i:06d}.tif", rng.integers(0, 4000, shape, np.uint16), metadata={"axes": "ZYX"})
    return folder


def link_pairs(source: Path, folder: Path, n: int) -> Path:
    "A folder of `n` pairs, links to those of another folder."
    for key in ("IM", "GT"):
        files = sorted((source / key).iterdir())
        (folder / key).mkdir(parents=True)
        for i in range(n):
            os.symlink(files[i % len(files)], folder / key / f"{i:06d}.tif")
    return folder


def module(folder: Path, **more) -> Im2ImDataModule:
    "A data module of 3D pairs, normalized, without augmentation."
    usual = dict(patch=PATCH, batch_size=8, source_norm=Standard(), target_norm=Standard(), num_workers=0, val_pixels=1024)
    return Im2ImDataModule(folder, **usual | more)


# Patches from a warm cache

def patch_rate(folder: Path) -> None:
    "One patch per read from twelve pairs: our cache against MONAI's, with the same reader, preparation, dtype and size of patch."
    pairs = write_pairs(folder / "pairs", 12)
    ours = module(pairs, cache="none", val_fraction=0.01)
    ours.setup()
    items = [{k: v for k, v in s.items() if k in ("IM", "GT")} for s in ours.samples]
    crop = RandSpatialCropd(("IM", "GT"), PATCH, random_size=False)

    class Prepare(Transform):  # what comes before the first random transform is what MONAI caches
        def __call__(self, item): return ours.load(item)

    store = SampleStore(ours.load, None, DiskCache(folder / "ours"))
    peer = PersistentDataset(items, Compose([Prepare(), crop]), cache_dir=folder / "monai")
    ours_patch = lambda i: ours.transform(store(items[i]), random.randrange(2**32))
    peer_patch = lambda i: peer[i]
    first = {}
    for name, get in (("monai", peer_patch), ("ours", ours_patch)):
        begun = time.perf_counter()
        for i in range(len(items)): get(i)
        first[name] = time.perf_counter() - begun
    os.sync()  # what is still on its way to the disk would disturb
    for i in range(len(items)): store(items[i])["IM"].sum(), store(items[i])["GT"].sum(), peer[i]
    rates = {"monai": [], "ours": []}
    for _ in range(5):
        for name, get, n in (("monai", peer_patch, 24), ("ours", ours_patch, 600)):
            begun = time.perf_counter()
            for i in range(n): patch = get(i % len(items))
            rates[name].append(n / (time.perf_counter() - begun))
            assert tuple(patch["IM"].shape) == (1, *PATCH) and patch["IM"].dtype == torch.float32
    rates = {k: statistics.median(v) for k, v in rates.items()}
    print(f"figure patch_rate_ratio: {rates['ours'] / rates['monai']:.0f} ({rates['ours']:.0f} pairs of patches a second against "
          f"{rates['monai']:.1f} of MONAI's PersistentDataset)", flush=True)
    print(f"figure first_epoch_ratio: {first['ours'] / first['monai']:.2f} ({first['ours']:.1f} s against {first['monai']:.1f} s)", flush=True)


# Memory and pauses of a portion

def anonymous() -> int:
    "Anonymous memory of this process and its children, in bytes."
    pids = [os.getpid(), *(c.pid for c in multiprocessing.active_children())]
    status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return sum(int(s.split("RssAnon:")[1].split()[0]) * 1024 for s in status)


class Peak(threading.Thread):
    "The largest anonymous memory seen, sampled every 20 ms."
    def __init__(self):
        super().__init__(daemon=True)
        self.most, self.over = 0, False
        self.start()

    def run(self):
        while not self.over:
            self.most = max(self.most, anonymous())
            time.sleep(0.02)


def memory_of_an_epoch(folder: str, portion: str, epochs: str) -> None:
    "In a process of its own: print idle memory, the peak of each epoch, and the pauses, as Python literals."
    module(Path(folder), cache="none")
    idle = anonymous()
    part = float(portion) or None
    many = dict(cache="memory", cache_gb=100, patches_per_image=12)  # an epoch of as many steps
    data = module(Path(folder), val_fraction=0.01, **dict(partial_loading=part, cache="none") if part else many)
    peaks, pauses, lengths, ended = [], [], [], None
    peak = Peak()
    loader = data.train_dataloader()
    for epoch in range(int(epochs)):
        if part: loader.position = lambda: (epoch, 0)
        begun, steps = time.perf_counter(), 0
        for _ in loader:
            if ended is not None:
                pauses.append(time.perf_counter() - ended)
                ended = None
            time.sleep(STEP)
            steps += 1
        ended = time.perf_counter()
        lengths.append((ended - begun, steps))
        peaks.append(peak.most)
        peak.most = 0
    peak.over = True
    print(repr((idle, peaks, pauses, lengths)))


def apart(*args) -> tuple:
    "What `memory_of_an_epoch` prints in a process of its own."
    done = subprocess.run([sys.executable, __file__, "memory", *map(str, args)], check=True, capture_output=True, text=True)
    return eval(done.stdout.strip().splitlines()[-1])


def portions(folder: Path) -> None:
    "An epoch over 200 pairs with 10 % in memory against all in memory; 20 reloads; the pause at each of them."
    pairs = link_pairs(folder / "pairs", folder / "many", 200)
    idle, peaks, pauses, lengths = apart(pairs, 0.1, 21)
    idle_all, peaks_all, pauses_all, _ = apart(pairs, 0, 2)
    fraction = (max(peaks) - idle) / (max(peaks_all) - idle_all)
    flat = (max(peaks[-5:]) - idle) / (max(peaks[1:6]) - idle)
    seconds, steps = lengths[-1]
    pause = (statistics.mean(pauses) - statistics.mean(pauses_all)) / seconds
    waiting = statistics.mean(s - n * STEP for s, n in lengths[1:]) / statistics.mean(s for s, _ in lengths[1:])
    print(f"figure partial_memory_fraction: {fraction:.3f} (10 % of 200 pairs; {(max(peaks) - idle) / 1e9:.2f} GB against "
          f"{(max(peaks_all) - idle_all) / 1e9:.2f} GB)", flush=True)
    print(f"figure partial_memory_growth: {flat:.3f} (peak of the last five of 20 reloads against the first five)", flush=True)
    print(f"figure reload_pause_fraction: {pause:.3f} (of an epoch of {steps} steps, {seconds:.1f} s; waiting for images is "
          f"{waiting:.1%} of it in all)", flush=True)


# 125,000 images

def setup_cost(folder: str) -> None:
    "In a process of its own: seconds and bytes of the set-up of a folder."
    idle = anonymous()
    peak = Peak()
    begun = time.perf_counter()
    data = Im2ImDataModule(folder, patch=(8, 8), patches_per_image=1, cache="none")
    data.setup()
    seconds = time.perf_counter() - begun
    peak.over = True
    peak.join()
    print(repr((seconds, peak.most - idle, len(data.samples))))


def scale(folder: Path) -> None:
    "Listing, pairing, checking and splitting 125,000 pairs; the cost per image against 1,000."
    tiny = write_pairs(folder / "tiny", 10, (8, 8))
    costs = {}
    for n in (1000, 125_000):
        many = link_pairs(tiny, folder / f"n{n}", n)
        done = subprocess.run([sys.executable, __file__, "setup", str(many)], check=True, capture_output=True, text=True)
        costs[n] = eval(done.stdout.strip().splitlines()[-1])
        assert costs[n][2] == n
    seconds, size, n = costs[125_000]
    print(f"figure setup_125k_s: {seconds:.1f} s", flush=True)
    print(f"figure setup_125k_gb: {size / 1e9:.2f} GB", flush=True)
    print(f"figure setup_cost_growth: {seconds / n / (costs[1000][0] / 1000):.2f} (seconds per image of 125,000 against 1,000)", flush=True)


# Killed writers

def fill(data: Im2ImDataModule, cache: Path) -> None:
    "Fill a cache again and again in a random order, taking something out after each turn."
    while True:
        items = random.sample(data.items, len(data.items))
        prepare_samples(SampleStore(data.load, None, DiskCache(cache), SETTINGS), items, workers=2)
        for path in cache.glob("*/[!.]*"):
            if random.random() < 0.5: path.unlink(missing_ok=True)


def killed(folder: Path, seconds: int = 60) -> None:
    "Two processes fill one cache, one of them is killed every second; every cached item must equal a fresh one."
    data, cache = module(write_pairs(folder / "small", 12, (16, 256, 256)), cache="none"), folder / "killed"
    data.setup()
    fork = multiprocessing.get_context("fork")  # a process that imports torch anew would be killed before it writes
    stays = fork.Process(target=fill, args=(data, cache), daemon=True)
    stays.start()
    for _ in range(seconds):
        dies = fork.Process(target=fill, args=(data, cache), daemon=True)
        dies.start()
        time.sleep(1)
        dies.kill()
        dies.join()
    assert stays.is_alive(), "the process that was not killed has failed"
    stays.kill()
    wrong, keys = 0, {cache_key(i, SETTINGS): i for i in data.items}
    found = {k: s for k in keys if (s := DiskCache(cache).open(k)) is not None}
    for key, kept in found.items():
        fresh = data.load(keys[key])
        wrong += not all(torch.equal(kept[k], fresh[k]) for k in ("IM", "GT"))
    print(f"figure killed_cache_wrong: {wrong} (of {len(found)} cached items, after {seconds} writers were killed)", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        {"memory": memory_of_an_epoch, "setup": setup_cost}[sys.argv[1]](*sys.argv[2:])
        sys.exit()
    with tempfile.TemporaryDirectory() as d:
        patch_rate(Path(d))
        portions(Path(d))
        scale(Path(d))
        killed(Path(d))
