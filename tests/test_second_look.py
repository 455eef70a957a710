"What a reading of the whole code found: each a situation of a user that the other tests did not have."
import json
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import tifffile
import torch
from monai.networks.nets import UNet
from small import cells
from torch import nn

from mmv_im2im.all import FCN, Im2ImDataModule, Predictor, load_config, read_image, write_image
from mmv_im2im.config import from_dict, save_config
from mmv_im2im.core import ConfigError, DataError
from mmv_im2im.data_modules.caching import cache_key
from mmv_im2im.data_modules.describe import describe
from mmv_im2im.data_modules.loaders import _Resumable
from mmv_im2im.inference.folders import FolderResult
from mmv_im2im.trainers.callbacks import Pictures


def test_folders_of_one_name_are_split_as_before(tmp_path):
    "The record of a split tells images of training from those of validation, whatever their folders are called."
    for part, n in (("train", 3), ("val", 2)): cells(tmp_path / part / "imgs", n)
    path = {k: str(tmp_path / k / "imgs") for k in ("train", "val")}
    data = Im2ImDataModule(path, (32, 32), 2, target_kind="label")
    data.setup()
    again = Im2ImDataModule(path, (32, 32), 2, target_kind="label")
    again.kept = json.loads(json.dumps(data.parts))
    again.setup()
    for items in ("train_items", "val_items"):
        assert [i["IM"] for i in getattr(again, items)] == [i["IM"] for i in getattr(data, items)]
    assert not again.changes


class TestUncertaintyOfLabels:
    "A mask stays a mask; its spread is that of the probability, one channel for each class."

    @pytest.fixture(scope="class", params=[1, 3, "each"], ids=["mask", "classes", "multilabel"])
    def models(self, request, tmp_path_factory):
        folder = tmp_path_factory.mktemp("spread")
        n, each = (2, True) if request.param == "each" else (request.param, False)
        torch.manual_seed(0)
        net = UNet(2, 1, n, channels=(4, 8), strides=(2,), dropout=0.4)
        own = {"multilabel": True} if each else {"num_classes": n}
        module = FCN(net, nn.BCEWithLogitsLoss(), task="segmentation", **own)
        trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
        trainer.strategy.connect(module)
        trainer.save_checkpoint(folder / "m.ckpt")
        make = lambda **k: Predictor(folder / "m.ckpt", net=module, device="cpu", dropout=True, **k)
        return make, n, (n if each else 1)

    def test_a_pair_of_different_channels(self, models):
        make, classes, channels = models
        x = np.random.default_rng(0).random((32, 32), np.float32)
        pred, spread = make(samples=8)(x, uncertainty=True)
        shape = lambda c: (32, 32) if c == 1 else (c, 32, 32)
        assert pred.shape == shape(channels) and pred.dtype.kind in "ui"
        assert spread.shape == shape(classes) and spread.dtype == np.float32
        assert 0 < spread.max() <= 0.5
        probabilities, _ = make(samples=8)(x, probabilities=True, uncertainty=True)
        assert probabilities.shape == shape(classes) and probabilities.dtype == np.float32

    def test_it_is_that_of_the_probabilities_drawn(self, models):
        make, classes, _ = models
        x = np.random.default_rng(1).random((32, 32), np.float32)
        spread = make(samples=64)(x, uncertainty=True)[1]
        drawn = [make(samples=1, seed=s)(x, probabilities=True) for s in range(64)]
        true = np.std(drawn, axis=0)
        assert np.corrcoef(spread.ravel(), true.ravel())[0, 1] > 0.8
        assert 0.5 < spread.mean() / true.mean() < 2

    def test_lazily_the_same(self, models):
        import dask.array as da

        x = np.random.default_rng(2).random((2, 32, 32), np.float32)
        model = models[0](samples=4)
        lazy = model(da.from_array(x, chunks=(1, 32, 32)), axes="TYX", uncertainty=True)
        for a, b in zip(lazy, model(x, axes="TYX", uncertainty=True)):
            assert a.shape == b.shape and a.dtype.kind == b.dtype.kind
            assert np.allclose(a.compute(), b)


def test_dropout_of_the_runs_config_is_the_default(tmp_path):
    module = FCN(UNet(2, 1, 1, channels=(4, 8), strides=(2,), dropout=0.4), nn.MSELoss())
    module.config = {"predict": {"dropout": True, "samples": 4}}
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    model = Predictor(tmp_path / "m.ckpt", net=module, device="cpu")
    assert model.dropout and model.samples == 4
    with pytest.raises(ConfigError, match="each prediction of this model is the same"):
        Predictor(tmp_path / "m.ckpt", net=module, dropout=False, device="cpu")


