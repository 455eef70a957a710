"Broken configs: each is refused with one paragraph that names key, value and fix; nothing is run, nothing is left."
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from small import CONFIG, cells, changed, one_paragraph, shell, write_config

from mmv_im2im.cli import main

FLAG = "touch EXECUTED"  # a command that would show if anything were run


@dataclass
class Case:
    "A config that must be refused."
    id: str
    words: tuple  # What the error must say: the key, the value given, the fix
    change: dict = field(default_factory=dict)  # Dotted keys of the small config to change
    text: str | bytes | None = None  # Instead: the whole file
    flags: tuple = ()  # Further arguments
    config: str | None = None  # Instead: what `--config` names; <FOLDER> is the case's own
    stage: str = "yaml"  # What decides: 'yaml', 'class' (an import) or 'data' (the first images)


def yaml_case(id, change, *words, flags=()): return Case(id, words, change, flags=flags)


def class_case(id, change, *words, flags=()): return Case(id, words, change, flags=flags, stage="class")


def data_case(id, change, *words): return Case(id, words, change, stage="data")


def text_case(id, text, *words): return Case(id, words, text=text)


def flag_case(id, flags, *words): return Case(id, words, flags=tuple(flags))


YAML = [
    # misspelled keys, at every level
    yaml_case("key at the top", {"trainerr": {}}, "`trainerr`", "did you mean 'trainer'"),
    yaml_case("key of data", {"data.ptach": [32, 32]}, "`data.ptach`", "did you mean 'patch'"),
    yaml_case("key of trainer", {"trainer.max_epoch": 3}, "`trainer.max_epoch`", "did you mean 'max_epochs'"),
    yaml_case("key of predict", {"predict.overlp": .5}, "`predict.overlp`", "did you mean 'overlap'"),
    yaml_case("key of another section", {"data.max_epochs": 3}, "`data.max_epochs`", "write `trainer.max_epochs`"),
    yaml_case("key of a section at the top", {"batch_size": 3}, "`batch_size`", "write `data.batch_size`"),
    # misspelled values
    yaml_case("mode", {"mode": "trian"}, "`mode`", "'trian'", "did you mean 'train'"),
    yaml_case("target kind", {"data.target_kind": "lable"}, "`data.target_kind`", "'lable'", "did you mean 'label'"),
    yaml_case("layout", {"data.layout": "folder"}, "`data.layout`", "'folder'", "did you mean 'folders'"),
    yaml_case("precision", {"trainer.precision": "16"}, "`trainer.precision`", "'16'", "bf16-mixed"),
    yaml_case("accelerator", {"trainer.accelerator": "cuad"}, "`trainer.accelerator`", "'cuad'", "did you mean 'cuda'"),
    yaml_case("blend", {"predict.blend": "gausian"}, "`predict.blend`", "'gausian'", "did you mean 'gaussian'"),
    yaml_case("profiler", {"trainer.profiler": "fast"}, "`trainer.profiler`", "'fast'", "simple, advanced, pytorch"),
    # wrong types
    yaml_case("text for a number", {"trainer.max_epochs": "many"}, "`trainer.max_epochs`", "'many'", "whole number"),
    yaml_case("quoted number", {"data.batch_size": "8"}, "`data.batch_size`", "'8'", "Drop the quotes"),
    yaml_case("fraction for a whole number", {"data.batch_size": 3.9}, "`data.batch_size`", "3.9", "whole number"),
    yaml_case("true for a number", {"data.num_workers": True}, "`data.num_workers`", "True", "whole number"),
    yaml_case("number for true", {"data.val_patches": 1}, "`data.val_patches`", "1", "true or false"),
    yaml_case("text 'false' for true or false", {"data.val_patches": "false"}, "`data.val_patches`", "'false'", "Drop the quotes"),
    yaml_case("number for a list", {"data.patch": 64}, "`data.patch`", "64", "in brackets"),
    yaml_case("text in a list of numbers", {"data.patch": [64, "big"]}, "`data.patch`", "'big'", "list of whole numbers"),
    yaml_case("number for a path", {"data.path": 12}, "`data.path`", "12", "Put it in quotes"),
    yaml_case("path of one part", {"data.path": {"train": "a"}}, "`data.path`", "val"),
    yaml_case("path of another part", {"data.path": {"train": "a", "test": "b"}}, "`data.path.test`", "train"),
    yaml_case("workers and a portion", {"data.partial_loading": 0.5, "data.num_workers": 2}, "`data.num_workers`", "`data.partial_loading`"),
    yaml_case("isotropic planes", {"data.isotropic": True}, "`data.isotropic`", "[Z, Y, X]"),
    yaml_case("two voxel sizes", {"data.pixel_size": [0.5, 0.5]}, "`data.pixel_size`", "3 numbers"),
    yaml_case("kind of labels of images", {"data.label_kind": "binary", "data.target_kind": "image"}, "`data.label_kind`", "image"),
    yaml_case("argument of the loader", {"data.loader": {"prefetch": 2}}, "`data.loader.prefetch`", "did you mean 'prefetch_factor'"),
    yaml_case("portion above all", {"data.partial_loading": 1.5}, "`data.partial_loading`", "1.5", "between"),
    yaml_case("list for a section", {"data": ["path", "patch"]}, "`data`", "['path', 'patch']", "keys and values"),
    yaml_case("text for a section", {"trainer": "fast"}, "`trainer`", "'fast'", "keys and values"),
    yaml_case("empty section", {"trainer": None}, "`trainer`", "empty", "Remove it"),
    yaml_case("list for the model", {"model": [1]}, "`model`", "[1]", "mapping"),
    yaml_case("mapping for the augmentation", {"data.augment": {"_target_": "RandFlipd"}}, "`data.augment`", "RandFlipd", "list"),
    # out of range
    yaml_case("batch of 0", {"data.batch_size": 0}, "`data.batch_size`", "got 0", "at least 1"),
    yaml_case("negative seed", {"seed": -1}, "`seed`", "got -1", "between 0 and"),
    yaml_case("fraction above 1", {"data.val_fraction": 1.5}, "`data.val_fraction`", "got 1.5", "between 0.01 and 0.9"),
    yaml_case("fraction not a number", {"data.val_fraction": float("nan")}, "`data.val_fraction`", "nan", "between 0.01 and 0.9"),
    yaml_case("overlap of 1", {"predict.overlap": 1.0}, "`predict.overlap`", "got 1.0", "between 0 and 0.9"),
    yaml_case("patch of 0", {"data.patch": [32, 0]}, "`data.patch`", "[32, 0]", "at least 1"),
    yaml_case("patch of one size", {"data.patch": [32]}, "`data.patch`", "[32]", "[Y, X], or 3"),
    yaml_case("patch of four sizes", {"data.patch": [1, 8, 32, 32]}, "`data.patch`", "[1, 8, 32, 32]", "[Y, X], or 3"),
    yaml_case("no devices", {"trainer.devices": 0}, "`trainer.devices`", "got 0", "at least 1"),
    yaml_case("devices by a word", {"trainer.devices": "all"}, "`trainer.devices`", "'all'", "auto"),
    yaml_case("time in other words", {"trainer.max_time": "2 hours"}, "`trainer.max_time`", "'2 hours'", "DD:HH:MM:SS"),
    yaml_case("no time", {"trainer.max_time": "00:00:00:00"}, "`trainer.max_time`", "trains nothing"),
    yaml_case("no batch of an epoch", {"trainer.limit_train_batches": 0}, "`trainer.limit_train_batches` is 0", "trains nothing"),
    yaml_case("no step", {"trainer.max_steps": 0}, "`trainer.max_steps` is 0", "trains nothing"),
    yaml_case("stops early without validation", {"trainer.early_stopping": True, "trainer.limit_val_batches": 0}, "`trainer.early_stopping`", "`trainer.limit_val_batches` is 0"),
    yaml_case("no end", {"trainer.max_epochs": -1}, "`trainer.max_epochs`", "-1", "set one of them"),
    yaml_case("batches and a half", {"trainer.limit_train_batches": 2.5}, "`trainer.limit_train_batches`", "2.5", "whole number"),
    # keys against each other
    yaml_case("3D patch, 2D net", {"data.patch": [8, 32, 32]}, "`data.patch` [8, 32, 32]", "`model.net.spatial_dims` is 2", "drop Z"),
    yaml_case("2D patch, 3D net", {"model.net.spatial_dims": 3}, "`data.patch` [32, 32]", "`model.net.spatial_dims` is 3", "add Z"),
    yaml_case("labels normalized", {"data.target_norm": {"_target_": "Percentile"}}, "`data.target_norm`", "`data.target_kind` is label", "Remove"),
    yaml_case("source is target", {"data.target": "IM"}, "`data.source`", "'IM'", "Give each its own"),
    yaml_case("unknown axis", {"data.source_axes": "WYX"}, "`data.source_axes`", "'WYX'", "'CYX'"),
    yaml_case("tile of 3 sizes", {"predict.tile": [32, 32, 32]}, "`predict.tile`", "[32, 32, 32]", "`data.patch`", "as many"),
    # objects
    yaml_case("no _target_", {"model.scheduler": {"step_size": 3}}, "`model.scheduler._target_`", "missing", "names the learning-rate scheduler"),
    yaml_case("misspelled _target_", {"model.loss": {"_tarrget_": "MSELoss"}}, "`model.loss._tarrget_`", "no key of a loss", "did you mean '_target_'"),
    yaml_case("net by name only", {"model.net": "UNet"}, "`model.net`", "'UNet'", "{_target_: Name"),
    yaml_case("no net", {"model.net": None}, "`model.net`", "got None", "{_target_: Name"),
    yaml_case("_target_ a number", {"model.optimizer._target_": 5}, "`model.optimizer._target_`", "5", "name of a"),
    yaml_case("normalization by name only", {"data.source_norm": "Percentile"}, "`data.source_norm`", "'Percentile'", "mapping"),
    yaml_case("callback without _target_", {"trainer.callbacks": [{"name": "EarlyStopping"}]}, "`trainer.callbacks[0]._target_`", "missing", "add `_target_: Name`"),
    # yaml
    text_case("key twice", "data:\n  path: a\n  path: b\n", "'path'", "line 3", "keep one"),
    text_case("python name", "model: {loss: !!python/name:os.system {}}\n", "python/name:os.system", "line 1", "only texts, numbers, lists and mappings"),
    text_case("python object", f"model: !!python/object/apply:os.system ['{FLAG}']\n", "python/object/apply:os.system", "line 1", "only texts"),
    text_case("wrong indentation", "data:\n  path: a\n patch: [1, 2]\n", "line 3", "not valid yaml", "check the indentation"),
    text_case("open bracket", "data: {patch: [32, 32}\n", "line 1", "not valid yaml", "colons"),
    text_case("list as a key", "data: {[a, b]: 1}\n", "line 1", "key", "text"),
    text_case("empty file", "", "config.yaml", "is empty", "preset"),
    text_case("only a comment", "# nothing here\n", "config.yaml", "is empty", "preset"),
    text_case("a list", "- data\n- model\n", "config", "['data', 'model']", "keys and values"),
    text_case("a text", "semantic_seg_2d", "config", "'semantic_seg_2d'", "keys and values"),
    text_case("bytes", bytes(range(128, 256)) * 4, "config.yaml", "not a text file", "UTF-8"),
    text_case("control characters", b"data: {path: \x00\x01\x02}\n", "config.yaml", "not valid yaml", "check"),
    text_case("two documents", "seed: 1\n---\nseed: 2\n", "line 2", "yaml", "another document"),
    # the command line
    Case("unknown preset", ("'semantic_seg_2'", "no preset", "did you mean 'semantic_seg_2d'"), config="semantic_seg_2"),
    Case("missing file", ("'absent.yaml'", "does not exist", "--list"), config="absent.yaml"),
    Case("folder that is no run", ("is a folder without config.yaml", "preset's name"), config="<FOLDER>"),
    flag_case("unknown flag", ["--verbos"], "'--verbos'", "no option", "--section.key"),
    flag_case("shortened flag", ["--conf", "a.yaml"], "'--conf'", "did you mean 'config'"),
    flag_case("flag of a section misspelled", ["--trainer.max_epohcs", "5"], "`trainer.max_epohcs`", "did you mean 'max_epochs'"),
    flag_case("unknown section", ["--trainr.max_epochs", "5"], "`trainr`", "did you mean 'trainer'"),
    flag_case("flag without a value", ["--data.batch_size"], "`--data.batch_size`", "needs a value", "VALUE"),
    flag_case("text in a number", ["--data.batch_size", "eight"], "`data.batch_size`", "'eight'", "whole number"),
    flag_case("open list", ["--data.patch", "[32, 32"], "--data.patch", "not valid yaml", "check"),
    flag_case("loose word", ["data.path=x"], "'data.path=x'", "--section.key value", "quotes"),
    flag_case("key inside a value", ["--seed.deep", "1"], "`seed`", "{'deep': 1}", "whole number"),
]

