"Supervised image to image: targets come back as they were, tasks, losses, post-processing, another beginning, dtypes."
import sys
import textwrap

import numpy as np
import pytest
import torch
from chain import REGRESS, SEGMENT, run, write_yaml

from mmv_im2im.checkpoints import load_checkpoint
from mmv_im2im.config import from_dict, preset
from mmv_im2im.core import ConfigError, DataError
from mmv_im2im.data_modules.images import read_image, write_image
from mmv_im2im.data_modules.samples import simulate_set
from mmv_im2im.inference.predictor import Predictor
from mmv_im2im.trainers import begin_from, prepare, train


def configured(out, path, base=REGRESS, **sections):
    "A small config with sections changed."
    raw = dict(base) | {"out": str(out)}
    sections["data"] = {"path": str(path)} | sections.get("data", {})
    for name, change in sections.items(): raw[name] = raw.get(name, {}) | change
    return from_dict(raw)


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory):
    "Six images of nuclei with object labels."
    return simulate_set(tmp_path_factory.mktemp("nuclei"), 6, (64, 64), source="nuclei", target="labels")


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory, nuclei):
    "A segmentation run of ten epochs."
    return train(configured(tmp_path_factory.mktemp("seg") / "run", nuclei, SEGMENT, trainer={"max_epochs": 10}))


# Units of the target

@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    "Pairs in which the target is known: 300 + 20 times the source, in 16 bits; sources differ tenfold in brightness."
    folder, rng = tmp_path_factory.mktemp("linear"), np.random.default_rng(0)
    for i in range(6):
        x = rng.gamma(2, 20 * (i + 1), (48, 48))
        write_image(folder / "IM" / f"{i}.tif", x.astype(np.float32), "YX")
        write_image(folder / "GT" / f"{i}.tif", np.round(300 + 20 * x).astype(np.uint16), "YX")
    return folder


def _affine_net(out, path, **data):
    "A run of a network that can learn an affine map and nothing else."
    model = {"net": {"_target_": "torch.nn.Conv2d", "kernel_size": 1}, "optimizer": {"_target_": "Adam", "lr": 0.05},
             "metrics": ["nrmse"]}
    return train(configured(out, path, data=data | {"augment": []}, model=model, trainer={"max_epochs": 60}))


def test_a_16_bit_target_comes_back_as_16_bit_counts(tmp_path, linear):
    whole = {"over": "dataset", "_target_": "Percentile"}
    result = _affine_net(tmp_path / "run", linear, source_norm=whole, target_norm=whole)
    model = Predictor(result.best, device="cpu")
    for i in range(6):
        pred, truth = model(linear / "IM" / f"{i}.tif"), read_image(linear / "GT" / f"{i}.tif").squeeze()
        assert pred.dtype == np.uint16
        assert pred.mean() == pytest.approx(truth.mean(), rel=0.02)
    assert run("--config", result.folder, "--mode", "predict", "--predict.path", linear / "IM", "--predict.out", tmp_path / "out") == 0
    written = read_image(tmp_path / "out" / "5.ome.tif").squeeze()
    assert written.dtype == np.uint16 and np.array_equal(written, pred)


def test_fractions_and_other_formats_on_request(tmp_path, linear):
    result = _affine_net(tmp_path / "run", linear, source_norm={"_target_": "Standard"}, target_norm={"_target_": "Standard"})
    source = linear / "IM" / "0.tif"
    exact = Predictor(result.best, dtype="float32", device="cpu")(source)
    assert exact.dtype == np.float32
    assert np.array_equal(Predictor(result.best, device="cpu")(source), np.round(exact).clip(0, 65535).astype(np.uint16))
    assert np.array_equal(Predictor(result.best, dtype="uint8", device="cpu")(source), np.round(exact).clip(0, 255).astype(np.uint8))


def test_the_brightness_of_each_source_is_kept(tmp_path, linear):
    "Restoration: the target has the units of its source, however bright that is."
    for i in range(6):
        x = read_image(linear / "IM" / f"{i}.tif").squeeze()
        write_image(tmp_path / "IM" / f"{i}.tif", np.round(x + 100).astype(np.uint16), "YX")
        write_image(tmp_path / "GT" / f"{i}.tif", np.round(0.9 * x + 100).astype(np.uint16), "YX")
    kept = {"source_norm": {"_target_": "Percentile"}}
    like, own = (_affine_net(tmp_path / n, tmp_path, target_norm={"_target_": n}, **kept) for n in ("LikeSource", "Percentile"))
    errors = {}
    for result in (like, own):
        model = Predictor(result.best, device="cpu")
        errors[result.folder] = max(abs(model(tmp_path / "IM" / f"{i}.tif").mean() / read_image(tmp_path / "GT" / f"{i}.tif").mean() - 1)
                             for i in range(6))
    assert errors[like.folder] < 0.02 < 0.2 < errors[own.folder]