def test_a_portion_is_shared_out_anew(tmp_path):
    "What one process held for a search of the learning rate is not what it holds as one of two."
    data = Im2ImDataModule(cells(tmp_path / "d", 10), (32, 32), 2, target_kind="label", partial_loading=0.5, patches_per_image=4)
    data.setup()
    alone, again = data._partial_loader(0, 1), data._partial_loader(0, 1)
    first, second = data._partial_loader(0, 2), data._partial_loader(1, 2)
    assert alone is again and first is not alone
    assert len(first) == len(second) < len(alone)
    data.teardown()


def test_movies_are_evaluated_by_time_points(tmp_path):
    "Each time point has a row and, where it is bad, a name of its own."
    data = Im2ImDataModule(cells(tmp_path / "d", 4), (32, 32), 2, target_kind="label")
    data.setup()
    module = FCN(UNet(2, 1, 1, channels=(4, 8), strides=(2,)), nn.BCEWithLogitsLoss(), task="segmentation")
    trainer = pl.Trainer(max_steps=1, logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    rng = np.random.default_rng(0)
    for i in range(2):
        write_image(tmp_path / "movies" / f"{i}_IM.tif", rng.random((3, 32, 32), np.float32), axes="TYX")
        write_image(tmp_path / "movies" / f"{i}_GT.tif", rng.integers(0, 2, (3, 32, 32), np.uint8), axes="TYX")
    model = Predictor(tmp_path / "m.ckpt", net=module, device="cpu")
    rows, result = model.evaluate(tmp_path / "movies", progress=False, time_points=True)
    assert [r["image"] for r in rows] == [f"{i}_IM.tif t={t}" for i in range(2) for t in range(3)] and not result.failed
    rows, result = model.evaluate(tmp_path / "movies", progress=False)
    assert not rows and "data.time_points: true" in result.report()


def test_a_report_counts_images():
    "The comparison of sets is no image."
    said = FolderResult(done=["a", "b"], failed={"c": "c is bad", "all images together": "no room"}).report()
    assert said.splitlines()[0] == "1 of 3 images failed:" and "no room" in said


def test_pictures_of_one_name_stay_apart(tmp_path):
    pictures = Pictures(tmp_path)
    names = [pictures._named(n, i) for i, n in enumerate(("movie.tif t=0", "movie.tif t=1", "a/x.tif", "b/x.tif"))]
    assert names == ["movie_t0", "movie_t1", "x", "x_3"]
    assert pictures._named("a/x.tif", 2) == "x", "the same in the next epoch"


@pytest.mark.parametrize("touching", [False, True])
def test_objects_are_counted_channel_by_channel(tmp_path, touching):
    "Masks of several classes lie over one another; an object of one is none of the other."
    mask = np.zeros((2, 32, 32), np.uint8)
    mask[0, 4:8, 4:8] = mask[0, 20:26, 20:26] = 1
    mask[1, (4 if touching else 12):(8 if touching else 15), 4:8] = 1
    for i in range(3):
        write_image(tmp_path / f"{i}_IM.tif", np.random.default_rng(i).random((32, 32), np.float32), axes="YX")
        write_image(tmp_path / f"{i}_GT.tif", mask, axes="CYX")
    data = Im2ImDataModule(tmp_path, (16, 16), 2, target_kind="label", label_kind="binary")
    data.setup()
    found = describe(data).collections[1]
    assert found.objects == [3, 3, 3] and found.smallest == (16 if touching else 12)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [ConfigError, DataError])
def test_an_error_in_a_worker_is_one_sentence(workers, kind):
    class Bad(torch.utils.data.Dataset):
        def __len__(self): return 2
        def __getitem__(self, i): raise kind("`data.augment`: a sentence\nof two lines: ConfigError: it says, DataError: too.")

    with pytest.raises(kind) as e: list(_Resumable(Bad(), num_workers=workers))
    said = str(e.value)
    assert "Traceback" not in said and said.startswith("`data.augment`: a sentence") and said.endswith("too.")
    assert " ".join(said.split()) == "`data.augment`: a sentence of two lines: ConfigError: it says, DataError: too."


