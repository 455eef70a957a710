"Folders as people have them: names of macOS and of other programs, targets of many kinds; each is understood, or answered in one sentence."
import os
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage.measure import label
from test_layouts import files

from mmv_im2im.core import DataError
from mmv_im2im.data_modules.data_module import Im2ImDataModule
from mmv_im2im.data_modules.layouts import find_samples, find_sources
from mmv_im2im.data_modules.checks import check_contents

NFC = "z\u00e4hlung"
NFD = unicodedata.normalize("NFD", NFC)


def found(folder: Path, **arguments) -> list[tuple[str, str]]:
    "Source and target of each sample, from the folder on."
    names = lambda s: tuple(s[k].relative_to(folder).as_posix() for k in ("IM", "GT") if k in s)
    return [names(s) for s in find_samples(folder, **arguments)]


# ---- names: what is understood. case: (files, arguments, pairs, words that are told)

UNDERSTOOD = {
    "umlauts of macOS, folders": ([f"IM/{NFC}.tif", f"GT/{NFD}.tif"], {}, [(f"IM/{NFC}.tif", f"GT/{NFD}.tif")], None),
    "umlauts of macOS, suffix": ([f"{NFC}_IM.tif", f"{NFD}_GT.tif"], {}, [(f"{NFC}_IM.tif", f"{NFD}_GT.tif")], None),
    "umlauts of macOS, sub-folders": ([f"IM/{NFC}/1.tif", f"GT/{NFD}/1.tif"], {"nested": True}, [(f"IM/{NFC}/1.tif", f"GT/{NFD}/1.tif")], None),
    "umlauts of macOS, name of a folder": ([f"{NFD}/1.tif", "gt/1.tif"], {"source": NFC, "target": "gt"}, [(f"{NFD}/1.tif", "gt/1.tif")], None),
    "endings in upper case": (["IM/1.TIF", "GT/1.Png"], {}, [("IM/1.TIF", "GT/1.Png")], None),
    "folders in lower case": (["im/1.tif", "gt/1.tif"], {}, [("im/1.tif", "gt/1.tif")], None),
    "suffixes in lower case": (["1_im.tif", "1_gt.tif"], {}, [("1_im.tif", "1_gt.tif")], None),
    "names in another case": (["IM/Cell1.tif", "GT/cell1.tif"], {}, [("IM/Cell1.tif", "GT/cell1.tif")], None),
    "spaces": (["IM/cell 1 .tif", "GT/cell 1.tif"], {}, [("IM/cell 1 .tif", "GT/cell 1.tif")], None),
    "masks by suffix, ''": (["a.tif", "a_masks.tif"], {"source": "", "target": "masks"}, [("a.tif", "a_masks.tif")], None),
    "masks by suffix, '.'": (["a.tif", "a_masks.png"], {"source": ".", "target": "masks"}, [("a.tif", "a_masks.png")], None),
    "masks by suffix, with its mark": (["a.tif", "a_masks.tif"], {"source": "", "target": "_masks"}, [("a.tif", "a_masks.tif")], None),
    "masks by suffix, nested": (["x/a.tif", "x/a_label.tif"], {"source": "", "target": "label", "nested": True}, [("x/a.tif", "x/a_label.tif")], None),
    "targets by another mark": (["a.tif", "a-mask.tif"], {"source": "", "target": "-mask"}, [("a.tif", "a-mask.tif")], None),
    "targets by _GT alone": (["a.tif", "a_GT.tif"], {"source": ""}, [("a.tif", "a_GT.tif")], None),
    "masks marked in their folder": (["IM/a.tif", "IM/b.tif", "GT/a_mask.png", "GT/b_mask.png"], {}, [("IM/a.tif", "GT/a_mask.png"), ("IM/b.tif", "GT/b_mask.png")], "'_mask'"),
    "sources marked in their folder": (["im/a_0000.tif", "gt/a.tif"], {}, [("im/a_0000.tif", "gt/a.tif")], "'_0000'"),
    "sources marked, in days": (["IM/d/a_ch0.tif", "GT/d/a.tif"], {"nested": True}, [("IM/d/a_ch0.tif", "GT/d/a.tif")], "'_ch0'"),
    "the folder itself, masks inside, nested": (["1.tif", "masks/1.tif"], {"source": ".", "target": "masks", "nested": True}, [("1.tif", "masks/1.tif")], None),
    "hidden files and those of systems": (["IM/a.tif", "GT/a.tif", "IM/._a.tif", "IM/Thumbs.db", "GT/.DS_Store", "IM/@eaDir/a.tif/SYNO_THUMB.jpg", "IM/__MACOSX/b.tif"], {"nested": True}, [("IM/a.tif", "GT/a.tif")], None),
    "images beside the pairs": (["a_IM.tif", "a_GT.tif", "b.tif", "c.tif"], {}, [("a_IM.tif", "a_GT.tif")], "2 images left aside, since their names end in none of _IM, _GT, _CM: b.tif, c.tif"),
    "an image beside the folders": (["IM/a.tif", "GT/a.tif", "overview.tif"], {}, [("IM/a.tif", "GT/a.tif")], "1 image left aside, since they lie beside the folders: overview.tif"),
}