CLASS = [
    class_case("unknown net", {"model.net._target_": "UNett"}, "`model.net._target_`", "'UNett'", "did you mean 'UNet'"),
    class_case("unknown loss", {"model.loss._target_": "DiceCELos"}, "`model.loss._target_`", "'DiceCELos'", "did you mean 'DiceCELoss'"),
    class_case("unknown optimizer", {"model.optimizer._target_": "AdamV"}, "`model.optimizer._target_`", "'AdamV'", "did you mean 'Adam"),
    class_case("unknown framework", {"model._target_": "FNC"}, "`model._target_`", "'FNC'", "FCN"),
    class_case("unknown normalization", {"data.source_norm": {"_target_": "Percentil"}}, "`data.source_norm._target_`", "'Percentil'", "did you mean 'Percentile'"),
    class_case("unknown transform", {"data.augment": [{"_target_": "RandFlipdd"}]}, "`data.augment[0]._target_`", "'RandFlipdd'", "did you mean 'RandFlipd'"),
    class_case("unknown callback", {"trainer.callbacks": [{"_target_": "EarlyStoping"}]}, "`trainer.callbacks[0]._target_`", "'EarlyStoping'", "did you mean 'EarlyStopping'"),
    class_case("unknown scheduler", {"model.scheduler": {"_target_": "StepL"}}, "`model.scheduler._target_`", "'StepL'", "did you mean 'StepLR'"),
    class_case("optimizer for a net", {"model.net": {"_target_": "torch.optim.Adam"}}, "`model.net._target_`", "'torch.optim.Adam'", "name a network"),
    class_case("loss for an optimizer", {"model.optimizer": {"_target_": "torch.nn.MSELoss"}}, "`model.optimizer._target_`", "'torch.nn.MSELoss'", "optimizer (a subclass"),
    class_case("transform for a normalization", {"data.source_norm": {"_target_": "monai.transforms.ScaleIntensity"}},
               "`data.source_norm._target_`", "'monai.transforms.ScaleIntensity'", "normalization"),
    class_case("transform of arrays", {"data.augment": [{"_target_": "RandFlip", "prob": .5}]}, "`data.augment[0]._target_`", "RandFlip", "'RandFlipd'"),
    class_case("package not installed", {"model.net": {"_target_": "absent_package.Net"}}, "`model.net._target_`", "'absent_package.Net'", "install the package"),
    class_case("class not in the package", {"model.net": {"_target_": "monai.networks.nets.UNett"}}, "`model.net._target_`", "'UNett'", "did you mean 'UNet'"),
    class_case("relative name", {"model.net": {"_target_": ".nets.UNet"}}, "`model.net._target_`", "'.nets.UNet'", "package.module.Class"),
    class_case("argument of the net", {"model.net.chanels": [4, 8]}, "`model.net.chanels`", "UNet has no argument 'chanels'", "did you mean 'channels'"),
    class_case("argument of the loss", {"model.loss.dyce": 1}, "`model.loss.dyce`", "no argument 'dyce'", "did you mean 'dice'"),
    class_case("argument of the optimizer", {"model.optimizer.learning_rate": 1e-3}, "`model.optimizer.learning_rate`", "no argument 'learning_rate'", "choose from"),
    class_case("argument of the framework", {"model.num_clases": 3}, "`model.num_clases`", "no argument 'num_clases'", "did you mean 'num_classes'"),
    class_case("argument of the normalization", {"data.source_norm": {"_target_": "Percentile", "lo": 1}}, "`data.source_norm.lo`", "no argument 'lo'", "did you mean 'low'"),
    class_case("argument missing", {"model.net": {"_target_": "AttentionUnet", "channels": [4, 8]}}, "`model.net.strides`", "missing", "add it"),
    class_case("argument of a callback missing", {"trainer.callbacks": [{"_target_": "EarlyStopping"}]}, "`trainer.callbacks[0].monitor`", "missing", "add it"),
    class_case("labels for regression", {"model.task": "regression"}, "`model.task`", "'label'", "set `data.target_kind: image`"),
    class_case("images for segmentation", {"data.target_kind": "image"}, "`data.target_kind`", "'image'", "set `data.target_kind: label`"),
    class_case("unknown task", {"model.task": "segmentaton"}, "`model.task`", "'segmentaton'", "'segmentation'"),
    class_case("no classes", {"model.num_classes": 0}, "`model.num_classes`", "got 0", "at least 1"),
    # what is no network, and would do harm
    class_case("os.system", {"model.net": {"_target_": "os.system", "command": FLAG}}, "`model.net._target_`", "'os.system'", "name a network"),
    class_case("subprocess.Popen", {"model.net": {"_target_": "subprocess.Popen", "args": FLAG.split()}}, "`model.net._target_`", "'subprocess.Popen'", "name a network"),
    class_case("builtins.eval", {"model.loss": {"_target_": "builtins.eval", "source": "open('EXECUTED','w')"}}, "`model.loss._target_`", "'builtins.eval'", "name a loss"),
    class_case("exec as an optimizer", {"model.optimizer": {"_target_": "builtins.exec", "source": "open('EXECUTED','w')"}}, "`model.optimizer._target_`", "'builtins.exec'", "name a"),
    class_case("open as a framework", {"model": {"_target_": "builtins.open", "file": "EXECUTED", "mode": "w"}}, "`model._target_`", "'builtins.open'", "framework"),
    class_case("os.system as a callback", {"trainer.callbacks": [{"_target_": "os.system", "command": FLAG}]}, "`trainer.callbacks[0]._target_`", "'os.system'", "callback"),
    class_case("os.system as augmentation", {"data.augment": [{"_target_": "os.system", "command": FLAG}]}, "`data.augment[0]._target_`", "'os.system'", "transform"),
    class_case("os.system as normalization", {"data.source_norm": {"_target_": "os.system", "command": FLAG}}, "`data.source_norm._target_`", "'os.system'", "normalization"),
    class_case("os.system as scheduler", {"model.scheduler": {"_target_": "os.system", "command": FLAG}}, "`model.scheduler._target_`", "'os.system'", "scheduler"),
    class_case("torch.load as a net", {"model.net": {"_target_": "torch.load", "f": "x.pt"}}, "`model.net._target_`", "'torch.load'", "name a network"),
    class_case("trusted, but not this package", {"model.net": {"_target_": "os.system", "command": FLAG}}, "`model.net._target_`", "'os.system'", "--trust os",
               flags=("--trust", "subprocess")),
    # nested inside something that is fine
    class_case("os.system in the net", {"model.net.act": {"_target_": "os.system", "command": FLAG}}, "`model.net.act._target_`", "'os.system'", "network"),
    class_case("os.system in the loss", {"model.loss.dice": {"_target_": "os.system", "command": FLAG}}, "`model.loss.dice._target_`", "'os.system'", "loss"),
    class_case("os.system in a list of the net", {"model.net.channels": [4, {"_target_": "os.system", "command": FLAG}]}, "`model.net.channels[1]._target_`", "'os.system'", "network"),
    class_case("Popen in the optimizer", {"model.optimizer.lr": {"_target_": "subprocess.Popen", "args": FLAG.split()}}, "`model.optimizer.lr._target_`", "'subprocess.Popen'", "optimizer"),
    class_case("os.system in a callback", {"trainer.callbacks": [{"_target_": "EarlyStopping", "monitor": {"_target_": "os.system", "command": FLAG}}]},
               "`trainer.callbacks[0].monitor._target_`", "'os.system'", "callback"),
    class_case("os.system in an augmentation", {"data.augment": [{"_target_": "RandFlipd", "prob": {"_target_": "os.system", "command": FLAG}}]},
               "`data.augment[0].prob._target_`", "'os.system'", "transform"),
    class_case("os.system in a normalization", {"data.source_norm": {"_target_": "Percentile", "low": {"_target_": "os.system", "command": FLAG}}},
               "`data.source_norm.low._target_`", "'os.system'", "normalization"),
]

