"Train, stop, continue, predict and evaluate, from the shell and from Python, in one process and in two."
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from chain import REGRESS, SEGMENT, checkpoint, run, same_weights, shell, start, write_yaml

from mmv_im2im import cli
from mmv_im2im.trainers import training as trainers
from mmv_im2im.checkpoints import load_checkpoint, read_metrics
from mmv_im2im.config import Config, from_dict, load_config, to_dict
from mmv_im2im.core import ConfigError
from mmv_im2im.data_modules.images import read_image, write_image
from mmv_im2im.data_modules.samples import sample_data, simulate_set
from mmv_im2im.inference.predictor import Predictor
from mmv_im2im.trainers import open_run, train

DROPOUT = SEGMENT["model"] | {"net": SEGMENT["model"]["net"] | {"dropout": 0.3}}
STEPWISE = {"scheduler": {"_target_": "OneCycleLR", "max_lr": 0.01}, "scheduler_interval": "step"}


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory, pairs):
    "A segmentation run, finished: ten epochs on simulated nuclei."
    folder = tmp_path_factory.mktemp("segmenter")
    cfg = write_yaml(folder / "seg.yaml", SEGMENT, trainer={"max_epochs": 10})
    assert run("--config", cfg, "--data.path", pairs, "--out", folder / "run") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    "Five volumes: nuclei out of brightfield."
    return simulate_set(tmp_path_factory.mktemp("volumes"), 5, (12, 48, 48))


@pytest.fixture(scope="module")
def restorer(tmp_path_factory, volumes):
    "A 3D regression run by the Python interface alone."
    net = REGRESS["model"]["net"] | {"spatial_dims": 3}
    data = REGRESS["data"] | {"path": str(volumes), "patch": [8, 32, 32], "batch_size": 2, "augment": []}
    cfg = from_dict(REGRESS | {"data": data, "model": REGRESS["model"] | {"net": net},
                               "out": str(tmp_path_factory.mktemp("restorer") / "run")})
    return train(cfg)


@pytest.fixture(scope="module")
def blurrer(tmp_path_factory, pairs):
    "A 2D regression run whose network has instance norm, so that a tile's result depends on all of the tile."
    folder = tmp_path_factory.mktemp("blurrer")
    net = REGRESS["model"]["net"] | {"norm": "instance"}
    cfg = write_yaml(folder / "c.yaml", REGRESS, model={"net": net}, trainer={"max_epochs": 10})
    assert run("--config", cfg, "--data.path", pairs, "--out", folder / "run") == 0
    return folder / "run"


# Interrupted and continued

KILL = """
import os, signal
from mmv_im2im.models.fcn import FCN
losses, calls = FCN.losses, []
def counted(self, batch):
    calls.append(1)
    if len(calls) > {n}: os.kill(os.getpid(), signal.SIGKILL)
    return losses(self, batch)
FCN.losses = counted
"""