def test_images_without_content(segmenter, tmp_path, linear):
    "A constant image is predicted, an empty one and one of NaN are refused with its name."
    regressor = _affine_net(tmp_path / "run", linear, target_norm={"_target_": "Percentile"})
    for result, dtype in ((segmenter, np.uint8), (regressor, np.uint16)):
        model = Predictor(result.best, device="cpu")
        for value in (0, 7, 65535):
            out = model(np.full((40, 50), value, np.uint16))
            assert out.shape == (40, 50) and out.dtype == dtype
            assert np.array_equal(out, model(np.zeros((40, 50), np.uint16))), "a constant image has no content, whatever its value"
        with pytest.raises(DataError, match="must have pixels|no pixels"): model(np.zeros((0, 50), np.uint16))
        with pytest.raises(DataError, match="NaN"): model(np.full((40, 50), np.nan, np.float32))
        one = np.random.default_rng(0).random((40, 50)).astype(np.float32)
        one[3, 4] = np.nan
        with pytest.raises(DataError, match="NaN"): model(one)


# Tasks

def test_several_targets_at_once(tmp_path):
    "Two stains out of three planes: each is measured by itself."
    rng = np.random.default_rng(0)
    for i in range(5):
        x = rng.integers(0, 4000, (3, 48, 48)).astype(np.uint16)
        write_image(tmp_path / "IM" / f"{i}.tif", x, "CYX")
        write_image(tmp_path / "GT" / f"{i}.tif", np.stack([x[0] // 2, 60_000 - x[1]]).astype(np.uint16), "CYX")
    result = train(configured(tmp_path / "run", tmp_path, trainer={"max_epochs": 8}))
    assert {"val/pearson", "val/pearson_c0", "val/pearson_c1"} <= set(result.metrics[-1])
    row = result.metrics[-1]
    assert row["val/pearson"] == pytest.approx((row["val/pearson_c0"] + row["val/pearson_c1"]) / 2, abs=1e-6)
    out = Predictor(result.best, device="cpu")(tmp_path / "IM" / "0.tif")
    assert out.shape == (2, 48, 48) and out.dtype == np.uint16
    assert 400 < out[0].mean() < 1600 and out[1].mean() > 56_000, "each target comes back in its own units"


@pytest.mark.parametrize("kind", ["multi-class", "multi-label"])
def test_several_classes(kind, tmp_path):
    "Dark squares and bright squares are told apart."
    rng, multi = np.random.default_rng(0), kind == "multi-label"
    for i in range(6):
        classes = np.kron(rng.choice(3, (8, 8), p=(.5, .25, .25)), np.ones((8, 8), int))
        write_image(tmp_path / "IM" / f"{i}.tif", (classes * 100 + rng.normal(100, 5, (64, 64))).astype(np.uint16), "YX")
        masks = np.stack([classes > 0, classes > 1]).astype(np.uint8)
        write_image(tmp_path / "GT" / f"{i}.tif", masks if multi else classes.astype(np.uint8), "CYX" if multi else "YX")
    model = {"multilabel": True} if multi else {"num_classes": 3}
    result = train(configured(tmp_path / "run", tmp_path, SEGMENT, model=model, trainer={"max_epochs": 12}))
    assert result.result["best_score"] > 0.9
    assert {"val/dice_c1", "val/dice_c2"} <= set(result.metrics[-1])
    model = Predictor(result.best, device="cpu")
    pred, truth = (f(tmp_path / k / "0.tif") for f, k in ((model, "IM"), (lambda p: read_image(p).squeeze(), "GT")))
    assert pred.shape == truth.shape and (pred == truth).mean() > 0.95
    p = model(tmp_path / "IM" / "0.tif", probabilities=True)
    assert p.shape == ((2 if multi else 3), 64, 64) and 0 <= p.min() <= p.max() <= 1
    assert np.allclose(p.sum(0), 1, atol=1e-4) != multi


def test_a_network_of_another_package(tmp_path, nuclei, monkeypatch):
    "A dotted path is enough; what the data know is filled in."
    (tmp_path / "strangers_nets.py").write_text(textwrap.dedent("""
        from torch import nn

        class Plain(nn.Sequential):
            def __init__(self, in_channels, out_channels, width):
                super().__init__(nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, out_channels, 3, padding=1))
    """))
    monkeypatch.syspath_prepend(tmp_path)
    cfg = write_yaml(tmp_path / "c.yaml", SEGMENT, model={"net": {"_target_": "strangers_nets.Plain", "width": 5}})
    assert run("--config", cfg, "--data.path", nuclei, "--out", tmp_path / "run") == 0
    model = Predictor(tmp_path / "run", device="cpu")
    assert type(model.module.net).__module__ == "strangers_nets" and model(nuclei / "IM" / "000.tif").shape == (64, 64)
    sys.modules.pop("strangers_nets")


# Metrics and what they decide

def test_the_first_metric_picks_the_best_checkpoint(tmp_path, nuclei):
    result = train(configured(tmp_path / "run", nuclei, SEGMENT, model={"metrics": ["hausdorff95", "iou"]}))
    assert result.result["monitor"] == "val/hausdorff95"
    assert {k for k in result.metrics[-1] if k.startswith("val/")} == {"val/loss", "val/hausdorff95", "val/iou"}
    measured = [r["val/hausdorff95"] for r in result.metrics if "val/hausdorff95" in r]
    assert result.result["best_score"] == pytest.approx(min(measured), rel=1e-6)


def test_metrics_of_evaluate(segmenter, nuclei, tmp_path, capsys):
    command = "--config", segmenter.folder, "--mode", "evaluate", "--data.path", nuclei, "--predict.out", tmp_path
    assert run(*command) == 0
    usual = capsys.readouterr().out
    assert run(*command, "--predict.metrics", "[hausdorff95]") == 0
    asked = capsys.readouterr().out
    assert "dice" in usual and "hausdorff95" not in usual and "hausdorff95" in asked and "dice" not in asked
    assert run(*command, "--predict.metrics", "[housdorff95]") == 2
    assert "did you mean 'hausdorff95'" in " ".join(capsys.readouterr().err.split())


# Losses

def test_a_sum_of_losses_from_the_yaml(tmp_path, nuclei):
    parts = [{"_target_": "CrossEntropyLoss", "class_weights": [1.0, 2.0]}, {"_target_": "LovaszLoss"}]
    loss = {"_target_": "LossSum", "losses": parts, "weights": [1.0, 0.5]}
    result = train(configured(tmp_path / "run", nuclei, SEGMENT, model={"loss": loss}))
    row = result.metrics[-1]
    assert row["train/loss"] == pytest.approx(row["train/cross_entropy_loss"] + 0.5 * row["train/lovasz_loss"], rel=1e-4)


# After the network

def test_post_processing_lives_in_the_checkpoint_and_can_be_changed(tmp_path, nuclei):
    steps = [{"_target_": "Threshold", "value": 0.4}, {"_target_": "RemoveSmall", "size": 5}, {"_target_": "Label"}]
    result = train(configured(tmp_path / "run", nuclei, SEGMENT, trainer={"max_epochs": 10}, predict={"postprocess": steps}))
    image = nuclei / "IM" / "000.tif"
    labels, mask = Predictor(result.best, device="cpu")(image), Predictor(result.best, postprocess=[], device="cpu")(image)
    assert set(np.unique(mask)) == {0, 1} and labels.max() > 1 and labels.dtype != np.uint8
    p = Predictor(result.best, device="cpu")(image, probabilities=True)
    assert p.dtype == np.float32 and not ((labels > 0) & (p <= 0.4)).any(), "probabilities are what the steps begin with"
    other = tmp_path / "other"
    assert run("--config", result.folder, "--mode", "predict", "--predict.path", image, "--predict.out", other,
               "--predict.postprocess", "[{_target_: Largest}]") == 0
    largest = read_image(other / "000.ome.tif").squeeze()
    assert 0 < (largest > 0).sum() < (mask > 0).sum()
    rows, _ = Predictor(result.best, postprocess=[{"_target_": "Threshold", "value": 0.999999}], device="cpu").evaluate(nuclei, progress=False)
    usual, _ = Predictor(result.best, device="cpu").evaluate(nuclei, progress=False)
    assert rows[0]["dice"] < usual[0]["dice"], "evaluate measures what prediction gives"


def test_an_unknown_step_is_named(segmenter, nuclei, tmp_path, capsys):
    assert run("--config", segmenter.folder, "--mode", "predict", "--predict.path", nuclei / "IM", "--predict.out", tmp_path,
               "--predict.postprocess", "[{_target_: FillHole}]") == 2
    assert "did you mean 'FillHoles'" in " ".join(capsys.readouterr().err.split())


def test_time_for_mirror_images(segmenter, nuclei):
    image = read_image(nuclei / "IM" / "000.tif").squeeze()
    plain, mean = (Predictor(segmenter.best, tta=t, device="cpu") for t in (False, True))
    p, q = (m(image, probabilities=True) for m in (plain, mean))
    assert 0 < np.abs(p - q).mean() < 0.1
    assert np.allclose(mean(image[:, ::-1], probabilities=True)[:, ::-1], q, atol=1e-5)


def test_mirror_images_as_the_run_is_configured(nuclei, tmp_path):
    best = train(configured(tmp_path, nuclei, SEGMENT, trainer={"max_epochs": 1}, predict={"tta": True})).best
    assert Predictor(best).tta and not Predictor(best, tta=False).tta


# Another beginning

def test_a_run_begins_from_another(segmenter, nuclei, tmp_path):
    begun = configured(tmp_path / "run", nuclei, SEGMENT, trainer={"max_epochs": 1, "init_from": str(segmenter.folder)})
    result = train(begun)
    assert "weights taken over" in (result.folder / "run.log").read_text()
    first = train(configured(tmp_path / "fresh", nuclei, SEGMENT, trainer={"max_epochs": 1})).metrics[0]["train/loss"]
    assert result.metrics[0]["train/loss"] < first
    _, model, _ = prepare(configured(tmp_path / "k", nuclei, SEGMENT, data={"label_kind": "binary"}, model={"num_classes": 4},
                                     trainer={"init_from": str(segmenter.best)}))
    fresh = {k: v.clone() for k, v in model.state_dict().items()}
    said = begin_from(from_dict(SEGMENT | {"trainer": {"init_from": str(segmenter.best)}}), model)
    learned, state = load_checkpoint(segmenter.best)["state_dict"], model.state_dict()
    other = [k for k, v in state.items() if v.shape != learned[k].shape]
    assert other and all(k in said for k in other[:4]), "what does not fit is named"
    assert all(torch.equal(state[k], fresh[k] if k in other else learned[k]) for k in state)


@pytest.mark.parametrize("what, said", [("nowhere.ckpt", "does not exist"), ("other", "none of the weights fits")])
def test_a_beginning_that_is_none(what, said, nuclei, tmp_path):
    torch.save({"state_dict": {"strange": torch.ones(3)}}, tmp_path / "other")
    with pytest.raises(ConfigError, match=said):
        train(configured(tmp_path / "run", nuclei, SEGMENT, trainer={"init_from": str(tmp_path / what)}))
    assert not (tmp_path / "run").exists()


# dtypes and layouts in memory

@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("key", [{"precision": "bf16-mixed"}, {"channels_last": True}], ids=["bf16", "channels_last"])
def test_one_key_gives_the_same_result(key, dims, tmp_path):
    folder = simulate_set(tmp_path, 5, (48, 48) if dims == 2 else (8, 32, 32), source="nuclei", target="labels", n_cells=4)
    patch = {"patch": [32, 32] if dims == 2 else [8, 32, 32]}
    # Adam divides by the size of gradients, which makes rounding errors large
    net = {"net": SEGMENT["model"]["net"] | {"spatial_dims": dims}, "optimizer": {"_target_": "SGD", "lr": 0.05}}
    usual, other = (train(configured(tmp_path / n, folder, SEGMENT, data=patch, model=net, trainer=t))
                    for n, t in (("usual", {}), ("other", key)))
    a, b = (load_checkpoint(r.last)["state_dict"] for r in (usual, other))
    assert any(not torch.equal(a[k], b[k]) for k in a), "the key changes how it is computed"
    assert all(v.dtype == a[k].dtype for k, v in b.items())
    losses = [[m["train/loss"] for m in r.metrics] for r in (usual, other)]
    assert np.allclose(*losses, rtol=0.03 if "precision" in key else 1e-3)
    image = folder / "IM" / "000.tif"
    p, q = (Predictor(r.last, device="cpu")(image, probabilities=True) for r in (usual, other))
    assert np.abs(p - q).max() < (0.1 if "precision" in key else 1e-3)


def test_what_validation_may_cost(tmp_path):
    "Every held-out image is looked at: whole, or in crops of no more than a tenth of the pixels that an epoch trains on."
    for n, shape, per_image, whole in ((20, (64, 64), 16, False), (6, (256, 256), 1000, True)):
        folder = simulate_set(tmp_path / str(n), n, shape, source="nuclei", target="labels", n_cells=3)
        cfg = configured(tmp_path / "run", folder, SEGMENT, data={"patches_per_image": per_image, "val_fraction": 0.5})
        _, _, data = prepare(cfg)
        trained = len(data.train_dataloader()) * 4 * 32 * 32
        shown = [b["IM"].numel() for b in data.val_dataloader()]
        assert len(shown) == n // 2 and data.validation.every == 1
        assert sum(shown) == n // 2 * 256 * 256 if whole else 0.8 * trained / 10 < sum(shown) <= trained / 10


def test_preset_by_name_of_a_network():
    assert preset("labelfree_3d", model={"net": "anisotropic_unet"}).model["net"]["_target_"] == "AnisotropicUNet"
