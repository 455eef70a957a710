"Broken images: training names the file and says what is wrong; a folder is predicted but for the bad ones, of which nothing is written."
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from small import CONFIG, cells, changed, one_paragraph, write_config

from mmv_im2im.cli import main

BAD = "002.tif"


def cut(path: Path):
    "The first 60 % of the bytes."
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) * 6 // 10])


def cut_header(path: Path): path.write_bytes(path.read_bytes()[:6])


def empty(path: Path): path.write_bytes(b"")


def text(path: Path): path.write_text("this is no image\n" * 40)


def nan(path: Path):
    x = np.ones((64, 64), np.float32)
    x[3, 5:8] = np.nan
    tifffile.imwrite(path, x)


def stack(path: Path): tifffile.imwrite(path, np.ones((7, 64, 64), np.uint16), ome=True, metadata={"axes": "ZYX"}, photometric="minisblack")


def rgba(path: Path): tifffile.imwrite(path, np.full((64, 64, 4), 9, np.uint8), photometric="rgb", extrasamples=["unassalpha"])


def other_size(path: Path): tifffile.imwrite(path, np.ones((64, 72), np.uint16))


# Name: (what is done to the source 002.tif, what the error must say of it)
SOURCES = {
    "cut off": (cut, "cut off"),
    "cut off in its header": (cut_header, "cannot be read"),
    "zero bytes": (empty, "empty (0 bytes)"),
    "text": (text, "cannot be read as a TIFF"),
    "NaN": (nan, "3 NaN"),
    "3D among 2D": (stack, "3D stack of 7 planes"),
    "RGBA": (rgba, "channel"),
}
# The same for pairs: the file that is changed
PAIRS = {
    "target of another size": ("GT", other_size, "64 x 72 pixels"),
    "target cut off": ("GT", cut, "cut off"),
    "target of zero bytes": ("GT", empty, "empty (0 bytes)"),
    "target of NaN": ("GT", nan, "3 NaN"),
    "target of text": ("GT", text, "cannot be read as a TIFF"),
    "source of another size": ("IM", other_size, "64 x 72 pixels"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    "Five pairs that are right."
    return cells(tmp_path_factory.mktemp("good") / "cells")


@pytest.fixture(scope="module")
def run(good, tmp_path_factory) -> Path:
    "The folder of a run trained on them."
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder / "config.yaml", changed(CONFIG, {"data.path": str(good), "out": str(folder / "run")}))
    assert main(["--config", str(config)]) == 0
    return folder / "run"


@pytest.fixture
def pairs(good, tmp_path) -> Path:
    "A copy of the pairs, to be broken."
    return Path(shutil.copytree(good, tmp_path / "cells"))


def check_training_refused(pairs: Path, capsys, *words: str):
    "Training, and `--check`, end with status 2 and the words; there is no run folder."
    config = write_config(pairs.parent / "config.yaml", changed(CONFIG, {"data.path": str(pairs), "out": str(pairs.parent / "run")}))
    before = sorted(pairs.rglob("*"))
    for more in ([], ["--check"]):
        capsys.readouterr()
        status = main(["--config", str(config), *more])
        said = one_paragraph(capsys.readouterr().err)
        assert status == 2, said
        for word in words:
            assert word in said, f"{word!r} is not in: {said}"
        assert not (pairs.parent / "run").exists()
    assert sorted(pairs.rglob("*")) == before


@pytest.mark.parametrize("name", SOURCES)
def test_training_with_a_bad_source(name, pairs, capsys):
    spoil, word = SOURCES[name]
    spoil(pairs / "IM" / BAD)
    check_training_refused(pairs, capsys, f"IM/{BAD}", word)


@pytest.mark.parametrize("name", PAIRS)
def test_training_with_a_bad_pair(name, pairs, capsys):
    part, spoil, word = PAIRS[name]
    spoil(pairs / part / BAD)
    check_training_refused(pairs, capsys, f"{part}/{BAD}", word)


@pytest.mark.parametrize("part", ["IM", "GT"])
def test_training_with_a_file_without_its_pair(part, pairs, capsys):
    (pairs / ("GT" if part == "IM" else "IM") / BAD).unlink()
    check_training_refused(pairs, capsys, BAD, "every source needs a target" if part == "IM" else "every target needs a source")


@pytest.mark.parametrize("name", SOURCES)
def test_prediction_goes_on(name, run, pairs, capsys):
    spoil, word = SOURCES[name]
    spoil(pairs / "IM" / BAD)
    out = pairs.parent / "results"
    capsys.readouterr()
    status = main(["--config", str(run), "--mode", "predict", "--predict.path", str(pairs), "--predict.out", str(out)])
    stdout, err = capsys.readouterr()
    assert status == 1, err
    end = err[err.index("error: "):]
    assert "Traceback" not in err and "1 of 5 images failed" in end and BAD in end and word in end, err
    assert not any(f"00{i}.tif" in end for i in (0, 1, 3, 4)), end
    assert "4 images written" in stdout
    assert sorted(p.name for p in out.iterdir()) == [f"00{i}.ome.tif" for i in (0, 1, 3, 4)]


def test_prediction_of_bad_files_alone(run, pairs, capsys):
    "Where nothing can be read nothing is written, not even a folder."
    for p in (pairs / "IM").iterdir():
        empty(p)
    out = pairs.parent / "results"
    capsys.readouterr()
    assert main(["--config", str(run), "--mode", "predict", "--predict.path", str(pairs / "IM"), "--predict.out", str(out)]) == 1
    assert "5 of 5 images failed" in capsys.readouterr().err
    assert not out.exists() or not any(out.iterdir())


@pytest.mark.parametrize("name", [*SOURCES, *PAIRS])
def test_evaluation_goes_on(name, run, pairs, capsys):
    part, spoil, word = PAIRS[name] if name in PAIRS else ("IM", *SOURCES[name])
    spoil(pairs / part / BAD)
    out = pairs.parent / "results"
    capsys.readouterr()
    status = main(["--config", str(run), "--mode", "evaluate", "--data.path", str(pairs), "--predict.out", str(out)])
    stdout, err = capsys.readouterr()
    assert status == 1, err
    end = err[err.index("error: "):]
    assert "Traceback" not in err and "1 of 5 images failed" in end and BAD in end and word in end, err
    rows = (out / "metrics.csv").read_text().splitlines()
    assert [r.split(",")[0] for r in rows] == ["image", "000.tif", "001.tif", "003.tif", "004.tif", "mean"]
    assert sorted(p.name for p in out.iterdir()) == ["metrics.csv"]


def test_evaluation_without_a_pair(run, pairs, capsys):
    (pairs / "GT" / BAD).unlink()
    capsys.readouterr()
    status = main(["--config", str(run), "--mode", "evaluate", "--data.path", str(pairs), "--predict.out", str(pairs.parent / "results")])
    said = one_paragraph(capsys.readouterr().err)
    assert status == 2 and BAD in said and "every source needs a target" in said
    assert not (pairs.parent / "results").exists()