@pytest.mark.parametrize("model, trainer, data", [
    ({}, {}, {}),
    (DROPOUT | STEPWISE, {"checkpoint_every_n_steps": 2}, {}),
    (DROPOUT, {"checkpoint_every_n_steps": 3, "accumulate_grad_batches": 2, "check_val_every_n_epoch": 2, "max_epochs": 4},
     {"num_workers": 2, "patches_per_image": 5}),
    (DROPOUT, {"checkpoint_every_n_steps": 2}, {"partial_loading": 0.4, "patches_per_image": 10}),
], ids=["epochs", "steps", "accumulated steps, two workers", "partial_loading"])
def test_a_killed_run_continues_to_the_same_weights(tmp_path, pairs, model, trainer, data):
    cfg = write_yaml(tmp_path / "c.yaml", SEGMENT, model=model, trainer=trainer, data=data)
    command = "--config", cfg, "--data.path", pairs
    assert run(*command, "--out", tmp_path / "whole") == 0

    # 5 batches an epoch (7 with 5 patches an image): the kill comes in the second or third epoch, never at its end
    batches = 13 if "max_epochs" in trainer else 8
    shell(*command, "--out", tmp_path / "killed", prelude=KILL.format(n=batches), status=-signal.SIGKILL)
    assert not (tmp_path / "killed" / "run.json").exists()
    stopped_at = checkpoint(tmp_path / "killed")["global_step"]
    steps = checkpoint(tmp_path / "whole")["global_step"]
    assert 0 < stopped_at < steps
    if trainer: assert stopped_at % (steps // trainer.get("max_epochs", 3)) != 0, "the checkpoint lies within an epoch"

    again = run if trainer else shell
    again(*command, "--out", tmp_path / "killed")
    assert "continue from" in (tmp_path / "killed" / "run.log").read_text()
    assert not (tmp_path / "killed-2").exists()
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    assert same_weights(tmp_path / "whole", tmp_path / "killed", "best")
    whole, parts = (read_metrics(tmp_path / f / "metrics.csv") for f in ("whole", "killed"))
    assert [(r["epoch"], r["step"]) for r in parts] == [(r["epoch"], r["step"]) for r in whole]
    assert parts == whole


AT_THE_END = """
import os, signal
from mmv_im2im.models.fcn import FCN
def when(name, n, number):
    method, calls = getattr(FCN, name), []
    def counted(self, *args):
        calls.append(1)
        if len(calls) == n: os.kill(os.getpid(), number)
        return method(self, *args)
    setattr(FCN, name, counted)
when({name!r}, {n}, {number})
"""


@pytest.mark.parametrize("name, n, number", [("validation_step", 2, signal.SIGKILL), ("losses", 10, signal.SIGTERM), ("validation_step", 2, signal.SIGTERM)],
                         ids=["killed while validating", "stopped in the last batch", "stopped while validating"])
def test_a_run_that_stops_between_the_last_batch_and_the_end_of_an_epoch(tmp_path, pairs, name, n, number):
    # 5 batches and a validation image an epoch; a checkpoint is due at the last batch, too
    cfg = write_yaml(tmp_path / "c.yaml", SEGMENT, trainer={"checkpoint_every_n_steps": 5})
    command = "--config", cfg, "--data.path", pairs
    assert run(*command, "--out", tmp_path / "whole") == 0
    status = -number if number == signal.SIGKILL else 128 + number
    shell(*command, "--out", tmp_path / "cut", prelude=AT_THE_END.format(name=name, n=n, number=int(number)), status=status)
    assert run(*command, "--out", tmp_path / "cut") == 0
    assert same_weights(tmp_path / "whole", tmp_path / "cut") and same_weights(tmp_path / "whole", tmp_path / "cut", "best")
    assert read_metrics(tmp_path / "whole" / "metrics.csv") == read_metrics(tmp_path / "cut" / "metrics.csv")


@pytest.mark.parametrize("stopped", [0, signal.SIGTERM])
def test_a_later_process_does_not_wait_for_the_files_of_the_first(tmp_path, capsys, monkeypatch, stopped):
    "It ends well, however soon, or Lightning would end the first; and it says nothing."
    monkeypatch.setattr(trainers, "train", lambda cfg, **_: trainers.Run(tmp_path, stopped))
    monkeypatch.setattr(trainers.rank_zero_only, "rank", 1)
    assert cli._train(Config(), ()) == 0
    assert capsys.readouterr().out == ""


def test_a_later_process_follows_the_first_whatever_that_has_begun_to_write(tmp_path, monkeypatch):
    (tmp_path / ".config.yaml.tmp").touch()
    with pytest.raises(ConfigError, match="holds files but no run"), trainers.open_run(tmp_path, {}): pass
    monkeypatch.setattr(trainers.rank_zero_only, "rank", 1)
    with trainers.open_run(tmp_path, {}) as (folder, checkpoint): assert (folder, checkpoint) == (tmp_path, None)


# The rules of the run folder

def test_a_finished_run_gets_a_numbered_sibling(tmp_path, pairs, capsys):
    cfg = write_yaml(tmp_path / "c.yaml", SEGMENT, trainer={"max_epochs": 1})
    for _ in range(3): assert run("--config", cfg, "--data.path", pairs, "--out", tmp_path / "run") == 0
    assert f"run folder {tmp_path / 'run-3'}" in capsys.readouterr().out
    assert same_weights(tmp_path / "run", tmp_path / "run-3")
    assert load_config(tmp_path / "run-3").out == str(tmp_path / "run-3")


@pytest.fixture
def unfinished(tmp_path, pairs):
    "A run of three epochs that stopped after one."
    cfg = write_yaml(tmp_path / "c.yaml", SEGMENT, out=str(tmp_path / "run"))
    assert run("--config", cfg, "--data.path", pairs) == 0
    assert run("--config", cfg, "--data.path", pairs, "--trainer.max_epochs", 1, "--out", tmp_path / "short") == 0
    (tmp_path / "run").rename(tmp_path / "whole")
    (tmp_path / "short").rename(tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    (tmp_path / "run" / "config.yaml").write_text((tmp_path / "whole" / "config.yaml").read_text())
    return cfg, tmp_path / "run", tmp_path / "whole"


def test_another_config_is_refused_while_a_run_is_unfinished(unfinished, pairs, capsys):
    cfg, folder, _ = unfinished
    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    assert run("--config", cfg, "--data.path", pairs, "--model.optimizer.lr", "0.5") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "unfinished run of another config" in said and "model.optimizer.lr: 0.01 -> 0.5" in said
    assert f"run_im2im --config {folder}" in said and "Traceback" not in said
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == before


def test_the_run_folder_as_config_continues_it(unfinished, capsys):
    _, folder, whole = unfinished
    assert run("--config", folder) == 0
    assert same_weights(folder, whole)
    assert not folder.with_name("run-2").exists()


def test_a_run_that_was_moved_keeps_its_best_checkpoint(tmp_path, pairs):
    # nothing is learned, so the first epoch stays the best one
    net, still = SEGMENT["model"]["net"] | {"norm": "instance"}, {"_target_": "SGD", "lr": 0.0}
    cfg = write_yaml(tmp_path / "c.yaml", SEGMENT, model={"net": net, "optimizer": still})
    command = "--config", cfg, "--data.path", pairs, "--out", tmp_path / "here"
    assert run(*command, "--trainer.max_epochs", 1) == 0
    (tmp_path / "here" / "run.json").unlink()
    (tmp_path / "here").rename(tmp_path / "there")
    text = (tmp_path / "there" / "config.yaml").read_text()
    (tmp_path / "there" / "config.yaml").write_text(text.replace("max_epochs: 1", "max_epochs: 3"))
    assert run("--config", tmp_path / "there") == 0
    assert checkpoint(tmp_path / "there")["epoch"] == 2
    assert checkpoint(tmp_path / "there", "best")["epoch"] == 0


def test_a_run_that_is_being_written_is_left_alone(unfinished, pairs, capsys):
    cfg, folder, whole = unfinished
    with open_run(folder, to_dict(load_config(folder))):
        assert run("--config", cfg, "--data.path", pairs) == 2
        assert "another run at this moment" in " ".join(capsys.readouterr().err.split())
    assert run("--config", cfg, "--data.path", pairs) == 0
    assert same_weights(folder, whole)


def test_killed_before_its_first_checkpoint_a_run_starts_again_in_its_folder(tmp_path, pairs):
    cfg = write_yaml(tmp_path / "c.yaml", SEGMENT)
    command = "--config", cfg, "--data.path", pairs, "--out", tmp_path / "run"
    shell(*command, prelude=KILL.format(n=2), status=-signal.SIGKILL)
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    assert run(*command) == 0
    assert (tmp_path / "run" / "run.json").exists() and not (tmp_path / "run-2").exists()
    assert [r["epoch"] for r in read_metrics(tmp_path / "run" / "metrics.csv")] == [0, 1, 2]


def test_a_folder_that_holds_other_things_is_refused(tmp_path, pairs, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    cfg = write_yaml(tmp_path / "c.yaml", SEGMENT)
    assert run("--config", cfg, "--data.path", pairs, "--out", tmp_path / "mine") == 2
    assert "holds files but no run" in " ".join(capsys.readouterr().err.split())
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


# The same weights every time

@pytest.mark.parametrize("model", [{}, DROPOUT], ids=["plain", "dropout"])
def test_workers_and_global_randomness_change_nothing(tmp_path, pairs, model):
    cfg = write_yaml(tmp_path / "c.yaml", SEGMENT, model=model, trainer={"max_epochs": 2})
    for workers in (0, 2):
        torch.manual_seed(workers)
        np.random.seed(workers)
        assert run("--config", cfg, "--data.path", pairs, "--data.num_workers", workers, "--out", tmp_path / f"w{workers}") == 0
    assert same_weights(tmp_path / "w0", tmp_path / "w2")
    rows = [read_metrics(tmp_path / f / "metrics.csv") for f in ("w0", "w2")]
    assert rows[0] == rows[1]
    assert run("--config", cfg, "--data.path", pairs, "--seed", 1, "--out", tmp_path / "other") == 0
    assert not same_weights(tmp_path / "w0", tmp_path / "other")


def _copy_pairs(pairs, folder, costmap=None, spoil=None):
    "The pairs again, with a cost map, or with other labels where `spoil` says."
    for im in sorted((pairs / "IM").iterdir()):
        source, labels = read_image(im), read_image(pairs / "GT" / im.name)
        labels = np.asarray(labels).copy()
        if spoil is not None: labels[..., spoil] = 1 - np.minimum(labels[..., spoil], 1)
        write_image(folder / "IM" / im.name, np.asarray(source), "TCZYX")
        write_image(folder / "GT" / im.name, labels, "TCZYX")
        if costmap is not None: write_image(folder / "CM" / im.name, costmap, "YX")
    return folder


@pytest.mark.parametrize("config", [SEGMENT, REGRESS], ids=["dice and cross entropy", "squared error"])
def test_pixels_of_cost_0_do_not_count(tmp_path, pairs, config):
    right = slice(32, None)
    costmap = np.ones((64, 64), np.float32)
    costmap[:, right] = 0
    folders = {"plain": _copy_pairs(pairs, tmp_path / "plain"),
               "ignored": _copy_pairs(pairs, tmp_path / "ignored", costmap),
               "spoilt": _copy_pairs(pairs, tmp_path / "spoilt", costmap, spoil=right)}
    cfg = write_yaml(tmp_path / "c.yaml", config, trainer={"max_epochs": 1}, data={"target_norm": None})
    for name, folder in folders.items():
        assert run("--config", cfg, "--data.path", folder, "--out", tmp_path / "runs" / name) == 0
    at = tmp_path / "runs"
    assert not same_weights(at / "plain", at / "ignored"), "the cost map changes nothing"
    assert same_weights(at / "ignored", at / "spoilt"), "pixels of cost 0 reach the weights"
    assert read_metrics(at / "ignored" / "metrics.csv") == read_metrics(at / "spoilt" / "metrics.csv")


# Predict: by API, by CLI, whole, tiled

API = """
import sys, numpy as np
from mmv_im2im.inference.predictor import Predictor
np.save(sys.argv[3], Predictor(sys.argv[1], tile=(96, 96), device='cpu')(sys.argv[2]))
"""


def test_trained_by_the_shell_predicted_by_api_and_by_shell(tmp_path):
    images = sample_data("nuclei_2d")
    out = tmp_path / "run"
    shell("--config", "semantic_seg_2d", "--data.path", images, "--out", out, "--trainer.max_epochs", 2, "--trainer.accelerator", "cpu",
          "--trainer.limit_train_batches", 6, "--trainer.pictures", 1, "--model.net.channels", "[8, 16]", "--model.net.strides", "[2]",
          "--data.patch", "[64, 64]", "--data.val_pixels", 40000, "--trainer.enable_progress_bar", "false")
    assert {"config.yaml", "metrics.csv", "run.json", "run.log", "curves.png"} <= {p.name for p in out.iterdir()}
    assert list((out / "pictures").glob("*.png")) and list((out / "tensorboard").glob("events*"))

    image = next((images / "IM").iterdir())
    said = shell("--config", out, "--mode", "predict", "--predict.path", images / "IM", "--predict.tile", "[96, 96]",
                 "--predict.device", "cpu", "--predict.out", tmp_path / "shell")
    assert "1 images written" in said
    by_shell, = (tmp_path / "shell").iterdir()
    by_shell = np.squeeze(read_image(by_shell))

    subprocess.run([sys.executable, "-c", API, str(out), str(image), str(tmp_path / "api.npy")], check=True, timeout=300)
    by_api = np.squeeze(np.load(tmp_path / "api.npy"))
    here = np.squeeze(Predictor(out, tile=(96, 96), device="cpu")(np.squeeze(read_image(image))))
    assert by_shell.shape == np.squeeze(read_image(image)).shape and by_shell.dtype == by_api.dtype == np.uint8
    assert 0 < by_shell.mean() < 1, "the prediction has both objects and background"
    np.testing.assert_array_equal(by_shell, by_api)
    np.testing.assert_array_equal(by_shell, here)


def test_a_yaml_that_trained_predicts_with_its_run(pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_yaml(Path("mine.yaml"), SEGMENT | {"data": SEGMENT["data"] | {"path": str(pairs)}})
    predict = ("--config", "mine.yaml", "--mode", "predict", "--predict.path", pairs)
    assert run(*predict) == 2 and "'runs/mine' holds no run" in " ".join(capsys.readouterr().err.split())
    assert run("--config", "mine.yaml") == 0 and run(*predict) == 0
    assert len(list(Path("runs/mine/predictions").glob("*.ome.tif"))) == 6


def test_volumes_from_python_to_files(tmp_path, restorer, volumes):
    assert restorer.result["finished"] and restorer.result["monitor"] == "val/pearson"
    assert restorer.metrics[-1]["train/loss"] < restorer.metrics[0]["train/loss"]
    model = Predictor(restorer.best, device="cpu", tile=(12, 32, 32))
    outcome = model.predict_folder(volumes, tmp_path / "out", progress=False)
    assert len(outcome.done) == 5 and not outcome.failed
    source, target = (np.squeeze(read_image(volumes / k / "000.tif")) for k in ("IM", "GT"))
    written = read_image(tmp_path / "out" / "000.ome.tif")
    assert written.shape == (1, 1, 12, 48, 48) and written.dtype == np.uint16
    np.testing.assert_array_equal(written[0, 0], model(source))
    assert target.min() < written.mean() < target.max(), "the result is in the target's units"
    rows, bad = model.evaluate(volumes, progress=False)
    assert len(rows) == 5 and not bad.failed and {"image", "pearson", "ssim", "psnr"} <= set(rows[0])


def test_evaluate_writes_a_table(segmenter, pairs, tmp_path, capsys):
    assert run("--config", segmenter, "--mode", "evaluate", "--data.path", pairs, "--predict.out", tmp_path) == 0
    shown = capsys.readouterr().out
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert len(lines) == 8 and lines[0].startswith("image,") and "dice" in lines[0] and lines[-1].startswith("mean,")
    assert "000.tif" in shown and "mean" in shown


@pytest.mark.parametrize("size", [(65, 77), (131, 90), (33, 200)], ids=str)
def test_exact_tiles_equal_the_whole_image(segmenter, size):
    image = np.random.default_rng(0).normal(size=size).astype(np.float32)
    whole = Predictor(segmenter, blend="none", device="cpu")(image, probabilities=True)
    tiles = Predictor(segmenter, blend="exact", tile=(32, 40), batch_size=3, device="cpu")(image, probabilities=True)
    assert whole.shape == tiles.shape == size
    assert np.abs(whole - tiles).max() < 1e-5


@pytest.mark.parametrize("size", [(13, 45, 51), (21, 33, 70)], ids=str)
def test_exact_tiles_equal_the_whole_volume(restorer, size):
    image = np.random.default_rng(0).normal(size=size).astype(np.float32)
    whole, tiles = (Predictor(restorer.best, blend=b, tile=t, dtype="float32", device="cpu") for b, t in (("none", None), ("exact", (16, 32, 32))))
    scale = float(np.ravel(whole.preprocessing.target_stats["scale"])[0])
    a, b = whole(image), tiles(image)
    assert a.shape == b.shape == size
    assert np.abs(a - b).max() / scale < 1e-5, "compared in the network's units"


@pytest.mark.parametrize("kind", ["segmentation", "regression"])
def test_gaussian_blending_leaves_no_seam(kind, segmenter, blurrer, tmp_path):
    simulate_set(tmp_path, 4, (228, 228), source="nuclei", target="labels", seed=5)
    checkpoint = segmenter if kind == "segmentation" else blurrer
    # tiles of 48 pixels, one every 36: an image of 228 holds six in a row
    edges = np.array([e for start in range(36, 181, 36) for e in (start, start + 12)])

    def step(blend: str) -> float:
        "Mean jump between neighboring pixels across the edges of tiles, in units of the mean jump elsewhere."
        model, across, elsewhere = Predictor(checkpoint, blend=blend, tile=(48, 48), overlap=.25, dtype="float32", device="cpu"), [], []
        for path in sorted((tmp_path / "IM").iterdir()):
            out = model(path, probabilities=True)
            for jumps in (np.abs(np.diff(out, axis=0)).mean(1), np.abs(np.diff(out, axis=1)).mean(0)):
                across.append(jumps[edges - 1].mean())
                elsewhere.append(np.delete(jumps, edges - 1).mean())
        return np.mean(across) / np.mean(elsewhere)

    seams, content = step("gaussian"), step("none")  # what lies in the image at these places is the same for both
    assert seams / content <= 1.1 and seams <= 1.1, (seams, content)


# The checkpoint

def test_a_checkpoint_is_plain_and_whole(segmenter, pairs):
    for name in ("best", "last"):
        kept = checkpoint(segmenter, name)
        assert from_dict(kept["im2im"]["config"]) == load_config(segmenter)
        net = kept["im2im"]["config"]["model"]["net"]
        assert (net["in_channels"], net["out_channels"]) == (1, 1), "what was read from the data is there"
    assert yaml.safe_load((segmenter / "config.yaml").read_text()) == kept["im2im"]["config"]
