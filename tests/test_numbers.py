"Figures, losses and dtypes: two processes against one, odd cost maps, half precision, games that nobody plays."
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import pytorch_lightning as pl
import tifffile
import torch

from mmv_im2im.checkpoints import read_metrics
from mmv_im2im.config import from_dict
from mmv_im2im.core import ConfigError, DataError, Im2ImError
from mmv_im2im.data_modules.normalization import Percentile, pool
from mmv_im2im.inference.predictor import Predictor
from mmv_im2im.metrics import dice, pearson, psnr
from mmv_im2im.models.adversarial import PatchGAN, feature_matching, gradient_penalty
from mmv_im2im.models.cyclegan import _blurred
from mmv_im2im.models.losses import CrossEntropyLoss, MSSSIMLoss, SSIMLoss
from mmv_im2im.models.self_supervised import PairDownsample, fill_in, neighbors
from mmv_im2im.tiling import _bell
from mmv_im2im.trainers import Im2ImTrainer, prepare, train

NET = {"_target_": "UNet", "channels": [4, 8], "strides": [2], "num_res_units": 0, "norm": None}
JUDGE = {"_target_": "PatchGAN", "channels": 4, "layers": 2, "norm": None}
STILL = {"_target_": "SGD", "lr": 0.0}
TRAINER = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "pictures": 0, "logger": False}


def images(folder, n_val: int, sizes=(48, 64)):
    "Four pairs to train on and `n_val` to validate on; class 3 is in the last of these alone, and they differ in size."
    g = np.random.default_rng(0)
    for part, n in (("train", 4), ("val", n_val)):
        for i in range(n):
            shape = (sizes[i % 2],) * 2 if part == "val" else (48, 48)
            gt = np.zeros(shape, np.uint8)
            gt[4:20, 4:20 + i], gt[24:32, 24:32] = 1, 2
            if part == "val" and i == n - 1: gt[36:44, 8:40] = 3
            for key, x in (("IM", gt * 400.0 + g.integers(0, 300, shape)), ("GT", gt)):
                (folder / part / key).mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(folder / part / key / f"{i:03d}.tif", x.astype(np.uint16))
    return folder


def config(path, model, out, batch_size=4, data=(), **trainer):
    "A run of one epoch whose weights stay as they are."
    data = {"path": str(path), "patch": [32, 32], "batch_size": batch_size, "patches_per_image": 4, "num_workers": 0,
            "val_pixels": 10**6} | dict(data)
    model = {"net": NET, "optimizer": STILL} | model
    return {"data": data, "model": model, "trainer": TRAINER | trainer, "out": str(out)}


CLASSES = {"_target_": "FCN", "task": "segmentation", "num_classes": 4}
LABELS = {"target_kind": "label"}
IMAGES = {"target_kind": "image", "target_norm": {"_target_": "Percentile"}}
GAME = {"discriminator": JUDGE, "discriminator_optimizer": STILL}
SHARED = {  # Name: images to validate on, model, data
    "classes": (3, CLASSES, LABELS),
    "one image": (1, CLASSES | {"net": NET | {"norm": "batch"}}, LABELS),  # whose buffers are sent around at each step
    "fixed patches": (3, CLASSES, LABELS | {"val_patches": True}),
    "Pix2Pix": (3, {"_target_": "Pix2Pix", "metrics": ["pearson", "swd", "structure"]} | GAME, IMAGES),
    "CycleGAN": (5, {"_target_": "CycleGAN", "replay": 0} | GAME, IMAGES | {"pairing": "unpaired"}),
}

