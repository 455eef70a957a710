"Runs: what continues, what is refused, what is damaged; each answer a sentence, nothing lost."
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from small import CONFIG, cells, changed, one_paragraph, write_config

from mmv_im2im.cli import main
from mmv_im2im.config import (
    Config, checked, from_dict, load_config, parse_overrides, preset, to_dict,
)
from mmv_im2im.core import ConfigError, DataError, Im2ImError


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    "A folder with ten pairs, `imgs`, and a run of 3 epochs that was killed in its second, `run`."
    import pytorch_lightning as pl
    from mmv_im2im.trainers import train
    class Die(pl.Callback):
        def on_train_epoch_start(self, trainer, *_):
            if trainer.current_epoch == 1: raise SystemExit("killed")
    folder = tmp_path_factory.mktemp("base")
    cells(folder / "imgs", 10, (48, 48))
    with pytest.raises(SystemExit): train(settings(folder), callbacks=[Die()])
    return folder


def settings(folder: Path, **changes) -> Config:
    "The run's config, with dotted keys changed."
    usual = {"data.path": str(folder / "imgs"), "out": str(folder / "run"), "trainer.max_epochs": 3, "trainer.logger": False}
    return from_dict(changed(CONFIG, usual | {k.replace("__", "."): v for k, v in changes.items()}))


