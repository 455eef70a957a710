"What people hand to the Python interface: types, axes, own parts, threads; it works, or a sentence says why not."
import threading

import dask.array as da
import numpy as np
import pytest
import pytorch_lightning as pl
import tifffile
import torch
from frameworks import Generator, Styled, Vectors
from PIL import Image
from small import CONFIG, cells, changed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mmv_im2im.config import from_dict
from mmv_im2im.core import ConfigError, DataError, Im2ImError
from mmv_im2im.data_modules.data_module import Im2ImDataModule
from mmv_im2im.data_modules.images import image_info, read_image, write_image
from mmv_im2im.inference import predictor as module
from mmv_im2im.inference.predictor import Predictor
from mmv_im2im.models.cyclegan import CycleGAN
from mmv_im2im.models.denoising_nets import BlurPoolUNet, PartialUNet, ZeroShotNet
from mmv_im2im.models.fcn import FCN
from mmv_im2im.models.pix2pix import Pix2Pix
from mmv_im2im.models.masking import BernoulliMask, PairDownsample
from mmv_im2im.models.self_supervised import SelfSupervised
from mmv_im2im.postprocess import Label
from mmv_im2im.trainers import Im2ImTrainer, train

QUIET = {"trainer.enable_progress_bar": False, "trainer.logger": False}


def trained(out, path, **changes) -> Predictor:
    "The predictor of a run of a second."
    run = train(from_dict(changed(CONFIG, QUIET | {"data.path": str(path), "out": str(out)} | changes)))
    return Predictor(run, device="cpu")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    "Four pairs of 64 x 64 pixels."
    return cells(tmp_path_factory.mktemp("api") / "cells", 4)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory, pairs) -> Predictor:
    "A model of masks, of one channel, in 2D."
    return trained(tmp_path_factory.mktemp("segmenter") / "run", pairs)


@pytest.fixture(scope="module")
def image(pairs) -> np.ndarray:
    "One image, Y, X."
    return read_image(pairs / "IM" / "000.tif")[0, 0, 0]


@pytest.fixture(scope="module")
def wanted(segmenter, image) -> np.ndarray:
    "Its probabilities."
    return segmenter(image, probabilities=True)


# ---- what an image may be

class Told:
    "An array of another library, as xarray has it."
    def __init__(self, data, *dims): self.data, self.dims = data, dims