TWICE = """
import json, sys
from mmv_im2im.config import from_dict
from mmv_im2im.trainers import train
for cfg in json.load(open(sys.argv[1])): train(from_dict(cfg))
"""


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    "The rows of metrics.csv of every case, in one process and in two."
    top = tmp_path_factory.mktemp("shared")
    made = {name: (images(top / name / "data", n), model, data) for name, (n, model, data) in SHARED.items()}
    for name, (path, model, data) in made.items():
        train(from_dict(config(path, model, top / name / "one", data=data)))
    twice = [config(path, model, top / name / "two", 2, data, devices=2, strategy="ddp") for name, (path, model, data) in made.items()]
    (top / "twice.json").write_text(json.dumps(twice))
    (top / "twice.py").write_text(TWICE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", top / "twice.py", top / "twice.json"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: [read_metrics(top / name / k / "metrics.csv")[-1] for k in ("one", "two")] for name in SHARED}


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_log_what_one_logs(one_and_two, name):
    "Every figure by its own name, whatever a process lacks: a class, a gradient, an image."
    one, two = one_and_two[name]
    assert one.keys() == two.keys()
    rel = 0.02 if name == "one image" else 2e-3  # batch norm has seen batches of another size
    for k in (k for k in one if not k.endswith(("loss_step", "spread"))):  # the spread is that of a batch
        assert two[k] == pytest.approx(one[k], rel=rel, abs=1e-5, nan_ok=True), k


# Hidden pixels, cost maps, class weights

@pytest.mark.parametrize("size", [(9, 9), (1, 7), (3, 5, 6), (1, 4, 4)], ids=str)
@pytest.mark.parametrize("how", ["median", "mean", "random"])
@pytest.mark.parametrize("share", [0.3, 0.8, 1.0])
def test_what_is_put_in_place_of_a_hidden_pixel_was_not_hidden(size, how, share):
    torch.manual_seed(0)
    x = torch.rand(2, 2, *size)
    hidden = torch.rand(2, 1, *size) < share
    x = torch.where(hidden, 100 + x, x)  # a leak is seen by its size
    y = fill_in(x, hidden, neighbors(len(size), 1), how)
    assert y.max() < 1 and torch.equal(y[~hidden.expand_as(y)], x[~hidden.expand_as(y)])


def test_one_neighbor_at_random_is_any_of_those_known():
    x = torch.arange(9.).view(1, 1, 3, 3).expand(400, 1, 3, 3)
    hidden = torch.zeros(400, 1, 3, 3, dtype=torch.bool)
    hidden[..., 1, 1] = hidden[..., 0, :] = True
    drawn = fill_in(x, hidden, neighbors(2, 1), "random")[:, 0, 1, 1]
    counts = torch.stack([(drawn == v).sum() for v in (3, 5, 6, 7, 8)])
    assert counts.sum() == 400 and counts.min() > 40


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 8, 8), (4, 7, 10)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_zero_shot_noise2noise_leaves_out_what_the_cost_map_says(size, channels):
    "In 2D and 3D, whatever stands at pixels of weight 0, for a cost map of one channel or of as many."
    torch.manual_seed(0)
    x, weight = torch.rand(1, 3, *size), (torch.rand(1, channels, *size) > 0.2).float()
    other = torch.where(weight.expand_as(x) > 0, x, torch.rand_like(x))
    loss = lambda x, w: float(PairDownsample().loss(lambda y: 0 * y, x, w, torch.nn.MSELoss()))
    assert loss(x, weight) == pytest.approx(loss(other, weight)) and loss(x, None) != loss(other, None)
    assert loss(x, torch.ones_like(weight)) == pytest.approx(loss(x, None), rel=1e-5)


