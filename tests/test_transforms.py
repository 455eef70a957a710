"Normalization, preparation and patches: every pair there and back, every rule of sampling counted, only own bytes read."
import tracemalloc

import numpy as np
import pytest
import torch
from monai.apps.pathology.transforms.stain import NormalizeHEStains
from skimage.transform import resize

from mmv_im2im.core import ConfigError, DataError
from mmv_im2im.data_modules import normalization as T
from mmv_im2im.data_modules.images import read_image
from mmv_im2im.data_modules.augmentation import PatchTransform, grid_size, sample_points
from mmv_im2im.data_modules.labels import isotropic_zoom, prepare_labels, resample
from mmv_im2im.data_modules.normalization import (
    Center, Macenko, MinMax, Normalization, Percentile, Standard, as_normalization,
    normalization_spec, pool,
)
from mmv_im2im.tiling import pad_to_multiple, unpad

NORMS = (Percentile, Standard, Center, MinMax)
SHAPES = {"2D": (2, 37, 41), "3D": (2, 9, 21, 23)}


def image(shape, dtype, seed=0):
    "Noise on a background that differs by channel."
    rng = np.random.default_rng(seed)
    x = rng.gamma(4.0, 9.0, shape) + 20 * np.arange(1, shape[0] + 1).reshape(-1, *[1] * (len(shape) - 1))
    return x.astype(dtype)


