"Every key of the config changes what happens."
import errno
import inspect
import shutil
from dataclasses import fields

import numpy as np
import pytest
import pytorch_lightning as pl
import tifffile
import torch
import zarr
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from chain import REGRESS, SEGMENT, run, same_weights, write_yaml

from mmv_im2im.trainers import ChannelsLast
from mmv_im2im.checkpoints import load_checkpoint
from mmv_im2im.config import Config, DataConfig, PredictConfig, TrainerConfig, from_dict
from mmv_im2im.core import ConfigError, DataError
from mmv_im2im.data_modules import caching
from mmv_im2im.data_modules.data_module import Im2ImDataModule
from mmv_im2im.data_modules.images import read_image, write_image
from mmv_im2im.data_modules.samples import simulate_set
from mmv_im2im.models.fcn import FCN
from mmv_im2im.trainers import Run, prepare, train


def configured(out, path, base=SEGMENT, **sections):
    "A config of two epochs with sections changed."
    raw = dict(base) | {"out": str(out)}
    sections["data"] = {"path": str(path), "val_fraction": 0.34, "val_pixels": 10**6} | sections.get("data", {})
    sections["trainer"] = {"max_epochs": 2} | sections.get("trainer", {})
    for name, change in sections.items(): raw[name] = raw[name] | change if isinstance(change, dict) else change
    return from_dict(raw)


class Watch(pl.Callback):
    "What happens while a run trains."
    def __init__(self):
        self.batches, self.sums, self.validations = [0], [], 0
        self.images = self.saved_within = self.strict = self.anomaly = False

    def on_train_epoch_start(self, trainer, pl_module):
        self.trainer, self.strict = trainer, torch.are_deterministic_algorithms_enabled()
        if trainer.current_epoch: self.batches.append(0)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches[-1] += 1
        self.sums.append(float(batch["IM"].sum()))
        self.anomaly |= torch.is_anomaly_enabled()
        if trainer.current_epoch == 0 and (trainer.run_folder / "checkpoints" / "last.ckpt").exists(): self.saved_within = True

    def on_validation_batch_end(self, *_): self.images += 1

    def on_validation_end(self, trainer, pl_module): self.validations += 1


@pytest.fixture(scope="module")
def usual(tmp_path_factory, pairs):
    "A run with every key of the trainer as usual, and what was seen."
    watch = Watch()
    return train(configured(tmp_path_factory.mktemp("usual") / "run", pairs), [watch]), watch


def _best(run: Run, figure: str, pick) -> bool:
    return run.result["monitor"] == figure and run.result["best_score"] == pytest.approx(pick(r[figure] for r in run.metrics), rel=1e-6)


def _points(run: Run, figure: str) -> int:
    "How many points of a figure TensorBoard has."
    board = EventAccumulator(str(run.folder / "tensorboard"))
    board.Reload()
    return len(board.Scalars(figure)) if figure in board.Tags()["scalars"] else 0


STOP_AT_ONCE = {"_target_": "EarlyStopping", "monitor": "val/loss", "stopping_threshold": 1e6}


