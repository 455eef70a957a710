"Folders as people have them: names of macOS and of other programs, targets of many kinds; each is understood, or answered in one sentence."
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from test_layouts import files

from mmv_im2im.core import DataError
from mmv_im2im.data_modules.images import list_images
from mmv_im2im.data_modules.layouts import find_samples, find_sources

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