@pytest.fixture
def stopped(base, tmp_path, monkeypatch) -> Path:
    "A copy of it, which is the working folder; the images are a link to those of `base`."
    shutil.copytree(base / "run", tmp_path / "run")
    os.symlink(base / "imgs", tmp_path / "imgs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def again(folder: Path, **changes) -> Config:
    "The config of the run that goes on, with dotted keys changed; its model is as it was resolved."
    config = to_dict(load_config(folder / "run"))
    return from_dict(changed(config, {k.replace("__", "."): v for k, v in changes.items()}))


SAME = {
    "relative": dict(data__path="imgs"),
    "through another folder": dict(data__path="run/../imgs"),
    "by a variable": dict(data__path="$PLACE/imgs"),
    "workers": dict(data__num_workers=1, data__loader={"timeout": 5}),
    "cache": dict(data__cache="none", data__cache_gb=1.0),
    "progress bar, pictures, loggers": dict(trainer__enable_progress_bar=True, trainer__pictures=2, trainer__logger=None, trainer__log_every_n_steps=3),
    "more epochs": dict(trainer__max_epochs=9),
    "another end": dict(trainer__max_time="00:01:00:00", trainer__early_stopping=True),
    "callbacks that only show": dict(trainer__callbacks=[{"_target_": "LearningRateMonitor"}]),
    "more checkpoints": dict(trainer__save_top_k=3, trainer__checkpoint_every_n_steps=2),
    "prediction": dict(predict__tta=True, mode="predict"),
}
OTHER = {
    "seed": (dict(seed=1), "seed: 0 -> 1"),
    "batch": (dict(data__batch_size=2), "data.batch_size: 4 -> 2"),
    "learning rate": (dict(model__optimizer__lr=0.1), "model.optimizer.lr: 0.005 -> 0.1"),
    "precision": (dict(trainer__precision="bf16-mixed"), "trainer.precision"),
    "callback that acts": (dict(trainer__callbacks=[{"_target_": "StochasticWeightAveraging", "swa_lrs": 0.1}]), "trainer.callbacks"),
    "images": (dict(data__path="."), "--moved"),
}


@pytest.mark.parametrize("name", SAME)
def test_what_learns_the_same_goes_on(name, stopped, monkeypatch):
    from mmv_im2im.trainers import open_run
    monkeypatch.setenv("PLACE", str(stopped))
    with open_run("run", to_dict(again(stopped, **SAME[name]))) as (folder, resume):
        assert folder == Path("run") and resume == Path("run/checkpoints/last.ckpt")


@pytest.mark.parametrize("name", OTHER)
def test_what_learns_something_else_is_refused(name, stopped):
    from mmv_im2im.trainers import open_run
    change, words = OTHER[name]
    with pytest.raises(ConfigError) as e:
        with open_run("run", to_dict(again(stopped, **change))): pass
    assert words in str(e.value) and "unfinished run of another config" in str(e.value)


def test_a_difference_is_told_before_anything_is_imported(stopped, monkeypatch):
    from mmv_im2im.trainers import training as trainers
    monkeypatch.setattr(trainers, "prepare", lambda *_: pytest.fail("it prepared the data"))
    with pytest.raises(ConfigError, match="seed: 0 -> 1"): trainers.train(again(stopped, seed=1))


def parts(cfg: Config) -> tuple[list[str], list[str], list[str]]:
    "Names of the images that train and that validate, and what the data module says of changes."
    from mmv_im2im.trainers import prepare
    data = prepare(cfg)[2]
    names = lambda items: [Path(i["IM"]).name for i in items]
    return names(data.train_items), names(data.val_items), data.changes


def own_images(folder: Path):
    "Images that may be changed, in place of the link."
    (folder / "imgs").unlink()
    shutil.copytree(folder.joinpath(load_config(folder / "run").data.path), folder / "imgs")


def copy_pair(folder: Path, old: str, new: str):
    for k in ("IM", "GT"): shutil.copy(folder / k / old, folder / k / new)


def test_new_images_train_and_missing_ones_are_said(stopped):
    own_images(stopped)
    cfg = again(stopped, data__path="imgs")
    train, val, said = parts(cfg)
    kept = json.loads((stopped / "run" / "split.json").read_text())
    assert [f"IM/{n}" for n in train] == kept["train"] and not said
    for new in ("0000.tif", "new.tif"): copy_pair(stopped / "imgs", train[0], new)  # one before all others, one behind
    train1, val1, said = parts(cfg)
    assert train1 == [*train, "0000.tif", "new.tif"] and val1 == val
    assert len(said) == 1 and "2 images came since" in said[0] and "new.tif" in said[0]
    for k in ("IM", "GT"): (stopped / "imgs" / k / train[1]).unlink()
    train2, val2, said = parts(cfg)
    assert train2 == [n for n in train1 if n != train[1]] and val2 == val and any("missing" in s and train[1] in s for s in said)
    for n in kept["val"]:
        for k in ("IM", "GT"): (stopped / "imgs" / k / Path(n).name).unlink()
    with pytest.raises(DataError, match="on which this run validated none is left"): parts(cfg)


@pytest.mark.parametrize("split", ["regions", "pixels"])
def test_regions_and_pixels_stay_where_they_were(split, tmp_path):
    from mmv_im2im.data_modules.data_module import Im2ImDataModule
    cells(tmp_path, 3, (64, 96))
    def module(kept=None):
        data = Im2ImDataModule(tmp_path, patch=(32, 32), target_kind="label", split=split, val_fraction=0.1, gap=4)
        data.kept = kept
        data.setup()
        return data
    part = lambda data: [{Path(i["IM"]).name: (i.get("region"), i.get("held")) for i in x} for x in (data.train_items, data.val_items)]
    first = module()
    copy_pair(tmp_path, Path(first.items[0]["IM"]).name, "0.tif")  # comes first: all others move on by one
    (train, val), (train1, val1) = part(first), part(module(first.parts))
    assert val1 == val and train1 == train | {"0.tif": (None, None)}


def test_a_moved_folder_goes_on_when_asked(stopped, capsys):
    own_images(stopped)
    shutil.move(stopped / "imgs", stopped / "elsewhere")
    flags = ["--config", "run", "--data.path", "elsewhere", "--trainer.max_epochs", "2"]
    assert main(flags) == 2 and "add `--moved`" in one_paragraph(capsys.readouterr().err)
    shutil.move(stopped / "run", stopped / "renamed")  # and the run itself has another name
    flags[1] = "renamed/config.yaml"
    assert main([*flags, "--moved"]) == 0
    assert not (stopped / "run").exists() and json.loads((stopped / "renamed" / "run.json").read_text())["epochs"] == 2
    assert load_config("renamed").data.path == str(stopped / "elsewhere")
    assert main(["--config", "renamed", "--trainer.max_epochs", "3", "--trainer.init_from", "renamed"]) == 0
    assert (stopped / "renamed-2" / "run.json").is_file()


def test_a_finished_run_says_how_to_begin_from_its_weights(stopped, caplog):
    import logging
    from mmv_im2im.trainers import open_run
    (stopped / "run" / "run.json").write_text('{"finished": true, "epochs": 3}')
    logging.getLogger("pytorch_lightning").propagate = True
    with caplog.at_level("INFO"):
        with open_run("run", to_dict(again(stopped, trainer__max_epochs=9))) as (folder, resume):
            assert folder == Path("run-2") and resume is None
    assert "finished run of 3 epochs" in caplog.text and "--trainer.init_from run" in caplog.text


DAMAGED = {
    "run.json": ["", "{", "[]", "null", b"\xff\xfe\x00"],
    "split.json": ["", "{}", '{"by": "files", "train": 3, "val": []}'],
    "metrics.csv": ["epoch,step,val/dice\nx,1,0.5\n", "epoch,step\n0,1,2,3\n", b"\x00\xff\x00", "a,b\n1,2\n"],
    "config.yaml": ["", "{", "data: {ptach: [3, 3]}", b"\xff\xfe\x00"],
    "checkpoints/last.ckpt": ["", "no checkpoint"],
}


@pytest.mark.parametrize("name, content", [(n, c) for n, cs in DAMAGED.items() for c in cs])
def test_a_damaged_file_of_a_run_is_named(name, content, stopped, capsys):
    path = stopped / "run" / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = {p.name: p.stat().st_mtime_ns for p in stopped.glob("run/checkpoints/*")}
    assert main(["--config", "run"]) == 2
    assert Path(name).name in one_paragraph(capsys.readouterr().err)
    assert before == {p.name: p.stat().st_mtime_ns for p in stopped.glob("run/checkpoints/*")}


def test_weights_alone_cannot_be_gone_on_with(stopped, capsys):
    import torch
    path = stopped / "run" / "checkpoints" / "last.ckpt"
    torch.save({"state_dict": torch.load(path, weights_only=True)["state_dict"]}, path)
    assert main(["--config", "run"]) == 2 and "holds weights but not where training stands" in one_paragraph(capsys.readouterr().err)


FLAGS = {
    "config twice": (["--config", "a.yaml", "--config", "a.yaml"], "given 2 times"),
    "empty config": (["--config="], "`--config` is empty"),
    "empty path": (["--config", "a.yaml", "--data.path="], "`data.path` is empty"),
    "empty out": (["--config", "a.yaml", "--out", " "], "`out` is empty"),
    "a checkpoint": (["--config", "run/checkpoints/last.ckpt"], "is a checkpoint, not a config"),
    "a folder inside a run": (["--config", "run/checkpoints"], "Did you mean the run"),
    "a binary file": (["--config", "imgs/IM/binary"], "is not a text file"),
    "UTF-16": (["--config", "utf16.yaml"], "saved as UTF-8"),
    "deep nesting": (["--config", "deep.yaml"], "nested too deeply"),
    "no such variable": (["--config", "a.yaml", "--data.path", "$NO_SUCH_ONE/imgs"], "NO_SUCH_ONE is not set"),
    "no such variable, in braces": (["--config", "a.yaml", "--out", "${NO_SUCH_ONE}/run"], "NO_SUCH_ONE is not set"),
    "no such user": (["--config", "a.yaml", "--out", "~no_such_user/run"], "no user 'no_such_user'"),
    "out below a file": (["--config", "a.yaml", "--out", "a.yaml/run"], "`out` 'a.yaml/run' cannot be written"),
    "out that is a file": (["--config", "a.yaml", "--out", "a.yaml"], "`out` 'a.yaml' cannot be written"),
    "out in /proc": (["--config", "a.yaml", "--out", "/proc/no/run"], "cannot be written"),
    "cache in /proc": (["--config", "a.yaml", "--data.cache", "disk", "--data.cache_dir", "/proc/no"], "`data.cache_dir`"),
    "predict.out below a file": (["--config", "run", "--mode", "evaluate", "--predict.out", "a.yaml/x"], "`predict.out`"),
    "strategy": (["--config", "a.yaml", "--trainer.strategy", "ddpp"], "ddpp"),
    "strategy of another package": (["--config", "a.yaml", "--trainer.strategy", "deepspeed"], "`trainer`"),
    "devices": (["--config", "a.yaml", "--trainer.accelerator", "gpu", "--trainer.devices", "99"], "`trainer`"),
    "precision of another package": (["--config", "a.yaml", "--trainer.precision", "transformer-engine"], "transformer_engine"),
    "logger of another package": (["--config", "a.yaml", "--trainer.logger", "[{_target_: CometLogger}]"], "needs a package"),
    "a loss of probabilities": (["--config", "a.yaml", "--model.loss", "{_target_: BCELoss}"], "take BCEWithLogitsLoss"),
    "MONAI's loss of probabilities": (["--config", "a.yaml", "--model.loss", "{_target_: monai.losses.DiceLoss}"], "`sigmoid: true`"),
    "sources alone in a folder of pairs": (["--config", "n2v_2d", "--data.path", "imgs", "--check"], "`data.path: imgs/IM`"),
    "a plateau of the wrong kind": (["--config", "a.yaml", "--model.scheduler", "{_target_: ReduceLROnPlateau, mode: min}"], "'val/dice' is better the larger"),
    "a plateau of a loss": (["--config", "a.yaml", "--trainer.monitor", "val/loss", "--model.scheduler", "{_target_: ReduceLROnPlateau, mode: max}"], "better the smaller"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_wrong_command_is_a_sentence_and_leaves_nothing(name, stopped, capsys):
    flags, words = FLAGS[name]
    config = changed(CONFIG, {"data.path": str(stopped / "imgs"), "out": str(stopped / "new")})
    write_config(stopped / "a.yaml", config)
    write_config(stopped / "deep.yaml", "data: " + 2000 * "[" + 2000 * "]")
    (stopped / "utf16.yaml").write_bytes(yaml.safe_dump(config).encode("utf-16"))
    own_images(stopped)
    (stopped / "imgs" / "IM" / "binary").write_bytes(bytes(range(256)) * 8)
    before = sorted(stopped.rglob("*"))
    assert main(flags) == 2
    assert words in one_paragraph(capsys.readouterr().err)
    assert sorted(stopped.rglob("*")) == before


CHANGES = {
    "misspelled": (lambda c: setattr(c.trainer, "max_epoch", 3), "did you mean 'max_epochs'"),
    "misspelled, past the check": (lambda c: c.trainer.__dict__.update(max_epoch=3), "did you mean 'max_epochs'"),
    "key at the top": (lambda c: setattr(c, "batch_size", 3), "write `data.batch_size`"),
    "refused": (lambda c: c.trainer.__dict__.update(barebones=True), "cannot be set"),
    "range": (lambda c: setattr(c.data, "val_fraction", 2), "between"),
    "type": (lambda c: setattr(c.data, "patch", 32), "in brackets"),
    "not a number": (lambda c: setattr(c.data, "val_fraction", float("nan")), "between"),
    "dict for a section": (lambda c: setattr(c, "trainer", {"max_epochs": 3}), "must be a TrainerConfig"),
    "another section": (lambda c: setattr(c, "trainer", c.data), "must be a TrainerConfig"),
    "object": (lambda c: c.model.update(net=object()), "`model.net` is an object of class object"),
    "object in a list": (lambda c: c.data.augment.append(print), "`data.augment` must be a list of mappings"),
    "two keys": (lambda c: setattr(c.data, "patch", (8, 32, 32)), "`model.net.spatial_dims`"),
    "no path": (lambda c: setattr(c.data, "path", ""), "`data.path` is empty"),
    "no config": (lambda c: setattr(c, "data", None), "must be a DataConfig"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_config_is_checked_however_it_was_changed(name, tmp_path):
    from mmv_im2im.trainers import train
    cfg = preset("semantic_seg_2d", out=str(tmp_path / "run"), data={"path": str(tmp_path)})
    change, words = CHANGES[name]
    with pytest.raises(ConfigError) as e:
        change(cfg)
        train(cfg)
    assert words in str(e.value) and not list(tmp_path.iterdir())


def test_what_numpy_and_pathlib_give_is_taken(tmp_path):
    import numpy as np
    cfg = Config()
    cfg.data.path, cfg.data.batch_size, cfg.data.patch = tmp_path, np.int64(3), np.array([64, 64])
    data = checked(cfg).data
    assert (data.path, data.batch_size, data.patch) == (str(tmp_path), 3, (64, 64)) and type(data.batch_size) is int
    with pytest.raises(ConfigError, match="must be a TrainerConfig"): replace(cfg, trainer={"max_epochs": 3})


def test_paths_are_expanded_wherever_a_key_is_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WORK", "~/work")
    full = str(tmp_path / "work" / "x")
    for key in ("out", "data.path", "data.cache_dir", "trainer.init_from", "predict.path", "predict.out", "predict.checkpoint"):
        cfg = load_config("semantic_seg_2d", parse_overrides([f"--{key}", "${WORK}/x"]))
        section, _, name = key.rpartition(".")
        assert getattr(getattr(cfg, section) if section else cfg, name) == full, key
    both = {"train": "$WORK/x", "val": "~/work/x"}
    assert preset("semantic_seg_2d", data={"path": both}).data.path == {"train": full, "val": full}
    (tmp_path / "c.yaml").write_text("out: ~/work/x\n")
    assert load_config("~/c.yaml").out == full


def test_paths_in_a_csv_are_expanded(tmp_path, monkeypatch):
    from mmv_im2im.data_modules.layouts import find_samples
    monkeypatch.setenv("PLACE", str(cells(tmp_path / "imgs", 2, (32, 32))))
    names = sorted(p.name for p in (tmp_path / "imgs" / "IM").iterdir())
    rows = [f"$PLACE/IM/{n},${{PLACE}}/GT/{n}" for n in names]
    (tmp_path / "t.csv").write_text("\n".join(["source_path,target_path", *rows]))
    assert len(find_samples(tmp_path / "t.csv")) == 2
    monkeypatch.delenv("PLACE")
    with pytest.raises(Im2ImError, match="PLACE is not set"): find_samples(tmp_path / "t.csv")


def test_a_longer_run_stretches_its_schedule(base, tmp_path):
    import pytorch_lightning as pl
    from mmv_im2im.trainers import train
    class Die(pl.Callback):
        def on_train_epoch_start(self, trainer, *_):
            if trainer.current_epoch == 1: raise SystemExit("killed")
    schedule = {"scheduler": {"_target_": "OneCycleLR", "max_lr": 0.01}, "scheduler_interval": "step"}
    make = lambda n: replace(settings(base, trainer__max_epochs=n, out=str(tmp_path / "run")), model=CONFIG["model"] | schedule)
    with pytest.raises(SystemExit): train(make(2), callbacks=[Die()])
    assert train(make(3)).result["epochs"] == 3


@pytest.mark.parametrize("asked, kept", [({"swa": 0.5}, (None, 0.5)), ({}, (0.99, None)), ({"ema": 0.9}, (0.9, None)), ({"swa": None}, (0.99, None)), ({"ema": None}, (None, None))], ids=str)
def test_one_mean_of_weights_takes_the_place_of_the_other(asked, kept):
    cfg = preset("semantic_seg_2d", trainer=asked)
    assert (cfg.trainer.ema, cfg.trainer.swa) == kept
    with pytest.raises(ConfigError, match="two ways to average"): preset("semantic_seg_2d", trainer={"ema": 0.9, "swa": 0.5})
