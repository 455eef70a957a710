"Small things that the tests share: a config that trains in a second, simulated cells, the command line in process."
import copy
import subprocess
import sys
from pathlib import Path

import yaml

NET = {"_target_": "UNet", "spatial_dims": 2, "channels": [4, 8], "strides": [2], "norm": "batch"}
CONFIG = {
    "data": {"target_kind": "label", "patch": [32, 32], "batch_size": 4, "patches_per_image": 2},
    "model": {"_target_": "FCN", "task": "segmentation", "net": NET, "loss": {"_target_": "DiceCELoss"},
              "optimizer": {"_target_": "AdamW", "lr": 0.005}},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "pictures": 0},
}
COMMAND = [sys.executable, "-c", "import sys; from mmv_im2im.cli import main; sys.exit(main())"]


def changed(config: dict, changes: dict) -> dict:
    "A copy of `config` with the values of dotted keys changed; the value `None` is kept as null, `...` removes the key."
    config = copy.deepcopy(config)
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        place = config
        for p in parents:
            place = place.setdefault(p, {})
        if value is ...:
            place.pop(last, None)
        else:
            place[last] = copy.deepcopy(value)
    return config


def write_config(path: Path, config: dict | str | bytes) -> Path:
    "Write a config as yaml; text and bytes are written as they are."
    text = config if isinstance(config, (str, bytes)) else yaml.safe_dump(config, sort_keys=False)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def cells(folder: Path, n: int = 5, shape=(64, 64), source: str = "nuclei", target: str = "labels", **more) -> Path:
    "A folder of simulated pairs in layout 2."
    from mmv_im2im.data_modules.samples import simulate_set
    return simulate_set(folder, n, shape, source=source, target=target, n_cells=4, **more)


def shell(*args, cwd=None, env=None, timeout=180) -> subprocess.CompletedProcess:
    "`run_im2im ARGS` in a process of its own."
    return subprocess.run([*COMMAND, *map(str, args)], cwd=cwd, env=env, timeout=timeout, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)


def one_paragraph(err: str) -> str:
    "The error as one line; fails where it is a traceback, several paragraphs or a long story."
    assert "Traceback" not in err and "File \"" not in err, err
    lines = err.strip().splitlines()
    assert lines and lines[0].startswith("error: "), err
    assert all(line.strip() for line in lines), f"several paragraphs:\n{err}"
    text = " ".join(line.strip() for line in lines)
    assert len(text) <= 700, f"{len(text)} characters:\n{err}"
    return text