def test_a_file_written_anew_beside_is_prepared_anew(tmp_path):
    "The image of an OME-TIFF in several files changes with any of them."
    names = ["a_1.ome.tif", "a_2.ome.tif"]
    xml = ('<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{u}"><Image ID="Image:0" Name="a">'
           '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="8" SizeY="8" SizeC="2" SizeZ="1" SizeT="1">'
           + "".join(f'<Channel ID="Channel:0:{c}" SamplesPerPixel="1"/>' for c in range(2))
           + "".join(f'<TiffData FirstC="{c}" IFD="0" PlaneCount="1"><UUID FileName="{n}">urn:uuid:{c}</UUID></TiffData>'
                     for c, n in enumerate(names)) + "</Pixels></Image></OME>")
    for c, n in enumerate(names): tifffile.imwrite(tmp_path / n, np.full((8, 8), c + 1, np.uint8), description=xml.format(u=c), metadata=None)
    assert read_image(tmp_path / names[0]).shape[1] == 2
    item = {"IM": tmp_path / names[0]}
    before = cache_key(item, {})
    assert cache_key(item, {}) == before
    tifffile.imwrite(tmp_path / names[1], np.full((8, 8), 9, np.uint8), description=xml.format(u=1) + " ", metadata=None)
    assert cache_key(item, {}) != before


def test_one_more_image_leaves_the_others_prepared(tmp_path):
    "Statistics that only lead back to the target's units are no part of what is prepared."
    folder = cells(tmp_path / "d", 6, source="brightfield", target="nuclei")

    def key(**more):
        data = Im2ImDataModule(folder, (32, 32), 2, **more)
        data.setup()
        return json.dumps(data.load.settings, sort_keys=True, default=str)

    own = {"target_norm": {"_target_": "Percentile"}}
    assert key(**own) == key(seed=5, **own)
    whole = {"target_norm": {"_target_": "Standard", "over": "dataset"}}
    assert key(**whole) != key(val_fraction=0.5, **whole)


def test_a_run_saved_under_old_keys_goes_on(tmp_path):
    "The run's own config is read by what its keys meant; a person's is answered with the new name."
    cfg = from_dict({"data": {"path": str(tmp_path), "partial_loading": 0.5}, "model": {"_target_": "FCN"}})
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    save_config(cfg, tmp_path / "run" / "config.yaml")
    text = (tmp_path / "run" / "config.yaml").read_text()
    old = text.replace("partial_loading_epochs", "portion_epochs").replace("partial_loading", "portion")
    assert "portion: 0.5" in old
    (tmp_path / "run" / "config.yaml").write_text(old)
    assert load_config(tmp_path / "run").data.partial_loading == 0.5
    (tmp_path / "mine.yaml").write_text(old)
    with pytest.raises(ConfigError, match="it is called `data.partial_loading`"): load_config(tmp_path / "mine.yaml")


def test_old_names_are_told_to_callers(tmp_path):
    from mmv_im2im.config import fields
    from mmv_im2im.data_modules import partial_loading

    with pytest.raises(ConfigError, match="it is called `partial_loading`"): Im2ImDataModule(tmp_path, portion=0.5)
    assert partial_loading.PortionLoader is partial_loading.PartialLoader
    assert callable(fields.option)


def test_a_variable_that_is_not_set_makes_no_folder(tmp_path, monkeypatch):
    "Wherever a path is given: for the checkpoint, the images, and the results."
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    monkeypatch.chdir(tmp_path)
    model = object.__new__(Predictor)
    with pytest.raises(ConfigError, match="NOT_SET_HERE is not set"): Predictor("$NOT_SET_HERE/a.ckpt")
    with pytest.raises(ConfigError, match="NOT_SET_HERE is not set"): model.predict_folder("$NOT_SET_HERE/x", "out")
    write_image(tmp_path / "x" / "a.tif", np.zeros((8, 8), np.uint8), axes="YX")
    with pytest.raises(ConfigError, match="NOT_SET_HERE is not set"): model.predict_folder(tmp_path / "x", "$NOT_SET_HERE/out")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_metric_that_is_waited_for_is_named():
    from mmv_im2im.trainers.trainer import _explain

    trainer = SimpleNamespace(watched="val/pearson", run_monitor=None, callback_metrics={"val/loss": 1}, callbacks=[])
    from pytorch_lightning.utilities.exceptions import MisconfigurationException
    with pytest.raises(ConfigError, match="'val/pearson', which is not logged"):
        _explain(trainer, MisconfigurationException("`ModelCheckpoint(monitor='val/pearson')` could not find the monitored key"))