DATA = [
    data_case("missing folder", {"data.path": "no/such/folder"}, "`data.path`", "no/such/folder", "must be a folder", "there is no folder"),
    data_case("no folder at all", {"data.path": None}, "`data.path`", "missing", "--data.path FOLDER"),
    data_case("source folder of another name", {"data.source": "Image"}, "'Image'", "IM", "source"),
    data_case("layout that is not there", {"data.layout": "suffix"}, "*_IM", "no source image", "Put images there"),
    data_case("channel that is not there", {"data.source_channels": [3]}, "channels [3]", "has 1 channels", "correct `data.source_channels`"),
    data_case("channels of the net", {"model.net.in_channels": 3}, "`model.net.in_channels` is 3", "ask for 1", "leave it out"),
    data_case("classes of the net", {"model.net.out_channels": 2}, "`model.net.out_channels` is 2", "ask for 1", "leave it out"),
    data_case("value that the net refuses", {"model.net.channels": [4, "wide"]}, "`model.net`", "'wide'", "UNet refuses"),
    data_case("strides of another length", {"model.net.channels": [4, 8, 16, 32], "model.net.strides": [2]}, "`model.net`", "[2]", "UNet refuses"),
    data_case("value that the optimizer refuses", {"model.optimizer.lr": -1.0}, "`model.optimizer`", "-1.0", "AdamW refuses"),
    data_case("text for a rate", {"model.optimizer.lr": "fast"}, "`model.optimizer`", "'fast'", "AdamW refuses"),
    data_case("value that the loss refuses", {"model.loss.dice": -1.0}, "`model.loss`", "DiceCELoss", "dice=-1.0", "at least 0"),
    data_case("value that the callback refuses", {"trainer.callbacks": [{"_target_": "EarlyStopping", "monitor": "val/dice", "mode": "most"}]},
              "`trainer.callbacks[0]`", "'most'", "EarlyStopping refuses"),
    data_case("percentiles the wrong way round", {"data.source_norm": {"_target_": "Percentile", "low": 90, "high": 10}}, "`data.source_norm`", "low=90", "high=10", "low < high"),
    data_case("unknown figure to monitor", {"trainer.monitor": "val/dise"}, "`trainer.monitor`", "'val/dise'", "did you mean 'val/dice'"),
    data_case("axes that a 2D image has not", {"data.augment": [{"_target_": "RandRotate90d", "prob": 1.0, "spatial_axes": [0, 2]}]},
              "`data.augment", "[0, 2]", "RandRotate90d"),
    data_case("interval of the scheduler", {"model.scheduler_interval": "often"}, "`model.scheduler_interval`", "'often'", "'epoch' or 'step'"),
    data_case("patch that the rotation turns", {"data.patch": [16, 32]}, "`data.augment`", "[16, 32]", "square patch"),
    data_case("gap wider than the image", {"data.split": "regions", "data.gap": 60}, "`data.gap`", "60", "smaller"),
]