# Name: how the same image is given, beside its pixels
SAME = {
    "a channel in front": lambda x: x[None],
    "a channel at the end": lambda x: x[..., None],
    "a batch of one": lambda x: x[None, None],
    "TCZYX": lambda x: x[None, None, None],
    "a list of numbers": lambda x: x.tolist(),
    "a tensor": lambda x: torch.from_numpy(x.astype(np.int32)),
    "a tensor with a gradient": lambda x: torch.from_numpy(x.astype(np.float32)).requires_grad_(),
    "a tensor, sparse": lambda x: torch.from_numpy(x.astype(np.float32)).to_sparse(),
    "Pillow": lambda x: Image.fromarray(x.astype(np.int32)),
    "float64": lambda x: x.astype(np.float64),
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "not contiguous": lambda x: np.repeat(x, 2, 1)[:, ::2],
    "a mask that hides nothing": lambda x: np.ma.masked_array(x, False),
    "axes of their own, in another order": lambda x: Told(x.T, "X", "Y"),
    "dask": lambda x: da.from_array(x, 32),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_image_in_other_clothes(name, segmenter, image, wanted):
    given = SAME[name](image)
    out = np.asarray(segmenter(given, probabilities=True)).squeeze()
    np.testing.assert_allclose(out, wanted, atol=1e-5)


# Name: (what is given, a word of the sentence)
NO_IMAGE = {
    "None": (lambda x: None, "None"),
    "a number": (lambda x: 3.5, "float"),
    "a dict": (lambda x: {"IM": x}, "dict"),
    "bytes": (lambda x: b"pixels", "bytes"),
    "a generator": (lambda x: (v for v in x), "generator"),
    "an empty list": (lambda x: [], "empty"),
    "rows of two lengths": (lambda x: [[1, 2], [3]], "array"),
    "text in an array": (lambda x: np.array([["a", "b"]]), "numbers"),
    "complex numbers": (lambda x: x + 1j, "complex"),
    "objects": (lambda x: x.astype(object), "object"),
    "a palette": (lambda x: Image.fromarray((x % 256).astype(np.uint8)).convert("P"), "'P'"),
    "hidden pixels": (lambda x: np.ma.masked_greater(x, x.mean()), "masked"),
    "a row": (lambda x: x[0], "(64,)"),
    "colors": (lambda x: np.stack([x] * 3, -1), "(64, 64, 3)"),
    "seven of them": (lambda x: np.stack([x] * 7), "TYX"),
    "seven with a channel": (lambda x: np.stack([x[None]] * 7), "TYX"),
    "six axes": (lambda x: x[None, None, None, None], "axes"),
    "no pixels": (lambda x: x[:0], "pixels"),
    "infinite": (lambda x: np.where(x > x.mean(), np.inf, x), "infinite"),
    "a folder": (lambda x: ".", "folder"),
    "a model": (lambda x: nn.Conv2d(1, 1, 3), "Conv2d"),
    "a bad one among good ones": (lambda x: [x, x[0]], "image 1 of the list"),
}


@pytest.mark.parametrize("name", NO_IMAGE)
def test_what_is_no_image_for_this_model(name, segmenter, image):
    given, word = NO_IMAGE[name]
    with pytest.raises(Im2ImError) as e: segmenter(given(image))
    assert word in str(e.value), e.value


@pytest.mark.parametrize("axes", ["YXX", "Y", "YXQ", 3, "ZC"])
def test_axes_that_are_none(axes, segmenter, image):
    with pytest.raises(DataError, match="axes"): segmenter(image[None], axes=axes)


def test_several_images(segmenter, image, pairs, wanted):
    "A list gives a list, of files, too; time points where they are called so."
    a, b = segmenter([image, pairs / "IM" / "000.tif"], probabilities=True)
    np.testing.assert_array_equal(a, wanted)
    np.testing.assert_array_equal(b, wanted)
    movie = segmenter(np.stack([image, image.T]), axes="TYX", probabilities=True)
    np.testing.assert_array_equal(movie[0], wanted)
    assert [x.shape for x in segmenter((image[:40], image[:, :50]))] == [(40, 64), (64, 50)]


# Name: (arguments, a word of the sentence)
SETTINGS = {
    "a word as tile": ({"tile": "64"}, "predict.tile"),
    "half a pixel as tile": ({"tile": (32.5, 32)}, "predict.tile"),
    "no pixel as tile": ({"tile": 0}, "predict.tile"),
    "a tile of three": ({"tile": (8, 8, 8)}, "3 sizes"),
    "true as tile": ({"tile": True}, "predict.tile"),
    "no tiles at once": ({"batch_size": 0}, "predict.batch_size"),
    "text at once": ({"batch_size": "4"}, "predict.batch_size"),
    "overlap of one": ({"overlap": 1.0}, "predict.overlap"),
    "overlap in percent": ({"overlap": 25}, "predict.overlap"),
    "overlap nan": ({"overlap": float("nan")}, "predict.overlap"),
    "blend": ({"blend": "gausian"}, "gaussian"),
    "tta": ({"tta": "yes"}, "predict.tta"),
    "dtype": ({"dtype": "unit8"}, "uint8"),
    "device": ({"device": "gpu0"}, "predict.device"),
    "device of no type": ({"device": 3.5}, "predict.device"),
    "a step's name": ({"postprocess": "Label"}, "list"),
    "a step's class": ({"postprocess": [Label]}, "Label()"),
    "a class of a network": ({"net": nn.Conv2d}, "net"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_make_no_sense(name, segmenter):
    given, word = SETTINGS[name]
    with pytest.raises(ConfigError) as e: Predictor(segmenter.path, **{"device": "cpu"} | given)
    assert word in str(e.value), e.value


@pytest.mark.parametrize("tile", [32, np.int64(32), [32, 32], np.array([32, 32]), torch.Size([32, 32])])
def test_a_tile_in_every_form(tile, segmenter, image, wanted):
    model = Predictor(segmenter.path, tile=tile, device=torch.device("cpu"))
    assert np.abs(model(image, probabilities=True) - wanted).max() < 0.2


# Name: (what is given, a word of the sentence)
NO_CHECKPOINT = {
    "a preset": ("semantic_seg_2d", "preset"), "None": (None, "None"), "text": ("nothing.ckpt", "does not exist"),
    "a dict": ({"state_dict": {}}, "dict"), "a network": (nn.Conv2d(1, 1, 3), "save_checkpoint"), "a number": (3, "int"),
}


@pytest.mark.parametrize("name", NO_CHECKPOINT)
def test_what_is_no_checkpoint(name):
    given, word = NO_CHECKPOINT[name]
    with pytest.raises(ConfigError) as e: Predictor(given, device="cpu")
    assert word in str(e.value), e.value


# Name: (what becomes of a checkpoint, a word of the sentence)
SPOILT = {
    "cut": (lambda p, raw: p.write_bytes(raw[:-300]), "cut off"),
    "half": (lambda p, raw: p.write_bytes(raw[:len(raw) // 2]), "cut off"),
    "a byte turned": (lambda p, raw: p.write_bytes(raw[:3000] + bytes([raw[3000] ^ 255]) + raw[3001:]), "damaged"),
    "a network as it is": (lambda p, raw: torch.save(nn.Conv2d(1, 1, 3), p), "Python objects"),
    "text": (lambda p, raw: p.write_text("seed: 3"), "another kind"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_checkpoints_that_are_spoilt(name, segmenter, tmp_path):
    spoil, word = SPOILT[name]
    spoil(tmp_path / "a.ckpt", segmenter.path.read_bytes())
    with pytest.raises(ConfigError) as e: Predictor(tmp_path / "a.ckpt", device="cpu")
    assert word in str(e.value) and "torch" not in str(e.value) and "weights_only" not in str(e.value), e.value


# ---- what training knew

def write_scenes(path, x, z=2.0):
    "An OME-TIFF of two stacks, of which the second is `x` and has other voxels."
    with tifffile.TiffWriter(path, ome=True) as w:
        for image, size in ((x * 0 + 7, 0.5), (x, z)):
            w.write(image, metadata=dict(axes="ZYX", PhysicalSizeX=0.5, PhysicalSizeY=0.5, PhysicalSizeZ=size))


def write_levels(path, x):
    "An OME-TIFF of two levels, the second of half the size."
    with tifffile.TiffWriter(path, ome=True) as w:
        w.write(x, subifds=1, photometric="minisblack", metadata=dict(axes="YX", PhysicalSizeX=0.5, PhysicalSizeY=0.25))
        w.write(x[::2, ::2], subfiletype=1, photometric="minisblack")


@pytest.fixture(scope="module")
def plain(segmenter):
    "Another predictor of the same run, to be changed."
    return lambda: Predictor(segmenter.path, device="cpu")


def test_scene_and_voxels(plain, image, tmp_path, monkeypatch):
    "The scene of training is read, its voxel size stretches it and is written."
    model = plain()
    model.preprocessing.scene, model.preprocessing.planes = 1, [2]
    (tmp_path / "in").mkdir()
    write_scenes(tmp_path / "in" / "a.ome.tif", np.stack([image] * 4))
    np.testing.assert_array_equal(model(tmp_path / "in" / "a.ome.tif"), model(image))
    assert not model.predict_folder(tmp_path / "in", tmp_path / "out", progress=False).failed
    assert image_info(tmp_path / "out" / "a.ome.tif").pixel_size == (2.0, 0.5, 0.5)


def test_level(plain, image, tmp_path):
    "Of a coarser level the pixels are larger, in the result, too."
    model = plain()
    model.preprocessing.level = 1
    write_levels(tmp_path / "a.ome.tif", image)
    np.testing.assert_array_equal(model(tmp_path / "a.ome.tif"), model(image[::2, ::2]))
    outcome = model.predict_folder(tmp_path / "a.ome.tif", tmp_path / "out", progress=False)
    info = image_info(outcome.done[0])
    assert info.shape[-2:] == (32, 32) and info.pixel_size[1:] == (0.5, 1.0)


@pytest.mark.parametrize("planes, z", [([0], 2.0), ([0, 2, 4], 4.0), ([4, 2], 4.0), ([0, 1, 3], None), (None, 2.0)])
def test_planes_are_farther_apart_where_some_are_left_out(planes, z, plain):
    model = plain()
    model.preprocessing.planes = planes
    assert model._size_of_result((2.0, 0.5, 0.5)) == (z, 0.5, 0.5)


def test_pixel_size_of_files_that_do_not_say(plain, image, tmp_path):
    model = plain()
    model.preprocessing.pixel_size = [1.0, 0.2, 0.2]
    tifffile.imwrite(tmp_path / "a.tif", image)
    outcome = model.predict_folder([tmp_path / "a.tif"], tmp_path / "out", progress=False)
    assert image_info(outcome.done[0]).pixel_size[1:] == (0.2, 0.2)


def test_axes_and_channels(plain, image, tmp_path):
    "Axes that only training was told, and channels that it chose, hold for files and for arrays."
    model = plain()
    model.preprocessing.axes["IM"], model.preprocessing.channels["IM"] = "CYX", [1]
    x = np.stack([image * 0, image])
    tifffile.imwrite(tmp_path / "a.tif", x, photometric="minisblack", metadata=dict(axes="PYX"))
    for given in (tmp_path / "a.tif", x, x[None, :, None], image):
        np.testing.assert_array_equal(np.asarray(model(given)).squeeze(), model(image))
    assert not model.predict_folder(tmp_path / "a.tif", tmp_path / "out", progress=False).failed


def test_voxels_of_an_array(plain):
    "A model of isotropic voxels asks for them."
    model = plain()
    model.preprocessing.isotropic = True
    with pytest.raises(DataError, match="pixel_size"): model(np.zeros((40, 40)))
    for size in (3, (1, 1), (1, 0, 1), ("a", 1, 1), (1, float("nan"), 1)):
        with pytest.raises(Im2ImError, match="pixel_size"): model(np.zeros((40, 40)), pixel_size=size)


# ---- folders and lists

def test_whatever_goes_wrong_with_one_file(plain, pairs, image, tmp_path, monkeypatch):
    "Errors of every kind are reported and skipped."
    model, raw, folder = plain(), Predictor._raw, tmp_path / "in"
    for i in range(5): write_image(folder / f"{i}.tif", image[:40 + i])
    errors = {41: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), 42: MemoryError(),
              43: KeyError("who knows"), 44: PermissionError(13, "Permission denied", "x")}

    def failing(self, x, *args, **kwargs):
        if x.shape[1] in errors: raise errors[x.shape[1]]
        return raw(self, x, *args, **kwargs)

    monkeypatch.setattr(Predictor, "_raw", failing)
    outcome = model.predict_folder(folder, tmp_path / "out", progress=False)
    assert [p.name for p in outcome.done] == ["0.ome.tif"] and len(outcome.failed) == 4
    for name, word in (("1.tif", "enough memory"), ("2.tif", "enough memory"), ("3.tif", "who knows"), ("4.tif", "Permission denied")):
        said = outcome.failed[str(folder / name)]
        assert word in said and name in said and "\n" not in said, said
    for part in ("IM", "GT"):
        for i in range(5): write_image(tmp_path / "set" / part / f"{i}.tif", (image[:40 + i] > 9).astype(np.uint8) if part == "GT" else image[:40 + i])
    rows, outcome = model.evaluate(tmp_path / "set", progress=False)
    assert [r["image"] for r in rows] == ["0.tif"] and len(outcome.failed) == 4


def test_a_list_of_files(segmenter, pairs, image, tmp_path):
    good = pairs / "IM" / "000.tif"
    (tmp_path / "bad.tif").write_text("no image")
    write_image(tmp_path / "three.tif", np.stack([image] * 3), axes="CYX")
    outcome = segmenter.predict_folder([good, tmp_path / "bad.tif", str(tmp_path / "three.tif"), tmp_path / "gone.tif"], tmp_path / "out", progress=False)
    assert [p.name for p in outcome.done] == ["000.ome.tif"] and len(outcome.failed) == 3
    assert "3 channel(s)" in outcome.failed[str(tmp_path / "three.tif")]
    for wrong in ([], [image], None, 3, {"IM": good}, [good, good]):
        with pytest.raises(DataError): segmenter.predict_folder(wrong, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"): segmenter.predict_folder([good], tmp_path / "file" / "out")


def test_evaluation_names_a_file_of_other_channels(segmenter, pairs, image, tmp_path):
    for part in ("IM", "GT"):
        write_image(tmp_path / part / "a.tif", read_image(pairs / part / "000.tif")[0, 0, 0])
        write_image(tmp_path / part / "b.tif", read_image(pairs / part / "001.tif")[0, 0, 0])
    write_image(tmp_path / "IM" / "a.tif", np.stack([image] * 2), axes="CYX")
    rows, outcome = segmenter.evaluate(tmp_path, progress=False)
    assert [r["image"] for r in rows] == ["b.tif"] and "2 channel(s)" in outcome.failed[str(tmp_path / "IM" / "a.tif")]


def test_a_network_that_gives_nan(plain, image, pairs, tmp_path):
    model = plain()
    with torch.no_grad(): next(model.module.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="NaN"): model(image)
    assert len(model.predict_folder(pairs, tmp_path / "out", progress=False).failed) == 4


# ---- labels

def checkered(n: int) -> np.ndarray:
    "A mask of n objects of one pixel each, at least 300 pixels wide."
    mask = np.zeros((2 * (n // 150 + 1), 300), np.uint8)
    at = np.arange(n)
    mask[2 * (at // 150), 2 * (at % 150)] = 1
    return mask


@pytest.mark.parametrize("n, dtype", [(200, np.uint16), (300, np.uint16), (70_000, np.int32)])
def test_labels_of_many_objects(n, dtype, plain, tmp_path, monkeypatch):
    "No number wraps around, in an array, a lazy one, or a file."
    model, mask = plain(), checkered(n)
    model.postprocess = [Label()]
    monkeypatch.setattr(Predictor, "_finish", lambda self, raw, probabilities: (raw[0].numpy() > 0).astype(np.uint8))
    monkeypatch.setattr(Predictor, "_raw", lambda self, x, *a, **k: torch.from_numpy(x[None]))
    model.preprocessing = None
    labels = model(mask)
    assert labels.max() == n and labels.dtype == dtype and len(np.unique(labels)) == n + 1
    lazy = model(da.from_array(mask[None], (1, *mask.shape)), axes="TYX")
    assert lazy.dtype == np.int32 and lazy.compute().dtype == np.int32 and lazy.max().compute() == n
    write_image(tmp_path / "a.tif", mask)
    done = model.predict_folder(tmp_path / "a.tif", tmp_path / "out", progress=False).done
    np.testing.assert_array_equal(read_image(done[0]).squeeze(), labels)


@pytest.mark.parametrize("top, dtype", [(255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.int32)])
def test_class_numbers_of_a_framework_of_ones_own(top, dtype):
    labels = module._smallest(np.array([0, top]))
    assert labels.dtype == dtype and labels.max() == top


# ---- own parts

def quick(**more) -> pl.Trainer:
    "A trainer of one epoch that writes nothing."
    return pl.Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False, logger=False, enable_checkpointing=False,
                      enable_model_summary=False, num_sanity_val_steps=0, **more)


def conv(ci=1, co=1): return nn.Conv2d(ci, co, 3, padding=1)


class Gives(nn.Module):
    "A network that returns what a function makes of its image."
    def __init__(self, wrap):
        super().__init__()
        self.conv, self.wrap = conv(), wrap

    def forward(self, x): return self.wrap(self.conv(x))


class Each(nn.Module):
    "A loss that is not reduced."
    def forward(self, p, y): return (p - y).abs()


class Mine(FCN):
    "A framework of one's own with another argument, that must be given."
    def __init__(self, net, loss, strength):
        super().__init__(net=net, loss=loss)
        self.strength = strength


class Fewer(FCN):
    "One that leaves out what it does not need."
    def __init__(self, net): super().__init__(net=net, task="segmentation")


@pytest.fixture(scope="module")
def restored(tmp_path_factory):
    "Pairs of intensities."
    return cells(tmp_path_factory.mktemp("restored") / "cells", 4, source="nuclei", target="nuclei")


def data(path): return Im2ImDataModule(path=path, patch=(32, 32), patches_per_image=1, batch_size=2, num_workers=0)


# Name: a model that trains and predicts
PARTS = {
    "a dict of one": lambda: FCN(Gives(lambda y: {"image": y})),
    "a dict with 'out'": lambda: FCN(Gives(lambda y: {"aux": 3, "out": y})),
    "a tuple": lambda: FCN(Gives(lambda y: (y, y))),
    "a loss of each pixel": lambda: FCN(conv(), Each()),
    "a loss that torch does not reduce": lambda: FCN(conv(), nn.L1Loss(reduction="none")),
    "a function": lambda: FCN(conv(), nn.functional.l1_loss),
    "in parallel": lambda: FCN(nn.DataParallel(conv())),
    "a class of optimizer": lambda: FCN(conv(), optimizer=torch.optim.Adam),
}


@pytest.mark.parametrize("name", PARTS)
def test_own_parts_that_work(name, restored):
    model = PARTS[name]()
    trainer = quick()
    trainer.fit(model, datamodule=data(restored))
    assert np.isfinite(float(trainer.callback_metrics["train/loss"])) and np.isfinite(float(trainer.callback_metrics["val/loss"]))


# Name: (what is made or done, a word of the sentence)
REFUSED = {
    "the class of a loss": (lambda: FCN(conv(), nn.L1Loss), "L1Loss(...)"),
    "the class of a network": (lambda: FCN(nn.Conv2d), "Conv2d(...)"),
    "the name of a loss": (lambda: FCN(conv(), "L1Loss"), "'L1Loss'"),
    "the name of a network": (lambda: FCN("UNet"), "`net`"),
    "a description of a loss": (lambda: FCN(conv(), {"_target_": "L1Loss"}), "dict"),
    "a function as network": (lambda: FCN(lambda x: x), "`net`"),
    "an optimizer that is made": (lambda: FCN(conv(), optimizer=torch.optim.SGD(conv().parameters(), 0.1)), "`optimizer`"),
    "the name of an optimizer": (lambda: FCN(conv(), optimizer="Adam"), "`optimizer`"),
    "the class of a discriminator": (lambda: Pix2Pix(conv(), nn.Conv2d), "`discriminator`"),
    "an array into the model": (lambda: FCN(conv())(np.zeros((1, 1, 32, 32), np.float32)), "tensor"),
    "a picture without batch": (lambda: FCN(conv())(torch.zeros(32, 32)), "(32, 32)"),
    "a dict of several": (lambda: FCN(Gives(lambda y: {"a": y, "b": y})).predict_raw(torch.zeros(1, 1, 32, 32)), "a, b"),
    "no tensor": (lambda: FCN(Gives(lambda y: "image")).predict_raw(torch.zeros(1, 1, 32, 32)), "image"),
    "a loss that gives a dict": (lambda: FCN(conv(), lambda p, y: {"l": p.mean()}).losses({"IM": torch.zeros(1, 1, 8, 8), "GT": torch.zeros(1, 1, 8, 8)}), "one tensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_own_parts_that_cannot_work(name):
    do, word = REFUSED[name]
    with pytest.raises(Im2ImError) as e: do()
    assert word in str(e.value), e.value


# Name: (a model that a first step shows to be wrong, words of the sentence)
FAILS_AT_ONCE = {
    "a network of volumes": (lambda: FCN(nn.Conv3d(1, 1, 3, padding=1)), "(2, 1, 32, 32)"),
    "a network that detaches": (lambda: FCN(Gives(lambda y: y.detach())), "detaches"),
    "a loss that detaches": (lambda: FCN(conv(), lambda p, y: (p.detach() - y).abs().mean()), "detaches"),
    "a loss that counts": (lambda: FCN(conv(), lambda p, y: (p > y).sum()), "counts"),
    "a loss of one argument": (lambda: FCN(conv(), lambda p: p.mean()), "(prediction, target)"),
    "classes for intensities": (lambda: FCN(conv(), nn.NLLLoss()), "first step"),
    "a complex loss": (lambda: FCN(conv(), lambda p, y: torch.complex(p, y).mean()), "complex"),
    "an optimizer of nothing": (lambda: FCN(conv(), optimizer=lambda params: None), "torch.optim.Optimizer"),
    "frozen weights": (lambda: FCN(conv().requires_grad_(False)), "nothing to learn"),
    "a discriminator for larger patches": (lambda: Pix2Pix(conv(), nn.Sequential(*[nn.Conv2d(c, 4, 4, 2) for c in (2, 4, 4, 4)])), "first step"),
}


@pytest.mark.parametrize("name", FAILS_AT_ONCE)
def test_own_parts_that_a_first_step_shows(name, restored):
    make, word = FAILS_AT_ONCE[name]
    with pytest.raises(ConfigError) as e: Im2ImTrainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False).fit(make(), data(restored))
    assert word in str(e.value) and "\n" not in str(e.value), e.value


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_networks_in_other_precision(dtype):
    with pytest.raises(ConfigError, match=r"net.float\(\)"): FCN(conv().to(dtype))


def test_a_later_step_shows_its_own_error(restored):
    "What fails after the first step is no matter of shapes."
    class Late(FCN):
        def losses(self, batch):
            if self.global_step: raise RuntimeError("late")
            return super().losses(batch)

    with pytest.raises(RuntimeError, match="^late$"): quick().fit(Late(conv()), datamodule=data(restored))


# Name: (arguments, a word of the sentence)
DATA = {
    "labels": ({"target_kind": "labels"}, "did you mean 'label'"), "a split": ({"split": "file"}, "did you mean 'files'"),
    "a cache": ({"cache": "ram"}, "`cache`"), "a patch": ({"patch": 32}, "[Y, X]"), "half pixels": ({"patch": (32.5, 32)}, "[Y, X]"),
    "a batch as text": ({"batch_size": "4"}, "`batch_size`"), "half a batch": ({"batch_size": 2.5}, "`batch_size`"), "no batch": ({"batch_size": 0}, "`batch_size`"),
    "no augmentation": ({"augment": None}, "[] for none"), "a normalization's name": ({"source_norm": "Percentile"}, "Percentile()"),
    "files": ({"path": ["a.tif", "b.tif"]}, "a csv"), "no path": ({"path": None}, "NoneType"), "workers": ({"num_workers": -1}, "`num_workers`"),
}


@pytest.mark.parametrize("name", DATA)
def test_a_data_module_of_nonsense(name, pairs):
    given, word = DATA[name]
    with pytest.raises(ConfigError) as e: Im2ImDataModule(**{"path": pairs} | given)
    assert word in str(e.value), e.value


@pytest.mark.parametrize("layout", [2, "2", "folders"])
def test_a_layout_by_its_number(layout, pairs):
    data = Im2ImDataModule(pairs, (32, 32), target_kind="label", layout=layout)
    data.setup()
    assert data.first_patch(0)["IM"].shape == (1, 32, 32)


@pytest.mark.parametrize("given", [None, ["a.tif"], 3])
def test_what_cannot_be_evaluated(given, segmenter):
    with pytest.raises(ConfigError, match="folder of pairs"): segmenter.evaluate(given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_a_plain_loader(dtype):
    "Pairs of tensors, as any loader gives them; one image alone is predicted."
    x = (torch.rand(4, 1, 32, 32) * 9).to(dtype)
    loader = DataLoader(TensorDataset(x, x.float()), batch_size=2)
    model, trainer = FCN(conv()), quick()
    trainer.fit(model, loader, loader)
    out = trainer.predict(model, DataLoader(TensorDataset(x), batch_size=2))
    assert torch.equal(torch.cat(out), model.predict_raw(x.float()))
    for bad in (DataLoader([{"x": x[0]}]), DataLoader(TensorDataset(x[:, 0], x[:, 0])), DataLoader(["a", "b"])):
        with pytest.raises(DataError, match="IM"): quick().fit(FCN(conv()), bad)


def test_lightning_predicts_what_the_data_module_gives(restored):
    module = data(restored)
    module.setup("fit")
    model = FCN(conv())
    out = quick().predict(model, dataloaders=module.val_dataloader())
    assert all(o.ndim == 4 for o in out)


def test_frameworks_of_ones_own(tmp_path, restored, image):
    "Made again where the network is enough; given whole where it is not."
    for model, made in ((Mine(conv(), nn.L1Loss(), 2.0), None), (Fewer(conv()), "net")):
        trainer = quick()
        trainer.fit(model, DataLoader([{"IM": torch.rand(1, 16, 16), "GT": torch.ones(1, 16, 16).long() if made else torch.rand(1, 16, 16)}]))
        trainer.save_checkpoint(tmp_path / "m.ckpt")
        if made: again = Predictor(tmp_path / "m.ckpt", net=conv(), device="cpu", trust=__name__)
        else:
            with pytest.raises(ConfigError, match="Mine"): Predictor(tmp_path / "m.ckpt", net=conv(), device="cpu", trust=__name__)
            again = Predictor(tmp_path / "m.ckpt", net=Mine(conv(), nn.L1Loss(), 2.0), device="cpu")
        want = model.to_image(model.predict_raw(torch.from_numpy(image.astype(np.float32))[None, None]))[0, 0]
        np.testing.assert_allclose(again(image), want.numpy())


def test_weights_of_a_wrapped_network(tmp_path):
    model, trainer = FCN(nn.DataParallel(conv())), quick()
    trainer.fit(model, DataLoader([{"IM": torch.rand(1, 16, 16), "GT": torch.rand(1, 16, 16)}]))
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    x = torch.rand(20, 20)
    np.testing.assert_allclose(Predictor(tmp_path / "m.ckpt", net=conv(), device="cpu")(x), model.predict_raw(x[None, None])[0, 0], atol=1e-6)


# ---- threads

class Restless(nn.Module):
    "A network that draws random numbers at every look."
    def __init__(self):
        super().__init__()
        self.conv, self.drop = conv(), nn.Dropout(0.5)

    def forward(self, x): return nn.functional.dropout(self.drop(self.conv(x)) + torch.randn_like(x), 0.2)


MODELS = {
    "FCN": lambda: FCN(nn.Sequential(conv(), nn.BatchNorm2d(1), nn.Dropout(0.5), conv())),
    "a restless network": lambda: FCN(Restless()),
    "Self2Self": lambda: SelfSupervised(PartialUNet(2, 1, 1, (4, 8)), BernoulliMask(samples=9)),
    "Self2Self, alone": lambda: SelfSupervised(PartialUNet(2, 1, 1, (4, 8)), BernoulliMask(samples=9), channels="alone"),
    "CycleGAN": lambda: CycleGAN(nn.Sequential(conv(), nn.Dropout(0.5)), conv()),
    "CycleGAN, backward": lambda: CycleGAN(conv(), nn.Sequential(conv(), nn.Dropout(0.5)), dropout_noise=False).backward_module(),
    "CycleGAN, noise": lambda: CycleGAN(nn.Sequential(conv(), nn.Dropout(0.5)), conv(), dropout_noise=True),
    "Pix2Pix": lambda: Pix2Pix(nn.Sequential(conv(), nn.BatchNorm2d(1))),
    "Pix2Pix, noise": lambda: Pix2Pix(nn.Sequential(conv(), nn.Dropout(0.5)), dropout_noise=True),
    "segmentation": lambda: FCN(nn.Sequential(conv(), nn.BatchNorm2d(1)), task="segmentation"),
    "Noise2Void": lambda: SelfSupervised(BlurPoolUNet(2, 1, 1, (4, 8))),
    "zero-shot": lambda: SelfSupervised(ZeroShotNet(2, 1, 1, 4), PairDownsample()),
    "of one's own, a field": Generator,
    "of one's own, a style": Styled,
    "of one's own, vectors": Vectors,
}


def at_once(*functions) -> list:
    "Results of functions that run at the same time, each in a thread."
    out, gate = [None] * len(functions), threading.Barrier(len(functions))

    def go(i):
        gate.wait()
        try: out[i] = functions[i]()
        except BaseException as e: out[i] = e

    threads = [threading.Thread(target=go, args=(i,)) for i in range(len(functions))]
    for t in threads: t.start()
    for t in threads: t.join()
    return out


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_threads_predict_at_once(name, training):
    "The same pixels in each, probing and predicting at once; modes, weights and torch's generator stay."
    torch.manual_seed(0)
    model = MODELS[name]().train(training)
    next(model.children()).eval()  # modes of parts are kept, too
    x = torch.rand(1, 1, 40, 44)
    state, modes = {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]
    before = torch.random.get_rng_state()
    found = at_once(*[lambda: model.predict_raw(x, tile=(16, 16))] * 4)
    for y in found: assert isinstance(y, torch.Tensor), y
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    torch.rand(3)
    want = model.predict_raw(x, tile=(16, 16))
    assert all(torch.equal(y, want) for y in found)


def test_threads_of_both_ways():
    "A CycleGAN that predicts while its other way runs."
    torch.manual_seed(0)
    model, x = CycleGAN(conv(), conv()).eval(), torch.rand(1, 1, 40, 44)
    with torch.no_grad():
        want = model.predict_raw(x)
        back = model.backward_module()
        behind = back.predict_raw(x)
        *found, ways = at_once(*[lambda: model.predict_raw(x)] * 3, lambda: [back.predict_raw(x) for _ in range(9)])
    assert all(torch.equal(y, want) for y in found) and all(torch.equal(y, behind) for y in ways)


def test_the_same_pixels_whatever_the_way_in(tmp_path):
    "An array, a lazy one, a file and a thread, through Self2Self."
    torch.manual_seed(0)
    model, trainer = MODELS["Self2Self"](), quick()
    trainer.fit(model, DataLoader([{"IM": torch.rand(1, 16, 16)}]))
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    predictor = Predictor(tmp_path / "m.ckpt", net=PartialUNet(2, 1, 1, (4, 8)), device="cpu")
    x = np.random.default_rng(0).random((6, 32, 32), np.float32)
    want = np.stack([predictor(i) for i in x])
    np.testing.assert_array_equal(predictor(da.from_array(x, (1, 32, 32)), axes="TYX").compute(scheduler="threads", num_workers=4), want)
    for i, image in enumerate(x): write_image(tmp_path / "in" / f"{i}.tif", image)
    done = predictor.predict_folder(tmp_path / "in", tmp_path / "out", progress=False).done
    np.testing.assert_array_equal([read_image(p).squeeze() for p in done], want)
    found = at_once(lambda: predictor(x[0]), lambda: predictor(x[0], uncertainty=True), lambda: predictor(x[1]))
    np.testing.assert_array_equal(found[0], want[0])
    assert len(found[1]) == 2 and found[1][0].shape == (32, 32)
    np.testing.assert_array_equal(found[2], want[1])