# key: (value and what else it needs, what must be true of the run and of what was seen)
TRAINED = {
    "max_epochs": ({"max_epochs": 3}, lambda r, w: w.trainer.current_epoch == 3 and len(r.metrics) == 3),
    "max_steps": ({"max_steps": 6, "max_epochs": -1}, lambda r, w: w.trainer.global_step == 6 and w.batches == [4, 2]),
    "max_time": ({"max_time": "00:00:00:06", "max_epochs": 10000}, lambda r, w: w.trainer.current_epoch < w.trainer.max_epochs == 10000 and r.result["finished"]),
    "precision": ({"precision": "bf16-mixed"}, lambda r, w: w.trainer.precision == "bf16-mixed"),
    "gradient_clip_val": ({"gradient_clip_val": 1e-4}, lambda r, w: w.trainer.gradient_clip_val == 1e-4),
    "accumulate_grad_batches": ({"accumulate_grad_batches": 3}, lambda r, w: w.trainer.global_step == 4),
    "deterministic": ({"deterministic": True}, lambda r, w: w.strict),
    "check_val_every_n_epoch": ({"check_val_every_n_epoch": 2}, lambda r, w: w.validations == 1),
    "limit_train_batches": ({"limit_train_batches": 3}, lambda r, w: w.batches == [3, 3]),
    "limit_train_batches (one)": ({"limit_train_batches": 1}, lambda r, w: w.batches == [1, 1]),
    "limit_train_batches (a part)": ({"limit_train_batches": 0.5}, lambda r, w: w.batches == [2, 2]),
    "enable_progress_bar": ({"enable_progress_bar": True}, lambda r, w: w.trainer.progress_bar_callback is not None),
    "profiler": ({"profiler": "simple"}, lambda r, w: "run_training_epoch" in w.trainer.profiler.summary()),
    "monitor": ({"monitor": "val/loss"}, lambda r, w: _best(r, "val/loss", min)),
    "monitor (larger is better)": ({"monitor": "val/iou"}, lambda r, w: _best(r, "val/iou", max)),
    "channels_last": ({"channels_last": True}, lambda r, w: any(isinstance(c, ChannelsLast) for c in w.trainer.callbacks)),
    "ema": ({"ema": 0.9}, lambda r, w: "current_model_state" in load_checkpoint(r.last)),
    "swa": ({"swa": 0.5}, lambda r, w: "current_model_state" in load_checkpoint(r.last)),
    "checkpoint_every_n_steps": ({"checkpoint_every_n_steps": 2}, lambda r, w: w.saved_within),
    "pictures": ({"pictures": 1}, lambda r, w: len(list((r.folder / "pictures").glob("epoch_0000_*.png"))) == 1),
    "pictures (two)": ({"pictures": 2}, lambda r, w: len(list((r.folder / "pictures").glob("epoch_0000_*.png"))) == 2),
    "callbacks": ({"callbacks": [STOP_AT_ONCE]}, lambda r, w: w.trainer.current_epoch == 1),
    "log_every_n_steps": ({"log_every_n_steps": 1, "callbacks": [{"_target_": "LearningRateMonitor", "logging_interval": "step"}]},
                          lambda r, w: len({m["step"] for m in r.metrics}) == 8),
    "min_epochs": ({"min_epochs": 3, "max_epochs": 5, "callbacks": [STOP_AT_ONCE]}, lambda r, w: w.trainer.current_epoch == 3),
    "min_steps": ({"min_steps": 6, "callbacks": [STOP_AT_ONCE]}, lambda r, w: w.trainer.global_step == 6),
    "early_stopping": ({"early_stopping": 1, "max_epochs": 40}, lambda r, w: 2 < w.trainer.current_epoch < 40),
    "limit_val_batches": ({"limit_val_batches": 1}, lambda r, w: w.images == w.validations == 2),
    "overfit_batches": ({"overfit_batches": 1}, lambda r, w: w.batches == [1, 1] and len(set(w.sums)) == 1),
    "val_check_interval": ({"val_check_interval": 2}, lambda r, w: w.validations == 4),
    "num_sanity_val_steps": ({"num_sanity_val_steps": 1}, lambda r, w: w.validations == 3),
    "compile": ({"compile": "eager"}, lambda r, w: w.trainer.lightning_module.net._compiled_call_impl is not None),
    "plugins": ({"plugins": [{"_target_": "MixedPrecision", "precision": "bf16-mixed", "device": "cpu"}]},
                lambda r, w: w.trainer.precision == "bf16-mixed"),
    "gradient_clip_algorithm": ({"gradient_clip_val": 1e-4, "gradient_clip_algorithm": "value"},
                                lambda r, w: w.trainer.gradient_clip_algorithm == "value"),
    "detect_anomaly": ({"detect_anomaly": True}, lambda r, w: w.anomaly),
    "save_top_k": ({"save_top_k": 2}, lambda r, w: len(list((r.folder / "checkpoints").glob("top_*.ckpt"))) == 2),
    "keep_every_n_epochs": ({"keep_every_n_epochs": 1}, lambda r, w: len(list((r.folder / "checkpoints").glob("epoch_*.ckpt"))) == 2),
    "enable_model_summary": ({"enable_model_summary": True},
                             lambda r, w: any(isinstance(c, pl.callbacks.ModelSummary) for c in w.trainer.callbacks)),
    "logger": ({"logger": False}, lambda r, w: not (r.folder / "tensorboard").exists()),
    "log_every_n_steps (TensorBoard)": ({"log_every_n_steps": 2}, lambda r, w: _points(r, "train/loss_step") == 4),
}
# keys that need other hardware to be seen at work: the value that must reach Lightning
HANDED_ON = {"accelerator": "gpu", "devices": [0, 1], "strategy": "ddp", "num_nodes": 3, "sync_batchnorm": True, "benchmark": True}
SAME_WEIGHTS = ("deterministic", "enable_", "profiler", "monitor", "checkpoint", "pictures", "log", "check_val", "limit_val", "val_check",
                "num_sanity", "compile", "detect", "save_top", "keep_every")