@pytest.mark.parametrize("size", [(6, 5), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("weights", [None, [1, 2, 5], [0, 1, 4], [0.3, 0.0, 0.0]], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_that_of_torch(size, weights, smoothing):
    "With class weights, label smoothing and pixels to ignore, alone and together."
    torch.manual_seed(0)
    x, t = torch.randn(2, 3, *size), torch.randint(3, (2, 1, *size))
    c = None if weights is None else torch.tensor(weights, dtype=torch.float32)
    ignored = torch.rand(t.shape) < 0.3
    ours = CrossEntropyLoss(weights, smoothing)
    theirs = lambda t: torch.nn.functional.cross_entropy(x, t[:, 0], c, label_smoothing=smoothing)
    assert torch.allclose(ours(x, t), theirs(t), rtol=1e-5)
    assert torch.allclose(ours(x, t, (~ignored).float()), theirs(t.masked_fill(ignored, -100)), rtol=1e-5)
    weight = torch.rand(2, 1, *size)
    twice = ours(torch.cat([x, x], 2), torch.cat([t, t], 2), torch.cat([weight, 3 * weight], 2))
    assert torch.allclose(ours(x, t, weight), twice, rtol=1e-5)  # only the ratio of weights counts


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_binary_cross_entropy_is_one_of_two_classes(smoothing):
    torch.manual_seed(0)
    x, t = torch.randn(2, 1, 6, 6), torch.randint(2, (2, 1, 6, 6))
    two, c = torch.cat([torch.zeros_like(x), x], 1), torch.tensor([1.0, 3.0])
    theirs = torch.nn.functional.cross_entropy(two, t[:, 0], c, label_smoothing=smoothing)
    assert torch.allclose(CrossEntropyLoss([1, 3], smoothing)(x, t), theirs, rtol=1e-5)


@pytest.mark.parametrize("loss", [CrossEntropyLoss([0, 1], 0.1), CrossEntropyLoss(None, 0.1)], ids=["class of weight 0", "no weight"])
def test_nothing_that_counts_costs_nothing(loss):
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    weight = None if loss.class_weights else torch.zeros(1, 1, 4, 4)
    value = loss(x, torch.zeros(1, 1, 4, 4), weight)
    value.backward()
    assert value == 0 and x.grad.isfinite().all()


# dtypes

@pytest.fixture
def bf16_by_default():
    "As Lightning sets it around a step in bf16-true."
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def test_constants_are_not_rounded_with_the_default_dtype(bf16_by_default):
    "Window of SSIM, weights of tiles, blur of masks, class weights: as in single precision."
    f32 = {"dtype": torch.float32}
    a, b = torch.rand(1, 1, 32, 32, **f32), torch.rand(1, 1, 32, 32, **f32)
    labels = torch.randint(2, (1, 1, 32, 32))
    found = [SSIMLoss()(a, b), MSSSIMLoss(levels=1)(a, b), _bell((300, 300)), _blurred(labels, 1.5), CrossEntropyLoss([0.3, 0.7], 0.1)(a, labels),
             gradient_penalty(lambda x: [x.mean((1, 2, 3))], a, b)]
    assert all(x.dtype == torch.float32 for x in found)
    torch.set_default_dtype(torch.float32)
    expected = [SSIMLoss()(a, b), MSSSIMLoss(levels=1)(a, b), _bell((300, 300)), _blurred(labels, 1.5), CrossEntropyLoss([0.3, 0.7], 0.1)(a, labels)]
    for x, y in zip(found, expected): assert torch.allclose(x, y, rtol=1e-6)


@pytest.mark.parametrize("loss", [SSIMLoss(100.0), MSSSIMLoss(100.0, levels=1)], ids=["ssim", "ms-ssim"])
def test_a_bright_background_does_not_blur_ssim(loss):
    "What is 100 of 10,000 is measured as precisely in single precision as in double."
    torch.manual_seed(0)
    p, t = (10_000 + 100 * torch.rand(1, 1, 32, 32, dtype=torch.float64) for _ in range(2))
    assert float(loss(p.float(), t.float())) == pytest.approx(float(loss(p, t)), rel=1e-3)


def bare_trainer(**arguments) -> Im2ImTrainer:
    "One that writes nothing."
    return Im2ImTrainer(accelerator="cpu", enable_progress_bar=False, **arguments)


@pytest.mark.parametrize("loss", ["MSELoss", "SmoothL1Loss", "SSIMLoss"])
def test_weights_of_bf16_see_rounded_images_and_nothing_else_does(tmp_path, loss):
    path, found = images(tmp_path / "data", 1), {}
    for precision in ("bf16-true", "32-true"):
        cfg = config(path, {"_target_": "FCN", "loss": {"_target_": loss}}, tmp_path, data=IMAGES | {"target_norm": None})
        _, module, data = prepare(from_dict(cfg))
        trainer = bare_trainer(precision=precision, max_epochs=1)
        trainer.fit(module, data)
        found[precision] = {k: float(v) for k, v in trainer.callback_metrics.items()}
    for k in ("val/loss", "val/psnr"): assert found["bf16-true"][k] == pytest.approx(found["32-true"][k], rel=0.02), k


@pytest.mark.parametrize("trainer", [{"precision": "16-true"}, {"plugins": [{"_target_": "HalfPrecision", "precision": "16-true"}]}], ids=str)
def test_half_precision_of_weights_is_refused(tmp_path, trainer):
    path = images(tmp_path / "data", 1)
    with pytest.raises(ConfigError, match="16-true keeps the weights themselves in half precision.*16-mixed or bf16-mixed"):
        train(from_dict(config(path, CLASSES, tmp_path / "run", data=LABELS, **trainer)))


@pytest.mark.parametrize("value, said", [
    (float("nan"), r"Mend or remove 00\d.tif: nan or infinite"), (float("inf"), r"Mend or remove 00\d.tif"),
    (1e30, r"The images are finite; look at 00\d.tif, with values above 10000"),
    (None, r"The images are finite; lower `model.optimizer.lr`"),
], ids=str)
def test_a_loss_of_nan_blames_an_image_only_where_it_is_to_blame(tmp_path, value, said):
    class Spoil(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if value is None: next(pl_module.parameters()).data.fill_(float("nan"))
            else: batch["IM"][0, 0, 0, 0] = value

    model = {"_target_": "FCN", "loss": {"_target_": "MSELoss"}}
    cfg = from_dict(config(images(tmp_path / "data", 1), model, tmp_path / "run", data=IMAGES))
    with pytest.raises(Im2ImError, match=said): train(cfg, [Spoil()])


# Games

@pytest.mark.parametrize("layers, scales", [(1, 1), (3, 1), (2, 3)])
def test_features_weigh_as_in_equation_4_of_pix2pixhd(layers, scales):
    "The sum over layers of mean absolute differences, for each scale."
    judge = PatchGAN(2, 1, channels=4, layers=layers, scales=scales)
    a, b = judge(torch.rand(1, 1, 64, 64)), judge(torch.rand(1, 1, 64, 64))
    by_hand = [sum((r - f).abs().mean() for r, f in zip(x[:-1], y[:-1])) for x, y in zip(a, b)]
    assert len(a[0]) - 1 == layers + 1
    assert torch.allclose(feature_matching(a, b), sum(by_hand) / scales)


@pytest.mark.parametrize("name", ["Pix2Pix", "CycleGAN"])
def test_without_an_optimizer_a_game_has_the_betas_of_its_paper(tmp_path, name):
    _, model, data = SHARED[name]
    cfg = config(images(tmp_path / "data", 1), {k: v for k, v in model.items() if "optimizer" not in k}, tmp_path, data=data)
    given = from_dict(cfg)
    for made in prepare(given)[1].configure_optimizers(): assert type(made["optimizer"]) is torch.optim.SGD  # as `optimizer`
    del cfg["model"]["optimizer"]
    for made in prepare(from_dict(cfg))[1].configure_optimizers():
        adam = made["optimizer"]
        assert type(adam) is torch.optim.Adam and tuple(adam.param_groups[0]["betas"]) == (0.5, 0.999)


@pytest.mark.parametrize("kind", ["vanilla", "least_squares", "hinge", "wgan_gp"])
def test_a_discriminator_that_guesses_is_told_once(tmp_path, caplog, kind):
    "One that never learns, for four epochs; its rate is 0."
    model = SHARED["Pix2Pix"][1] | {"adversarial": kind, "metrics": ["pearson"]}
    _, module, data = prepare(from_dict(config(images(tmp_path / "data", 1), model, tmp_path, data=IMAGES)))
    with caplog.at_level("WARNING", "mmv_im2im"): bare_trainer(max_epochs=4).fit(module, data)
    said = caplog.text
    assert said.count("only guesses") == 1 and "`model.discriminator_optimizer`" in said
    assert "has won" not in said


NOISY = {"_target_": "Pix2Pix", "net": NET | {"dropout": 0.5}, "dropout_noise": True} | GAME


def test_dropout_is_noise_in_prediction_only_where_it_is_asked_for(tmp_path):
    path = images(tmp_path / "data", 1)
    made = train(from_dict(config(path, NOISY, tmp_path / "run", data=IMAGES)))
    model, image = Predictor(made.best, device="cpu"), torch.rand(1, 1, 48, 48)
    assert model.module.dropout_noise
    state = torch.get_rng_state()
    first, again = (model.module.predict_raw(image) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(torch.get_rng_state(), state)
    model.module.seed += 1
    assert not torch.equal(first, model.module.predict_raw(image))
    noisy, quiet = (Predictor(made.best, device="cpu", dropout=on) for on in (None, False))  # `predict.dropout`
    still, first = quiet(image[0, 0]), noisy(image[0, 0])
    quiet.module.seed += 1
    assert torch.equal(still, quiet(image[0, 0])) and not torch.equal(still, first)
    with pytest.raises(ConfigError, match="`model.dropout_noise` needs a generator with dropout"):
        prepare(from_dict(config(path, NOISY | {"net": NET}, tmp_path / "other", data=IMAGES)))


# Metrics

@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_must_be_a_number_of_at_least_0(weight):
    for measure in (pearson, dice):
        with pytest.raises(DataError, match="0 .ignore the pixel. or above"):
            measure(np.ones((4, 4)), np.ones((4, 4)), weight=np.full((4, 4), weight))


def test_large_unsigned_integers_do_not_wrap():
    x = np.array([[2**63, 2**63 + 2**20], [0, 5]], np.uint64)
    assert pearson(x, x.astype(np.float64)) == pytest.approx(1) and psnr(x, x, 2.0**64) == float("inf")
    assert dice(x, x > 0) == 1


def test_complex_images_are_refused():
    with pytest.raises(DataError, match="complex"): pearson(np.ones((4, 4)) * 1j, np.ones((4, 4)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.int16, torch.uint16], ids=str)
def test_metrics_do_not_compute_in_the_dtype_of_their_images(dtype):
    "Sums of squares of 200 over 10,000 pixels are beyond what half precision and small integers hold."
    p, t = torch.zeros(100, 100, dtype=dtype), torch.full((100, 100), 200, dtype=torch.int32).to(dtype)
    t[0, 0] = 0
    assert psnr(p, t, 255) == pytest.approx(20 * np.log10(255 / 200), abs=1e-2)
    assert dice(p, t) == 0 and dice(t, t) == 1


def test_images_pooled_count_by_their_size():
    "Percentiles of a large and a small image together are those of all their pixels."
    g = np.random.default_rng(0)
    small, large = g.normal(0, 1, (1, 500, 500)), g.normal(5, 1, (1, 2600, 2600))
    norm = Percentile(0, 50)
    found = pool(norm, [small.astype(np.float32), large.astype(np.float32)])
    middle = np.median(np.concatenate([small.ravel(), large.ravel()]))
    assert found["offset"][0] + found["scale"][0] == pytest.approx(middle, abs=0.02)
