"Every format: whole, in parts, at every level, with the pixels that the format's own library gives; and nothing is read that was not asked for."
import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from mmv_im2im.core import DataError
from mmv_im2im.data_modules.files import image_stem, list_images
from mmv_im2im.data_modules.images import image_info, read_image

# File below formats/: shape, dtype, channel names, pixel size (Z, Y, X) in micrometers, levels
RGB = ["red", "green", "blue"]
NONE = (None, None, None)
FILES = {
    "czi/rgb_test_image.czi": ((1, 3, 1, 513, 639), "uint8", RGB, NONE, 1),
    "multichannel/bbbc022_A02_s9_3ch.ome.tif": ((1, 3, 1, 395, 695), "uint16", ["channel 0", "channel 1", "channel 2"], NONE, 1),
    "multichannel/instanseg_fluorescence_2ch.ome.tif": ((1, 2, 1, 450, 450), "uint8", ["ch0_membrane", "ch1_nuclei"], NONE, 1),
    "nd2/example-cerevisiae.nd2": ((1, 2, 1, 256, 256), "uint16", ["DIC", "FITC BP"], (None, 0.10833, 0.10833), 1),
    "nd2/example-multichannel.nd2": ((1, 4, 1, 256, 256), "uint16", ["Mono", "DAPI", "FITC BP", "TRITC BP"], (None, 0.32339, 0.32339), 1),
    "nd2/example-timelapse.nd2": ((53, 1, 1, 64, 64), "uint16", ["GFP 488 nm"], (None, 0.325, 0.325), 1),
    "nd2/example-zstack.nd2": ((1, 1, 11, 128, 128), "uint16", ["FITC BP"], (6.0, 0.32339, 0.32339), 1),
    "ome_tiff_3d/brain_2ch_zcyx.ome.tif": ((1, 2, 16, 256, 256), "uint16", ["signal", "background"], (5.0, 2.0, 2.0), 1),
    "ome_tiff_3d/plant_nuclei_1135_crop.ome.tif": ((1, 1, 32, 100, 100), "uint8", ["channel 0"], NONE, 1),
    "ome_zarr/mouse_embryo_8cell.zarr": ((1, 1, 51, 120, 122), "uint16", ["channel 0"], NONE, 2),
    "rgb/he_tma_core_crop.tif": ((1, 3, 1, 800, 800), "uint8", RGB, NONE, 1),
    "rgb/ihc.png": ((1, 3, 1, 512, 512), "uint8", RGB, NONE, 1),
    "timeseries/drosophila_gfp_histone_t12_rgb.ome.tif": ((12, 3, 1, 264, 542), "uint8", RGB, NONE, 1),
    "timeseries/membrane_2d_timelapse.ome.tif": ((5, 1, 1, 256, 256), "uint16", ["channel 0"], NONE, 1),
}
PACKAGES = {".czi": "aicspylibczi", ".nd2": "nd2"}  # of the extra `formats`


def by_its_own_library(path: Path) -> np.ndarray:
    "The same pixels without this package: `(T, C, Z, Y, X)`."
    end = path.suffix
    if end == ".czi":  # time, y, x and blue, green, red
        x, axes = pytest.importorskip("aicspylibczi").CziFile(str(path)).read_image()[0][..., ::-1], "TYXC"
    elif end == ".nd2":
        nd2 = pytest.importorskip("nd2")
        with nd2.ND2File(path) as f:
            x, axes = f.asarray(), "".join(f.sizes)
    elif end == ".zarr":
        x, axes = zarr.open_group(str(path), "r")["0"][:], "CZYX"
    elif end == ".png":
        x, axes = np.asarray(Image.open(path)), "YXC"
    else:
        with tifffile.TiffFile(path) as f:
            x, axes = f.asarray(), f.series[0].axes.replace("S", "C")
    order = [a for a in "TCZYX" if a in axes]
    x = x.transpose([axes.index(a) for a in order])
    sizes = dict(zip(order, x.shape))
    return x.reshape([sizes.get(a, 1) for a in "TCZYX"])