@pytest.mark.parametrize("case", TRAINED)
def test_keys_of_the_trainer(case, tmp_path, pairs, usual):
    changes, holds = TRAINED[case]
    watch = Watch()
    try:
        result = train(configured(tmp_path / "run", pairs, trainer=changes), [watch])
    finally:
        torch.use_deterministic_algorithms(False)
    assert holds(result, watch)
    assert not holds(*usual), "it is so without the key, too"
    assert result.result["finished"] and result.best.is_file()
    assert same_weights(result.folder, usual[0].folder) == case.startswith(SAME_WEIGHTS)


@pytest.mark.parametrize("key", HANDED_ON)
def test_hardware_keys_reach_lightning(key, tmp_path, pairs, monkeypatch):
    class Seen(Exception): pass

    def init(self, **kwargs): raise Seen(kwargs)
    init.__signature__ = inspect.signature(pl.Trainer.__init__)
    monkeypatch.setattr(pl.Trainer, "__init__", init)
    with pytest.raises(Seen) as seen: train(configured(tmp_path / "run", pairs, trainer={key: HANDED_ON[key]}))
    assert seen.value.args[0][key] == HANDED_ON[key]


@pytest.mark.parametrize("limit", [{"max_steps": 2, "max_epochs": -1}, {"check_val_every_n_epoch": 5}],
                         ids=["less than an epoch", "never validated"])
def test_a_run_that_ends_before_its_first_validation_still_has_a_model(limit, tmp_path, pairs):
    result = train(configured(tmp_path / "run", pairs, trainer=limit))
    assert result.result["finished"] and result.last.is_file() and result.best.is_file()


# Data

def _both_layouts(folder, pairs):
    "Layouts 1 and 2 in one folder, with other images in each; the names of sub-folders, also in other words."
    for i, im in enumerate(sorted((pairs / "IM").iterdir())):
        source, target = (np.squeeze(read_image(pairs / k / im.name)) for k in ("IM", "GT"))
        for name, image in (("IM", source), ("GT", target), ("raw", source[::-1]), ("other", target[::-1]),
                            ("CM", np.float32(target > 0)), ("weights", np.float32(target == 0))):
            write_image(folder / name / im.name, np.ascontiguousarray(image), "YX")
        write_image(folder / f"{i}_IM.tif", source.T.copy(), "YX")
        write_image(folder / f"{i}_GT.tif", target.T.copy(), "YX")
    return folder


def _files(folder, write):
    "Two pairs of files of an unusual kind."
    rng = np.random.default_rng(0)
    for key in ("IM", "GT"):
        (folder / key).mkdir()
        for i in range(2): write(folder / key / f"{i}.ome.tif", rng.integers(0, 1000, (3, 64, 64), np.uint16))
    return folder


def _scenes(path, x):
    with tifffile.TiffWriter(path, ome=True) as tif:
        for plane in x: tif.write(plane, metadata={"axes": "YX"})


def _nameless(path, x):
    tifffile.imwrite(str(path).replace(".ome", ""), x, metadata=None, photometric="minisblack")


