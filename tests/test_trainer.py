"Lightning's trainer from the yaml; finders; several processes; ends that lose nothing."
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields

import pytest
import pytorch_lightning as pl
import torch
from chain import GAMES, REGRESS, SEGMENT, checkpoint, run, same_weights, shell, start, write_yaml

from mmv_im2im.checkpoints import load_checkpoint, read_metrics
from mmv_im2im.config import REFUSED, TrainerConfig, from_dict
from mmv_im2im.core import ConfigError, Im2ImError
from mmv_im2im.data_modules.samples import simulate_set
from mmv_im2im.trainers import Im2ImTrainer, lightning_arguments, prepare, train, trial_trainer
from mmv_im2im.trainers import try_steps


def configured(out, pairs, base=SEGMENT, **sections):
    "A config of three epochs with sections changed."
    raw = {k: v | sections.get(k, {}) if isinstance(v, dict) else v for k, v in base.items()}
    raw["data"] |= {"path": str(pairs)}
    return from_dict(raw | {"out": str(out)})


# Every argument of Lightning's Trainer

@pytest.mark.parametrize("name", lightning_arguments())
def test_an_argument_of_lightning_is_a_key_or_refused_with_the_reason(name):
    keys = {f.name for f in fields(TrainerConfig)}
    assert (name in keys) != (name in REFUSED)
    if name in keys: return
    with pytest.raises(ConfigError) as e: from_dict({"trainer": {name: True}})
    assert f"`trainer.{name}` cannot be set: {REFUSED[name]}" in str(e.value)


def test_nothing_is_refused_that_lightning_does_not_have():
    assert set(REFUSED) <= set(lightning_arguments())


def test_a_key_that_the_installed_lightning_has_lost_is_said(tmp_path, pairs, monkeypatch):
    left = [a for a in lightning_arguments() if a != "benchmark"]
    monkeypatch.setattr("mmv_im2im.trainers.training.lightning_arguments", lambda: left)
    train(configured(tmp_path / "a", pairs, trainer={"max_epochs": 1}))
    with pytest.raises(ConfigError, match="`trainer.benchmark`: pytorch_lightning .* has no such argument"):
        train(configured(tmp_path / "b", pairs, trainer={"max_epochs": 1, "benchmark": True}))


def test_a_trainer_with_a_folder_can_be_used_again(tmp_path, pairs):
    cfg = configured(tmp_path / "run", pairs)
    _, model, data = prepare(cfg)
    trainer = Im2ImTrainer(tmp_path / "run", max_epochs=1, early_stopping=5, accelerator="cpu", enable_progress_bar=False, pictures=0)
    for _ in range(2): trainer.fit(model, data)
    kinds = [type(c).__name__ for c in trainer.callbacks]
    assert kinds.count("Patience") == kinds.count("_Best") == kinds.count("_Checkpoint") == 1


def test_loggers_by_name_stand_beside_the_table(tmp_path, pairs):
    logger = [{"_target_": "CSVLogger", "save_dir": str(tmp_path / "logs"), "name": "mine"}]
    result = train(configured(tmp_path / "run", pairs, trainer={"logger": logger, "max_epochs": 1}))
    assert result.metrics and not (result.folder / "tensorboard").exists()
    assert "val/dice" in (tmp_path / "logs" / "mine" / "version_0" / "metrics.csv").read_text()


def test_batch_norm_over_processes_needs_gpus(tmp_path, pairs):
    with pytest.raises(ConfigError, match="`trainer.sync_batchnorm` needs GPUs"):
        train(configured(tmp_path / "run", pairs, trainer={"sync_batchnorm": True}))


@pytest.mark.parametrize("base", [SEGMENT, *GAMES.values()], ids=["FCN", *GAMES])
def test_fast_dev_run_tries_everything_and_writes_nothing(tmp_path, pairs, base, capsys):
    cfg = write_yaml(tmp_path / "c.yaml", base)
    assert run("--config", cfg, "--data.path", pairs, "--out", tmp_path / "run", "--trainer.fast_dev_run", 2) == 0
    assert "nothing was written" in capsys.readouterr().out and not (tmp_path / "run").exists()


