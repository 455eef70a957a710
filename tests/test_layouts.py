"Every layout with every pairing, cost maps, sub-folders and mixed file types; and every refusal, in its words."
import csv
import os
import pickle
from pathlib import Path

import pytest

from mmv_im2im.core import DataError
from mmv_im2im.data_modules.layouts import describe_samples, find_samples

LAYOUTS = ("suffix", "folders", "csv")
PAIRINGS = ("paired", "unpaired", "source")
KEYS = ("IM", "GT", "CM")
COLUMNS = dict(zip(KEYS, ("source_path", "target_path", "costmap_path")))
ENDS = {"one": dict.fromkeys(KEYS, ".tif"), "mixed": {"IM": ".ome.zarr", "GT": ".PNG", "CM": ".ome.tiff"}}


def make(path: Path):
    "An empty image; a Zarr is a folder with something in it that must not be taken for an image."
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zarr":
        (path / "0").mkdir(parents=True)
        (path / "0" / "thumbnail_IM.png").touch()
    else:
        path.touch()


def build(folder: Path, layout: str, has: dict[str, list[str]], ends=ENDS["one"]) -> dict[tuple[str, str], Path]:
    "Write images, `has` being the names of each key, in a layout; where each one is."
    def place(key: str, name: str) -> Path:
        day, _, stem = name.rpartition("/")
        if layout == "suffix": return folder / day / f"{stem}_{key}{ends[key]}"
        if layout == "folders": return folder / key / day / f"{stem}{ends[key]}"
        return folder / "files" / day / f"{stem}{key.lower()}{ends[key]}"

    where = {(key, name): place(key, name) for key, names in has.items() for name in names}
    for path in where.values(): make(path)
    if layout == "csv": table(folder, where)
    return where


