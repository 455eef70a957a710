"Every combination of layout, pairing, cache, portion and dimensions gives the right pixels."
import csv
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch

from mmv_im2im.data_modules.data_module import Im2ImDataModule
from mmv_im2im.data_modules.images import write_image

SHAPES = {2: (40, 48), 3: (6, 20, 24)}
PATCHES = {2: (16, 12), 3: (4, 8, 10)}
N, N_OTHER = 6, 4  # images; targets of the other domain, where the two are unpaired
LAYOUTS, PAIRINGS, CACHES = ("suffix", "folders", "csv", "split"), ("paired", "unpaired", "source"), ("none", "memory", "disk")


def pixels(number: int, dims: int) -> np.ndarray:
    "An image in which every pixel says where it lies, and in which image."
    return (np.arange(np.prod(SHAPES[dims])).reshape(SHAPES[dims]) + 4096 * number).astype(np.uint16)


def decoded(x: np.ndarray, dims: int) -> tuple[int, tuple[int, ...]]:
    "Number of the image and first pixel of a part `(1, [Z,] Y, X)` of it, all of whose pixels must follow each other."
    x = x[0].astype(int)
    number = int(x.flat[0]) // 4096
    start = np.unravel_index(int(x.flat[0]) % 4096, SHAPES[dims])
    part = pixels(number, dims)[tuple(slice(s, s + n) for s, n in zip(start, x.shape))]
    np.testing.assert_array_equal(x, part)
    return number, tuple(map(int, start))


def write(folder, key: str, name: str, image: np.ndarray, suffix: bool):
    "One image; sources as TIFF, targets as npy, cost maps as TIFF."
    end = ".npy" if key == "GT" else ".tif"
    path = folder / (f"{name}_{key}{end}" if suffix else f"{key}/{name}{end}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if end == ".tif": return write_image(path, image)
    np.save(path, image)


def data_set(folder, layout: str, pairing: str, dims: int):
    "Images on disk, and what `data.path` is: sources 0 to 5; targets and cost maps of the same numbers, or four others from 10 on."
    suffix, places = layout == "suffix", ["train"] * 4 + ["val"] * 2
    for i, part in enumerate(places):
        where = folder / part if layout == "split" else folder
        write(where, "IM", f"im{i}", pixels(i, dims), suffix)
        if pairing == "source": continue
        if pairing == "unpaired" and i >= N_OTHER: continue
        name, number = (f"im{i}", i) if pairing == "paired" else (f"other{i}", 10 + i)
        if pairing == "unpaired" and layout == "split": where = folder / ("train" if i < 2 else "val")
        write(where, "GT", name, 65535 - pixels(number, dims), suffix)
        write(where, "CM", name, (pixels(number, dims) % 5).astype(np.float32), suffix)
    if layout == "csv": return _table(folder, pairing)
    return folder


def _table(folder, pairing: str):
    "A csv of the images in the sub-folders."
    rows = []
    files = {k: sorted((folder / k).iterdir()) if (folder / k).is_dir() else [] for k in ("IM", "GT", "CM")}
    for i in range(N): rows.append([files[k][i] if pairing == "paired" and i < len(files[k]) else "" for k in ("IM", "GT", "CM")])
    if pairing != "paired":
        for i in range(N): rows[i][0] = files["IM"][i]
        rows += [["", gt, cm] for gt, cm in zip(files["GT"], files["CM"])]
    with open(folder / "table.csv", "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["source_path", "target_path", "costmap_path"])
        writer.writerows([[p and p.relative_to(folder) for p in row] for row in rows])
    return folder / "table.csv"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    "Every data set, written once."
    return {c: data_set(tmp_path_factory.mktemp("-".join(map(str, c))), *c) for c in product(LAYOUTS, PAIRINGS, (2, 3))}


def check(sample: dict, pairing: str, dims: int) -> tuple[int, int]:
    "The pixels of a sample are those of the files; gives the numbers of source and target."
    number, start = decoded(sample["IM"], dims)
    assert ("GT" in sample) == ("CM" in sample) == (pairing != "source")
    if pairing == "source": return number, -1
    target, target_start = decoded(65535 - sample["GT"], dims)
    np.testing.assert_array_equal(sample["CM"], (65535 - sample["GT"]) % 5)
    if pairing == "paired": assert (number, start) == (target, target_start)
    return number, target


def samples(loader):
    "One sample after the other."
    for batch in loader:
        assert all(v.dtype == torch.float32 for v in batch.values() if isinstance(v, torch.Tensor))
        arrays = {k: v.numpy() for k, v in batch.items() if isinstance(v, torch.Tensor)}
        for i in range(len(arrays["IM"])): yield {k: v[i] for k, v in arrays.items()}


@pytest.mark.parametrize("dims", (2, 3))
@pytest.mark.parametrize("portion", (None, 0.5))
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_right_pixels(layout, pairing, cache, portion, dims, sets, tmp_path):
    data = Im2ImDataModule(
        sets[layout, pairing, dims], PATCHES[dims], 3, pairing=pairing, cache=cache, cache_dir=str(tmp_path), partial_loading=portion,
        patches_per_image=4, source_norm=None, val_fraction=0.34, split="auto" if layout == "split" else "files", num_workers=0, val_pixels=10**7,
    )
    loader = data.train_dataloader()
    numbers, targets, starts = Counter(), Counter(), set()
    epochs = 4  # with half of the images in memory, two turns
    for epoch in range(epochs):
        data._position = lambda: (epoch, 0)
        if portion: loader.position = data._position
        else: loader.batch_sampler.position = data._position
        for sample in samples(loader):
            assert sample["IM"].shape == (1, *PATCHES[dims])
            number, target = check(sample, pairing, dims)
            numbers[number] += 1
            targets[target] += 1
            starts.add(decoded(sample["IM"], dims))
    assert len(starts) > 8, "patches are cut at different places"
    train = {int(decoded(data.preprocessing.load(i)["IM"].numpy(), dims)[0]) for i in data.train_items if "IM" in i}
    assert set(numbers) == train and len(train) == 4
    assert set(numbers.values()) == {4 * epochs // (2 if portion else 1)}, "every image is visited equally often"
    if pairing == "unpaired":
        others = {i["GT"].name for i in data.train_items if "GT" in i}
        assert len(targets) == len(others) and min(targets) >= 10
        life = 4 if portion else 1  # an image may be in the midst of its time in memory
        assert max(targets.values()) - min(targets.values()) <= life
    whole = list(samples(data.val_dataloader()))
    found = {check(s, pairing, dims)[0] for s in whole}
    assert len(found) == len(whole) == 2 and not found & train
    assert all(s["IM"].shape == (1, *SHAPES[dims]) for s in whole)
    if portion: [w.close() for w in loader.windows]
