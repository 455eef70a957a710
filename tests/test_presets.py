"Every preset, with its own network and with each that its comment names: trains, saves, loads, predicts a size that does not divide."
import re

import numpy as np
import pytest
import torch

from mmv_im2im.checkpoints import load_checkpoint
from mmv_im2im.config import net_names, net_preset, net_text, preset, preset_names, preset_text
from mmv_im2im.data_modules.images import write_image
from mmv_im2im.data_modules.samples import simulate_set
from mmv_im2im.inference.predictor import Predictor
from mmv_im2im.trainers import train

TRAINER = {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False, "pictures": 0}
SIZE = {2: (40, 48), 3: (16, 36, 40)}
ODD = {2: (37, 51), 3: (11, 35, 33)}
NOISY = ("self2self", "n2v", "zsn2n")  # Presets that learn from noisy images alone


def networks(name: str) -> list[str]:
    "Networks that a preset's comment says to try."
    return re.search(r"^# Networks to try, as `model.net: NAME`: (.+)$", preset_text(name), re.M)[1].split(", ")


CASES = [(name, net) for name in preset_names() for net in (None, *networks(name))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "A folder of two pairs for each kind of preset, made when first asked for."
    made = {}

    def folder(name: str):
        dims, task = int(name[-2]), name[:-3]
        source, target = ("brightfield", "nuclei")
        if "seg" in task: source, target = "nuclei", "labels"
        elif "synthesis" in task: source, target = "labels", "nuclei"
        key = dims, source, target, task == "staining"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("pairs")
            if task == "staining":
                rng = np.random.default_rng(0)
                for k in ("IM", "GT"):
                    for i in range(2): write_image(made[key] / k / f"{i}.tif", rng.integers(0, 255, (3, *SIZE[2]), np.uint8), "CYX")
            else: simulate_set(made[key], 2, SIZE[dims], source=source, target=target, n_cells=3)
        return made[key]
    return folder


@pytest.mark.parametrize("name, net", CASES, ids=[f"{n}-{net or 'its own'}" for n, net in CASES])
def test_a_preset_trains_saves_loads_and_predicts(name, net, folders, tmp_path):
    dims = int(name[-2])
    alone = name.startswith(NOISY)
    data = {"path": str(folders(name) / "IM" if alone else folders(name)), "patch": [32] * 2 if dims == 2 else [16, 32, 32], "batch_size": 2, "patches_per_image": 2,
            "gap": 0}
    if alone: data["val_pixels"] = 1024
    model = {"net": net} if net else {}
    if "warmup_epochs" in preset_text(name): model["warmup_epochs"] = 0  # both steps are steps of the game
    cfg = preset(name, data=data, trainer=TRAINER, out=str(tmp_path / "run"), model=model)
    run = train(cfg)
    assert run.result["steps"] == 2 and run.best.is_file()
    model = Predictor(run.best, device="cpu")
    channels = model.in_channels
    image = np.random.default_rng(0).integers(0, 255, ((channels,) if channels > 1 else ()) + ODD[dims]).astype(np.uint8)
    out = model(image)
    assert out.shape == image.shape if name != "staining" else out.shape == (3, *ODD[2])
    assert out.dtype == (np.uint8 if "seg" in name or name.startswith("staining") else np.float32 if alone else np.uint16)
    kept, learned = load_checkpoint(run.best)["state_dict"], model.module.state_dict()
    assert all(torch.equal(v, learned[k]) for k, v in kept.items())


def test_every_network_is_named_by_a_preset():
    assert {net for _, net in CASES if net} == set(net_names())


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_says_what_to_change_first(name):
    comments = [line for line in preset_text(name).splitlines() if line.startswith("#")]
    assert any(line.startswith("# Change first: data.path") for line in comments)
    assert name.endswith(("_2d", "_3d")) and f"{name[-2]}D" in comments[0], "the first line says what it is for, and in how many dimensions"
    assert all(net_preset(n, int(name[-2]))["spatial_dims"] == int(name[-2]) for n in networks(name))


@pytest.mark.parametrize("name", net_names())
def test_a_network_says_when_to_take_it(name):
    assert re.match(r"# .{30,}\.\n", net_text(name))
