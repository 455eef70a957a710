"Denoisers look at their images: what is measured of noise, what is said, what is done about it."
import io
import json
import shutil

import numpy as np
import pytest
from chain import run, write_yaml
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom
from scipy.signal import lfilter
from test_self_supervised import MASKINGS, denoiser

from mmv_im2im.checkpoints import read_metrics
from mmv_im2im.config import from_dict, load_config, preset
from mmv_im2im.core import ConfigError
from mmv_im2im.data_modules.images import read_image, write_image
from mmv_im2im.data_modules.noise import measure_noise
from mmv_im2im.data_modules.samples import simulate_cells
from mmv_im2im.models.self_supervised import BlindSpot, SelfSupervised
from mmv_im2im.trainers import prepare, train


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    "A field of nuclei, 256 x 256, 0 to 60."
    x = simulate_cells((256, 256), seed=2)["nuclei"].squeeze().astype(np.float64)
    return 60 * x / x.max()


def white(shape, sd=8., seed=0): return np.random.default_rng(seed).normal(0, sd, shape)


def along(axis, shape=(256, 256), a=.35, step=1):
    "Noise with a correlation of a / (1 + a^2) at `step` pixels."
    n = white(shape)
    return (n + a * np.roll(n, step, axis)) / (1 + a * a) ** .5