# Finders and means

def test_the_learning_rate_is_the_one_that_was_found(tmp_path, pairs):
    given = configured(tmp_path / "a", pairs, trainer={"max_epochs": 1})
    found = configured(tmp_path / "b", pairs, trainer={"max_epochs": 1, "lr_finder": True})
    rates = [checkpoint(train(cfg).folder)["optimizer_states"][0]["param_groups"][0]["lr"] for cfg in (given, found)]
    tuned = json.loads((tmp_path / "b" / "tuned.json").read_text())
    assert rates[0] == 0.01 and rates[1] == tuned["lr"] != 0.01
    assert (tmp_path / "b" / "lr_finder.png").is_file() and not list((tmp_path / "b").glob("*.ckpt"))
    assert f"lr_finder: the learning rate is {tuned['lr']:.3g}" in (tmp_path / "b" / "run.log").read_text()


def test_the_peak_of_a_schedule_is_the_rate_that_was_found(tmp_path, pairs):
    model = {"scheduler": {"_target_": "OneCycleLR", "max_lr": 0.5}, "scheduler_interval": "step"}
    result = train(configured(tmp_path / "run", pairs, model=model, trainer={"max_epochs": 1, "lr_finder": True}))
    group = checkpoint(result.folder)["optimizer_states"][0]["param_groups"][0]
    assert group["max_lr"] == json.loads((result.folder / "tuned.json").read_text())["lr"] != 0.5


def test_what_was_found_is_kept_for_a_run_that_goes_on(tmp_path, pairs):
    class Stop(pl.Callback):
        def on_train_epoch_end(self, *_): raise SystemExit

    cfg = configured(tmp_path / "run", pairs, data={"patches_per_image": 16}, trainer={"lr_finder": True, "batch_size_finder": True})
    with pytest.raises(SystemExit): train(cfg, [Stop()])
    kept = (tmp_path / "run" / "tuned.json").read_text()
    result = train(cfg)
    assert (result.folder / "tuned.json").read_text() == kept
    assert checkpoint(result.folder)["optimizer_states"][0]["param_groups"][0]["lr"] == json.loads(kept)["lr"]
    whole = train(configured(tmp_path / "whole", pairs, data={"patches_per_image": 16}, trainer={"lr_finder": True, "batch_size_finder": True}))
    assert same_weights(whole.folder, result.folder)


@pytest.mark.parametrize("base", [SEGMENT, *GAMES.values()], ids=["FCN", *GAMES])
def test_the_batch_is_the_largest_that_fits(tmp_path, pairs, base):
    class Sizes(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx): self.size = len(batch["IM"])

    sizes = Sizes()
    data = {"batch_size": 1, "patches_per_image": 16}
    cfg = configured(tmp_path / "run", pairs, base, data=data, trainer={"max_epochs": 1, "batch_size_finder": True})
    result = train(cfg, [sizes])
    tuned = json.loads((result.folder / "tuned.json").read_text())
    assert sizes.size == tuned["batch_size"] == 8  # an epoch keeps eight steps
    assert [row["batch_size"] for row in tuned["batch_sizes"]] == [1, 2, 4, 8]


def test_ctrl_c_ends_a_search_too(tmp_path, pairs):
    class Press(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx): os.kill(os.getpid(), signal.SIGINT)

    cfg = configured(tmp_path / "run", pairs)
    _, model, data = prepare(cfg)
    make = trial_trainer(cfg)
    with pytest.raises(KeyboardInterrupt): try_steps(make, model, data, callbacks=[Press()])