def _nested(folder, pairs):
    "The pairs, in a sub-folder of each folder."
    for key in ("IM", "GT"): shutil.copytree(pairs / key, folder / key / "day1")
    return folder


def _levels(folder, _):
    "Two pairs of OME-Zarrs with two resolutions each."
    rng = np.random.default_rng(0)
    for name in ("IM/0", "IM/1", "GT/0", "GT/1"):
        group = zarr.open_group(str(folder / f"{name}.ome.zarr"), "w")
        for level, n in enumerate((96, 48)): group.create_dataset(str(level), data=rng.integers(0, 1000, (n, n), np.uint16))
        steps = [{"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": [0.5 * 2**i] * 2}]} for i in (0, 1)]
        axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "yx"]
        group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": steps}]
    return folder


FOLDERS = {
    "nested": _nested,
    "levels": _levels,
    "movies": lambda f, _: _files(f, lambda p, x: write_image(p, x, "TYX")),
    "stacks": lambda f, _: _files(f, lambda p, x: write_image(p, x, "ZYX", pixel_size=(2, 1, 1))),
    "sizeless": lambda f, _: _files(f, lambda p, x: write_image(p, x, "ZYX")),
    "pairs": lambda f, pairs: pairs,
    "both": _both_layouts,
    "channels": lambda f, _: _files(f, lambda p, x: write_image(p, x, "CYX")),
    "planes": lambda f, _: _files(f, lambda p, x: write_image(p, x, "ZYX")),
    "scenes": lambda f, _: _files(f, _scenes),
    "nameless": lambda f, _: _files(f, _nameless),
}
IMAGE = {"target_kind": "image"}
AXES = {**IMAGE, "source_axes": "CYX", "target_axes": "CYX"}
# key: (folder, what both configs have, value of the key before and after; `Exception`: refused without the key)
STACKS = {**IMAGE, "patch": [4, 32, 32]}
DISK = {"cache": "disk", "cache_dir": "here"}
DATA = {
    "pairing": ("pairs", IMAGE, "unpaired"),
    "nested": ("nested", {}, True),
    "label_kind": ("pairs", {}, "binary"),
    "level": ("levels", IMAGE, 1),
    "time_points": ("movies", IMAGE, True),
    "sampling": ("pairs", {}, "grid"),
    "min_foreground": ("pairs", {}, 0.9),
    "isotropic": ("stacks", STACKS, True),
    "pixel_size": ("sizeless", STACKS | {"isotropic": True}, [2.0, 1.0, 1.0]),
    "pad_multiple": ("pairs", {}, 48),
    "cache": ("pairs", {}, "none"),
    "cache_dir": ("pairs", DISK, "there"),
    "cache_limit_gb": ("pairs", DISK, 6e-5),
    "loader": ("pairs", {"num_workers": 1}, {"prefetch_factor": 5}),
    "partial_loading": ("pairs", {}, 0.5),
    "partial_loading_epochs": ("pairs", {"partial_loading": 0.5}, 3),
    "layout": ("both", {"layout": "folders"}, "suffix"),
    "source": ("both", {"layout": "folders"}, "raw"),
    "target": ("both", {"layout": "folders"}, "other"),
    "costmap": ("both", {"layout": "folders"}, "weights"),
    "target_kind": ("pairs", {"target_kind": "label"}, "image"),
    "source_channels": ("channels", IMAGE, [2]),
    "target_channels": ("channels", IMAGE, [0, 1]),
    "source_axes": ("nameless", AXES | {"source_axes": None}, "CYX"),
    "target_axes": ("nameless", AXES | {"target_axes": None}, "CYX"),
    "scene": ("scenes", IMAGE, 2),
    "planes": ("planes", IMAGE, [1]),
    "split": ("pairs", {"split": "files"}, "regions"),
    "val_fraction": ("pairs", {}, 0.5),
    "gap": ("pairs", {"split": "regions", "patch": [16, 16]}, 4),
    "patch": ("pairs", {}, [16, 48]),
    "patches_per_image": ("pairs", {}, 9),
    "batch_size": ("pairs", {}, 3),
    "num_workers": ("pairs", {}, 2),
    "source_norm": ("pairs", {}, {"_target_": "Standard"}),
    "target_norm": ("pairs", IMAGE, {"_target_": "Standard"}),
    "augment": ("pairs", {}, [{"_target_": "RandGaussianNoised", "prob": 1.0}]),
    "val_pixels": ("pairs", {}, 64 * 64),
    "val_patches": ("pairs", {}, True),
    "cache_gb": ("pairs", {}, 0),
}
REFUSED_WITHOUT = ("source_axes", "target_axes", "planes", "nested", "time_points", "pixel_size")