def jpeg(x, quality):
    file = io.BytesIO()
    Image.fromarray(np.clip(x, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


# Name -> the noisy image, the axes along which its noise is correlated
KINDS = {
    "white": lambda s: (s + white(s.shape), ""),
    "white, stronger than all structures": lambda s: (s + white(s.shape, 60), ""),
    "shot noise": lambda s: (np.random.default_rng(0).poisson(s + 4), ""),
    "few photons": lambda s: (np.random.default_rng(0).poisson(s / 100).astype(np.uint8), ""),
    "offset 100, noise clipped there": lambda s: (np.maximum(np.round(100 + s / 10 + white(s.shape, 5)), 100).astype(np.uint16), ""),
    "saturated": lambda s: (np.clip(s * 7 + white(s.shape, 12) + 40, 0, 255).astype(np.uint8), ""),
    "negative": lambda s: (s - 1e4 + white(s.shape), ""),
    "tiny values": lambda s: ((s + white(s.shape)) * 1e-9, ""),
    "huge values": lambda s: ((s + white(s.shape)) * 1e12, ""),
    "along X": lambda s: (s + along(1), "X"),
    "along Y": lambda s: (s + along(0), "Y"),
    "along both": lambda s: (s + lfilter([1, .4], 1, along(1), axis=0), "YX"),
    "at two pixels alone": lambda s: (s + along(1, a=.5, step=2), "X"),
    "far along X": lambda s: (s + lfilter([1], [1, -.8], white(s.shape, 5), axis=1), "X"),
    "negative along Y": lambda s: (s + along(0, a=-.4), "Y"),
    "clipped at 0 and along X": lambda s: (np.clip(np.round(s + along(1) - 12), 0, 255).astype(np.uint8), "X"),
    "columns": lambda s: (s + white(s.shape) + white(256, 4, 1), "Y"),
    "rows": lambda s: (s + white(s.shape) + white(256, 4, 1)[:, None], "X"),
    "enlarged": lambda s: (zoom((s + white(s.shape))[:128, :128], 2, order=1), "YX"),
    "enlarged by splines": lambda s: (zoom((s + white(s.shape))[:170, :170], 1.5, order=3), "YX"),
    "smoothed": lambda s: (gaussian_filter(s + white(s.shape, 16), .7), "YX"),
    "JPEG": lambda s: (jpeg(s * 2 + 40 + white(s.shape, 12), 40), "YX"),
    "no noise": lambda s: (s, ""),
    "dots of two pixels": lambda s: (gaussian_filter((np.random.default_rng(0).random(s.shape) > .98) * 100., .8), ""),
    "dots in white noise": lambda s: (gaussian_filter((np.random.default_rng(0).random(s.shape) > .98) * 100., .8) + white(s.shape, 3), ""),
    "threads along X in white noise": lambda s: (30 * gaussian_filter(white(s.shape, 1), (1.2, 40)) / .06 / 3 + white(s.shape, 8), ""),
    "constant": lambda s: (np.full((64, 64), 7, np.uint16), ""),
    "two values": lambda s: ((s > 20).astype(np.uint8), ""),
    "black but for a corner": lambda s: (np.pad((s + white(s.shape) + 50)[:64, :64], ((0, 192), (0, 192))), ""),
    "smaller than a tile": lambda s: ((s + white(s.shape))[:20, :20], ""),
    "one row": lambda s: ((s + white(s.shape))[:1], ""),
    "ten pixels": lambda s: ((s + white(s.shape))[:10, :10], ""),
}


@pytest.mark.parametrize("kind", KINDS)
def test_correlation_is_found_where_there_is_any(clean, kind):
    image, axes = KINDS[kind](clean)
    found = measure_noise([image[None]])
    assert set(found.reach) == set(axes), f"{found} {found.correlation} {found.lines}"
    assert json.loads(json.dumps(found.to_dict()))["reach"] == found.reach and str(found)


@pytest.mark.parametrize("kind, clipped, saturated", [
    ("white", None, None), ("few photons", None, None), ("no noise", None, None), ("shot noise", None, None),
    ("offset 100, noise clipped there", 100, None), ("clipped at 0 and along X", 0, None), ("saturated", None, 255),
])
def test_clipped_and_saturated_pixels_are_counted(clean, kind, clipped, saturated):
    image, _ = KINDS[kind](clean)
    found = measure_noise([image[None]])
    for end, value in ((found.clipped, clipped), (found.saturated, saturated)):
        if value is None: assert end is None or kind == "saturated" and end[0] == 0, end
        else: assert end[0] == value and end[1] == pytest.approx((image == value).mean(), abs=.01)


@pytest.mark.parametrize("axis", "YX")
def test_every_second_line_of_another_kind_is_found(clean, axis):
    other = np.arange(256) % 2
    for x in (clean + 8 * other[:, None], np.where(other[:, None], np.roll(clean, 3, 1), clean)):
        x = (x if axis == "Y" else x.T) + white(clean.shape)
        found = measure_noise([x[None]])
        assert found.alternating == [axis] and not found.reach


def test_blocks_of_jpeg_are_told_from_others(clean):
    noisy = clean * 2 + 40 + white(clean.shape, 12)
    assert measure_noise([jpeg(noisy, 40)[None]]).blocks and not measure_noise([jpeg(noisy, 95)[None]]).blocks


@pytest.mark.parametrize("axis", "ZYX")
def test_in_three_dimensions(axis):
    x = simulate_cells((16, 96, 96), seed=0)["nuclei"].squeeze()
    x = 60 * x / x.max() + along("ZYX".index(axis), x.shape)
    assert set(measure_noise([x[None]]).reach) == {axis}


def test_of_many_images_and_channels_most_decide(clean):
    odd, usual = clean + along(1), clean + white(clean.shape)
    assert measure_noise([np.stack([odd, odd]), np.stack([odd, usual])]).reach == {"X": 1}
    assert not measure_noise([usual[None], usual[None, :200], odd[None, :, :200]]).reach


def test_real_images_are_not_mistaken(shared_data):
    for path in [*(shared_data / "denoise_2d" / "gigadb").glob("*/*.tif"), *(shared_data / "labelfree_2d").glob("*/target/*.tif")][:14]:
        found = measure_noise([read_image(path).squeeze()[None][..., :512, :512]])
        assert not found.correlation or max(abs(v) for r in found.correlation.values() for v in r) < .1, f"{path}: {found}"


# What is done about it

@pytest.fixture(scope="module")
def striped(tmp_path_factory, clean):
    "A folder with an image whose noise runs along X."
    folder = tmp_path_factory.mktemp("striped")
    write_image(folder / "a.tif", (clean + along(1)).astype(np.float32), "YX")
    return folder


@pytest.mark.parametrize("given, chosen", [
    ({}, {"line": "X", "reach": 1, "share": .05}),
    ({"line": "auto", "share": .01}, {"line": "X", "reach": 1, "share": .01}),
    ({"line": None}, {"line": None, "reach": 5, "share": .05}),
    ({"line": "Y"}, {"line": "Y", "reach": 5, "share": .018}),
    ({"reach": 4}, {"line": "X", "reach": 4, "share": .022}),
    ({"line": "YX", "reach": 2}, {"line": "YX", "reach": 2, "share": .008}),
])
def test_a_key_that_is_given_holds(tmp_path, striped, given, chosen):
    cfg = denoiser("BlindSpot", model={"masking": {"_target_": "BlindSpot"} | given}, data={"path": str(striped)}, out=str(tmp_path / "r"))
    resolved, model, _ = prepare(from_dict(cfg))
    assert {k: resolved.model["masking"][k] for k in chosen} == chosen
    assert any("warning" in r for r in model.remarks) == ("X" not in (chosen["line"] or "")), model.remarks


@pytest.mark.parametrize("name", ["n2v_2d", "n2v_3d", "self2self_2d", "self2self_3d", "zsn2n_2d"])
def test_presets_leave_it_to_the_images(name):
    masking = preset(name).model["masking"]
    assert masking["line"] == masking["reach"] == "auto" and masking.get("share", "auto") in ("auto", .3)


@pytest.mark.parametrize("name", MASKINGS)
def test_what_was_chosen_is_kept_and_said(tmp_path, striped, name, capfd):
    cfg = write_yaml(tmp_path / "c.yaml", denoiser(name, data={"path": str(striped), "patches_per_image": 8}, trainer={"max_epochs": 1}))
    assert run("--config", cfg, "--check", "--out", tmp_path / "r") == 0
    assert "correlated along X" in capfd.readouterr().out and not (tmp_path / "r").exists()
    assert run("--config", cfg, "--out", tmp_path / "r") == 0
    assert load_config(tmp_path / "r").model["masking"] | {"line": "X", "reach": 1} == load_config(tmp_path / "r").model["masking"]
    log, report = (tmp_path / "r" / "run.log").read_text(), (tmp_path / "r" / "report.html").read_text()
    assert "correlated along X" in log and "correlated along X" in report and "line: X" in log


def test_a_run_that_continues_keeps_its_choice(tmp_path, striped):
    images = shutil.copytree(striped, tmp_path / "images")
    cfg = from_dict(denoiser("BlindSpot", data={"path": str(images)}, out=str(tmp_path / "r")))
    run = train(cfg)
    (run.folder / "run.json").unlink()  # as if it had been killed
    write_image(images / "a.tif", white((256, 256)).astype(np.float32), "YX")
    assert prepare(cfg)[0].model["masking"]["line"] == "X"


@pytest.mark.parametrize("masking, said", [
    ({"line": "XX"}, "line"), ({"line": "T"}, "line"), ({"line": 3}, "line"), ({"line": "Z"}, "line"), ({"line": "yx"}, "line"),
    ({"reach": 0}, "reach"), ({"reach": "far"}, "reach"), ({"share": "much"}, "share"), ({"share": .9}, "share"), ({"line": "X", "reach": -1}, "reach"),
])
def test_what_cannot_be_is_refused_with_a_sentence(tmp_path, striped, masking, said):
    cfg = denoiser("BlindSpot", model={"masking": {"_target_": "BlindSpot"} | masking}, data={"path": str(striped)}, out=str(tmp_path / "r"))
    with pytest.raises(ConfigError, match=said): prepare(from_dict(cfg))