@pytest.mark.parametrize("task, own", [
    ("regression", {"num_classes": 3}), ({"_target_": "Segmentation", "num_classes": 3}, {"num_classes": 5}),
    ({"_target_": "Regression"}, {"multilabel": True}),
])
def test_options_that_a_task_does_not_have_are_refused(task, own):
    from mmv_im2im.models.tasks import as_task

    with pytest.raises(ConfigError, match=f"model.{next(iter(own))}`"): as_task(task, **own)
    assert as_task({"_target_": "Segmentation", "num_classes": 3}, num_classes=3).num_classes == 3


@pytest.mark.parametrize("own", [{"weight": [1.0, 5.0, 0.5]}, {"ignore_index": 2}, {"weight": [1.0, 5.0, 0.5], "ignore_index": 0},
                                 {"weight": [1.0, 5.0, 0.5], "label_smoothing": 0.1}])
@pytest.mark.parametrize("size", [(8, 8), (4, 6, 6)])
def test_a_cost_map_of_ones_changes_no_cross_entropy(own, size):
    "torch's mean counts each pixel by the weight of its class."
    from mmv_im2im.models.losses import apply_loss

    torch.manual_seed(0)
    own = {k: torch.tensor(v) if k == "weight" else v for k, v in own.items()}
    loss, pred = nn.CrossEntropyLoss(**own), torch.randn(2, 3, *size)
    target = torch.randint(3, (2, 1, *size))
    whole = apply_loss(loss, pred, target)
    assert torch.allclose(apply_loss(loss, pred, target, torch.ones(2, 1, *size)), whole, rtol=1e-5)
    half = torch.zeros(2, 1, *size)
    half[..., : size[-1] // 2] = 1
    cut = lambda x: x[..., : size[-1] // 2]
    assert torch.allclose(apply_loss(loss, pred, target, half), apply_loss(loss, cut(pred), cut(target)), rtol=1e-5)
    assert apply_loss(loss, pred, target, torch.zeros_like(half)) == 0


def test_dropout_that_never_draws_is_no_noise():
    from mmv_im2im.models.tiled import check_dropout

    check_dropout(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout2d(0.5)))
    for other in (nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5), nn.Dropout(0.0)):
        with pytest.raises(ConfigError, match="dropout"): check_dropout(nn.Sequential(nn.Conv2d(1, 1, 1), other))


def test_a_size_multiple_may_be_one_number():
    net = UNet(2, 1, 1, channels=(4, 8), strides=(2,))
    net.size_multiple = 16
    module = FCN(net, nn.MSELoss())
    assert module.stride(1, 2) == 16
    assert module.predict_raw(torch.rand(1, 1, 40, 50)).shape == (1, 1, 40, 50)


def test_a_network_in_place_of_another_is_probed_anew():
    import gc

    module = FCN(nn.Conv2d(1, 1, 3, padding=1), nn.MSELoss())
    for k in (3, 7, 3, 11, 5):
        module.net = nn.Conv2d(1, 1, k, padding=k // 2)
        gc.collect()
        assert module.probe(1, 2) == (1, k // 2)


@pytest.mark.parametrize("name, value", [("feature_weight", -1), ("loss_weight", -0.5), ("warmup_epochs", 0.5), ("adversarial_weight", -1)])
def test_limits_of_a_game_hold_for_objects(name, value):
    from mmv_im2im.models.pix2pix import Pix2Pix

    with pytest.raises(ConfigError, match=f"model.{name}"): Pix2Pix(nn.Conv2d(1, 1, 1), **{name: value})


@pytest.mark.parametrize("name", ["cycle_weight", "identity_weight"])
def test_limits_of_a_cycle_hold_for_objects(name):
    from mmv_im2im.models.cyclegan import CycleGAN

    with pytest.raises(ConfigError, match=f"model.{name}"): CycleGAN(nn.Conv2d(1, 1, 1), **{name: -1})


class _Best(pl.Callback):
    "A metric after every second epoch, and how often a plateau has looked at it."
    def __init__(self): self.seen = []

    def on_train_epoch_end(self, trainer, module): self.seen.append([s.num_bad_epochs for s in module._schedulers()][0])


def test_a_plateau_takes_each_validation_once(tmp_path):
    from mmv_im2im.models.pix2pix import Pix2Pix

    class Flat(Pix2Pix):
        "Never better, never worse."
        def validation_step(self, batch, batch_idx): self.log("val/pearson", 0.5, on_epoch=True)
        def on_validation_epoch_end(self): pass

    plateau = {"_target_": "ReduceLROnPlateau", "patience": 10}
    data = Im2ImDataModule(cells(tmp_path / "d", 4, target="nuclei", source="brightfield"), (32, 32), 4, patches_per_image=1)
    best = _Best()
    trainer = pl.Trainer(max_epochs=6, check_val_every_n_epoch=2, logger=False, enable_checkpointing=False, accelerator="cpu",
                         enable_progress_bar=False, num_sanity_val_steps=0, callbacks=[best])
    model = Flat(nn.Conv2d(1, 1, 1), nn.Conv2d(2, 1, 1), metrics=["pearson"], scheduler=plateau)
    trainer.fit(model, data)
    assert best.seen == [0, 0, 0, 0, 1, 1] and model._schedulers()[0].num_bad_epochs == 2


def test_trial_steps_leave_no_images_in_a_game(tmp_path):
    from mmv_im2im.models.cyclegan import CycleGAN

    data = Im2ImDataModule(cells(tmp_path / "d", 4, target="nuclei", source="brightfield"), (32, 32), 2, patches_per_image=1)
    model = CycleGAN(nn.Conv2d(1, 1, 1), None, nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1))
    fit = lambda: pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False,
                             limit_val_batches=0).fit(model, data)
    fit()
    before = model._replay
    model._alarms["won"] = 2
    fit()
    assert model._replay is not before and not model._alarms.get("won")


