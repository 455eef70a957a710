"What microscopes and programs really write: the file's own pixels come, or one sentence, and what is left out is said once."
import json
import logging
import shutil
import struct
import zlib

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from mmv_im2im.core import DataError
from mmv_im2im.data_modules import axes
from mmv_im2im.data_modules.images import check_finite, image_info, read_image
from mmv_im2im.data_modules.ome import image_keys
from mmv_im2im.data_modules.layouts import find_samples

X = np.random.default_rng(0).integers(0, 60000, (5, 40, 48)).astype("u2")
BYTES = (X // 256).astype("u1")
OME = ('<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" {}>{}</OME>')
PIXELS = ('<Image ID="Image:{0}"><Pixels ID="Pixels:{0}" DimensionOrder="XYCZT" Type="uint16" SizeX="48" SizeY="40" '
          'SizeC="{1}" SizeZ="{2}" SizeT="1" {3}>{4}</Pixels></Image>')


@pytest.fixture(autouse=True)
def nothing_said():
    "Sentences that are said once are said again."
    axes._told.clear()


def said(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "mmv_im2im"]


def pages(path, planes, description=None, **first):
    "A TIFF written page by page."
    with tifffile.TiffWriter(path) as tif:
        for i, plane in enumerate(planes):
            more = dict(description=description, **first) if i == 0 else {}
            tif.write(plane, metadata=None, contiguous=False, software=False, **more)
    return path


def header(z=5, more="", data="<TiffData/>", x=PIXELS) -> str: return OME.format("", x.format(0, 1, z, more, data))


def refused(path, *words, **how) -> str:
    "The one sentence of the error, which tells nothing of the libraries behind."
    with pytest.raises(DataError) as e:
        read_image(path, **how)
    text = str(e.value)
    assert path.name in text and "\n" not in text
    for word in words:
        assert word in text
    for word in ("Traceback", "Error", "tifffile", "zarr.", "PIL", "0x", "imagecodecs"):
        assert word not in text, text
    return text


# ---- pages


def appended(p):
    for plane in X: tifffile.imwrite(p, plane, append=True)


def packed(at):
    def write(p):
        with tifffile.TiffWriter(p) as tif:
            for i, plane in enumerate(X): tif.write(plane, metadata=None, compression="zlib" if i == at else None, predictor=i == at)
    return write


def ome_packed(p):
    with tifffile.TiffWriter(p) as tif:
        for i, plane in enumerate(X):
            tif.write(plane, metadata=None, compression="zlib" if i in (2, 4) else None, description=None if i else header(), contiguous=False)


def with_thumbnail(p):
    with tifffile.TiffWriter(p) as tif:
        for plane in X: tif.write(plane, metadata=None, contiguous=False)
        tif.write(X[0, ::4, ::4].copy(), metadata=None, subfiletype=1)


def with_mask(p):
    with tifffile.TiffWriter(p) as tif:
        tif.write(X[0], metadata=None)
        tif.write(X[0] > 9, metadata=None, subfiletype=4, photometric=4)


def with_inner(p):
    with tifffile.TiffWriter(p) as tif:
        tif.write(X[0], metadata=None, subifds=1)
        tif.write(X[1], metadata=None)


def two_arrays(p):
    with tifffile.TiffWriter(p) as tif:
        tif.write(X)
        tif.write(BYTES[0])


STACKS = {  # How it is written: the planes that come, and a word of what is said
    "appended": (appended, X, None),
    "last page compressed": (packed(4), X, None),
    "a middle page compressed": (packed(2), X, None),
    "an OME-TIFF with some pages compressed": (ome_packed, X, None),
    "a thumbnail behind": (with_thumbnail, X, "reduced copies"),
    "a transparency mask behind": (with_mask, X[:1], "masks"),
    "a page inside a page": (with_inner, X[:1], "masks or reduced copies"),
    "two arrays": (two_arrays, X, "holds 2 images"),
    "OME header that fits": (lambda p: pages(p, X, header()), X, None),
    "OME header of another size": (lambda p: pages(p, X, header().replace('SizeX="48"', 'SizeX="32"')), X, None),
    "OME header without numbers": (lambda p: pages(p, X, header().replace('"48"', '"many"')), X, "description"),
    "OME header that is no XML": (lambda p: pages(p, X, "<OME>broken</Image></OME>"), X, None),
    "ImageJ header without numbers": (lambda p: pages(p, X, "ImageJ=1.53\nimages=5\nslices=five\n"), X, "description"),
    "ImageJ spacing that is none": (lambda p: pages(p, X, "ImageJ=1.53\nimages=5\nslices=5\nspacing=a\nunit=um\n"), X, None),
    "JSON that is cut": (lambda p: pages(p, X, '{"shape": [5'), X, "description"),
    "text in Latin-1, odd date": (lambda p: pages(p, X, extratags=[(270, 2, None, b"caf\xe9\0", True), (306, 2, None, b"soon\0", True)]), X, None),
    "EXIF that points nowhere": (lambda p: pages(p, X, extratags=[(34665, 4, 1, 99999999, True)]), X, None),
}


@pytest.mark.parametrize("name", STACKS)
def test_all_pages_or_a_word(name, tmp_path, caplog):
    write, planes, word = STACKS[name]
    write(tmp_path / "a.tif")
    for _ in range(2):
        assert image_info(tmp_path / "a.tif").shape == (1, 1, *planes.shape)
        assert (read_image(tmp_path / "a.tif")[0, 0] == planes).all()
        assert (read_image(tmp_path / "a.tif", planes=len(planes) - 1, lazy=True)[0, 0, 0].compute(scheduler="synchronous") == planes[-1]).all()
    assert [word in s for s in said(caplog)] == [True] * (word is not None)


def other_dtype(at, dtype):
    return lambda p: pages(p, [plane.astype(dtype) if i == at else plane for i, plane in enumerate(X)])


COUNTS = {
    "first page of another dtype": (other_dtype(0, "u1"), "1 of uint8, 4 of uint16"),
    "a middle page of another dtype": (other_dtype(2, "f4"), "4 of uint16, 1 of float32"),
    "an OME page of another sign": (lambda p: pages(p, [*X[:2], X[2].astype("i2"), *X[3:]], header()), "page 2"),
    "OME header of fewer planes": (lambda p: pages(p, X, header(3)), "2 more planes than its header names (3)"),
    "OME header of more planes": (lambda p: pages(p, X, header(7)), "has 5 planes, but its header names 7"),
    "OME header with more planes listed": (lambda p: pages(p, X, header(7, data='<TiffData IFD="0" PlaneCount="7"/>')), "missing"),
    "ImageJ header of fewer planes": (lambda p: pages(p, X, "ImageJ=1.53\nimages=3\nslices=3\n"), "has 5 planes, but its header names 3"),
    "ImageJ header of more planes, packed": (lambda p: pages(p, X, "ImageJ=1.53\nimages=7\nslices=7\n", compression="zlib"), "but its header names 7"),
    "JSON of more planes": (lambda p: pages(p, X, '{"shape": [7, 40, 48]}'), "damaged"),
}


@pytest.mark.parametrize("name", COUNTS)
def test_planes_that_do_not_fit_are_refused(name, tmp_path):
    write, word = COUNTS[name]
    write(tmp_path / "a.tif")
    assert word in refused(tmp_path / "a.tif")


# ---- sets of files


def write_set(folder, groups, roots=None, names=None, n=3):
    "OME-TIFFs of a plane each, in `groups` of one image; `roots` are the identifiers that they claim."
    folder.mkdir()
    part = '<TiffData FirstC="{}" IFD="0" PlaneCount="1"><UUID FileName="f{}.ome.tif">id:{}</UUID></TiffData>'
    body = "".join(PIXELS.format(k, len(g), 1, "", "".join(part.format(c, i, i) for c, i in enumerate(g))) for k, g in enumerate(groups))
    for i in range(n):
        xml = OME.format(f'UUID="id:{roots[i] if roots else i}"' if roots != () else "", body)
        tifffile.imwrite(folder / (names[i] if names else f"f{i}.ome.tif"), X[i], description=xml, metadata=None)
    return folder


ALONE = [[0], [1], [2]]
POSITIONS = {
    "as written": {},
    "renamed": dict(names=["a.ome.tif", "b.ome.tif", "c.tif"]),
    "without identifiers": dict(roots=()),
    "all with one identifier": dict(roots=[0, 0, 0]),
    "names exchanged": dict(roots=[1, 2, 0]),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_a_file_of_a_set_gives_its_own_position(name, tmp_path, caplog):
    folder = write_set(tmp_path / "set", ALONE, **POSITIONS[name])
    for i, f in enumerate(sorted(folder.iterdir())):
        assert image_info(f).n_scenes == 1
        assert (read_image(f).squeeze() == X[i]).all()
        assert image_keys([f]) == [f]
    assert [("a set of" in s) for s in said(caplog)] == [True]


def test_names_with_folders_and_accents(tmp_path):
    folder, names = tmp_path / "set", ["a\u0301.ome.tif", "b\u00e9.ome.tif"]
    folder.mkdir()
    written = ["C:\\data\\\u00e1.ome.tif", "/data/be\u0301.ome.tif"]  # composed otherwise, and with folders
    part = '<TiffData FirstC="{0}" IFD="0" PlaneCount="1"><UUID FileName="{1}">id:{0}</UUID></TiffData>'
    body = PIXELS.format(0, 2, 1, "", "".join(part.format(c, n) for c, n in enumerate(written)))
    for i, n in enumerate(names):
        about = OME.format(f'UUID="id:{i}"', body).encode()
        tifffile.imwrite(folder / n, X[i], description=about, metadata=None)
    for n in names: assert (read_image(folder / n)[0, :, 0] == X[:2]).all()
    assert image_keys([folder / n for n in names]) == [folder / names[0]] * 2


def test_a_position_without_the_others(tmp_path):
    folder = write_set(tmp_path / "set", ALONE)
    for i in (0, 2): (folder / f"f{i}.ome.tif").unlink()
    assert (read_image(folder / "f1.ome.tif").squeeze() == X[1]).all()


WRONG_SETS = {
    "a file is missing": ({}, lambda d: (d / "f1.ome.tif").unlink(), "f1.ome.tif is not beside it"),
    "a file was renamed": ({}, lambda d: (d / "f1.ome.tif").rename(d / "g.ome.tif"), "f1.ome.tif is not beside it"),
    "names were exchanged": (dict(roots=[1, 0, 2]), lambda d: None, "do not fit together"),
    "another file took the place": ({}, lambda d: shutil.copy(write_set(d.parent / "b", ALONE, roots=[7, 8, 9]) / "f1.ome.tif", d / "f1.ome.tif"), "do not fit together"),
}


@pytest.mark.parametrize("name", WRONG_SETS)
def test_an_image_in_files_that_do_not_fit(name, tmp_path):
    how, spoil, word = WRONG_SETS[name]
    folder = write_set(tmp_path / "set", [[0, 1, 2]], **how)
    spoil(folder)
    assert word in refused(folder / "f0.ome.tif")


def test_a_header_without_planes(tmp_path):
    folder = write_set(tmp_path / "set", ALONE)
    xml = tifffile.TiffFile(folder / "f0.ome.tif").pages[0].description.replace('UUID="id:0"', 'UUID="id:9"', 1)
    tifffile.imwrite(folder / "master.ome.tif", np.zeros((1, 1), "u1"), description=xml, metadata=None)
    refused(folder / "master.ome.tif", "none of the planes of its set")
    (folder / "set.companion.ome").write_text(xml)
    for i in range(3):
        only = OME.format(f'UUID="id:{i}"', '<BinaryOnly MetadataFile="set.companion.ome" UUID="id:9"/>')
        tifffile.imwrite(folder / f"f{i}.ome.tif", X[i], description=only, metadata=None)
        assert (read_image(folder / f"f{i}.ome.tif").squeeze() == X[i]).all()
    (folder / "set.companion.ome").unlink()
    assert (read_image(folder / "f2.ome.tif").squeeze() == X[2]).all()
    refused(folder.parent / "set", "it is a folder")


def test_files_of_one_image_are_one_sample(tmp_path):
    source = write_set(tmp_path / "IM", [[0, 1], [2]])
    assert len(find_samples(tmp_path, pairing="source", layout="folders")) == 2
    (tmp_path / "GT").mkdir()
    for i in (1, 2): tifffile.imwrite(tmp_path / f"GT/f{i}.tif", BYTES[0])
    found = find_samples(tmp_path)
    assert [(s["IM"].name, s["GT"].name) for s in found] == [("f1.ome.tif", "f1.tif"), ("f2.ome.tif", "f2.tif")]
    assert (read_image(found[0]["IM"])[0, :, 0] == X[:2]).all()
    tifffile.imwrite(tmp_path / "GT/f0.tif", BYTES[0])
    with pytest.raises(DataError, match="files of one source image"): find_samples(tmp_path)
    (tmp_path / "a.csv").write_text("source_path,target_path\n" + "".join(f"IM/f{i}.ome.tif,GT/f{i}.tif\n" for i in (0, 1, 2)))
    with pytest.raises(DataError, match="row 3 .the source of row 2."): find_samples(tmp_path / "a.csv")
    shutil.rmtree(tmp_path / "GT")
    shutil.copytree(source, tmp_path / "GT")
    assert len(find_samples(tmp_path, layout="folders")) == 2


# ---- gaps


def store(path, drop=(), **about):
    "A zarr of four chunks, some of them taken away."
    group = zarr.open_group(str(path), "w")
    array = group.create_dataset("0", data=X[0], chunks=(20, 24), **about)
    group.attrs["multiscales"] = [dict(axes=[dict(name="y"), dict(name="x")], datasets=[dict(path="0")])]
    for name in drop: (path / "0" / name).unlink()
    return array


def change(path, **about): path.write_text(json.dumps(json.loads(path.read_text()) | about))


def test_gaps_of_a_zarr(tmp_path):
    path = tmp_path / "a.zarr"
    store(path, ["1.1"])
    refused(path, "not whole", "chunk 1.1", '"missing_chunks": "fill_value"')
    with pytest.raises(DataError, match="not whole"): image_info(path)
    assert (read_image(path, region=((0, 20), (0, 48))).squeeze() == X[0, :20]).all()
    change(path / ".zattrs", missing_chunks="fill_value")
    got = read_image(path).squeeze()
    assert (got[20:, 24:] == 0).all() and (got[:20] == X[0, :20]).all()
    for name in ("0.0", "0.1", "1.0"): (path / "0" / name).unlink()
    assert (read_image(path) == 0).all()  # an empty mask, written without its empty chunks
    change(path / ".zattrs", missing_chunks=None)
    refused(path, "none of its chunks")
    store(path)
    change(path / "0" / ".zarray", dimension_separator="/")
    refused(path, "`dimension_separator`")
    store(path, dimension_separator="/")
    change(path / "0" / ".zarray", dimension_separator=".")
    refused(path, "`dimension_separator`")
    store(path, ["1.1"], fill_value=None)
    change(path / ".zattrs", missing_chunks="fill_value")
    refused(path, "chunk 1.1")  # there is no value to fill it with


def test_tiles_that_were_never_stored(tmp_path, caplog):
    tifffile.imwrite(tmp_path / "a.tif", X[0], tile=(16, 16), metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif: counts = tif.pages[0].tags[325]
    bad = bytearray((tmp_path / "a.tif").read_bytes())
    size = 2 if counts.dtype == 3 else 4
    bad[counts.valueoffset:counts.valueoffset + size] = bytes(size)
    (tmp_path / "a.tif").write_bytes(bad)
    got = read_image(tmp_path / "a.tif").squeeze()
    assert (got[:16, :16] == 0).all() and (got[16:] == X[0, 16:]).all()
    assert "never stored" in said(caplog)[0]
    bad[counts.valueoffset:counts.valueoffset + 9 * size] = bytes(9 * size)
    (tmp_path / "b.tif").write_bytes(bad)
    refused(tmp_path / "b.tif", "has no pixels")


# ---- colors and dtypes


def png(path, x, bits: int, color: int):
    "A PNG of any bits and colors, without the help of a library."
    rows = x.reshape(len(x), -1)
    if bits == 16: raw = [r.astype(">u2").tobytes() for r in rows]
    elif bits == 8: raw = [r.astype("u1").tobytes() for r in rows]
    else: raw = [np.packbits(((r[:, None] >> np.arange(bits)[::-1]) & 1).astype("u1")).tobytes() for r in rows]
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", x.shape[1], x.shape[0], bits, color, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + r for r in raw))) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_gray_png_keeps_its_numbers(bits, tmp_path):
    x = X[0] >> (16 - bits)
    assert (read_image(png(tmp_path / "a.png", x, bits, 0)).squeeze() == x).all()
    assert image_info(tmp_path / "a.png").dtype == ("uint16" if bits == 16 else "uint8")


def test_rgb_png_of_16_bits(tmp_path):
    x = X[:3].transpose(1, 2, 0)
    path = png(tmp_path / "a.png", x, 16, 2)
    assert image_info(path).dtype == "uint16"
    assert (read_image(path)[0, :, 0] == X[:3]).all()
    assert (read_image(path, channels=[2, 0], region=((3, 9), (5, 7)))[0, :, 0] == X[[2, 0], 3:9, 5:7]).all()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("n, color", [(2, 4), (4, 6)])
def test_png_with_alpha(bits, n, color, tmp_path):
    x = (X if bits == 16 else BYTES)[:n]
    path = png(tmp_path / "a.png", x.transpose(1, 2, 0), bits, color)
    refused(path, "alpha channel", str(list(range(n - 1))))
    assert (read_image(path, channels=list(range(n - 1)))[0, :, 0] == x[:-1]).all()


def test_tiff_with_alpha_and_without(tmp_path):
    x = np.dstack([X[0], X[1]])
    tifffile.imwrite(tmp_path / "a.tif", x, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    refused(tmp_path / "a.tif", "alpha channel")
    tifffile.imwrite(tmp_path / "b.tif", np.dstack(list(X[:4])), photometric="minisblack", planarconfig="contig", extrasamples=["unspecified"] * 3)
    assert (read_image(tmp_path / "b.tif")[0, :, 0] == X[:4]).all()  # four channels, none of them transparency


def test_palettes(tmp_path, caplog):
    labels = BYTES[0] % 4
    picture = Image.fromarray(labels).convert("P")
    colors = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], "u1")
    picture.putpalette(colors.ravel().tolist())
    picture.save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "palette", "axes='YXS'", "axes='YX'")
    assert (read_image(tmp_path / "a.png", axes="YX").squeeze() == labels).all()
    assert (read_image(tmp_path / "a.png", axes="YXS")[0, :, 0] == colors[labels].transpose(2, 0, 1)).all()
    picture.putpalette(np.arange(256).repeat(3).tolist())
    picture.save(tmp_path / "b.png")  # a gray one is no question
    assert (read_image(tmp_path / "b.png").squeeze() == labels).all()
    tifffile.imwrite(tmp_path / "c.tif", labels, photometric="palette", colormap=np.full((3, 256), 7, "u2"))
    assert (read_image(tmp_path / "c.tif").squeeze() == labels).all()
    assert "numbers in the palette" in said(caplog)[-1]


def cmyk_jpeg(p): Image.merge("CMYK", [Image.fromarray(b) for b in BYTES[:4]]).save(p.with_suffix(".jpg")); return p.with_suffix(".jpg")


def cmyk_tiff(p): tifffile.imwrite(p, np.dstack(list(BYTES[:4])), photometric="separated"); return p


def lab(p): tifffile.imwrite(p, np.dstack(list(BYTES[:3])), photometric="cielab"); return p


def complex_(p): tifffile.imwrite(p, X[0] * 1j); return p


def complex_zarr(p): zarr.save_array(str(p.with_suffix(".zarr")), X[0] * 1j); return p.with_suffix(".zarr")


def gif(p): Image.fromarray(BYTES[0]).save(p.with_suffix(".gif")); return p.with_suffix(".gif").rename(p.with_suffix(".png"))


def fax(p): Image.fromarray(X[0] > 30000).save(p, compression="group4"); return p


def unknown_compression(p):
    tifffile.imwrite(p, X[0], compression="zlib", metadata=None)
    with tifffile.TiffFile(p) as tif: at = tif.pages[0].tags[259].valueoffset
    bad = bytearray(p.read_bytes())
    bad[at:at + 2] = struct.pack("<H", 34712)
    p.write_bytes(bad)
    return p


REFUSED = {"CMYK JPEG": (cmyk_jpeg, "not gray or RGB"), "CMYK TIFF": (cmyk_tiff, "not gray or RGB"), "Lab": (lab, "not gray or RGB"),
           "complex": (complex_, "real numbers"), "complex zarr": (complex_zarr, "dtype complex"), "GIF named PNG": (gif, "under a wrong name"),
           "bits packed as in a fax": (fax, "compressed as CCITT_T6"), "JPEG 2000 that is none": (unknown_compression, "not those of a sound")}


@pytest.mark.parametrize("name", REFUSED)
def test_other_colors_are_refused(name, tmp_path):
    write, word = REFUSED[name]
    assert word in refused(write(tmp_path / "a.tif"))


KEPT = {
    "bits in a TIFF": (lambda p: tifffile.imwrite(p, X[0] > 30000, photometric="minisblack"), X[0] > 30000, "uint8"),
    "half floats": (lambda p: tifffile.imwrite(p, BYTES[0].astype("f2")), BYTES[0], "float16"),
    "64 bits": (lambda p: tifffile.imwrite(p, X[0].astype("i8") << 40), X[0].astype("i8") << 40, "int64"),
    "big-endian, predicted": (lambda p: tifffile.imwrite(p, X[0], byteorder=">", compression="zlib", predictor=True), X[0], "uint16"),
    "BigTIFF": (lambda p: tifffile.imwrite(p, X[0], bigtiff=True, append=False), X[0], "uint16"),
}


@pytest.mark.parametrize("name", KEPT)
def test_dtypes_are_kept(name, tmp_path):
    write, truth, dtype = KEPT[name]
    write(tmp_path / "a.tif")
    got = read_image(tmp_path / "a.tif")
    assert got.dtype == image_info(tmp_path / "a.tif").dtype == read_image(tmp_path / "a.tif", lazy=True).dtype == dtype
    assert (got.squeeze() == truth).all()


def test_bits_of_other_formats(tmp_path):
    np.save(tmp_path / "a.npy", X[0] > 9)
    zarr.save_array(str(tmp_path / "a.zarr"), X[0] > 9)
    Image.fromarray(X[0] > 9).save(tmp_path / "a.png")
    for name in ("a.npy", "a.zarr", "a.png"):
        assert read_image(tmp_path / name).dtype == "uint8" and (read_image(tmp_path / name).squeeze() == (X[0] > 9)).all()


def test_white_zero_and_turned_pictures_are_said(tmp_path, caplog):
    tifffile.imwrite(tmp_path / "a.tif", BYTES[0], photometric="miniswhite", extratags=[(274, 3, 1, 6, True)])
    assert (read_image(tmp_path / "a.tif").squeeze() == BYTES[0]).all()
    assert ["MinIsWhite" in s or "orientation 6" in s for s in said(caplog)] == [True, True]


# ---- sizes of a pixel

UNITS = {  # What an OME header says of X: micrometers
    'PhysicalSizeX="0.5"': 0.5, 'PhysicalSizeX="500" PhysicalSizeXUnit="nm"': 0.5, 'PhysicalSizeX="1" PhysicalSizeXUnit="mm"': 1000.0,
    'PhysicalSizeX="1" PhysicalSizeXUnit="pixel"': None, 'PhysicalSizeX="1" PhysicalSizeXUnit="reference frame"': None,
    'PhysicalSizeX="inf"': None, 'PhysicalSizeX="nan"': None, 'PhysicalSizeX="-1"': None, 'PhysicalSizeX="0"': None, 'PhysicalSizeX="0,5"': None,
}
IMAGEJ = {"unit=um": 0.25, "unit=\\u00B5m": 0.25, "unit=micron": 0.25, "unit=nm": 0.00025, "unit=cm": 2500.0, "unit=pixel": None, "": None, "unit=furlong": None}


@pytest.mark.parametrize("text", UNITS)
def test_units_of_ome(text, tmp_path):
    assert image_info(pages(tmp_path / "a.tif", X, header(more=text))).pixel_size == (None, None, UNITS[text])


@pytest.mark.parametrize("text", IMAGEJ)
def test_units_of_imagej(text, tmp_path):
    pages(tmp_path / "a.tif", X, f"ImageJ=1.53\nimages=5\nslices=5\nspacing=nan\n{text}\n", resolution=(4, 4))
    assert image_info(tmp_path / "a.tif").pixel_size == (None, *[IMAGEJ[text]] * 2)


def test_dots_per_inch_are_no_pixel_size(tmp_path):
    pages(tmp_path / "a.tif", X, resolution=(72, 72), resolutionunit="INCH")
    assert image_info(tmp_path / "a.tif").pixel_size == (None, None, None)


# ---- axes of arrays


@pytest.mark.parametrize("shape, full", [((40, 48, 1), (1, 1, 1, 40, 48)), ((40, 48, 3), (1, 3, 1, 40, 48)), ((5, 40, 48, 4), (1, 4, 5, 40, 48)), ((5, 40, 48), (1, 1, 5, 40, 48))])
def test_a_last_axis_of_channels(shape, full, tmp_path):
    x = np.arange(np.prod(shape)).reshape(shape).astype("f4")
    np.save(tmp_path / "a.npy", x)
    zarr.save_array(str(tmp_path / "a.zarr"), x)
    tifffile.imwrite(tmp_path / "a.tif", x, photometric="minisblack")
    for name in ("a.npy", "a.zarr", "a.tif"):
        assert image_info(tmp_path / name).shape == full
        last = read_image(tmp_path / name)[0, -1, -1]
        assert (last == (x[..., -1] if shape[-1] < 5 else x).reshape(-1, 40, 48)[-1]).all()


@pytest.mark.parametrize("shape", [(3, 48, 3), (40, 48, 2), (2, 5, 3, 48, 4)])
def test_axes_that_cannot_be_told(shape, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(shape, "f4"))
    refused(tmp_path / "a.npy", "X or channels", "`axes`")
    assert read_image(tmp_path / "a.npy", axes="TCZYX"[-len(shape):]).size == np.prod(shape)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_pixels_that_are_no_numbers(value):
    with pytest.raises(DataError, match="the first at"): check_finite(np.array([[0, value]]), "a.tif")


def test_digits_that_float32_does_not_hold(caplog):
    check_finite(np.array([[0, 2**24]]), "a.tif")
    assert not said(caplog)
    check_finite(np.array([[0, 2**24 + 1]]), "a.tif")
    assert "rounded" in said(caplog)[0]


# ---- more than the header names, or less


@pytest.mark.parametrize("named", ["images=7\nslices=7", "images=7\nframes=7", "channels=2\nslices=3\nimages=6", "channels=2\nframes=2\nhyperstack=true"])
def test_imagej_counts_other_planes(named, tmp_path):
    said = refused(pages(tmp_path / "a.tif", X[:5], f"ImageJ=1.54f\n{named}\n"))
    assert "has 5 planes, but its header names" in said


def test_imagej_counts_right(tmp_path):
    n = len(X)
    path = pages(tmp_path / "a.tif", X, f"ImageJ=1.54f\nimages={n}\nslices={n}\n")
    assert (read_image(path).squeeze() == X).all()


@pytest.mark.parametrize("n", [5, 8])
@pytest.mark.parametrize("about", ["scanimage.SI.VERSION_MAJOR = '2016'", "state.configName='x'\nstate.internal.x=1"])
def test_every_page_of_scanimage(n, about, tmp_path):
    planes = np.stack([X[0] + i for i in range(n)])
    assert (read_image(pages(tmp_path / "a.tif", planes, about)).squeeze() == planes).all()


def test_planes_behind_a_header(tmp_path, caplog):
    np.save(tmp_path / "a.npy", X[:2])
    with open(tmp_path / "a.npy", "ab") as f: f.write(X[2].tobytes())
    assert (read_image(tmp_path / "a.npy").squeeze() == X[:2]).all()
    assert any(f"{X[2].nbytes} bytes behind" in s for s in said(caplog))
    array = zarr.open(str(tmp_path / "b.zarr"), "w", shape=X.shape, chunks=(1, 20, 24), dtype=X.dtype)
    array[:] = X
    change(tmp_path / "b.zarr" / ".zarray", shape=[2, *X.shape[1:]])
    caplog.clear()
    assert (read_image(tmp_path / "b.zarr").squeeze() == X[:2]).all()
    assert any("has more chunks, such as 2.0.0" in s for s in said(caplog))


@pytest.mark.parametrize("cut", [1, 5, 16, 200])
def test_cut_chunks_of_blosc(cut, tmp_path):
    noise = np.random.default_rng(0).integers(0, 2**16, (64, 64), np.uint16)
    zarr.save_array(str(tmp_path / "a.zarr"), noise, chunks=(64, 64), compressor=zarr.Blosc())
    chunk = tmp_path / "a.zarr" / "0.0"
    assert (read_image(tmp_path / "a.zarr").squeeze() == noise).all()
    chunk.write_bytes(chunk.read_bytes()[:-cut])
    refused(tmp_path / "a.zarr", "damaged or cut off", "chunk 0.0")


# ---- names and metadata that are odd

SPELLED = {("height", "width"): "YX", ("channel", "row", "column"): "CYX", ("Frame", "Row", "Col"): "TYX", ("depth", "y", "x"): "ZYX"}


@pytest.mark.parametrize("names", SPELLED)
def test_axes_spelled_out(names, tmp_path):
    image = X[:len(names)] if len(names) > 2 else X[0]
    group = zarr.open_group(str(tmp_path / "a.zarr"), "w")
    group.create_dataset("0", data=image)
    group.attrs["multiscales"] = [{"axes": [{"name": n, "type": "space"} for n in names], "datasets": [{"path": "0"}]}]
    sizes = dict(zip(SPELLED[names], image.shape))
    assert read_image(tmp_path / "a.zarr").shape == tuple(sizes.get(a, 1) for a in "TCZYX")


def test_axes_without_y(tmp_path):
    group = zarr.open_group(str(tmp_path / "a.zarr"), "w")
    group.create_dataset("0", data=X[0])
    group.attrs["multiscales"] = [{"axes": [{"name": "north", "type": "space"}, {"name": "east", "type": "space"}], "datasets": [{"path": "0"}]}]
    assert "cannot be told apart" in refused(tmp_path / "a.zarr")


@pytest.mark.parametrize("omero", [None, [], 3, {"channels": None}, {"channels": [None]}, {"channels": "DAPI"}])
def test_broken_omero(omero, tmp_path):
    group = zarr.open_group(str(tmp_path / "a.zarr"), "w")
    group.create_dataset("0", data=X[0])
    scale = [{"type": "scale", "scale": [0.5, 0.25]}]
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "yx"]
    group.attrs.update(omero=omero, multiscales=[{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}])
    assert image_info(tmp_path / "a.zarr").pixel_size == (None, 0.5, 0.25)
    assert (read_image(tmp_path / "a.zarr").squeeze() == X[0]).all()