@pytest.mark.parametrize("case", UNDERSTOOD)
def test_understood(case, tmp_path, caplog):
    names, arguments, pairs, told = UNDERSTOOD[case]
    files(*names)(tmp_path)
    assert found(tmp_path, **arguments) == pairs
    assert [r.message for r in caplog.records] == [] if told is None else told in caplog.text


# ---- names: what is refused, and the words. case: (files, arguments, words)

REFUSED = {
    "cellpose, default names": (["a.tif", "a_masks.tif", "b.tif", "b_masks.tif"], {}, ["`data.source: ''` and `data.target: masks`"]),
    "two marks, default names": (["1_raw.tif", "1_label.tif"], {}, ["`data.source: raw` and `data.target: label`"]),
    "folders of other names": (["labels/1.tif", "images/1.tif"], {}, ["`data.source: images` and `data.target: labels`"]),
    "images alone": (["a.tif", "b.tif"], {}, ["`data.pairing: source`", "`data.source: .`"]),
    "other formats": (["a.mrc", "b.mrc", "notes.txt"], {}, ["images end in .tif, .tiff, .zarr, .png", "2 files *.mrc", "1 file *.txt"]),
    "other formats in folders": (["IM/a.nii.gz", "GT/a.nii.gz"], {}, ["no source image (in 'IM')", "images end in .tif", "1 file *.gz"]),
    "hidden files alone": (["IM/._a.tif", "GT/._a.tif"], {}, ["no source image", "only hidden files"]),
    "names with nothing in common": (["IM/img1.tif", "GT/mask1.tif"], {}, ["1 of 1 have none: mask1.tif, while img1 have no target"]),
    "the same name, encoded in two ways": ([f"IM/{NFC}.tif", f"IM/{NFD}.tif", "GT/a.tif"], {}, ["each name may occur once", "2 files"]),
    "the same name, two endings": (["IM/a.tif", "IM/a.png", "GT/a.tif"], {}, ["a.png, a.tif"]),
    "suffix and folder of the masks": (["a.tif", "a_masks.tif", "masks/a.tif"], {"source": ".", "target": "masks"}, ["files *_masks and a folder 'masks'", "suffix or folders"]),
    "csv: no images": (["a.txt", "t.csv=source_path,target_path\na.txt,a.txt\n"], {}, ["must name images", "row 2: ", "a.txt"]),
    "csv: folders": (["x/a.tif", "t.csv=source_path,target_path\nx,x\n"], {}, ["must name images", "not folders"]),
    "csv: another case": (["a.TIF", "t.csv=source_path,target_path\na.tif,a.tif\n"], {}, ["must exist", "there is a 'a.TIF'"]),
    "csv: another ending": (["a.png", "t.csv=source_path,target_path\na.tif,a.tif\n"], {}, ["there is a 'a.png'"]),
    "csv: drive of Windows": (["t.csv=source_path,target_path\nC:\\data\\a.tif,C:\\data\\b.tif\n"], {}, ["must exist", "row 2"]),
    "csv: UTF-16": (["t.csv=" + "source_path,target_path".encode("utf-16").decode("utf-8", "surrogateescape")], {}, ["plain text in utf-8"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    names, arguments, words = REFUSED[case]
    files(*names)(tmp_path)
    with pytest.raises(DataError) as error: find_samples(tmp_path, **arguments)
    said = str(error.value)
    assert all(word in said for word in words), said
    assert said.endswith((".", "?")) and "\n" not in said and len(said) < 700


def test_a_csv_written_on_another_system(tmp_path, monkeypatch):
    "Encoded umlauts, a home folder, and paths from the folder one is in, which are answered."
    files(f"day/{NFD}.tif", "home/b.tif", "sub/t.csv")(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    table = tmp_path / "sub/t.csv"
    table.write_text(f"source_path;target_path\n..\\day\\{NFC}.tif;~/b.tif\n", encoding="utf-8-sig")
    (sample,) = find_samples(table)
    assert sample["IM"].is_file() and sample["IM"].name == f"{NFD}.tif" and sample["GT"] == tmp_path / "home/b.tif"
    table.write_text("source_path,target_path\nhome/b.tif,home/b.tif\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="as seen from the folder that you are in"): find_samples("sub/t.csv")


def test_a_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    files("IM/a.tif", "GT/a.tif")(tmp_path)
    scandir = os.scandir
    def closed(path):
        if str(path).endswith("GT"): raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)
    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DataError, match="GT may not be listed .Permission denied.; ask"): find_samples(tmp_path)


# ---- what is predicted: (files, arguments, results)

SOURCES = {
    "others beside a suffix": (["a_IM.tif", "b.tif", "c.tif"], {}, ["a_IM", "b", "c"]),
    "targets beside sources": (["a_IM.tif", "a_GT.tif", "a_CM.tif"], {}, ["a_IM"]),
    "targets alone": (["a_GT.tif", "b_GT.tif"], {}, ["a_GT", "b_GT"]),
    "a target whose source is not there": (["a_IM.tif", "b_GT.tif"], {}, ["a_IM", "b_GT"]),
    "masks by suffix": (["a.tif", "a_masks.tif"], {"source": "", "target": "masks"}, ["a"]),
    "folder of sources": (["IM/a.tif", "GT/a.tif"], {}, ["a"]),
    "folder of sources, in lower case": (["im/a.tif", "gt/a.tif"], {}, ["a"]),
    "sub-folders": (["x/a.tif", "y/a.tif", "a.tif"], {"nested": True}, ["a", "x/a", "y/a"]),
    "sub-folders of sources": (["IM/x/a.tif", "IM/y/a.tif", "GT/x/a.tif"], {"nested": True}, ["x/a", "y/a"]),
}


@pytest.mark.parametrize("case", SOURCES)
def test_sources(case, tmp_path):
    names, arguments, results = SOURCES[case]
    files(*names)(tmp_path)
    assert [name for _, name in find_sources(tmp_path, **arguments)] == results


@pytest.mark.parametrize("names, words", [
    (["x/a.tif"], ["in sub-folders only", "`data.nested: true`"]),
    (["a.mrc"], ["holds no image", "images end in .tif", "1 file *.mrc"]),
    ([f"{NFC}.tif", f"{NFD}.tif"], ["named alike"]),
    (["a.tif", "a.ome.tif"], ["named alike", "a.ome.tif, a.tif"]),
])
def test_no_sources(names, words, tmp_path):
    files(*names)(tmp_path)
    with pytest.raises(DataError) as error: find_sources(tmp_path)
    assert all(word in str(error.value) for word in words), str(error.value)


# ---- targets of many kinds


def field(seed: int, n: int = 64) -> tuple[np.ndarray, np.ndarray]:
    "An image, and the mask of its five disks."
    r = np.random.default_rng(seed)
    y, x = np.mgrid[:n, :n]
    mask = np.zeros((n, n), bool)
    for cy, cx in r.integers(6, n - 6, (5, 2)): mask |= (y - cy) ** 2 + (x - cx) ** 2 < 30
    return (mask * 200 + 50 + r.normal(0, 8, (n, n))).clip(0).astype(np.uint16), mask.astype(np.uint8)


def tif(path: Path, x: np.ndarray, axes: str = ""):
    how = {"imagej": True, "metadata": {"axes": axes}} if axes else {"photometric": "minisblack"}
    tifffile.imwrite(path.with_suffix(".tif"), x, **how)


def rgb(path: Path, x: np.ndarray): Image.fromarray(x).save(path.with_suffix(".png"))


def jpeg(path: Path, x: np.ndarray): Image.fromarray(x).save(path.with_suffix(".jpg"), quality=75)


def colors(m: np.ndarray, *channels: int) -> np.ndarray: return np.stack([m * np.uint8(c) for c in channels], -1)


def soft(path: Path, m: np.ndarray):
    rgb(path, np.asarray(Image.fromarray(m * 255).resize((32, 32)).resize((64, 64), Image.BILINEAR)))


def stack(x: np.ndarray, n: int) -> np.ndarray: return np.stack([x] * n)


def module(folder: Path, target, source=None, **arguments) -> Im2ImDataModule:
    "Six pairs: `target(path, mask, i)` and perhaps `source(path, image, i)` write them."
    for k in ("IM", "GT"): (folder / k).mkdir()
    for i in range(6):
        image, mask = field(i)
        (source or (lambda p, x, i: tif(p, x)))(folder / "IM" / str(i), image, i)
        target(folder / "GT" / str(i), mask, i)
    usual = {"patch": (32, 32), "target_kind": "label", "patches_per_image": 1, "batch_size": 2}
    return Im2ImDataModule(folder, **usual | arguments)


RIGHT = {  # case: (writer of targets, writer of sources, arguments, words that are told or None)
    "JPEG masks": (lambda p, m, i: jpeg(p, m * 255), None, {}, "are JPEG"),
    "JPEG in TIFF": (lambda p, m, i: tifffile.imwrite(p.with_suffix(".tif"), m * 255, compression="jpeg", photometric="minisblack"), None, {}, "are JPEG"),
    "one mask of JPEG": (lambda p, m, i: jpeg(p, m * 255) if i == 3 else tif(p, m), None, {}, "3.jpg' are JPEG"),
    "gray saved as color": (lambda p, m, i: rgb(p, colors(m, 255, 255, 255)), None, {"target_channels": [0]}, None),
    "0/1 and 0/255": (lambda p, m, i: tif(p, m * np.uint8(255 if i == 2 else 1)), None, {}, "the label 255 stands in 1 of 6 targets"),
    "0/1 and 0/255, binary": (lambda p, m, i: tif(p, m * np.uint8(255 if i == 2 else 1)), None, {"label_kind": "binary"}, None),
    "0/255 in all": (lambda p, m, i: tif(p, m * 255), None, {}, None),
    "255 beside classes": (lambda p, m, i: tif(p, m + (m == 0) * (np.arange(64) > 60) * np.uint8(255)), None, {}, "pixels to be ignored are those where a cost map is 0"),
    "8 and 16 bits": (lambda p, m, i: tif(p, m.astype(np.uint16 if i % 2 else np.uint8)), None, {}, None),
    "float 0.0 and 1.0": (lambda p, m, i: tif(p, m.astype(np.float32)), None, {}, None),
    "bool": (lambda p, m, i: np.save(p.with_suffix(".npy"), m.astype(bool)), None, {}, None),
    "one mask is empty": (lambda p, m, i: tif(p, m * np.uint8(i > 0)), None, {}, None),
    "one source is blank": (lambda p, m, i: tif(p, m), lambda p, x, i: tif(p, x * np.uint16(i > 0)), {}, "1 of 6 sources that were looked into are of a single value"),
    "all sources are blank": (lambda p, m, i: tif(p, m), lambda p, x, i: tif(p, x * 0), {}, "all 6 sources that were looked into, of 6, are of a single value"),
    "a plane drawn of a stack": (lambda p, m, i: tif(p, m), lambda p, x, i: tif(p, stack(x, 9), "ZYX"), {"planes": [4]}, None),
    "time points": (lambda p, m, i: tif(p, stack(m, 3), "TYX"), lambda p, x, i: tif(p, stack(x, 3), "TYX"), {"time_points": True}, None),
}


@pytest.mark.parametrize("case", RIGHT)
def test_targets_that_are_understood(case, tmp_path, caplog):
    target, source, arguments, told = RIGHT[case]
    data = module(tmp_path, target, source, **arguments)
    data.setup()
    assert [r.message for r in caplog.records] == [] if told is None else told in caplog.text
    for item in data.items:
        i = int(Path(item["GT"]).stem)
        drawn = field(i)[1] > 0
        if "255 beside" in case: drawn = drawn | (np.arange(64) > 60)
        if "empty" in case: drawn = drawn & (i > 0)
        assert np.array_equal(data.preprocessing.load(item)["GT"][0].numpy() > 0, drawn)


def test_soft_edges_are_told(tmp_path, caplog):
    module(tmp_path, lambda p, m, i: soft(p, m)).setup()
    assert "have soft edges" in caplog.text and "every value above 0 is a label" in caplog.text


HOPELESS = {  # case: (writer of targets, writer of sources, arguments, words)
    "empty": (lambda p, m, i: tif(p, m * 0), None, {}, ["all 6 targets are empty", "GT/0.tif"]),
    "all foreground": (lambda p, m, i: tif(p, m * 0 + 1), None, {}, ["all 6 targets are of a single value"]),
    "targets of one value": (lambda p, m, i: tif(p, m * 0 + 7), None, {"target_kind": "image"}, ["all 6 targets are of a single value"]),
    "painted in color": (lambda p, m, i: rgb(p, colors(m, 255, 0, 30)), None, {}, ["GT/0.png' is a color image", "2 colors", "`data.target_channels: [0, 1, 2]`"]),
    "color with alpha": (lambda p, m, i: rgb(p, np.dstack([colors(m, 255, 0, 30), m * 0 + 255])), None, {}, ["is a color image"]),
    "one of six in color": (lambda p, m, i: rgb(p, colors(m, 255, 255, 255) if i == 4 else m), None, {}, ["GT/4.png' is a color image", "`data.target_channels: [0]`"]),
    "JPEG of objects": (lambda p, m, i: jpeg(p, label(m).astype(np.uint8) * 40), None, {}, [".jpg' holds labels as JPEG", "PNG or TIFF"]),
    "JPEG of 0 and 1, one of six": (lambda p, m, i: jpeg(p, m + m * (np.arange(64) > 20).astype(np.uint8)) if i == 2 else tif(p, m), None, {}, ["GT/2.jpg' holds labels as JPEG"]),
    "half": (lambda p, m, i: tif(p, m * np.float32(0.5 if i == 1 else 1)), None, {}, ["GT/1.tif' should hold labels, whole numbers", "0.5"]),
    "negative": (lambda p, m, i: tif(p, m.astype(np.int16) - (i == 5)), None, {}, ["GT/5.tif' should hold labels of at least 0"]),
    "turned": (lambda p, m, i: tif(p, m[:, :40].T), lambda p, x, i: tif(p, x[:, :40]), {}, ["40 x 64", "64 x 40", "Y and X are exchanged"]),
    "half the size": (lambda p, m, i: tif(p, m[::2, ::2]), None, {}, ["32 x 32 pixels", "resize one of them"]),
    "other time points": (lambda p, m, i: tif(p, stack(m, 3), "TYX"), lambda p, x, i: tif(p, stack(x, 5), "TYX"), {"time_points": True}, ["GT/0.tif' has 3 time points but its source", "has 5"]),
    "time in the target alone": (lambda p, m, i: tif(p, stack(m, 3), "TYX"), None, {"time_points": True}, ["has 3 time points but its source", "has 1"]),
    "a plane for a stack": (lambda p, m, i: tif(p, m), lambda p, x, i: tif(p, stack(x, 9), "ZYX"), {"patch": (4, 32, 32)}, ["target '", "is a single plane, but the model is 3D", "projected"]),
    "planes differ": (lambda p, m, i: tif(p, stack(m, 7), "ZYX"), lambda p, x, i: tif(p, stack(x, 9), "ZYX"), {"patch": (4, 32, 32)}, ["7 x 64 x 64", "9 x 64 x 64"]),
    "a link to nothing": (lambda p, m, i: p.with_suffix(".tif").symlink_to("gone.tif") if i == 3 else tif(p, m), None, {}, ["GT/3.tif", "a link to gone.tif, which is not there"]),
    "zero bytes": (lambda p, m, i: p.with_suffix(".tif").touch() if i == 3 else tif(p, m), None, {}, ["GT/3.tif is empty (0 bytes)"]),
}


@pytest.mark.parametrize("case", HOPELESS)
def test_targets_that_are_refused(case, tmp_path):
    target, source, arguments, words = HOPELESS[case]
    with pytest.raises(DataError) as error: module(tmp_path, target, source, **arguments).setup()
    said = str(error.value)
    assert all(word in said for word in words), said
    assert "\n" not in said and len(said.replace(str(tmp_path), "")) < 500


@pytest.mark.parametrize("values, dtype, told", [
    ((np.uint8(200), np.uint16(40000)), "uint16", "uint16 in 5, uint8 in 1"),
    ((np.uint16(900), np.float32(0.5)), "float32", "float32 in 5, uint16 in 1"),
    ((np.int16(-5), np.uint16(40000)), "int32", "results are written as int32"),
    ((np.uint8(200), np.uint8(100)), "uint8", None),
    ((np.float32(1), np.float32(1000)), "float32", "of different scales"),
])
def test_images_of_several_kinds(values, dtype, told, tmp_path, caplog):
    data = module(tmp_path, lambda p, m, i: tif(p, m * values[i > 0]), target_kind="image")
    data.setup()
    assert data.preprocessing.target_dtype == dtype
    assert told in caplog.text if told else not caplog.records


def test_looking_into_many_files_stays_cheap(tmp_path, monkeypatch):
    "Of 60 pairs, or of pairs that are large, few are read."
    m = module(tmp_path, lambda p, m, i: tif(p, m), cache="none")
    items = [{k: tmp_path / k / f"{i % 6}.tif" for k in ("IM", "GT")} | {"time": i} for i in range(60)]
    read = []
    monkeypatch.setattr(m.preprocessing, "read", lambda key, path, time: read.append(key) or np.eye(64, dtype=np.uint8)[None])
    monkeypatch.setattr(m.preprocessing, "header", lambda key, path, time: ((1, 64, 64), SimpleNamespace(dtype="uint8")))
    assert check_contents(items, m.preprocessing) == [] and read.count("IM") == read.count("GT") == 16
    monkeypatch.setattr(m.preprocessing, "header", lambda key, path, time: ((1, 20_000, 20_000), SimpleNamespace(dtype="uint8")))
    read.clear()
    assert check_contents(items, m.preprocessing) == [] and read.count("IM") == read.count("GT") == 2


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["label", "image"])
@pytest.mark.parametrize("at", [(slice(2, 14), slice(4, 60)), (slice(50, 62), slice(4, 60)), (slice(4, 60), slice(50, 62)), (slice(20, 40), slice(2, 62))])
def test_a_region_that_validates_shows_something(tmp_path, dims, kind, at):
    "Objects fill one side of the only image, or its middle: neither part is background alone."
    from mmv_im2im.data_modules.data_module import Im2ImDataModule
    shape = (64, 64) if dims == 2 else (8, 64, 64)
    mask = np.zeros(shape, np.uint8)
    mask[(..., *at)] = 1
    target = mask if kind == "label" else mask * 100.0 + np.random.default_rng(0).normal(0, 1, shape)
    for k, x in (("IM", mask * 100.0), ("GT", target)):
        (tmp_path / k).mkdir()
        tifffile.imwrite(tmp_path / k / "a.tif", x.astype(np.uint8 if kind == "label" and k == "GT" else np.float32), photometric="minisblack")
    for seed in range(4):
        data = Im2ImDataModule(tmp_path, (16, 16) if dims == 2 else (8, 16, 16), 2, target_kind=kind, num_workers=0, gap=2, seed=seed)
        data.setup()
        for item in (data.train_items[0], data.val_items[0]): assert mask[tuple(slice(*r) for r in item["region"])].any(), (seed, item)


# ---- more habits and mishaps


@pytest.mark.parametrize("codec", ["jpeg2000", "webp", "jpegxl"])
@pytest.mark.parametrize("object_value", [255, 150])
def test_masks_of_lossy_codecs(codec, object_value, tmp_path, caplog):
    imagecodecs = pytest.importorskip("imagecodecs")
    if not getattr(imagecodecs, {"jpeg2000": "JPEG2K", "webp": "WEBP", "jpegxl": "JPEGXL"}[codec]).available: pytest.skip("no codec")
    how = {"jpeg2000": {"level": 30}, "webp": {"level": 30, "lossless": False}, "jpegxl": {"level": 40, "lossless": False}}[codec]
    color = codec == "webp"

    def write(p, m, i):
        x = m * np.uint8(object_value)
        if color: x = np.stack([x] * 3, -1)
        tifffile.imwrite(p.with_suffix(".tif"), x, compression=codec, compressionargs=how, photometric="rgb" if color else "minisblack")

    data = module(tmp_path, write, None, **({"target_channels": [0]} if color else {}))
    data.setup()
    for mask in next(iter(data.train_dataloader()))["GT"]: assert len(mask.unique()) <= 2
    assert "are JPEG or compressed in a like way" in caplog.text


def test_labels_of_a_codec_that_lost_nothing(tmp_path, caplog):
    pytest.importorskip("imagecodecs")
    write = lambda p, m, i: tifffile.imwrite(p.with_suffix(".tif"), label(m).astype(np.uint8), compression="jpeg2000", compressionargs={"level": 0, "reversible": True})
    module(tmp_path, write).setup()
    assert caplog.records == []


def test_codec_by_content(tmp_path, caplog):
    def write(p, m, i):
        jpeg(p, m * 255)
        p.with_suffix(".jpg").rename(p.with_suffix(".png"))

    module(tmp_path, write).setup()
    assert "are JPEG" in caplog.text
    other = tmp_path / "other"
    other.mkdir()

    def png(p, m, i):
        Image.fromarray(label(m).astype(np.uint8)).save(p.with_suffix(".png"))
        p.with_suffix(".png").rename(p.with_suffix(".jpg"))

    caplog.clear()
    module(other, png).setup()
    assert caplog.records == []


@pytest.mark.parametrize("kind", [None, "instances", "binary"])
def test_identifiers_beyond_63_bits(kind, tmp_path):
    def write(p, m, i): np.save(p.with_suffix(".npy"), np.where(m > 0, np.uint64(2**63 + 7) + label(m).astype(np.uint64), 0).astype(np.uint64))

    data = module(tmp_path, write, None, label_kind=kind)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["GT"].min() >= 0 and batch["GT"].max() < 100


def test_labels_that_are_nearly_whole(tmp_path):
    write = lambda p, m, i: tif(p, (m * np.float32(0.99999994)).astype(np.float32))
    data = module(tmp_path, write)
    data.setup()
    assert set(np.unique(next(iter(data.train_dataloader()))["GT"])) <= {0, 1}


def test_cost_maps_of_zeros(tmp_path):
    data = module(tmp_path, lambda p, m, i: tif(p, m))
    (tmp_path / "CM").mkdir()
    for f in list((tmp_path / "IM").iterdir()): tif(tmp_path / "CM" / f.name, np.zeros((64, 64), np.float32))
    with pytest.raises(DataError, match="cost maps are 0 in every pixel"): data.setup()


@pytest.mark.parametrize("how", ["link to a file", "linked folder"])
def test_validation_is_no_link_to_training(how, tmp_path):
    for part in ("train", "val"):
        for key in ("IM", "GT"): (tmp_path / part / key).mkdir(parents=True)
    files("train/IM/a.tif", "train/GT/a.tif", "train/IM/b.tif", "train/GT/b.tif")(tmp_path)
    for key in ("IM", "GT"):
        if how == "link to a file": (tmp_path / "val" / key / "a.tif").symlink_to(tmp_path / "train" / key / "a.tif")
        else:
            (tmp_path / "val" / key).rmdir()
            (tmp_path / "val" / key).symlink_to(tmp_path / "train" / key)
    with pytest.raises(DataError, match="both 'train' and 'val'"): find_samples(tmp_path)


def test_rows_of_one_image_by_a_link(tmp_path):
    files("a.tif", "m.tif", "n.tif")(tmp_path)
    (tmp_path / "b.tif").symlink_to(tmp_path / "a.tif")
    (tmp_path / "t.csv").write_text("source_path,target_path\na.tif,m.tif\nb.tif,n.tif\n")
    with pytest.raises(DataError, match="are named again"): find_samples(tmp_path / "t.csv")


def test_other_images_are_told(tmp_path, caplog):
    files("IM/a.tif", "GT/a.tif", "IM/b.bmp", "GT/b.bmp", "IM/notes.txt")(tmp_path)
    assert len(find_samples(tmp_path)) == 1
    assert "1 file *.bmp" in caplog.text and "notes" not in caplog.text
    caplog.clear()
    files("new/a.tif", "new/b.lsm", "new/c.nii.gz")(tmp_path)
    assert [name for _, name in find_sources(tmp_path / "new")] == ["a"]
    assert "*.lsm" in caplog.text and "*.nii.gz" in caplog.text


def test_a_table_predicts(tmp_path):
    files("d1/a.tif", "d2/a.tif", "m.tif", "n.tif")(tmp_path)
    (tmp_path / "t.csv").write_text("sep=;\nsource_path;target_path\nd1/a.tif;m.tif\nd2/a.tif;n.tif\n")
    assert len(find_samples(tmp_path / "t.csv")) == 2
    assert [name for _, name in find_sources(tmp_path / "t.csv")] == ["d1/a", "d2/a"]


def test_a_folder_called_like_an_image(tmp_path):
    files("cells.tif/a.tif")(tmp_path)
    assert [name for _, name in find_sources(tmp_path / "cells.tif")] == ["a"]


def test_folders_composed_otherwise(tmp_path):
    files(f"{NFD}/IM/a.tif", f"{NFD}/GT/a.tif")(tmp_path)
    assert len(find_samples(tmp_path / NFC)) == 1
    assert [p.name for p, _ in find_sources(tmp_path / NFC / "IM")] == ["a.tif"]
    (tmp_path / "t.csv").write_text(f"source_path,target_path\n{NFC}/IM/a.tif,{NFC}/GT/a.tif\n", encoding="utf-8")
    assert len(find_samples(tmp_path / "t.csv")) == 1


@pytest.mark.parametrize("what", ["level", "scene"])
def test_masks_that_have_one_level_or_scene(what, tmp_path):
    def pyramid(p, x, i):
        small = x[::2, ::2] if what == "level" else x
        with tifffile.TiffWriter(p.with_suffix(".ome.tif" if what == "scene" else ".tif")) as tif_:
            if what == "scene":
                for y in (x, small): tif_.write(y, metadata={"axes": "YX"})
            else:
                tif_.write(x, subifds=1, metadata={"axes": "YX"})
                tif_.write(small, subfiletype=1)

    data = module(tmp_path, lambda p, m, i: tif(p, m[::2, ::2] if what == "level" else m), pyramid, **{what: 1}, patch=(32, 32))
    data.setup()
    assert next(iter(data.train_dataloader()))["GT"].shape[1:] == (1, 32, 32)