def _seen(cfg) -> list:
    "What a config makes of the data: the first batches, their number, the loader, what is kept."
    if cfg.data.pairing == "paired": data = prepare(cfg)[2]
    else: data = Im2ImDataModule(**{f.name: getattr(cfg.data, f.name) for f in fields(cfg.data)}, seed=cfg.seed)
    train_loader, val_loader = data.train_dataloader(), data.val_dataloader()
    memory, disk = data.store.memory, data.store.disk
    kept = [memory and len(memory.held), disk and (str(disk.folder), len(list(disk.folder.glob("*/*"))) > 3)]
    workers = [getattr(train_loader, k, 0) for k in ("num_workers", "prefetch_factor")]
    out = [len(train_loader), len(val_loader), workers, kept, data.in_channels, data.out_channels]
    for loader in (train_loader, val_loader):
        for k, v in sorted(next(iter(loader)).items()):
            out.append((k, v.dtype, v.shape, v.numpy().tobytes()) if isinstance(v, torch.Tensor) else v)
    for window in getattr(train_loader, "windows", ()): window.close()
    return out


@pytest.mark.parametrize("key", DATA)
def test_keys_of_the_data(key, tmp_path, pairs, monkeypatch):
    folder, given, value = DATA[key]
    monkeypatch.chdir(tmp_path)
    path = FOLDERS[folder](tmp_path, pairs)
    def config(data):
        base = REGRESS if data.get("target_kind") == "image" else SEGMENT
        dims = {"net": base["model"]["net"] | {"spatial_dims": len(data.get("patch", [32, 32]))}}
        return configured(tmp_path / "run", path, base, data={"target_norm": None, "augment": []} | data, model=dims)
    changed = _seen(config(given | {key: value}))
    assert changed == _seen(config(given | {key: value})), "the same config sees the same"
    if key in REFUSED_WITHOUT:
        with pytest.raises(DataError): _seen(config(given))
    else: assert changed != _seen(config(given))


@pytest.mark.parametrize("choice", ("stop", "skip"))
def test_a_full_disk(choice, tmp_path, pairs, monkeypatch):
    def full(*_): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(caching, "save_file", full)
    cfg = configured(tmp_path / "run", pairs, data={"cache": "disk", "cache_dir": str(tmp_path / "cache"), "cache_full": choice})
    if choice == "skip": assert _seen(cfg)
    else:
        with pytest.raises(DataError, match="is full"): _seen(cfg)


def test_path_of_the_data(tmp_path, pairs):
    simulate_set(tmp_path, 6, (64, 64), source="nuclei", target="labels", seed=9)
    assert _seen(configured("unused", pairs)) != _seen(configured("unused", tmp_path))
    with pytest.raises((ConfigError, DataError), match="nowhere"): _seen(configured("unused", tmp_path / "nowhere"))


# tests/test_supervised.py, test_adversarial.py, test_trainer.py, test_self_supervised.py and test_contract.py have those that need another run or another task
ELSEWHERE = {"init_from", "dtype", "metrics", "direction", "dropout", "fast_dev_run", "lr_finder", "batch_size_finder", "requeue", "uncertainty", "compare",
             "samples"}


# Prediction

@pytest.fixture(scope="module")
def images(tmp_path_factory):
    "Images to predict: one of 150 x 130 pixels, and three planes that do not say what they are."
    folder = simulate_set(tmp_path_factory.mktemp("images"), 1, (150, 130), source="nuclei", target="labels", seed=3)
    tifffile.imwrite(folder / "nameless.tif", np.random.default_rng(0).integers(0, 9000, (3, 64, 64), np.uint16), metadata=None,
                     photometric="minisblack")
    return folder