def positions(root, one_image=False):
    "OME-TIFF files that are all called img.ome.tif, in folders of their own."
    n, y, x = 3, *X.shape[1:]
    data = lambda i: f'<TiffData IFD="0" PlaneCount="1" FirstC="{i * one_image}"><UUID FileName="../P{i}/img.ome.tif">urn:{i}</UUID></TiffData>'
    pixels = lambda i, c, inner: (f'<Image ID="Image:{i}" Name="P{i}"><Pixels ID="Pixels:{i}" DimensionOrder="XYZCT" Type="uint16" SizeX="{x}" SizeY="{y}" SizeZ="1" SizeC="{c}" SizeT="1"'
                                  f' PhysicalSizeX="{i + 0.5}" PhysicalSizeY="{i + 0.5}">' + "".join(f'<Channel ID="Channel:{i}:{k}" SamplesPerPixel="1"/>' for k in range(c)) + inner + "</Pixels></Image>")
    body = pixels(0, n, "".join(map(data, range(n)))) if one_image else "".join(pixels(i, 1, data(i)) for i in range(n))
    for i in range(n):
        (root / f"P{i}").mkdir()
        about = f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:{i}">{body}</OME>'
        tifffile.imwrite(root / f"P{i}" / "img.ome.tif", X[i].astype(np.uint16), description=about, metadata=None)


