"A tiny run for tests of the whole chain: its yaml, its images, the shell, and what came out."
import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from mmv_im2im.cli import main

# Small enough for a second of training on one core, with everything that a real run has
SEGMENT = {
    "data": {"target_kind": "label", "patch": [32, 32], "batch_size": 4, "patches_per_image": 4},
    "model": {"_target_": "FCN", "task": "segmentation", "loss": {"_target_": "DiceCELoss"},
              "net": {"_target_": "UNet", "spatial_dims": 2, "channels": [4, 8], "strides": [2], "num_res_units": 0, "norm": "batch"},
              "optimizer": {"_target_": "AdamW", "lr": 1.0e-2}},
    "trainer": {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False, "pictures": 0},
    "predict": {"device": "cpu"},
}
REGRESS = SEGMENT | {
    "data": SEGMENT["data"] | {"target_kind": "image", "target_norm": {"_target_": "Percentile"}},
    "model": SEGMENT["model"] | {"task": "regression", "loss": {"_target_": "MSELoss"}},
}

_JUDGE = {"_target_": "PatchGAN", "layers": 2, "channels": 4}
_GAME = {"net": SEGMENT["model"]["net"], "discriminator": _JUDGE, "optimizer": {"_target_": "Adam", "lr": 1.0e-3}}
GAMES = {
    "Pix2Pix": REGRESS | {"model": {"_target_": "Pix2Pix"} | _GAME},
    "CycleGAN": REGRESS | {"model": {"_target_": "CycleGAN"} | _GAME, "data": REGRESS["data"] | {"pairing": "unpaired"}},
}


def write_yaml(path: Path, config: dict, **sections) -> Path:
    "A yaml of `config`, with the keys of some sections changed."
    merged = dict(config)
    for name, change in sections.items():
        merged[name] = config.get(name, {}) | change if isinstance(change, dict) else change
    path.write_text(yaml.safe_dump(merged))
    return path


def start(*args, prelude: str = "") -> subprocess.Popen:
    "Begin `run_im2im ARGS` in a process of its own, with as many threads; `prelude` is code that runs there first."
    code = f"{prelude}\nimport sys\nfrom mmv_im2im.cli import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            stdin=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())})


def shell(*args, prelude: str = "", status: int = 0) -> str:
    "What `run_im2im ARGS` prints in a process of its own, which must end with `status`."
    process = start(*args, prelude=prelude)
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, f"ended with {process.returncode}\n{out}\n{err}"
    return out


def run(*args) -> int:
    "`run_im2im ARGS` in this process."
    return main([str(a) for a in args])


def checkpoint(folder: Path, name: str = "last") -> dict:
    "A checkpoint of a run."
    return torch.load(Path(folder) / "checkpoints" / f"{name}.ckpt", weights_only=True)


def same_weights(a: Path, b: Path, name: str = "last") -> bool:
    "Whether two runs ended with bit-identical weights."
    x, y = (checkpoint(f, name)["state_dict"] for f in (a, b))
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