TILES = {"tile": [48, 48], "probabilities": "true"}
# key: (what both commands have, value of the key)
PREDICTED = {
    "tile": ({"probabilities": "true"}, [48, 48]),
    "overlap": (TILES, 0.6),
    "blend": (TILES, "none"),
    "batch_size": (TILES, 3),
    "probabilities": ({}, "true"),
    "tta": ({"probabilities": "true"}, "true"),
    "postprocess": ({}, "[{_target_: Label}]"),
    "out": ({}, "elsewhere"),
    "path": ({}, "GT"),
    "axes": ({"path": "nameless.tif"}, "TYX"),
    "checkpoint": ({}, "last.ckpt"),
    "device": ({}, "cuda:77"),
}


@pytest.mark.parametrize("key", PREDICTED)
def test_keys_of_prediction(key, tmp_path, usual, images, monkeypatch, capsys):
    given, value = PREDICTED[key]
    sizes, translate = [], FCN.translate
    monkeypatch.setattr(FCN, "translate", lambda self, x: sizes.append(len(x)) or translate(self, x))

    def predicted(n: int, keys: dict) -> list:
        "Exit status, batch sizes, and what was written where."
        out, config = tmp_path / str(n), usual[0].folder
        options = {"path": images / "IM", "out": out, "device": "cpu"} | keys
        if isinstance(options["path"], str): options["path"] = images / options["path"]
        if options["out"] == "elsewhere": options["out"] = tmp_path / "elsewhere" / str(n)
        if "checkpoint" in keys: config, options["checkpoint"] = "semantic_seg_2d", usual[0].last
        sizes.clear()
        status = run("--config", config, "--mode", "predict", *(a for k, v in options.items() for a in (f"--predict.{k}", v)))
        written = sorted(p for p in tmp_path.rglob(f"{n}/*.tif"))
        return [status, sorted(set(sizes)), [(p.parent.parent.name, p.name, read_image(p).dtype, read_image(p).tobytes()) for p in written]]

    changed, before = predicted(1, given | {key: value}), predicted(2, given)
    assert before[0] == (1 if key == "axes" else 0)
    if key == "device":
        assert changed[0] == 2 and not changed[2]
        assert "cuda:77" in capsys.readouterr().err
    elif key == "checkpoint":
        assert changed[0] == 0 and changed[2]
        assert run("--config", "semantic_seg_2d", "--mode", "predict", "--predict.path", images / "IM") == 2
    else:
        assert changed[0] == 0 and changed[2]
        assert changed[1:] != before[1:]


# The top level, and that nothing was forgotten

def test_keys_of_the_top_level(tmp_path, pairs, usual, capsys):
    result = train(configured(tmp_path / "here", pairs, seed=7))
    assert result.folder == tmp_path / "here" and not same_weights(result.folder, usual[0].folder)
    cfg = write_yaml(tmp_path / "c.yaml", SEGMENT, mode="evaluate")
    assert run("--config", cfg, "--data.path", pairs, "--predict.checkpoint", result.best, "--predict.out", tmp_path / "out") == 0
    assert "mean" in capsys.readouterr().out and (tmp_path / "out" / "metrics.csv").is_file()
    sgd = train(configured(tmp_path / "sgd", pairs, model={"optimizer": {"_target_": "SGD", "lr": 0.1}}))
    assert not same_weights(sgd.folder, usual[0].folder)


@pytest.mark.parametrize("section, tested", [
    (TrainerConfig, {k.partition(" ")[0] for k in TRAINED} | set(HANDED_ON)),
    (DataConfig, set(DATA) | {"path", "cache_full"}),
    (PredictConfig, set(PREDICTED)),
    (Config, {"mode", "seed", "out", "data", "model", "trainer", "predict"}),
], ids=["trainer", "data", "predict", "top level"])
def test_every_key_is_tested(section, tested):
    assert tested == {f.name for f in fields(section)} - ELSEWHERE