def test_positions_called_alike(tmp_path):
    positions(tmp_path)
    for i in range(3):
        path = tmp_path / f"P{i}" / "img.ome.tif"
        assert (read_image(path).squeeze() == X[i]).all()
        assert image_info(path).pixel_size[1:] == (i + 0.5, i + 0.5) and image_info(path).n_scenes == 1


def test_channels_called_alike(tmp_path):
    positions(tmp_path, one_image=True)
    for i in range(3): assert "named alike" in refused(tmp_path / f"P{i}" / "img.ome.tif")


def chunk(kind, data, crc=None):
    "A chunk of a PNG."
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)


OPTIONAL = {
    "text with another checksum": chunk(b"tEXt", b"Comment\0cells", 1), "gamma of no length": chunk(b"gAMA", b""),
    "size cut": chunk(b"pHYs", b"\0\1"), "text that does not unpack": chunk(b"zTXt", b"Comment\0\0nothing"),
    "much text": chunk(b"tEXt", b"Comment\0" + bytes(2 * 10**6)),
}


@pytest.mark.parametrize("case", OPTIONAL)
@pytest.mark.parametrize("late", [False, True])
def test_optional_chunks_of_a_png(case, late, tmp_path):
    Image.fromarray(X[0].astype(np.uint8)).save(tmp_path / "a.png")
    raw = (tmp_path / "a.png").read_bytes()
    at = raw.rindex(b"IEND") - 4 if late else 33
    (tmp_path / "a.png").write_bytes(raw[:at] + OPTIONAL[case] + raw[at:])
    assert (read_image(tmp_path / "a.png").squeeze() == X[0].astype(np.uint8)).all()


def test_pixels_of_a_png_are_checked(tmp_path):
    Image.fromarray(X[0].astype(np.uint8)).save(tmp_path / "a.png")
    raw = bytearray((tmp_path / "a.png").read_bytes())
    raw[raw.index(b"IDAT") + 30] ^= 255
    (tmp_path / "a.png").write_bytes(raw)
    with pytest.raises(DataError): read_image(tmp_path / "a.png")