@pytest.mark.parametrize("limits, moves", [({"max_epochs": 5}, 5), ({"max_epochs": 5, "max_steps": 4}, 2), ({"max_epochs": -1, "max_steps": 7}, 4)])
def test_a_schedule_by_epochs_ends_with_the_run(tmp_path, limits, moves):
    "Two steps an epoch: where the number of steps ends the run, the rate has come down by then."
    data = Im2ImDataModule(cells(tmp_path / "d", 4, target="nuclei", source="brightfield"), (32, 32), 2, patches_per_image=1)
    model = FCN(nn.Conv2d(1, 1, 1), nn.MSELoss(), scheduler={"_target_": "OneCycleLR", "max_lr": 0.1})
    trainer = pl.Trainer(**limits, logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False, limit_val_batches=0)
    trainer.fit(model, data)
    assert trainer.num_training_batches == 2
    assert trainer.lr_scheduler_configs[0].scheduler.total_steps == moves


def test_packages_that_are_trusted_make_optimizers(tmp_path, monkeypatch):
    "`--trust` holds for every object of the config."
    (tmp_path / "lab_parts.py").write_text(
        "import torch\n"
        "def make_adam(params, lr=0.01): return torch.optim.Adam(params, lr=lr)\n"
        "def make_steps(optimizer, size=2): return torch.optim.lr_scheduler.StepLR(optimizer, size)\n")
    monkeypatch.syspath_prepend(tmp_path)
    net = {"_target_": "UNet", "channels": [4, 8], "strides": [2]}
    spec = {"_target_": "FCN", "net": net, "optimizer": {"_target_": "lab_parts.make_adam"},
            "scheduler": {"_target_": "lab_parts.make_steps"}}
    made = FCN.from_config(spec, 1, 1, 2, trust=["lab_parts"])[0]
    found = made.configure_optimizers()
    assert isinstance(found["optimizer"], torch.optim.Adam) and found["lr_scheduler"]["scheduler"].step_size == 2
    with pytest.raises(ConfigError, match="--trust"): FCN.from_config(spec, 1, 1, 2)[0].configure_optimizers()


def test_a_misspelled_name_does_not_import_everything():
    import subprocess
    import sys

    code = ("import sys\nimport mmv_im2im.metrics as m\n"
            "try: m.pearsn\nexcept AttributeError: pass\nelse: raise SystemExit('found')\n"
            "assert 'mmv_im2im.all' not in sys.modules and 'mmv_im2im.cli' not in sys.modules, 'imported'")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["swd", "swd_plain", "spectrum", "histogram", "holdout", "structure"])
def test_which_values_of_a_metric_are_better_is_known(name):
    from mmv_im2im.metrics import is_known, metric_mode

    assert is_known(f"val/{name}") and metric_mode(f"val/{name}") == ("max" if name == "structure" else "min")


@pytest.mark.parametrize("given, meant", [("semantic_seg", "semantic_seg_2d"), ("labelfre", "labelfree_2d"), ("Denoise_3D", "denoise_3d"),
                                          ("n2v", "n2v_2d"), ("nothing like it", None)])
def test_of_names_that_are_as_close_the_first_is_meant(given, meant):
    from mmv_im2im.config import preset_names
    from mmv_im2im.core import nearest

    assert nearest(given, preset_names()) == meant