@pytest.mark.parametrize("name", GAMES)
def test_no_learning_rate_is_searched_for_a_game(tmp_path, pairs, name):
    with pytest.raises(ConfigError, match="`trainer.lr_finder`: LearningRateFinder cannot be used with"):
        train(configured(tmp_path / "run", pairs, GAMES[name], trainer={"lr_finder": True}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", [{"ema": 0.9}, {"swa": 0.5}], ids=str)
def test_means_of_weights_differ_from_the_last_and_validate_no_worse(tmp_path, pairs, key):
    "Steps of single patches, at a rate that is too high to settle."
    noisy = {"net": SEGMENT["model"]["net"] | {"norm": "instance"}, "optimizer": {"_target_": "AdamW", "lr": 0.03}}
    plain, mean = (
        train(configured(tmp_path / n, pairs, model=noisy, data={"batch_size": 1, "val_pixels": 10**6}, trainer={"max_epochs": 25} | k))
        for n, k in (("plain", {}), ("mean", key))
    )
    a, b = checkpoint(plain.folder), checkpoint(mean.folder)
    assert not all(torch.equal(v, b["state_dict"][k]) for k, v in a["state_dict"].items())
    assert all(torch.equal(v, b["current_model_state"][k]) for k, v in a["state_dict"].items() if not k.endswith("num_batches_tracked"))
    assert mean.metrics[-1]["val/loss"] <= plain.metrics[-1]["val/loss"]


# Several processes

def processes(*args, module=("mmv_im2im.cli",)) -> str:
    "What a module prints that is run with arguments, and may start itself again."
    done = subprocess.run([sys.executable, "-m", *module, *map(str, args)], capture_output=True, text=True, timeout=300,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_processes_have_the_losses_of_one(tmp_path, pairs):
    "An FCN without batch norm, dropout or cost map, L2, SGD, 20 steps: 2 x 4 patches against 1 x 8."
    model = {"net": SEGMENT["model"]["net"] | {"norm": None}, "optimizer": {"_target_": "SGD", "lr": 0.02}}
    data = {"patches_per_image": 8, "source_norm": {"_target_": "Standard"}}  # 40 patches, 5 steps an epoch
    cfg = write_yaml(tmp_path / "c.yaml", REGRESS, model=model, data=data, trainer={"max_epochs": 4, "log_every_n_steps": 1})
    command = "--config", cfg, "--data.path", pairs
    processes(*command, "--out", tmp_path / "one", "--data.batch_size", 8)
    processes(*command, "--out", tmp_path / "two", "--data.batch_size", 4, "--trainer.devices", 2, "--trainer.strategy", "ddp")
    one, two = (read_metrics(tmp_path / k / "metrics.csv") for k in ("one", "two"))
    assert [r["step"] for r in one] == [r["step"] for r in two] and one[-1]["step"] == 19
    for a, b in zip(one, two):
        for k in ("train/loss", "val/loss", "val/pearson"): assert b[k] == pytest.approx(a[k], rel=1e-4)
    assert "patches" in (tmp_path / "two" / "run.log").read_text()
    assert len(json.loads((tmp_path / "two" / "environment.json").read_text())) == 1, "one writer"


def test_torchrun(tmp_path, pairs):
    cfg = write_yaml(tmp_path / "c.yaml", SEGMENT, trainer={"devices": 2, "max_epochs": 1})
    launcher = "torch.distributed.run", "--nproc_per_node", "2", "-m", "mmv_im2im.cli"
    said = processes("--config", cfg, "--data.path", pairs, "--out", tmp_path / "run", module=launcher)
    assert (tmp_path / "run" / "run.json").is_file() and said.count("finished: 1 epochs") == 1


# Nothing lost

def slow(batches: float) -> str:
    "A prelude with which each training step takes a while."
    return f"""
import time
from mmv_im2im.models.fcn import FCN
losses = FCN.losses
def slowly(self, batch):
    time.sleep({batches})
    return losses(self, batch)
FCN.losses = slowly
"""


def interrupted(pairs, cfg, out, *signals) -> tuple[int, str, str]:
    "Start a run and send it signals once it trains; its exit code, and what it said."
    training = start("--config", cfg, "--data.path", pairs, "--out", out, prelude=slow(0.1))
    while training.poll() is None and not (out / "checkpoints" / "last.ckpt").exists(): time.sleep(0.02)
    for s in signals:
        time.sleep(0.25)
        training.send_signal(s)
    said, err = training.communicate(timeout=120)
    return training.returncode, said, err


@pytest.mark.parametrize("number, mean", [(signal.SIGINT, {}), (signal.SIGTERM, {"ema": 0.8}), (signal.SIGINT, {"swa": 0.1})])
def test_a_run_that_is_asked_to_stop_goes_on_where_it_was(tmp_path, pairs, number, mean):
    cfg = write_yaml(tmp_path / "c.yaml", SEGMENT, trainer={"max_epochs": 4} | mean)
    code, said, err = interrupted(pairs, cfg, tmp_path / "run", number)
    assert code == 128 + number and f"continue with: run_im2im --config {tmp_path / 'run'}" in said
    assert "Traceback" not in err
    stopped = checkpoint(tmp_path / "run")["global_step"]
    assert 5 <= stopped < 20 and f"stopped by {number.name} after step {stopped}" in (tmp_path / "run" / "run.log").read_text()
    for name in ("run", "whole"): assert run("--config", cfg, "--data.path", pairs, "--out", tmp_path / name) == 0
    assert same_weights(tmp_path / "run", tmp_path / "whole")
    assert read_metrics(tmp_path / "run" / "metrics.csv") == read_metrics(tmp_path / "whole" / "metrics.csv")


def test_a_second_ctrl_c_stops_at_once(tmp_path, pairs):
    cfg = write_yaml(tmp_path / "c.yaml", SEGMENT, trainer={"max_epochs": 4})
    training = start("--config", cfg, "--data.path", pairs, "--out", tmp_path / "run", prelude=slow(20))
    while not (tmp_path / "run" / "environment.json").exists(): time.sleep(0.02)
    time.sleep(3)
    begun = time.monotonic()
    for _ in range(2):
        training.send_signal(signal.SIGINT)
        time.sleep(0.5)
    said, err = training.communicate(timeout=60)
    assert training.returncode == 130 and time.monotonic() - begun < 15
    assert "stopped at once by SIGINT" in err and "continue with" in said and "Traceback" not in err


def test_a_job_that_the_cluster_stops_is_queued_again(tmp_path, pairs, monkeypatch):
    cfg = write_yaml(tmp_path / "c.yaml", SEGMENT, trainer={"max_epochs": 4, "requeue": True})
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    assert interrupted(pairs, cfg, tmp_path / "run", signal.SIGUSR1)[0] == 128 + signal.SIGUSR1
    assert (tmp_path / "asked").read_text() == "requeue 42\n"
    assert interrupted(pairs, cfg, tmp_path / "other", signal.SIGINT)[0] == 130  # the user means it
    assert (tmp_path / "asked").read_text() == "requeue 42\n"


FULL = """
import resource, signal
from mmv_im2im import checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save, saved = checkpoints.AtomicCheckpointIO.save_checkpoint, []
usual = resource.getrlimit(resource.RLIMIT_FSIZE)
def fill(self, *args, **kwargs):
    if len(saved) == {n}: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, usual[1]))
    saved.append(1)
    try:
        return save(self, *args, **kwargs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
checkpoints.AtomicCheckpointIO.save_checkpoint = fill
"""


def test_a_full_disk_keeps_the_earlier_checkpoint_and_says_so(tmp_path, pairs):
    "The system refuses to write more than 20 kB into a file, which it says as it says that a disk is full."
    cfg = write_yaml(tmp_path / "c.yaml", SEGMENT)
    training = start("--config", cfg, "--data.path", pairs, "--out", tmp_path / "run", prelude=FULL.format(n=3))
    said, err = training.communicate(timeout=120)
    assert training.returncode == 2 and "could not be written" in err and "make room on the disk" in " ".join(err.split())
    assert "Traceback" not in err
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["epoch"] >= 0
    assert not [p for p in (tmp_path / "run").rglob("*") if "tmp" in p.name], "no half-written file is left"
    for name in ("run", "whole"): assert run("--config", cfg, "--data.path", pairs, "--out", tmp_path / name) == 0
    assert same_weights(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("base", [SEGMENT, *GAMES.values()], ids=["FCN", *GAMES])
def test_a_loss_of_nan_ends_the_run_and_names_the_images(tmp_path, pairs, base):
    class Spoil(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 1 and batch_idx == 2: batch["IM"][0, 0, 0, 0] = float("nan")

    with pytest.raises(Im2ImError, match=r"the loss became nan in epoch 1, batch 2, on 00\d.tif"):
        train(configured(tmp_path / "run", pairs, base), [Spoil()])
    last = checkpoint(tmp_path / "run")
    assert last["epoch"] == 0 and all(v.isfinite().all() for v in last["state_dict"].values())


def test_the_run_folder_says_what_it_was_made_with(tmp_path, pairs):
    result = train(configured(tmp_path / "run", pairs, trainer={"max_epochs": 1, "pictures": 1, "profiler": "simple"}))
    made, = json.loads((result.folder / "environment.json").read_text())
    assert made["versions"]["torch"] == torch.__version__ and made["machine"]["cores"] == os.cpu_count()
    page = (result.folder / "report.html").read_text()
    for text in ("best val/dice", "highest memory", "Learning curves", "epoch_0000", "Configuration", "Profile", "versions: torch"): assert text in page


def test_check_foretells_time_and_memory(tmp_path, pairs, capsys):
    cfg = write_yaml(tmp_path / "c.yaml", SEGMENT)
    command = "--config", cfg, "--data.path", pairs, "--check"
    assert run(*command) == 0
    said = capsys.readouterr().out
    assert "GB free" in said and "5 steps, 1 image validated" in said and "3 epochs" in said
    # in a process of its own: one that has held much memory before does not grow
    said = shell(*command, "--data.batch_size", 10**6, "--data.patches_per_image", 2 * 10**5)
    assert "which is too much: set `data.batch_size:" in said


def test_two_processes_stop_together_and_go_on(tmp_path, pairs):
    "The signal reaches the first process only; both stop after the same batch, and the run goes on to the same weights."
    cfg = write_yaml(tmp_path / "c.yaml", SEGMENT, data={"batch_size": 2}, trainer={"devices": 2, "max_epochs": 12, "log_every_n_steps": 1})
    command = [sys.executable, "-m", "mmv_im2im.cli", "--config", str(cfg), "--data.path", str(pairs), "--out"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    training = subprocess.Popen([*command, str(tmp_path / "run")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    while training.poll() is None and not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists(): time.sleep(0.02)
    training.send_signal(signal.SIGTERM)
    said, err = training.communicate(timeout=120)
    assert training.returncode == 128 + signal.SIGTERM, said + err
    assert said.count("continue with") == 1 and 0 < checkpoint(tmp_path / "run")["global_step"] < 60
    for name in ("run", "whole"): processes(*command[3:], tmp_path / name)
    assert same_weights(tmp_path / "run", tmp_path / "whole")


# Callbacks that watch a figure

def watching(**more): return [{"_target_": "EarlyStopping", "monitor": "val/dice", "patience": 1} | more]


def test_a_callback_waits_for_better_figures(tmp_path, pairs):
    "Dice rises from epoch to epoch: in Lightning's own direction, the smaller the better, the run would end at once."
    cfg = configured(tmp_path / "run", pairs, trainer={"max_epochs": 5, "callbacks": watching(patience=4)})
    run_ = train(cfg)
    assert run_.result["epochs"] == 5
    assert any("EarlyStopping" in k and "'mode': 'max'" in k for k in load_checkpoint(run_.last)["callbacks"])


@pytest.mark.parametrize("how", ["config", "python", "plain trainer"])
def test_a_callback_in_the_wrong_direction(how, tmp_path, pairs):
    by_hand = pl.callbacks.EarlyStopping("val/dice", patience=1)
    with pytest.raises(ConfigError, match="`mode: max`"):
        if how == "config": train(configured(tmp_path / "run", pairs, trainer={"callbacks": watching(mode="min")}))
        elif how == "python": train(configured(tmp_path / "run", pairs), callbacks=by_hand)
        else:
            _, model, data = prepare(configured(tmp_path / "run", pairs))
            Im2ImTrainer(max_epochs=1, accelerator="cpu", callbacks=[by_hand]).fit(model, data)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("callback", ["EarlyStopping", "ModelCheckpoint"])
def test_a_callback_that_watches_nothing(callback, tmp_path, pairs):
    spec = {"_target_": callback, "monitor": "val_loss"} | ({"dirpath": str(tmp_path / "own")} if callback == "ModelCheckpoint" else {})
    with pytest.raises(ConfigError, match="did you mean 'val/loss'"): train(configured(tmp_path / "run", pairs, trainer={"callbacks": [spec]}))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_callback_of_ones_own(tmp_path, pairs):
    spec = {"_target_": "ModelCheckpoint", "monitor": "val/dice", "dirpath": str(tmp_path / "own"), "filename": "mine"}
    train(configured(tmp_path / "run", pairs, trainer={"callbacks": [spec]}))
    assert load_checkpoint(tmp_path / "own" / "mine.ckpt")["state_dict"]
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()


# Schedules and intervals that do not fit the run

@pytest.mark.parametrize("base", [SEGMENT, *GAMES.values()])
def test_a_schedule_that_ends_before_the_run(base, tmp_path, pairs):
    schedule = {"_target_": "OneCycleLR", "max_lr": 0.01, "total_steps": 6}
    cfg = configured(tmp_path / "run", pairs, base, model={"scheduler": schedule, "scheduler_interval": "step"})
    run_ = train(cfg)
    assert run_.result["finished"] and run_.result["steps"] > 6
    rate = load_checkpoint(run_.last)["optimizer_states"][0]["param_groups"][0]["lr"]
    assert rate < 1e-4


def test_validation_after_more_batches_than_an_epoch_has(tmp_path, pairs):
    with pytest.raises(ConfigError, match="`trainer.val_check_interval` is 100 batches, but an epoch has 5"):
        train(configured(tmp_path / "run", pairs, trainer={"val_check_interval": 100}))
    assert not (tmp_path / "run").exists()
    cfg = configured(tmp_path / "run", pairs, trainer={"val_check_interval": 7, "check_val_every_n_epoch": None})
    assert train(cfg).result["finished"]


def test_losses_of_intensities_for_masks(tmp_path, pairs):
    for loss in ("MSELoss", "L1Loss", "CharbonnierLoss"):
        with pytest.raises(ConfigError, match=f"{loss} compares intensities"):
            train(configured(tmp_path / "run", pairs, model={"loss": {"_target_": loss}}))


def test_a_run_that_lost_its_config(tmp_path, pairs):
    cfg = configured(tmp_path / "run", pairs)
    train(cfg)
    (tmp_path / "run" / "run.json").unlink()
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(Im2ImError) as e: train(cfg)
    assert "preset's name" not in str(e.value) and str(tmp_path / "run") in str(e.value)


def test_a_callback_watches_a_figure_of_ones_own(tmp_path, pairs):
    "What a framework of one's own logs is known to its author alone: its name and its direction."
    from mmv_im2im.models.fcn import FCN

    class Accurate(FCN):
        def on_validation_epoch_end(self):
            super().on_validation_epoch_end()
            self.log("val/accuracy", 0.5)

    _, model, data = prepare(configured(tmp_path / "run", pairs))
    own = Accurate(model.net, task="segmentation")
    stop = pl.callbacks.EarlyStopping("val/accuracy", mode="max", patience=1)
    kept = pl.callbacks.ModelCheckpoint(tmp_path / "own", monitor="step", mode="max")
    trainer = Im2ImTrainer(max_epochs=5, accelerator="cpu", enable_progress_bar=False, callbacks=[stop, kept])
    trainer.fit(own, data)
    assert trainer.current_epoch == 2  # the second figure is no better than the first