CASES = YAML + CLASS + DATA


def small_data(folder: Path) -> Path:
    "Five pairs of 64 pixels."
    return cells(folder)


def make(case: Case, folder: Path, data: Path) -> list[str]:
    "The arguments of a case; its config is written to `folder`."
    config = case.text
    if config is None: config = changed(CONFIG | {"out": str(folder / "run")}, {"data.path": str(data)} | case.change)
    path = write_config(folder / "config.yaml", config) if case.config is None else case.config.replace("<FOLDER>", str(folder))
    return ["--config", str(path), *case.flags]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "Simulated cells for all cases."
    return small_data(tmp_path_factory.mktemp("broken") / "cells")


def test_the_small_config_is_right(data, tmp_path, capsys):
    path = write_config(tmp_path / "config.yaml", changed(CONFIG, {"data.path": str(data), "out": str(tmp_path / "run")}))
    assert main(["--config", str(path), "--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_is_refused(case, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = make(case, tmp_path, data)
    capsys.readouterr()
    status = main(argv)
    said = one_paragraph(capsys.readouterr().err)
    assert status == 2
    for word in case.words:
        assert word in said, f"{word!r} is not in: {said}"
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left in ([], ["config.yaml"]), f"left behind: {left}"


def test_ids_differ():
    assert len({c.id for c in CASES}) == len(CASES) >= 30


# ---- time


def test_yaml_alone_needs_no_torch(data, tmp_path, bare_env):
    "All cases that the yaml decides, in one process: none imports torch."
    every = []
    for i, case in enumerate(YAML):
        folder = tmp_path / str(i)
        folder.mkdir()
        every.append(make(case, folder, data))
    code = ("import json, sys\nfrom mmv_im2im.cli import main\n"
            "for i, argv in enumerate(json.load(sys.stdin)):\n"
            "    print(i, main(argv), sorted({'torch', 'monai', 'pytorch_lightning'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(every), env=bare_env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for case, line in zip(YAML, done.stdout.splitlines(), strict=True):
        assert line.split(" ", 1)[1] == "2 []", f"{case.id}: {line}"


def spent(start, *args, **how) -> float:
    "Seconds of processor time of a process: what else the machine does counts little."
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = start(*args, **how)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    if start is shell:
        assert done.returncode == 2, done.stderr
        one_paragraph(done.stderr)
    return end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime


def seconds(case: Case, limit: float, folder: Path, data: Path, env: dict) -> float:
    "The least processor time of a start of the command; up to four tries."
    times = []
    for i in range(4):
        (folder / str(i)).mkdir()
        times.append(spent(shell, *make(case, folder / str(i), data), env=env, cwd=folder))
        if times[-1] < limit: break
    return min(times)


@pytest.mark.parametrize("id", ["key of trainer", "3D patch, 2D net", "python object"])
def test_yaml_decides_within_two_seconds(id, data, tmp_path, bare_env):
    assert seconds(next(c for c in YAML if c.id == id), 2, tmp_path, data, bare_env) < 2


@pytest.mark.parametrize("id", ["os.system", "unknown net"])
def test_a_class_decides_before_anything_but_imports(id, data, tmp_path, bare_env):
    "The answer takes little more than the libraries that it has to ask."
    libraries = [sys.executable, "-c", "import pytorch_lightning, monai.networks.nets, monai.losses, monai.transforms"]
    limit = 2 * spent(subprocess.run, libraries, env=bare_env)
    assert seconds(next(c for c in CLASS if c.id == id), limit, tmp_path, data, bare_env) < limit
