"What people have from before rooms were moved: imports, checkpoints and yaml files of the commit before."
import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from mmv_im2im import MOVED, core
from mmv_im2im.config import from_dict as load_dict, load_config
from mmv_im2im.core import ConfigError
from mmv_im2im.inference.predictor import Predictor

OLD = Path(__file__).parent / "old"
NAMES = json.loads((OLD / "names.json").read_text())


@pytest.mark.parametrize("module", NAMES)
def test_imports_from_where_names_were(module):
    found = importlib.import_module(f"mmv_im2im.{module}")
    everything = importlib.import_module("mmv_im2im.all")
    for name in NAMES[module]:
        if name in core._INSTEAD:
            with pytest.raises(ImportError, match=f"there is no `{name}`.*: call `"): getattr(found, name)
        else: assert getattr(found, name) is vars(everything).get(core._RENAMED.get(name, name), getattr(found, name)), name


@pytest.mark.parametrize("old", MOVED)
def test_a_moved_module_is_no_second_one(old):
    "Classes are the same objects under both names."
    new = MOVED[old].split()
    found = importlib.import_module(f"mmv_im2im.{old}")
    for name in new:
        module = importlib.import_module(f"mmv_im2im.{name}")
        for public in module.__all__: assert getattr(found, public) is getattr(module, public)


@pytest.mark.parametrize("name", ["fcn", "restore", "pix2pix", "n2v"])
def test_checkpoints_predict_the_same(name):
    image, options = np.load(OLD / "image.npy"), {"probabilities": True} if name == "fcn" else {}
    got = Predictor(OLD / f"{name}.ckpt", device="cpu")(image, **options)
    np.testing.assert_allclose(got, np.load(OLD / f"{name}.npy"), rtol=1e-4, atol=1e-4)


def test_a_yaml_names_objects_by_their_old_modules():
    from mmv_im2im.config.load import check_targets

    cfg = load_config(OLD / "config.yaml")
    assert cfg.data.source_norm["_target_"].startswith("mmv_im2im.data_modules.transforms.")
    check_targets(cfg)


def test_keys_by_their_old_names():
    "A run's own config, which holds every key, loads; a value under an old name is answered with the new one."
    whole = {"data": {"portion": None, "portion_epochs": 1, "patch": [16, 16]}}
    assert load_dict(whole).data.partial_loading is None
    for given, name in (({"portion": 0.5}, "data.partial_loading"), ({"portion_epochs": 3}, "data.partial_loading_epochs")):
        with pytest.raises(ConfigError, match=f"it is called `{name}`"): load_dict({"data": given})
    with pytest.raises(ConfigError, match="it is called `data.partial_loading`"): load_dict(whole).data.portion = 0.5


def test_objects_by_their_old_names():
    assert core.find_class("Centre", "normalization") is core.find_class("Center", "normalization")
    assert core.find_class("mmv_im2im.data_modules.transforms.Centre", "normalization").__name__ == "Center"
