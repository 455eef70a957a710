"Caches that several processes fill, writers that are killed, workers that are started anew or die."
import multiprocessing
import os
import random
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet
from small import cells
from torch import nn
from torch.utils.data import DataLoader

from mmv_im2im.core import DataError
from mmv_im2im.data_modules.caching import DiskCache, SampleStore, cache_key, prepare_samples
from mmv_im2im.data_modules.data_module import Im2ImDataModule
from mmv_im2im.data_modules.loaders import _Resumable
from mmv_im2im.data_modules.datasets import PatchDataset
from mmv_im2im.data_modules.images import write_image
from mmv_im2im.models.fcn import FCN
from mmv_im2im.trainers import Im2ImTrainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "Eight pairs, set up and not kept."
    folder = cells(tmp_path_factory.mktemp("cells"), 8, (256, 256))
    data = Im2ImDataModule(folder, (32, 32), 4, target_kind="label", cache="none", patches_per_image=2)
    data.setup()
    return data


def fill(data, cache):
    "Fill a cache again and again in a random order, taking something out after each turn."
    while True:
        items = random.sample(data.items, len(data.items))
        prepare_samples(SampleStore(data.load, None, DiskCache(cache), {}), items, workers=2)
        for path in cache.glob("*/[!.]*"):
            if random.random() < 0.4: path.unlink(missing_ok=True)


@pytest.mark.skipif(sys.platform != "linux", reason="needs processes that begin at once")
def test_two_processes_fill_one_cache_and_one_is_killed(data, tmp_path):
    fork, cache = multiprocessing.get_context("fork"), tmp_path / "cache"
    torch.set_num_threads(1)
    stays = fork.Process(target=fill, args=(data, cache), daemon=True)
    stays.start()
    for _ in range(8):
        dies = fork.Process(target=fill, args=(data, cache), daemon=True)
        dies.start()
        time.sleep(0.3)
        dies.kill()
        dies.join()
    kept = lambda: {i: s for i, item in enumerate(data.items) if (s := DiskCache(cache).open(cache_key(item, {}))) is not None}
    begun = time.monotonic()
    while not kept() and time.monotonic() - begun < 60: time.sleep(0.2)  # on a busy machine none has written yet
    assert stays.is_alive(), "the process that was not killed has failed"
    stays.kill()
    found = kept()
    assert found
    for i, kept in found.items():
        fresh = data.load(data.items[i])
        assert kept["name"] == fresh["name"] and all(torch.equal(kept[k], fresh[k]) for k in ("IM", "GT"))


def test_a_process_that_is_started_anew_gives_the_same_batches(data, tmp_path):
    "As on Windows and macOS, where all that a worker needs is pickled."
    disk = Im2ImDataModule(data.path, (32, 32), 4, target_kind="label", cache="disk", cache_dir=str(tmp_path), patches_per_image=2)
    dataset = disk.train_dataloader().dataset
    here = list(DataLoader(dataset, 4))
    anew = list(DataLoader(dataset, 4, num_workers=1, multiprocessing_context="spawn"))
    assert len(here) == len(anew) > 1
    for a, b in zip(here, anew): assert all(torch.equal(a[k], b[k]) for k in ("IM", "GT"))


class Dies(PatchDataset):
    "A worker that the system kills."
    def __getitem__(self, key): os.kill(os.getpid(), 9)


def test_a_loading_process_that_dies_says_why(data):
    loader = _Resumable(Dies(data.train_items, data.store, data.transform), num_workers=1)
    with pytest.raises(DataError, match="a worker ended .*data.num_workers"): list(loader)


def test_an_error_in_a_loading_process_is_a_sentence(data, tmp_path):
    write_image(tmp_path / "IM" / "a.tif", np.full((40, 40), np.nan, np.float32))
    write_image(tmp_path / "GT" / "a.tif", np.ones((40, 40), np.uint8))
    bad = [{"IM": tmp_path / "IM" / "a.tif", "GT": tmp_path / "GT" / "a.tif"}]
    with pytest.raises(DataError) as e: list(_Resumable(PatchDataset(bad, data.store, data.transform), num_workers=1))
    assert str(e.value).startswith(str(tmp_path)) and "NaN" in str(e.value) and "Traceback" not in str(e.value)


def test_a_portion_goes_on_when_loaders_are_reloaded(tmp_path):
    "Lightning may ask for a new loader every epoch; the plan goes on, and every image gets as many visits."
    folder, seen = cells(tmp_path / "cells", 10), Counter()
    part = Im2ImDataModule(folder, (32, 32), 4, target_kind="label", partial_loading=0.25, patches_per_image=4)

    class Tiny(FCN):
        def losses(self, batch):
            seen.update(batch["name"])
            return super().losses(batch)

    net = UNet(2, 1, 1, channels=(4, 8), strides=(2,))
    trainer = Im2ImTrainer(max_epochs=8, accelerator="cpu", enable_progress_bar=False, reload_dataloaders_every_n_epochs=1)
    trainer.fit(Tiny(net, nn.BCEWithLogitsLoss(), task="segmentation"), datamodule=part)
    assert len(seen) == 8 and set(seen.values()) == {8}, "two turns of the circle, four patches in each"


def test_a_cache_is_not_stale(data, tmp_path):
    "A changed file, and a changed setting, are made anew; nothing else is."
    folder = cells(tmp_path / "cells", 6)
    def made(**more):
        module = Im2ImDataModule(folder, (32, 32), target_kind="label", cache="disk", cache_dir=str(tmp_path / "cache"), **more)
        before = set((tmp_path / "cache").glob("*/*"))
        module.setup()
        sums = [float(module.store(i)["IM"].sum()) for i in module.items]
        return len(set((tmp_path / "cache").glob("*/*")) - before), sums
    first = made(source_norm=None)
    assert first[0] == 6 and made(source_norm=None) == (0, first[1])
    assert made()[0] == 6 and made(source_norm=None, seed=1)[0] == 0 and made(source_norm=None)[0] == 0
    file = sorted((folder / "IM").iterdir())[2]
    write_image(file, np.zeros((64, 64), np.uint16))
    changed = made(source_norm=None)
    assert changed[0] == 1 and changed[1] == [s if i != 2 else 0 for i, s in enumerate(first[1])]