@pytest.fixture(params=FILES)
def known(request, shared_data) -> Path:
    "A file of the shared images, whose reader is installed."
    path = shared_data / "formats" / request.param
    if path.suffix in PACKAGES:
        pytest.importorskip(PACKAGES[path.suffix])
    return path


def test_known_files(known):
    shape, dtype, names, size, levels = FILES[known.relative_to(known.parents[1]).as_posix()]
    info = image_info(known)
    assert (info.shape, info.dtype, info.channel_names, info.n_scenes, info.n_levels) == (shape, dtype, names, 1, levels)
    assert [s and round(s, 5) for s in info.pixel_size] == [s and round(s, 5) for s in size]
    image, truth = read_image(known), by_its_own_library(known)
    assert image.dtype == truth.dtype == dtype and image.shape == truth.shape == shape
    assert image.flags.writeable and image.any() and (image == truth).all()


def test_parts_of_known_files(known):
    whole = read_image(known)
    lazy = read_image(known, lazy=True)
    assert lazy.shape == whole.shape and lazy.dtype == whole.dtype
    assert (lazy.compute(scheduler="synchronous") == whole).all()
    t, c, z, y, x = whole.shape
    chosen = dict(times=[t - 1], channels=list(range(c))[::-1], planes=list(range(0, z, 2)))
    region = (y // 3, y // 3 + 21), (x - 9, x)
    part = whole[-1:, ::-1, ::2, region[0][0]:region[0][1], region[1][0]:]
    assert (read_image(known, **chosen, region=region) == part).all()
    later = read_image(known, **chosen, region=region, lazy=True)
    assert (later.compute(scheduler="synchronous") == part).all()
    assert (later[:, -1, 0, 3:9:2, -1].compute(scheduler="synchronous") == part[:, -1, 0, 3:9:2, -1]).all()
    with pytest.raises(DataError, match="region"):
        read_image(known, region=((0, y + 1), (0, x)))
    for wrong in ("scene", "level"):
        with pytest.raises(DataError, match=f"`{wrong}` must be 0 to"):
            read_image(known, **{wrong: 9})


def test_level_of_a_known_zarr(shared_data):
    path = shared_data / "formats" / "ome_zarr" / "mouse_embryo_8cell.zarr"
    assert (read_image(path, level=1)[0, 0] == read_image(path)[0, 0, :, ::2, ::2]).all()
    assert image_info(path, level=1).shape == (1, 1, 51, 60, 61)
    assert read_image(path, lazy=True).chunksize == (1, 1, 8, 120, 122)


def test_known_files_cut_off(known, tmp_path):
    if known.is_dir():
        pytest.skip("a folder")
    whole = known.read_bytes()
    for part in (0.0, 0.001, 0.3, 0.6, 0.9):
        cut = tmp_path / known.name
        cut.write_bytes(whole[:int(part * len(whole))])
        with pytest.raises(DataError, match=known.name):
            read_image(cut)


def test_an_nd2_whose_acquisition_was_stopped(shared_data, monkeypatch):
    "nd2 itself gives black frames for those that were never written."
    reader = pytest.importorskip("nd2._readers._modern.modern_reader").ModernReader
    path, every = shared_data / "formats" / "nd2" / "example-timelapse.nd2", reader._frame_offsets
    monkeypatch.setattr(reader, "_frame_offsets", property(lambda self: {i: at for i, at in every.fget(self).items() if i < 40}))
    assert read_image(path, times=range(40)).shape == (40, 1, 1, 64, 64)
    with pytest.raises(DataError, match="no frame at T=40"):
        read_image(path)


# ---- what is read

READ: list[str] | None = None  # paths opened, while somebody counts


def note(event, args):
    "Write down which files are opened."
    if READ is not None and event == "open" and isinstance(args[0], (str, os.PathLike)):
        READ.append(os.fspath(args[0]))


sys.addaudithook(note)


@pytest.fixture
def opened():
    "The list of files opened from now on."
    global READ
    READ = []
    yield READ
    READ = None


def noise(*shape) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> Path:
    "4096 x 4096 pixels of noise as a tiled TIFF, a TIFF in strips, an OME-Zarr and a NumPy file."
    folder, x = tmp_path_factory.mktemp("big"), noise(4096, 4096)
    zlib = dict(compression="zlib", compressionargs=dict(level=1), photometric="minisblack")
    tifffile.imwrite(folder / "tiles.tif", x, tile=(256, 256), **zlib)
    tifffile.imwrite(folder / "strips.tif", x, rowsperstrip=16, **zlib)
    tifffile.imwrite(folder / "flat.tif", x, tile=(256, 256), photometric="minisblack")
    np.save(folder / "array.npy", x)
    group = zarr.open_group(str(folder / "image.ome.zarr"), "w")
    group.array("0", x[None, None], chunks=(1, 1, 256, 256), dimension_separator="/")
    axes = [dict(name=a) for a in "czyx"]
    group.attrs["multiscales"] = [dict(version="0.4", axes=axes, datasets=[dict(path="0")])]
    return folder


# Region, and the tiles of 256 x 256 that it touches, by row and column
REGIONS = {
    "inside one": (((300, 364), (600, 664)), {(1, 2)}),
    "all of one": (((256, 512), (512, 768)), {(1, 2)}),
    "at a corner": (((480, 544), (736, 800)), {(1, 2), (1, 3), (2, 2), (2, 3)}),
    "at the end": (((4032, 4096), (4032, 4096)), {(15, 15)}),
}
HOW = {
    "at once": lambda path, r: read_image(path, region=r),
    "lazily": lambda path, r: read_image(path, lazy=True, region=r).compute(scheduler="synchronous"),
    "sliced": lambda path, r: read_image(path, lazy=True)[..., slice(*r[0]), slice(*r[1])].compute(scheduler="synchronous"),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("where", REGIONS)
def test_zarr_reads_only_the_chunks_touched(big, opened, where, how):
    region, touched = REGIONS[where]
    part = HOW[how](big / "image.ome.zarr", region)
    chunks = [Path(p).relative_to(big / "image.ome.zarr").parts for p in opened if str(big) in p]
    chunks = [p for p in chunks if len(p) == 5]
    assert sorted((int(p[3]), int(p[4])) for p in chunks) == sorted(touched)
    (y0, y1), (x0, x1) = region
    assert (part[0, 0, 0] == np.load(big / "array.npy", mmap_mode="r")[y0:y1, x0:x1]).all()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("where", REGIONS)
@pytest.mark.parametrize("name", ["tiles", "strips", "flat"])
def test_tiff_reads_only_the_tiles_touched(big, monkeypatch, name, where, how):
    (region, touched), path, reads = REGIONS[where], big / f"{name}.tif", []
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
    original = tifffile.tifffile.FileHandle.read

    def read(self, size=-1, /):
        reads.append(self.tell())
        return original(self, size)

    monkeypatch.setattr(tifffile.tifffile.FileHandle, "read", read)
    part = HOW[how](path, region)
    numbers = {y * 16 + x for y, x in touched}
    if name == "strips":
        numbers = set(range(region[0][0] // 16, (region[0][1] - 1) // 16 + 1))
    found = sorted(i for i in map(dict(zip(page.dataoffsets, itertools.count())).get, reads) if i is not None)
    assert found == sorted(numbers)
    (y0, y1), (x0, x1) = region
    assert (part[0, 0, 0] == np.load(big / "array.npy", mmap_mode="r")[y0:y1, x0:x1]).all()


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count bytes")
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name, tile", [("tiles.tif", 65800), ("flat.tif", 65536), ("strips.tif", 5 * 65800), ("image.ome.zarr", 65800), ("array.npy", 0)])
def test_bytes_read(big, name, tile, how):
    def count() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    HOW[how](big / name, ((300, 364), (600, 664)))  # what is imported on the way is read once
    before = count()
    HOW[how](big / name, ((300, 364), (600, 664)))
    assert count() - before < tile + 50_000  # of 16.8 million


def test_a_2_gb_zarr_costs_nothing_to_open(tmp_path, opened):
    group = zarr.open_group(str(tmp_path / "a.zarr"), "w")
    array = group.create("0", shape=(2, 32, 4096, 8192), chunks=(1, 8, 256, 256), dtype="u2", dimension_separator="/")
    array[1, 8:16, 256:512, 512:768] = 7
    group.attrs["multiscales"] = [dict(version="0.4", axes=[dict(name=a) for a in "czyx"], datasets=[dict(path="0")])]
    group.attrs["missing_chunks"] = "fill_value"
    opened.clear()
    lazy = read_image(tmp_path / "a.zarr", lazy=True)
    assert lazy.chunksize == (1, 1, 8, 256, 256)
    assert len([p for p in opened if str(tmp_path) in p]) < 6
    part = lazy[0, 1, 4:12, 400:464, 700:764].compute(scheduler="synchronous")
    assert part.sum() == 7 * 4 * 64 * 64 and len(pickle.dumps(lazy[0, 1, 4])) < 200_000


# ---- TIFFs of every make

LAYOUT = {
    "one strip": {},
    "strips": dict(rowsperstrip=7),
    "tiles": dict(tile=(16, 32)),
    "zlib strips": dict(rowsperstrip=7, compression="zlib"),
    "zlib tiles": dict(tile=(32, 16), compression="zlib"),
    "predicted": dict(tile=(16, 16), compression="zlib", predictor=True),
    "packed": dict(rowsperstrip=5, compression="lzw"),
}
PARTS = [((0, 1), (0, 1)), ((0, 45), (0, 61)), ((44, 45), (60, 61)), ((6, 8), (15, 17)), ((13, 33), (0, 61)), ((0, 45), (31, 33))]


def check_parts(path, whole: np.ndarray, **more):
    "Every part, at once and out of a lazy image, is that part of the whole."
    assert (read_image(path, **more) == whole).all()
    lazy = read_image(path, lazy=True, **more)
    for (y0, y1), (x0, x1) in PARTS:
        part = read_image(path, region=((y0, y1), (x0, x1)), **more)
        assert part.dtype == whole.dtype and part.flags.writeable and type(part) is np.ndarray
        assert (part == whole[..., y0:y1, x0:x1]).all()
        assert (lazy[..., y0:y1, x0:x1].compute(scheduler="synchronous") == part).all()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUT)
def test_tiff_parts(layout, dtype, order, tmp_path):
    if layout == "predicted" and dtype == "float64":
        pytest.skip("no such predictor")
    x = (np.random.default_rng(1).random((3, 45, 61)) * 200).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", x, byteorder=order, photometric="minisblack", **LAYOUT[layout])
    check_parts(tmp_path / "a.tif", x[None, None])
    assert image_info(tmp_path / "a.tif").dtype == dtype


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("layout", LAYOUT)
def test_tiff_colors(layout, planes, tmp_path):
    x = noise(45, 61, 3)
    stored = x if planes == "contig" else x.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planes, **LAYOUT[layout])
    check_parts(tmp_path / "a.tif", x.transpose(2, 0, 1)[None, :, None])
    part = read_image(tmp_path / "a.tif", channels=[2, 0], region=((3, 30), (40, 61)))
    assert (part[0, :, 0] == x[3:30, 40:61, [2, 0]].transpose(2, 0, 1)).all()


def test_jpeg_tiles(tmp_path):
    x = noise(5, 7, 3).repeat(16, 0).repeat(16, 1)
    tifffile.imwrite(tmp_path / "a.tif", x, photometric="rgb", tile=(32, 32), compression="jpeg")
    check_parts(tmp_path / "a.tif", tifffile.imread(tmp_path / "a.tif").transpose(2, 0, 1)[None, :, None])


@pytest.mark.parametrize("axes", ["YX", "ZYX", "CYX", "TYX", "TZYX", "CZYX", "TCYX", "TCZYX", "TZCYX"])
def test_dimensions(axes, tmp_path):
    "2D to 5D, in OME-TIFF and OME-Zarr, with parts along every axis."
    sizes = dict(T=3, C=2, Z=4, Y=45, X=61)
    x = (np.random.default_rng(2).random([sizes[a] for a in axes]) * 999).astype("u2")
    tifffile.imwrite(tmp_path / "a.ome.tif", x, metadata=dict(axes=axes), photometric="minisblack", tile=(16, 16), compression="zlib")
    group = zarr.open_group(str(tmp_path / "a.zarr"), "w")
    group.array("0", x, chunks=tuple(min(2, n) if a in "TCZ" else 16 for a, n in zip(axes, x.shape)))
    group.attrs["multiscales"] = [dict(axes=[dict(name=a.lower()) for a in axes], datasets=[dict(path="0")])]
    full = x.transpose([axes.index(a) for a in "TCZYX" if a in axes]).reshape([sizes[a] if a in axes else 1 for a in "TCZYX"])
    t, c, z = (list(range(n))[::-1][:2] for n in full.shape[:3])
    for name in ("a.ome.tif", "a.zarr"):
        check_parts(tmp_path / name, full)
        check_parts(tmp_path / name, full[t][:, c][:, :, z], times=t, channels=c, planes=z)


def test_scenes(tmp_path):
    images = [noise(45, 61), noise(3, 20, 30)]
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tif:
        tif.write(images[0], metadata=dict(axes="YX", PhysicalSizeX=2.0), tile=(16, 16))
        tif.write(images[1], metadata=dict(axes="CYX"), photometric="minisblack")
    group = zarr.open_group(str(tmp_path / "a.zarr"), "w")
    group.attrs["bioformats2raw.layout"] = 3
    for i, (x, axes) in enumerate(zip(images, ("yx", "cyx"))):
        one = group.create_group(str(i))
        one.array("0", x)
        scale = [dict(type="scale", scale=[2.0] * x.ndim)]
        one.attrs["multiscales"] = [dict(axes=[dict(name=a) for a in axes], datasets=[dict(path="0", coordinateTransformations=scale)])]
    for path in (tmp_path / "a.ome.tif", tmp_path / "a.zarr"):
        assert image_info(path).n_scenes == 2
        assert image_info(path, scene=1).shape == (1, 3, 1, 20, 30)
        assert image_info(path).pixel_size[2] == 2.0
        check_parts(path, images[0][None, None, None])
        assert (read_image(path, scene=1, channels=2, region=((5, 9), (0, 30)))[0, 0, 0] == images[1][2, 5:9]).all()
        assert (read_image(path, scene=1, lazy=True)[0, 1, 0].compute() == images[1][1]).all()


OME = """<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{here}">
<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="61" SizeY="45" SizeZ="1" SizeC="2" SizeT="1">
<Channel ID="Channel:0:0"/><Channel ID="Channel:0:1"/>{planes}</Pixels></Image></OME>"""
PLANE = '<TiffData FirstC="{0}" IFD="0" PlaneCount="1"><UUID FileName="channel{0}.ome.tif">urn:uuid:{0}</UUID></TiffData>'


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("layout", LAYOUT)
def test_an_image_in_several_files(layout, order, tmp_path):
    x = noise(2, 45, 61)
    for i in range(2):
        about = OME.format(here=i, planes="".join(map(PLANE.format, range(2))))
        tifffile.imwrite(tmp_path / f"channel{i}.ome.tif", x[i], description=about, metadata=None, byteorder=order,
                         photometric="minisblack", **LAYOUT[layout])
    for i in range(2):
        check_parts(tmp_path / f"channel{i}.ome.tif", x[None, :, None])
    (tmp_path / "channel1.ome.tif").unlink()
    with pytest.raises(DataError, match="channel1.ome.tif"):
        read_image(tmp_path / "channel0.ome.tif")


def test_a_cut_tile_matters_only_where_it_is(tmp_path):
    x = noise(256, 256)
    tifffile.imwrite(tmp_path / "a.tif", x, tile=(64, 64), compression="zlib", photometric="minisblack")
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[:-3000])
    assert (read_image(tmp_path / "a.tif", region=((0, 64), (0, 256)))[0, 0, 0] == x[:64]).all()
    with pytest.raises(DataError, match="cut off"):
        read_image(tmp_path / "a.tif", region=((192, 256), (192, 256)))
    with pytest.raises(DataError, match="cut off"):
        read_image(tmp_path / "a.tif")


def test_a_lazy_image_of_a_changed_file_is_another(tmp_path):
    np.save(tmp_path / "a.npy", noise(8, 8))
    before = read_image(tmp_path / "a.npy", lazy=True)
    again = read_image(tmp_path / "a.npy", lazy=True)
    os.utime(tmp_path / "a.npy", ns=(0, 0))
    assert before.name == again.name != read_image(tmp_path / "a.npy", lazy=True).name


# ---- CZI files of every make, where there is a writer


@pytest.fixture
def czi(tmp_path):
    "A function that writes a CZI file out of pieces `(pixels, plane, (x, y), scene)`."
    pytest.importorskip("aicspylibczi")
    writer = pytest.importorskip("pylibCZIrw.czi", reason="no writer of CZI (pip install pylibCZIrw)")

    def write(pieces, **about) -> Path:
        with writer.create_czi(str(tmp_path / "a.czi")) as file:
            for pixels, plane, corner, scene in pieces:
                more = {} if scene is None else dict(scene=scene)
                file.write(np.ascontiguousarray(pixels), plane=plane, location=corner, **more)
            if about:
                file.write_metadata(document_name="a", **about)
        return tmp_path / "a.czi"

    return write


def test_czi_stack(czi):
    x = np.random.default_rng(0).integers(0, 60000, (2, 3, 4, 45, 61)).astype("u2")
    at = itertools.product(range(2), range(3), range(4))
    path = czi([(x[i][..., None], dict(zip("TCZ", i)), (0, 0), None) for i in at],
               channel_names={0: "DNA", 1: "actin", 2: "mito"}, scale_x=2e-7, scale_y=3e-7, scale_z=1e-6)
    check_parts(path, x)
    check_parts(path, x[1:, [2, 0]][:, :, [3, 1]], times=1, channels=[2, 0], planes=[3, 1])
    assert image_info(path).channel_names == ["DNA", "actin", "mito"]
    assert image_info(path).pixel_size == pytest.approx((1.0, 0.3, 0.2))


def test_czi_mosaics_in_scenes(czi):
    x = np.random.default_rng(0).integers(0, 60000, (2, 2, 45, 61)).astype("u2")
    cuts = list(itertools.product((slice(0, 20), slice(20, 45)), (slice(0, 31), slice(31, 61))))
    path = czi([(x[s, c][cut][..., None], dict(C=c), (cut[1].start + 1000 * s - 7, cut[0].start + 3), s)
                for s in range(2) for c in range(2) for cut in cuts])
    assert image_info(path).n_scenes == 2
    for s in range(2):
        check_parts(path, x[s, None, :, None], scene=s)


def test_czi_scenes_of_several_sizes(czi):
    x = np.random.default_rng(0).integers(0, 60000, (90, 99)).astype("u2")
    path = czi([(x[:45, :61][..., None], dict(C=0), (0, 0), 0), (x[..., None], dict(C=0), (1000, 0), 1)])
    check_parts(path, x[None, None, None, :45, :61])
    check_parts(path, x[None, None, None], scene=1)


@pytest.mark.parametrize("dtype, samples", [("u1", 1), ("u1", 3), ("u2", 3), ("f4", 1)])
def test_czi_types(czi, dtype, samples):
    x = (np.random.default_rng(0).random((45, 61, samples)) * 200).astype(dtype)  # blue, green, red
    check_parts(czi([(x, dict(C=0), (0, 0), None)]), x[..., ::-1].transpose(2, 0, 1)[None, :, None])


# ---- names


def test_names_of_many_images(tmp_path):
    "Linked files: the links point nowhere, and nobody looks."
    for i in range(12_500):
        os.symlink("elsewhere", tmp_path / f"cell_{i:06}_IM.ome.tif")
    stems = [image_stem(p) for p in list_images(tmp_path)]
    assert len(stems) == 12_500 and stems[-1] == "cell_012499_IM"


def test_no_reader_is_imported_before_it_is_needed(bare_env, tmp_path):
    code = ("import sys\nfrom mmv_im2im.data_modules.images import read_image\n"
            f"read_image({str(tmp_path / 'a.tif')!r})\n"
            "found = {'zarr', 'nd2', 'aicspylibczi', 'aicsimageio', 'readlif', 'dask'} & set(sys.modules)\nassert not found, found")
    tifffile.imwrite(tmp_path / "a.tif", noise(8, 8))
    done = subprocess.run([sys.executable, "-c", code], env=bare_env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