def table(folder: Path, where: dict[tuple[str, str], Path]):
    "A csv whose rows are the names in order; relative and absolute paths in turn."
    with open(folder / "all.csv", "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(COLUMNS.values())
        for i, name in enumerate(sorted({name for _, name in where})):
            paths = [where.get((key, name), "") for key in KEYS]
            out.writerow([p and (p.relative_to(folder) if i % 2 else p.resolve()) for p in paths])


def expected(where: dict, pairing: str) -> list[dict[str, Path]]:
    "What should be found: written down once more, from names alone."
    names = {key: sorted(n for k, n in where if k == key) for key in KEYS}
    pick = lambda name, keys: {k: where[k, name] for k in keys if (k, name) in where}
    if pairing == "paired": return [pick(n, KEYS) for n in names["IM"]]
    if pairing == "source": return [pick(n, ("IM", "CM")) for n in names["IM"]]
    sources = [pick(n, ("IM",) if n in names["GT"] else ("IM", "CM")) for n in names["IM"]]
    return sources + [pick(n, ("GT", "CM")) for n in names["GT"]]


def resolved(samples: list[dict]) -> list[dict]:
    "The same with absolute paths, which is how a csv may give them."
    return [{k: v if k == "split" else v.resolve() for k, v in s.items()} for s in samples]


HAS = {
    ("paired", False): {"IM": ["a", "b.1", "c"], "GT": ["a", "b.1", "c"]},
    ("paired", True): {"IM": ["a", "b.1", "c"], "GT": ["a", "b.1", "c"], "CM": ["b.1"]},
    ("unpaired", False): {"IM": ["a", "b.1", "x"], "GT": ["b.1", "y"]},
    ("unpaired", True): {"IM": ["a", "b.1", "x"], "GT": ["b.1", "y"], "CM": ["a", "b.1", "y"]},
    ("source", False): {"IM": ["a", "b.1"], "GT": ["b.1", "y"]},
    ("source", True): {"IM": ["a", "b.1"], "GT": ["b.1", "y"], "CM": ["a", "y"]},
}


def in_days(has: dict) -> dict:
    "Each name at the top and in two sub-folders."
    return {key: [day + n for day in ("", "day1/", "day1/night/") for n in names] for key, names in has.items()}


# ---- what is found


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("maps", [False, True], ids=["no maps", "maps"])
@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_combination(layout, pairing, maps, nested, ends, tmp_path):
    has = HAS[pairing, maps]
    where = build(tmp_path, layout, in_days(has) if nested else has, ENDS[ends])
    samples = find_samples(tmp_path, pairing=pairing, nested=nested)
    assert resolved(samples) == resolved(expected(where, pairing))
    assert (samples.layout, samples.pairing) == (layout, pairing)
    number = str(LAYOUTS.index(layout) + 1)
    for named in (layout, number, int(number)):
        assert find_samples(tmp_path, named, pairing=pairing, nested=nested) == samples


@pytest.mark.parametrize("given", ["folder", "mapping"])
@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("val", LAYOUTS)
@pytest.mark.parametrize("train", LAYOUTS)
def test_parts_of_any_layout(train, val, pairing, given, tmp_path):
    parts, names = {"train": train, "val": val}, HAS[pairing, True]
    where = {part: build(tmp_path / part, layout, names, ENDS["mixed"]) for part, layout in parts.items()}
    path = tmp_path if given == "folder" else {p: str(tmp_path / p) for p in ("val", "train")}
    samples = find_samples(path, pairing=pairing)
    wanted = [s | {"split": part} for part in parts for s in expected(where[part], pairing)]
    assert resolved(samples) == resolved(wanted)
    assert samples.layout == "split" and find_samples(path, "4", pairing=pairing) == samples


def test_a_part_may_be_a_csv_file_and_say_again_what_it_is(tmp_path):
    for part in ("train", "val"):
        make(tmp_path / f"{part}.tif")
        (tmp_path / f"{part}.csv").write_text(f"source_path,target_path,split\n{part}.tif,{part}.tif,{part.upper()}\n")
    samples = find_samples({p: tmp_path / f"{p}.csv" for p in ("train", "val")})
    assert [(s["split"], s["IM"].name) for s in samples] == [("train", "train.tif"), ("val", "val.tif")]


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_without_nested_sub_folders_are_left_alone(pairing, tmp_path):
    for layout in ("suffix", "folders"):
        has = HAS[pairing, True]
        build(tmp_path / layout, layout, in_days(has))
        found = find_samples(tmp_path / layout, pairing=pairing)
        assert len(found) == len(expected({(k, n): None for k, names in has.items() for n in names}, pairing))


@pytest.mark.parametrize("names, files, pairs", [
    (("phase", "dapi"), ["phase/1.tif", "dapi/1.tif"], [("phase/1.tif", "dapi/1.tif")]),
    (("raw", "raw_mask"), ["1_raw.tif", "1_raw_mask.tif"], [("1_raw.tif", "1_raw_mask.tif")]),
    (("c", "c"), ["c/1.tif"], [("c/1.tif", "c/1.tif")]),
    (("IM", "IM"), ["1_IM.tif"], [("1_IM.tif", "1_IM.tif")]),
    ((".", "."), ["1.tif"], [("1.tif", "1.tif")]),
    ((".", "mask"), ["1.tif", "mask/1.png"], [("1.tif", "mask/1.png")]),
    (("in/a", "in/b"), ["in/a/1.tif", "in/b/1.tif"], [("in/a/1.tif", "in/b/1.tif")]),
])
def test_names_by_option(names, files, pairs, tmp_path):
    for name in files: make(tmp_path / name)
    samples = find_samples(tmp_path, source=names[0], target=names[1])
    assert samples == [{"IM": tmp_path / a, "GT": tmp_path / b} for a, b in pairs]


def test_hidden_files_and_other_files_are_no_images(tmp_path):
    build(tmp_path, "folders", {"IM": ["a"], "GT": ["a"]})
    for name in ("IM/.b.tif", "IM/._a.tif", "GT/notes.txt", "manifest.csv", "test/c.tif", "IM/.cache/d.tif"):
        make(tmp_path / name)
    assert len(find_samples(tmp_path, nested=True)) == 1


def test_a_relative_path_is_kept(tmp_path, monkeypatch):
    for layout in LAYOUTS: build(tmp_path / layout, layout, HAS["paired", True])
    monkeypatch.chdir(tmp_path)
    for layout in ("suffix", "folders"):
        samples = find_samples(layout)
        assert not samples[0]["IM"].is_absolute() and samples[0]["IM"].is_file()
    for layout in LAYOUTS:
        monkeypatch.chdir(tmp_path / layout)
        assert resolved(find_samples(".")) == resolved(find_samples(tmp_path / layout))
    assert len(find_samples("all.csv")) == 3


@pytest.mark.parametrize("text", [
    "source_path,target_path\na.tif,b.tif\n",
    "source_path;target_path\na.tif;b.tif",
    "\ufeffSource_Path , TARGET_PATH\r\n a.tif , b.tif \r\n",
    "\n\nid,target_path,source_path,note\n\n7,b.tif,a.tif,\"one, two\"\n,,,\n",
    'source_path,target_path,costmap_path,split\n"a.tif","b.tif",,\n',
    "source_path,target_path\n./a.tif,day/../b.tif\n",
    "source_path,target_path\na.tif,b.tif,,\n",
    "source_path,target_path\n.\\a.tif,day\\..\\b.tif\n",
    "source_path, target_path\na.tif, \"b.tif\"\n",
    "source_path\ttarget_path\r\na.tif\tb.tif\r\n",
])
def test_ways_to_write_a_csv(text, tmp_path):
    for name in ("a.tif", "b.tif", "day/c.tif"): make(tmp_path / name)
    (tmp_path / "t.csv").write_bytes(text.encode())
    (sample,) = find_samples(tmp_path / "t.csv")
    assert {k: Path(os.path.normpath(v)) for k, v in sample.items()} == {"IM": tmp_path / "a.tif", "GT": tmp_path / "b.tif"}


def test_a_csv_keeps_its_order_and_may_repeat_targets(tmp_path):
    for i in range(12): make(tmp_path / f"{i}.tif")
    rows = "".join(f"{i}.tif,0.tif\n" for i in range(11, 0, -1))
    (tmp_path / "t.csv").write_text("source_path,target_path\n" + rows)
    assert [s["IM"].stem for s in find_samples(tmp_path)] == [str(i) for i in range(11, 0, -1)]


def test_an_unpaired_csv_is_split_by_rows(tmp_path):
    for name in "abcde": make(tmp_path / f"{name}.tif")
    (tmp_path / "t.csv").write_text("source_path,target_path,split\na.tif,b.tif,train\nc.tif,d.tif,val\n,e.tif,train\n")
    found = [(s["split"], next(iter(s.values())).stem) for s in find_samples(tmp_path, pairing="unpaired")]
    assert found == [("train", "a"), ("val", "c"), ("train", "b"), ("val", "d"), ("train", "e")]


def test_a_list_of_samples_goes_to_another_process(tmp_path):
    build(tmp_path, "folders", HAS["unpaired", True])
    samples = find_samples(tmp_path, pairing="unpaired")
    again = pickle.loads(pickle.dumps(samples))
    assert again == samples and (again.layout, again.pairing) == ("folders", "unpaired")


@pytest.mark.parametrize("layout, pairing, says", [
    ("suffix", "paired", "3 pairs in layout 1 (suffix), 1 with a cost map"),
    ("csv", "unpaired", "3 sources and 2 targets, unpaired, in layout 3 (csv), 3 with a cost map"),
    ("folders", "source", "2 source images without a target in layout 2 (folders), 1 with a cost map"),
])
def test_the_sentence(layout, pairing, says, tmp_path):
    for part in ("train", "val"): build(tmp_path / part, layout, HAS[pairing, True])
    assert describe_samples(find_samples(tmp_path / "val", pairing=pairing)) == says
    both = find_samples(tmp_path, pairing=pairing)
    half = len(both) // 2
    assert describe_samples(both).endswith(f", {half} for training and {half} for validation")
    assert "in layout 4 (split)" in describe_samples(both)


def test_real_images(shared_data):
    train = find_samples(shared_data / "nuclei_2d" / "train", source="image", target="label")
    assert len(train) == 61
    both = find_samples(
        {p: shared_data / "nuclei_2d" / f for p, f in (("train", "train"), ("val", "test"))},
        source="image", target="label",
    )
    says = "76 pairs in layout 4 (split), 61 for training and 15 for validation"
    assert describe_samples(both) == says


# ---- what is refused


def files(*names):
    "A builder of empty images; a name with `=` is a file with that text."
    def build(folder: Path):
        for name in names:
            name, _, text = name.partition("=")
            make(folder / name)
            if text: (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    return build


def rows(*lines, head="source_path,target_path", images=("a.tif", "b.tif")):
    "A builder of a csv."
    return files(*images, "t.csv=" + "\n".join([head, *lines]))


MANY = [f"IM/{i}.tif" for i in range(9)]
REFUSED = {  # case: (builder, arguments, words that the error has)
    # partners
    "target missing": (files("IM/a.tif", "IM/b.tif", "GT/a.tif"), {}, ["every source needs a target (in 'GT') of the same name", "1 of 2", "b.tif", "data.pairing"]),
    "targets missing": (files(*MANY, "GT/0.tif"), {}, ["8 of 9 have none: 1.tif, 2.tif, 3.tif, 4.tif, 5.tif and 3 more"]),
    "target missing in a day": (files("IM/x/a.tif", "IM/y/a.tif", "GT/x/a.tif"), {"nested": True}, ["1 of 2", ": y/a.tif"]),
    "source missing": (files("a_IM.tif", "a_GT.tif", "c_GT.tif"), {}, ["every target needs a source (*_IM)", "1 of 2", "c_GT.tif"]),
    "source in another day": (files("x/a_IM.tif", "y/a_GT.tif"), {"nested": True}, ["every target needs a source", "y/a_GT.tif"]),
    "map without a source": (files("a_IM.tif", "a_GT.tif", "b_CM.tif"), {}, ["every cost map needs a source (*_IM)", "b_CM.tif"]),
    "map without anything": (files("IM/a.tif", "GT/b.tif", "CM/c.tif"), {"pairing": "unpaired"}, ["every cost map needs a source (in 'IM') or a target (in 'GT')", "c.tif"]),
    "no targets, unpaired": (files("a_IM.tif"), {"pairing": "unpaired"}, ["no target image (*_GT)"]),
    "no sources": (files("a_GT.tif"), {"pairing": "source"}, ["no source image (*_IM)"]),
    "no folder of targets": (files("IM/a.tif", "masks/a.tif"), {"target": "mask"}, ["must hold a folder 'mask'", "did you mean 'masks'?"]),
    # names
    "twins": (files("IM/a.tif", "IM/a.png", "GT/a.tif"), {}, ["each name may occur once", "2 files", "a.png, a.tif"]),
    "twins, one a zarr": (files("a_IM.tif", "a_IM.ome.zarr", "a_GT.tif"), {}, ["a_IM.ome.zarr, a_IM.tif"]),
    "twins in a day": (files("IM/x/a.tif", "IM/x/a.png", "GT/x/a.tif"), {"nested": True}, ["x/a.png, x/a.tif"]),
    # folders
    "empty": (lambda folder: None, {}, ["must hold images named *_IM.* and *_GT.*", "it holds nothing"]),
    "empty folders": (files("IM/notes.txt", "GT/notes.txt"), {}, ["no source image (in 'IM')"]),
    "other names": (files("images/a.tif", "masks/a.tif"), {}, ["it holds images/, masks/", "`data.source: images` and `data.target: masks`"]),
    "two layouts": (files("a_IM.tif", "IM/a.tif"), {}, ["say which to take", "suffix or folders"]),
    "three layouts": (files("a_IM.tif", "IM/a.tif", "train/b_IM.tif", "val/c_IM.tif"), {}, ["suffix or folders or split"]),
    "images in sub-folders, 1": (files("x/a_IM.tif", "x/a_GT.tif"), {}, ["`data.nested: true`"]),
    "images in sub-folders, 1 by name": (files("x/a_IM.tif", "x/a_GT.tif"), {"layout": "suffix"}, ["`data.nested: true`"]),
    "images in sub-folders, 2": (files("IM/x/a.tif", "GT/x/a.tif"), {}, ["`data.nested: true`"]),
    # choices
    "layout": (files("a_IM.tif"), {"layout": "folder"}, ["`data.layout`", "did you mean 'folders'?"]),
    "pairing": (files("a_IM.tif"), {"pairing": "unpared"}, ["`data.pairing`", "did you mean 'unpaired'?"]),
    # csv
    "csv: empty": (files("t.csv"), {}, ["it is empty"]),
    "csv: no rows": (files("t.csv=source_path,target_path\n,\n"), {}, ["no row below the names"]),
    "csv: latin-1": (files("t.csv=source_path,target_path\nzw\udcf6lf.tif,b.tif"), {}, ["plain text in utf-8", "CSV UTF-8"]),
    "csv: zero bytes": (files("t.csv=PK\0\0"), {}, ["plain text in utf-8", "zero bytes"]),
    "csv: endless cell": (files('t.csv=source_path,target_path\n"' + 200_000 * "a"), {}, ["cannot be read as one (field larger"]),
    "csv: no source_path": (rows("a.tif,b.tif", head="source,target_path"), {}, ["a column 'source_path'", "it has source, target_path", "rename 'source' if it is meant"]),
    "csv: no target_path": (rows("a.tif,b.tif", head="source_path,x"), {}, ["a column 'target_path'", "it has source_path, x; add it"]),
    "csv: no target_path, unpaired": (rows("a.tif", head="source_path"), {"pairing": "unpaired"}, ["a column 'target_path'"]),
    "csv: column twice": (rows("a.tif,b.tif,b.tif", head="source_path,target_path,Target_Path"), {}, ["more than one column 'target_path'"]),
    "csv: short row": (rows("a.tif,b.tif", "", "a.tif"), {}, ["every row needs 2 cells", "1 differ: row 4 has 1"]),
    "csv: long row": (rows("a.tif,b,c.tif"), {}, ["row 2 has 3", "quotes"]),
    "csv: no target": (rows("a.tif,b.tif", "b.tif,"), {}, ["every source needs a target (`target_path`) in its row", "1 of 2", "row 3"]),
    "csv: no source": (rows("a.tif,b.tif", ",b.tif"), {}, ["every target needs a source (`source_path`) in its row", "row 3"]),
    "csv: no sources": (rows(",b.tif"), {"pairing": "source"}, ["no source image (`source_path`)"]),
    "csv: map alone": (rows("a.tif,b.tif,", ",,b.tif", head="source_path,target_path,costmap_path"), {"pairing": "unpaired"}, ["every cost map", "row 3"]),
    "csv: file gone": (rows("a.tif,b.tif", "b.tif,c.tif"), {}, ["must exist", "1 do not: row 3: ", "c.tif"]),
    "csv: files gone": (rows(*[f"x{i}.tif,b.tif" for i in range(12)]), {}, ["12 do not: row 2: ", "row 6: ", "and 7 more"]),
    "csv: folder gone": (rows("x/a.tif,b.tif"), {}, ["1 do not: row 2: "]),
    "csv: map gone": (rows("a.tif,b.tif,c.tif", head="source_path,target_path,costmap_path"), {}, ["row 2: ", "c.tif"]),
    "csv: source twice": (rows("a.tif,b.tif", "./a.tif,b.tif"), {}, ["named once", "1 are named again: row 3 (the source of row 2)"]),
    "csv: unpaired target twice": (rows("a.tif,b.tif", ",b.tif"), {"pairing": "unpaired"}, ["row 3 (the target of row 2)"]),
    "csv: split 'test'": (rows("a.tif,b.tif,train", "b.tif,a.tif,test", head="source_path,target_path,split"), {}, ["'train' or 'val'", "1 have other words: row 3 'test'"]),
    "csv: split blank": (rows("a.tif,b.tif,train", "b.tif,a.tif,", head="source_path,target_path,split"), {}, ["row 3 ''"]),
    "csv: train alone": (rows("a.tif,b.tif,train", head="source_path,target_path,split"), {}, ["no source for 'val'"]),
    "csv: val without targets": (rows("a.tif,b.tif,train", "b.tif,,val", head="source_path,target_path,split"), {"pairing": "unpaired"}, ["no target for 'val'"]),
    "two csvs": (files("t.csv=x", "u.csv=y"), {}, ["one file *.csv; it has t.csv, u.csv", "{train: ..., val: ...}"]),
    "no csv": (files("a_IM.tif"), {"layout": "csv"}, ["one file *.csv; it has none"]),
    # parts
    "train alone": (files("train/a_IM.tif", "train/a_GT.tif"), {}, ["'val' is missing", "it holds train"]),
    "train and valid": (files("train/a_IM.tif", "valid/a_IM.tif"), {}, ["'val' is missing", "train, valid"]),
    "val alone": (files("val/a_IM.tif"), {"layout": "split"}, ["'train' is missing"]),
    "split of nothing": (lambda folder: None, {"layout": "split"}, ["it holds no folder"]),
    "val is empty": (lambda folder: (files("train/a_IM.tif", "train/a_GT.tif")(folder), (folder / "val").mkdir()), {}, ["val must hold images", "it holds nothing"]),
    "a pair torn apart": (files("train/a_IM.tif", "val/a_GT.tif"), {}, ["train: every source needs a target"]),
    "parts in parts": (files("train/train/a_IM.tif", "train/val/b_IM.tif", "val/c_IM.tif"), {"pairing": "source"}, ["train has files *_IM"]),
    "a csv in a part says otherwise": (
        files("a.tif", "b.tif", "val/b_IM.tif", "val/b_GT.tif", "train/t.csv=source_path,target_path,split\n../a.tif,../b.tif,val"),
        {}, ["must be 'train' in every row", "row 2 'val'"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case, tmp_path):
    start, arguments, words = REFUSED[case]
    start(tmp_path)
    with pytest.raises(DataError) as error: find_samples(tmp_path, **arguments)
    said = str(error.value)
    assert all(word in said for word in words), said
    assert said.endswith((".", "?")) and "\n" not in said


@pytest.mark.parametrize("path, words", [
    ({"train": "one"}, ["{train: ..., val: ...}", "'val' is missing"]),
    ({"train": "one", "valid": "two"}, ["'val' is missing"]),
    ({"train": "one", "val": "two", "test": "one"}, ["'test' is no such part"]),
    ({"train": "one", "val": None}, ["`data.path.val`", "got None"]),
    ({"train": "one", "val": " "}, ["`data.path.val`"]),
    ({"train": "one", "val": "./one"}, ["both 'train' and 'val'", "1 are: ", "a_IM.tif"]),
    ({"train": "one", "val": "tow"}, ["did you mean 'two'?"]),
    ("tow", ["did you mean 'two'?"]),
    ("t.csv", ["there is none of that name", "did you mean 'u.csv'?"]),
    ("notes.txt", ["it is another file"]),
])
def test_refused_paths(path, words, tmp_path, monkeypatch):
    files("one/a_IM.tif", "one/a_GT.tif", "two/a_IM.tif", "two/a_GT.tif", "notes.txt", "u.csv")(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error: find_samples(path)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_file_is_no_folder(tmp_path):
    build(tmp_path, "csv", HAS["paired", False])
    for layout in ("suffix", "folders", "split"):
        with pytest.raises(DataError, match="must be a folder"): find_samples(tmp_path / "all.csv", layout)


def test_a_csv_asks_the_disk_by_folder(tmp_path, monkeypatch):
    "Existence of a thousand files costs as many questions as there are folders."
    where = build(tmp_path, "csv", {key: [f"{i:04}" for i in range(500)] for key in ("IM", "GT")})
    listed, asked = [], []
    listdir, exists = os.listdir, Path.exists
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or listdir(path))
    monkeypatch.setattr(Path, "exists", lambda self: asked.append(self) or exists(self))
    assert len(find_samples(tmp_path / "all.csv")) * 2 == len(where) == 1000
    assert len([p for p in listed if str(p).endswith("files")]) == len(set(listed)) <= 2 and not asked