# ---- normalization


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("over", ["image", "dataset"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float16", "float32", "float64", ">u2"])
@pytest.mark.parametrize("dims", SHAPES)
def test_there_and_back(norm, per_channel, over, dtype, dims):
    x, norm = image(SHAPES[dims], dtype), norm(per_channel=per_channel, over=over)
    stats = pool(norm, [x]) if over == "dataset" else norm.stats(x)
    y = norm(x, stats)
    offset, scale = (np.array(stats[k]).reshape(-1, *[1] * (x.ndim - 1)) for k in ("offset", "scale"))
    assert offset.size == (2 if per_channel else 1)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, (x.astype(np.float64) - offset) / scale, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(norm.inverse(y, stats), x.astype(np.float64), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("dims", SHAPES)
def test_statistics_by_hand(per_channel, dims):
    x = image(SHAPES[dims], "float64")
    groups = list(x) if per_channel else [x]
    middle = x[:, 2:6] if dims == "3D" else x  # round(0.5 * 9) is 4 planes, from plane (9 - 4) // 2
    middle = list(middle) if per_channel else [middle]
    for norm, pairs in (
        (Percentile(5, 90, per_channel), [np.percentile(g, [5, 90]) for g in groups]),
        (MinMax(per_channel), [(g.min(), g.max()) for g in groups]),
        (Standard(per_channel), [(g.mean(), g.mean() + g.std()) for g in groups]),
        (Center(0.5, per_channel), [(g.mean(), g.mean() + g.std()) for g in middle]),
    ):
        stats = norm.stats(x)
        np.testing.assert_allclose(stats["offset"], [a for a, _ in pairs], rtol=1e-10)
        np.testing.assert_allclose(stats["scale"], [b - a for a, b in pairs], rtol=1e-8)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [0, 0.1, 7, -3.3, 60000])
def test_constant_image_becomes_zero(norm, value):
    x = np.full((1, 33, 35), value)
    np.testing.assert_allclose(norm()(x), 0, atol=1e-12)
    np.testing.assert_allclose(norm().inverse(norm()(x), norm().stats(x)), x, rtol=1e-6)


def test_high_background_keeps_its_detail():
    x = np.arange(64_000, 64_064, dtype=np.uint16).reshape(1, 8, 8)
    exact = (x - x.mean(dtype=np.float64)) / x.std(dtype=np.float64)
    np.testing.assert_allclose(Standard()(x), exact, rtol=2e-7)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_little_memory(norm, dtype):
    x, norm = image((1, 8, 512, 512), dtype), norm()
    size = x.size * 4
    for call in (lambda: norm(x), lambda: norm.inverse(x, norm.stats(x))):
        tracemalloc.start()
        call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # percentiles partition a copy in the image's type, before the result is there
        assert peak < 2.2 * size if norm.__class__ is Percentile else peak < 1.6 * size


def test_thinned_percentiles_see_every_column():
    x = np.zeros((64, 1024, 1024), np.uint8)
    x[..., ::2] = 200  # columns alternate: an even step would see only one kind
    assert abs(T._thin(x, 100_000).mean() - 100) < 1
    columns = np.arange(x.size).reshape(x.shape)
    assert len(np.unique(T._thin(columns, 100_000) % 1024)) == 1024


def test_percentile_of_a_large_image():
    x = image((1, 5, 1000, 1024), "float32")
    exact = np.percentile(x, [1, 99.8])
    offset, scale = Percentile().stats(x)["offset"][0], Percentile().stats(x)["scale"][0]
    assert abs(offset - exact[0]) < 0.01 * x.std() and abs(offset + scale - exact[1]) < 0.05 * x.std()


# ---- pooling


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("dims", SHAPES)
def test_pool_is_the_statistics_of_all(norm, per_channel, dims):
    c, *size = SHAPES[dims]
    # sizes differ along X, which Center does not cut
    images = [image((c, *size[:-1], size[-1] + 7 * i), "uint16", seed=i) + np.uint16(30 * i) for i in range(4)]
    norm = norm(per_channel=per_channel, over="dataset")
    pooled, direct = pool(norm, iter(images)), norm.stats(np.concatenate(images, axis=-1))
    for k in ("offset", "scale"):
        np.testing.assert_allclose(pooled[k], direct[k], rtol=1e-9)


def test_pool_of_many_large_images_is_bounded():
    images = (image((1, 1, 1024, 1100), "uint8", seed=0) + np.uint8(i % 5) for i in range(40))
    tracemalloc.start()
    stats = pool(Percentile(10, 90), images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    exact = np.percentile(np.stack([image((1, 1, 1024, 1100), "uint8") + np.uint8(i) for i in range(5)]), [10, 90])
    assert abs(stats["offset"][0] - exact[0]) <= 1 and abs(sum(v[0] for v in stats.values()) - exact[1]) <= 1
    assert peak < 80e6  # 16 million bytes are held; all images would be 45 million, and 360 as floats


def test_pool_refuses_what_does_not_fit():
    with pytest.raises(DataError, match="one has 1, those before it 2"):
        pool(Standard(), [np.zeros((2, 4, 4)), np.zeros((1, 4, 4))])


# ---- description


class Halves(Normalization):
    "A user's normalization that knows of no options."
    def measure(self, x): return 0.0, 2.0


@pytest.mark.parametrize("norm", [
    Percentile(2, 97, False, "dataset"), Standard(), Center(0.25, over="dataset"), MinMax(False), Macenko(65535.0),
    Halves(per_channel=False),
])
def test_description_builds_an_equal_object(norm):
    spec = normalization_spec(norm)
    again = as_normalization(spec)
    assert type(again) is type(norm) and vars(again) == vars(norm)
    assert all(isinstance(v, (str, int, float, bool)) for v in spec.values())


def test_a_subclass_needs_no_base_constructor():
    class Own(Normalization):
        "Divides by a number of its own."
        def __init__(self, by=4.0): self.by = by
        def measure(self, x): return 0.0, self.by

    np.testing.assert_allclose(Own()(np.ones((3, 4, 4))), 0.25)
    assert Own().stats(np.ones((3, 4, 4))) == {"offset": [0.0] * 3, "scale": [4.0] * 3}


# ---- stains


def stained(seed=0, size=(60, 70)):
    "An H&E-like image `(3, Y, X)` made of two stains and nothing else, and their colors."
    rng = np.random.default_rng(seed)
    stains = np.array([[0.65, 0.70, 0.29], [0.25, 0.90, 0.36]]).T
    stains /= np.linalg.norm(stains, axis=0)
    nuclei = rng.random(size) < 0.4
    amounts = np.stack([np.where(nuclei, rng.uniform(.9, 1.6, size), .02), np.where(nuclei, .1, rng.uniform(.7, 1.2, size))])
    return 240 * np.exp(-np.tensordot(stains, amounts, 1)) - 1, stains


def test_macenko_finds_the_stains():
    x, stains = stained()
    found = np.array(Macenko().stats(x)["stains"]).T
    assert np.degrees(np.arccos(np.clip((found * stains).sum(0), -1, 1))).max() < 6


def test_macenko_agrees_with_monai():
    x, _ = stained()
    x = x.astype(np.uint8)
    target, most = np.array(NormalizeHEStains().target_he), NormalizeHEStains().max_cref
    ours = Macenko()(x) * 255
    # MONAI 1.6 orders the stains the other way round, so the reference is turned round for it
    theirs = [NormalizeHEStains(target_he=target[:, o], max_cref=most[o])(np.ascontiguousarray(np.moveaxis(x, 0, -1)))
              for o in ([0, 1], [1, 0])]
    assert min(np.abs(np.moveaxis(t, -1, 0) - ours).mean() for t in theirs) < 2.5


@pytest.mark.parametrize("white, dtype", [(255, "uint8"), (255, "float32"), (65535, "uint16"), (1.0, "float32")])
@pytest.mark.parametrize("over", ["image", "dataset"])
def test_macenko_there_and_back(white, dtype, over):
    x = (stained()[0] * white / 255).astype(dtype)
    norm = Macenko(white=white, over=over)
    stats = pool(norm, [x, x[:, ::-1]])
    stats = stats if over == "dataset" else norm.stats(x)
    y = norm(x, stats)
    assert y.dtype == np.float32 and 0 <= y.min() and y.max() <= 1 and y.shape == x.shape
    np.testing.assert_allclose(norm.inverse(y, stats), x, atol=white / 255)


def test_macenko_makes_two_laboratories_alike():
    x, _ = stained()
    other = 240 * ((x + 1) / 240) ** np.array([0.7, 0.6, 0.9])[:, None, None] - 1
    norm = Macenko()
    assert np.abs(norm(x) - norm(other)).mean() * 255 < np.abs(x - other).mean() / 4


@pytest.mark.parametrize("x", [
    np.full((3, 16, 16), 255, np.uint8),  # an empty slide
    np.zeros((3, 16, 16), np.uint8),
    np.full((3, 16, 16), 90, np.uint8),
    np.random.default_rng(0).integers(225, 256, (3, 16, 16)).astype(np.uint8),
    np.where(np.arange(256).reshape(16, 16) < 3, 90, 250).astype(np.uint8)[None].repeat(3, 0),  # a few specks of dust
    np.clip(stained()[0][:, :2, :2], 0, 255).astype(np.uint8),
], ids=["white", "black", "gray", "noise", "dust", "four pixels"])
def test_macenko_without_tissue(x):
    norm = Macenko()
    y = norm(x)
    assert np.isfinite(y).all() and 0 <= y.min() and y.max() <= 1
    assert np.isfinite(norm.inverse(y, norm.stats(x))).all()
    assert np.isfinite(norm(x, pool(norm, [x, x]))).all()


def test_macenko_takes_a_stack_and_refuses_the_rest():
    x, _ = stained()
    np.testing.assert_allclose(Macenko()(np.stack([x, x], 1))[:, 0], Macenko()(x), atol=1e-3)
    for bad, word in ((x[:2], "3 channels; got 2"), (x / 255, "Set `white`"), (x * 300, "Set `white`"), (-x, "Set `white`")):
        with pytest.raises(DataError, match=word):
            Macenko()(bad)
    with pytest.raises(ConfigError, match="alpha=60"):
        Macenko(alpha=60)


def test_macenko_on_real_tissue(shared_data):
    files = sorted((shared_data / "nuclei_2d_histology" / "image").iterdir())[:4]
    if not files:
        pytest.skip("no histology images")
    norm = Macenko()
    images = [read_image(f)[0, :, 0] for f in files]
    pooled = pool(norm, images)
    for x in images:
        for stats in (norm.stats(x), pooled):
            back = norm.inverse(norm(x, stats), stats)
            assert np.percentile(np.abs(back - x.astype(float)), 99) < 2


# ---- preparation


@pytest.mark.parametrize("shape, multiple", [
    ((1, 30, 33), 16), ((2, 5, 30, 33), (1, 16, 16)), ((1, 3, 4), 32), ((1, 32, 64), 16), ((2, 7, 8, 9), 4),
])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_pad_and_unpad(shape, multiple, dtype):
    x = torch.from_numpy(image(shape, dtype))[None]
    y, inside = pad_to_multiple(x, multiple)
    multiples = [multiple] * (len(shape) - 1) if isinstance(multiple, int) else multiple
    assert all(n % m == 0 and n - s < m for n, s, m in zip(y.shape[2:], shape[1:], multiples))
    assert y.dtype == x.dtype
    assert torch.equal(unpad(y, inside), x) and torch.equal(unpad(y[:, :1], inside), x[:, :1])


@pytest.mark.parametrize("multiple", [0, (4,), (4, 0)])
def test_pad_refuses(multiple):
    with pytest.raises(ConfigError, match="`stride`"):
        pad_to_multiple(torch.zeros(1, 1, 8, 8), multiple)


@pytest.mark.parametrize("shape, new", [
    ((1, 30, 40), (60, 100)), ((2, 30, 40), (11, 17)), ((1, 6, 20, 24), (15, 20, 24)), ((1, 12, 30, 32), (5, 40, 9)),
])
def test_resample_agrees_with_scikit_image(shape, new):
    x = np.cumsum(image(shape, "float32"), axis=-1)
    ours = resample(x, shape=new)
    theirs = np.stack([resize(c, new, order=1, mode="edge", anti_aliasing=True) for c in x])
    assert ours.dtype == np.float32 and ours.shape == (shape[0], *new)
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-3 * x.std())


@pytest.mark.parametrize("zoom", [2, 3.0, (2, 1, 1), (3, 2, 1.5), (1, 1, 1)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64", "float64"])
def test_resample_there_and_back(zoom, dtype):
    zz, yy, xx = np.mgrid[:8, :20, :24]
    x = (40 + 10 * np.sin(zz / 3) + 20 * np.cos(yy / 6) + xx)[None].astype(dtype)
    y = resample(x, zoom)
    assert np.abs(resample(y, shape=x.shape) - x.astype(float)).max() < 2
    labels = x.astype(np.int64) // 10 * 10_000_019
    there = resample(labels, zoom, labels=True)
    assert there.dtype == labels.dtype and set(np.unique(there)) <= set(np.unique(labels))
    np.testing.assert_array_equal(resample(there, shape=x.shape[1:], labels=True), labels)


def test_resample_leaves_its_input():
    x = image((1, 16, 16), "float32")
    before = x.copy()
    resample(x, 0.5)
    resample(x, 2)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("kwargs", [{"zoom": 0}, {"zoom": -1}, {"zoom": (1, 2, 3)}, {"shape": (5,)}, {"shape": (0, 5)}, {},
                                    {"zoom": 2, "shape": (4, 4)}])
def test_resample_refuses(kwargs):
    with pytest.raises(ConfigError):
        resample(np.zeros((1, 8, 8)), **kwargs)


@pytest.mark.parametrize("pixel, zoom", [((1, .25, .25), (4, 1, 1)), ((.1, .2, .2), (.5, 1, 1)), ((1, .5, .25), (4, 2, 1))])
def test_isotropic_zoom(pixel, zoom):
    assert isotropic_zoom(pixel) == pytest.approx(zoom)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64", "float32", "bool"])
@pytest.mark.parametrize("kind", ["instances", "classes", "binary"])
def test_labels(dtype, kind):
    x = np.zeros((1, 12, 12), dtype)
    x[0, :4] = 1
    x[0, 4:8] = 7
    x[0, 4:8, 6:] = 200
    values = np.unique(x).astype(int).tolist()
    y = prepare_labels(x, kind)
    assert y.dtype == np.uint8 and y.shape == x.shape
    want = {"instances": list(range(len(values))), "classes": values, "binary": [0, 1]}[kind]
    assert np.unique(y).tolist() == want
    for v in values:
        assert len(np.unique(y[x.astype(int) == v])) == 1


def test_labels_with_large_numbers():
    x = np.array([[[0, 2**40, 2**40 + 1, 70_000]]])
    np.testing.assert_array_equal(prepare_labels(x, "instances"), [[[0, 2, 3, 1]]])
    np.testing.assert_array_equal(prepare_labels(x, "classes"), x)
    many = np.arange(70_000).reshape(1, 700, 100) * 3
    assert prepare_labels(many, "instances").dtype == np.uint32


@pytest.mark.parametrize("x", [np.array([[[-1, 2]]]), np.array([[[0.5, 1]]]), np.array([[[np.nan, 1]]])])
def test_labels_refused(x):
    with pytest.raises(DataError, match="whole numbers"):
        prepare_labels(x, "classes")


# ---- patches


def places(shape, dims):
    "An image whose channels are the coordinates of each pixel."
    return np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij"))


def starts(transform, sample, n=2000):
    "First pixel of `n` patches of an image of coordinates."
    return np.array([[int(c.min()) for c in transform(sample, seed=i)["IM"]] for i in range(n)])


@pytest.mark.parametrize("shape, patch", [((40, 50), (16, 20)), ((8, 20, 24), (4, 8, 16))])
def test_random_positions_are_uniform(shape, patch):
    found = starts(PatchTransform(patch), {"IM": places(shape, len(patch))})
    for axis, (n, p) in enumerate(zip(shape, patch)):
        counts = np.bincount(found[:, axis], minlength=n - p + 1)
        assert len(counts) == n - p + 1
        assert (((counts - counts.mean()) ** 2).sum() / counts.mean()) < 2.2 * len(counts)  # chi squared


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("target", [True, False])
def test_foreground_is_found(labels, target):
    im = places((100, 120), 2)
    bright = np.random.default_rng(0).normal(10, 1, (1, 100, 120)).astype(np.float32)
    bright[0, 10:14, 90:95] += 100
    sample = {"IM": np.concatenate([im, bright]) if target else bright}
    if target:
        sample["GT"] = (bright > 50).astype(np.uint8) if labels else bright
    points = sample_points(sample, "foreground", labels)
    if target:
        found, cell = {tuple(p) for p in points}, {(y, x) for y in range(10, 14) for x in range(90, 95)}
        assert cell <= found and len(found - cell) <= (0 if labels else 2)  # Otsu may take a pixel of noise
    sample["points"] = points
    key = "GT" if target else "IM"
    hit = lambda rule: np.mean([
        (PatchTransform((16, 16), labels=labels, sampling=rule)(sample, seed=i)[key] > (0 if labels and target else 50)).any()
        for i in range(400)
    ])
    assert hit("random") < 0.12 and 0.45 < hit("foreground") < 0.65


def test_foreground_stands_in_the_middle_half():
    sample = {"IM": places((100, 120), 2), "points": np.array([[50, 60]], np.int32)}
    found = starts(PatchTransform((16, 16), sampling="foreground"), sample)
    near = (np.abs(found + 8 - [50, 60]) <= 4).all(axis=1)
    assert 0.45 < near.mean() < 0.55
    assert np.ptp(found[near], axis=0).tolist() == [8, 8]


def test_cost_map_draws_by_weight():
    cost = np.zeros((1, 80, 80), np.float32)
    cost[0, 30:50, 20:40] = 1
    cost[0, 30:50, 40:60] = 3
    sample = {"IM": places((80, 80), 2), "CM": cost}
    sample["points"] = sample_points(sample, "costmap", False, n=20_000)
    centers = starts(PatchTransform((16, 16), sampling="costmap"), sample) + 8
    assert (cost[0][tuple(centers.T)] > 0).all()
    assert abs((centers[:, 1] >= 40).mean() - 0.75) < 0.04
    assert abs((centers[:, 0] < 40).mean() - 0.5) < 0.05


@pytest.mark.parametrize("sampling", ["foreground", "costmap"])
def test_nothing_to_find_means_uniform(sampling):
    empty = np.zeros((1, 40, 40), np.float32)
    sample = {"IM": places((40, 40), 2), "GT": empty.astype(np.uint8), "CM": empty}
    sample["points"] = sample_points(sample, sampling, True)
    assert sample["points"].shape == (0, 2) and sample["points"].dtype == np.int32
    found = starts(PatchTransform((16, 16), labels=True, sampling=sampling), sample, n=600)
    assert (found.min(0) == 0).all() and (found.max(0) == 24).all()


@pytest.mark.parametrize("shape, patch", [((40, 50), (16, 20)), ((9, 20, 24), (4, 8, 24)), ((10, 10), (16, 16)), ((32, 32), (16, 16))])
def test_grid_covers_the_image(shape, patch):
    transform, n = PatchTransform(patch, sampling="grid"), grid_size(shape, patch)
    im = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    seen = [transform({"IM": im}, seed=0, index=i)["IM"] for i in range(n)]
    assert len(np.unique(torch.stack(seen))) == im.size
    assert n == np.prod([-(-s // p) for s, p in zip(shape, patch)]) == grid_size((1, *shape), patch)
    assert torch.equal(seen[0], transform({"IM": im}, seed=9, index=n)["IM"])


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("kept", [True, False])
def test_empty_patches_are_drawn_anew(labels, kept):
    target = np.zeros((1, 100, 100), np.uint16)
    target[0, 30:70, 30:70] = 1000
    sample = {"IM": target, "GT": target, "thresholds": {"GT": 0 if labels else 500}}
    if not kept:
        del sample["thresholds"]
    share = lambda least: np.array([
        (PatchTransform((16, 16), labels=labels, min_foreground=least)(sample, seed=i)["GT"] > 0).float().mean()
        for i in range(100)
    ])
    assert (share(0.0) < 0.5).mean() > 0.6 and (share(0.5) >= 0.5).mean() > 0.9
    assert share(1.0).mean() > share(0.5).mean()


def test_the_best_is_kept_where_none_will_do():
    target = np.zeros((1, 64, 64), np.uint8)
    target[0, 20:24, 20:24] = 1
    transform = PatchTransform((16, 16), labels=True, min_foreground=0.9)
    share = [(transform({"IM": target, "GT": target}, seed=i)["GT"] > 0).float().mean() for i in range(60)]
    assert np.mean([s == 1 / 16 for s in share]) > 0.7
    assert not transform({"IM": target, "GT": 0 * target}, seed=0)["GT"].any()


class Recorder:
    "Stands for an array and keeps what was read of it; reading it whole fails."
    def __init__(self, x): self.x, self.shape, self.read = x, x.shape, []

    def __getitem__(self, key):
        part = self.x[key]
        self.read.append(part.shape)
        return part

    def __array__(self, *args, **kwargs): raise AssertionError("the whole image was read")


@pytest.mark.parametrize("kwargs", [
    {}, {"sampling": "grid"}, {"sampling": "foreground"}, {"sampling": "costmap"}, {"paired": False}, {"min_foreground": 0.5},
    {"augment": [{"_target_": "RandFlipd", "prob": 1.0}]},
])
def test_only_the_patch_is_read(kwargs):
    im = image((1, 16, 90, 100), "uint16")
    sample = {k: Recorder(im) for k in ("IM", "GT", "CM")}
    given = sample | {"points": np.array([[8, 40, 50]], np.int32), "thresholds": {"GT": 1e9, "IM": 1e9}}
    PatchTransform((8, 16, 16), **kwargs)(given, seed=3)
    for key, x in sample.items():
        assert set(x.read) == {(1, 8, 16, 16)}
        tries = 20 if "min_foreground" in kwargs and key == "GT" else 0
        assert len(x.read) == tries + 1


def test_a_sparse_file_larger_than_memory(tmp_path):
    shape = (1, 64, 16_384, 16_384)  # 64 GB as float32, none of them on the disk
    try:
        x = np.memmap(tmp_path / "large.dat", dtype=np.float32, mode="w+", shape=shape)
    except OSError:
        pytest.skip("this file system has no sparse files")
    assert PatchTransform((16, 64, 64))({"IM": x, "GT": x}, seed=0)["IM"].shape == (1, 16, 64, 64)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float16", "float32", "float64", ">u2"])
@pytest.mark.parametrize("kind", ["numpy", "memmap", "torch"])
def test_result_types(dtype, kind, tmp_path):
    im = image((2, 20, 24), dtype)
    if kind == "memmap":
        np.save(tmp_path / "a.npy", im)
        given = np.load(tmp_path / "a.npy", mmap_mode="r")
    elif kind == "torch":
        if dtype in ("uint16", ">u2"):
            pytest.skip("torch tensors of this type are no use to anyone")
        given = torch.from_numpy(im.copy())
    else:
        given = im
    p = PatchTransform((8, 8), labels=True)({"IM": given, "GT": given[:1], "CM": given[:1], "name": "a"}, seed=1)
    assert (p["IM"].dtype, p["GT"].dtype, p["CM"].dtype) == (torch.float32, torch.int64, torch.float32)
    assert torch.equal(p["IM"][:1].long(), p["GT"]) and torch.equal(p["IM"][:1], p["CM"]) and p["name"] == "a"
    assert all(v.is_contiguous() and type(v) is torch.Tensor for k, v in p.items() if k != "name")
    p["IM"].zero_()
    np.testing.assert_array_equal(np.asarray(given), im)  # the patch has memory of its own


@pytest.mark.parametrize("shape, patch", [((10, 40), (16, 16)), ((5, 7), (16, 16)), ((4, 30, 9), (8, 16, 16)), ((1, 1), (4, 4))])
@pytest.mark.parametrize("sampling", ["random", "grid", "foreground"])
def test_small_images_are_mirrored(shape, patch, sampling):
    im = 1 + np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    p = PatchTransform(patch, sampling=sampling)({"IM": im, "GT": im}, seed=2)
    assert p["IM"].shape == (1, *patch) and torch.equal(p["IM"], p["GT"])
    assert set(p["IM"].unique().tolist()) <= set(im.ravel().tolist())
    if all(n <= q for n, q in zip(shape, patch)):
        pads = [((q - n) // 2, q - n - (q - n) // 2) for n, q in zip(shape, patch)]
        np.testing.assert_array_equal(p["IM"], np.pad(im, [(0, 0), *pads], mode="symmetric"))


MOVES = [
    [{"_target_": "RandFlipd", "prob": 0.5, "spatial_axis": -1}, {"_target_": "RandRotate90d", "prob": 0.7, "spatial_axes": [-2, -1]}],
    [{"_target_": "RandAxisFlipd", "prob": 1.0}],
    [{"_target_": "RandZoomd", "prob": 1.0, "min_zoom": 0.8, "max_zoom": 1.3}],
    [{"_target_": "RandRotated", "prob": 1.0, "range_x": 0.4}],
    [{"_target_": "RandAffined", "prob": 1.0, "rotate_range": [0.3], "scale_range": [0.1], "padding_mode": "border"}],
]


@pytest.mark.parametrize("augment", [[]] + MOVES)
@pytest.mark.parametrize("shape, patch", [((64, 70), (32, 32)), ((10, 48, 50), (8, 32, 32))])
def test_source_target_and_cost_map_alike(augment, shape, patch):
    im = np.cumsum(np.cumsum(image((1, *shape), "float32"), -1), -2)
    im = 200 * im / im.max()
    labels = np.round(im).astype(np.uint16)
    transform = PatchTransform(patch, augment, labels=True)
    for seed in range(5):
        p = transform({"IM": im, "GT": labels, "CM": (labels > 60).astype(np.float32)}, seed)
        again = transform({"IM": im, "GT": labels, "CM": (labels > 60).astype(np.float32)}, seed)
        assert all(torch.equal(p[k], again[k]) for k in p)
        inner = (..., slice(8, -8), slice(8, -8))  # a turned patch is filled up at its border
        assert (p["IM"] - p["GT"])[inner].abs().mean() < 1.5
        assert torch.equal((p["GT"] > 60).float()[inner], p["CM"][inner])
        assert set(p["GT"].unique().tolist()) <= {0, *np.unique(labels).tolist()}


@pytest.mark.parametrize("augment", [[]] + MOVES[:2])
def test_unpaired_is_cut_and_changed_separately(augment):
    im, gt = places((64, 70), 2), places((90, 40), 2)
    transform = PatchTransform((16, 16), augment, paired=False)
    a = [transform({"IM": im, "GT": gt[:1], "CM": gt[:1], "name": "a"}, seed=i) for i in range(60)]
    assert all(p["IM"].shape == (2, 16, 16) and p["GT"].shape == (1, 16, 16) for p in a)
    assert all(torch.equal(p["GT"], p["CM"]) for p in a)
    first = np.array([[p["IM"][0].min(), p["GT"].min()] for p in a])
    assert abs(np.corrcoef(first.T)[0, 1]) < 0.35 and first[:, 0].max() <= 48 < first[:, 1].max()
    again = transform({"IM": im, "GT": gt[:1], "CM": gt[:1], "name": "a"}, seed=7)
    assert torch.equal(a[7]["IM"], again["IM"]) and torch.equal(a[7]["GT"], again["GT"])


def test_unpaired_flips_by_different_chance():
    im = places((16, 16), 2)
    flip = PatchTransform((16, 16), MOVES[0][:1], paired=False)
    turned = np.array([[p[k][1, 0, 0] > p[k][1, 0, 1] for k in ("IM", "GT")] for p in (flip({"IM": im, "GT": im}, i) for i in range(100))])
    assert 0.3 < turned.mean() < 0.7 and 0.3 < (turned[:, 0] == turned[:, 1]).mean() < 0.7


def test_unpaired_points_belong_to_the_target():
    sample = {"IM": places((60, 60), 2), "GT": places((90, 90), 2), "points": np.array([[80, 80]], np.int32)}
    transform = PatchTransform((16, 16), sampling="foreground", paired=False)
    patches = [transform(sample, seed=i) for i in range(200)]
    assert np.mean([(p["GT"][0] == 80).any() and (p["GT"][1] == 80).any() for p in patches]) > 0.45
    assert np.std([p["IM"][0].min() for p in patches]) > 8


@pytest.mark.parametrize("sampling", ["random", "foreground", "costmap", "grid"])
@pytest.mark.parametrize("paired", [True, False])
def test_every_choice_comes_from_the_seed(sampling, paired):
    im = image((1, 40, 44), "float32")
    sample = {"IM": im, "GT": im, "CM": im}
    augment = MOVES[0] + [{"_target_": "RandGaussianNoised", "prob": 0.5}]
    make = lambda: PatchTransform((16, 16), augment, sampling=sampling, paired=paired, min_foreground=0.3)
    one, two = make(), make()
    forward = [one(sample, s) for s in range(8)]
    np.random.seed(1)
    torch.manual_seed(1)
    backward = [two(sample, s) for s in range(7, -1, -1)][::-1]
    for a, b in zip(forward, backward):
        assert all(torch.equal(a[k], b[k]) for k in ("IM", "GT", "CM"))
    assert len({float(p["IM"].sum()) for p in forward}) > 4


def test_a_sample_is_left_as_it_was():
    im = image((1, 32, 32), "float32")
    sample = {"IM": im.copy(), "GT": im.copy(), "points": np.zeros((1, 2), np.int32), "extra": [1]}
    p = PatchTransform((32, 32), [{"_target_": "RandFlipd", "prob": 1.0}], sampling="foreground")(sample, 0)
    assert list(p) == ["IM", "GT", "extra"] and "points" in sample
    np.testing.assert_array_equal(sample["IM"], im)


@pytest.mark.parametrize("kwargs, word", [
    ({"sampling": "forground"}, "did you mean 'foreground'"), ({"sampling": 3}, "`data.sampling`"),
    ({"min_foreground": 1.5}, "0 ... 1; got 1.5"), ({"min_foreground": -1}, "`data.min_foreground`"),
])
def test_arguments_refused(kwargs, word):
    with pytest.raises(ConfigError, match=word):
        PatchTransform((16, 16), **kwargs)


def test_unpaired_needs_transforms_that_bear_missing_keys():
    from monai.transforms import RandFlipd

    PatchTransform((16, 16), [RandFlipd(["IM", "GT"], allow_missing_keys=True)], paired=False)
    with pytest.raises(ConfigError, match="RandFlipd needs allow_missing_keys=True"):
        PatchTransform((16, 16), [RandFlipd(["IM", "GT"])], paired=False)


def test_padding_keeps_its_own_mode():
    steps = [{"_target_": "BorderPadd", "spatial_border": 4}, {"_target_": "CenterSpatialCropd", "roi_size": [16, 16]}]
    im = image((1, 32, 32), "float32")
    a, b = (PatchTransform((16, 16), augment)({"IM": im}, seed=0)["IM"] for augment in (steps, ()))
    assert torch.equal(a, b)
