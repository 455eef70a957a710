"The wheel, installed away from the checkout, works where nbdev does not exist."
import os
import re
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from conftest import ROOT

# Put in front of everything by Python itself: a user has no nbdev, and none of the tools of development
BARE = '''
import sys

class Absent:
    "Refuse what a plain installation does not bring."
    names = {"nbdev", "execnb", "ghapi", "jupytext", "nbconvert", "nbclient", "pytest", "smalldocs"}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
'''


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    "The package's wheel, built from a copy of the checkout's own files."
    import shutil

    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "settings.ini", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "mmv_im2im", source / "mmv_im2im", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
                    "--disable-pip-version-check", "--wheel-dir", str(folder), str(source)], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> tuple[Path, dict]:
    "A folder away from the checkout with the wheel unpacked by pip, and an environment that sees only it."
    folder = tmp_path_factory.mktemp("away")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
                    "--disable-pip-version-check", "--target", str(folder / "site"), str(wheel)], check=True)
    (folder / "site" / "sitecustomize.py").write_text(BARE)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("COV_", "COVERAGE_", "PYTHONPATH"))}
    env.update(PYTHONPATH=str(folder / "site"), PYTHONDONTWRITEBYTECODE="1")
    return folder, env


def python(installed, code: str) -> str:
    "What a Python of the bare installation prints."
    folder, env = installed
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_wheel_holds_modules_and_presets(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "mmv_im2im").rglob("*"):
        if path.suffix in (".py", ".yaml"):
            assert path.relative_to(ROOT).as_posix() in names
    assert not [n for n in names if n.startswith(("tests", "nbs", "tools", "benchmarks"))]


def test_wheel_says_what_settings_say(wheel):
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    settings = settings["DEFAULT"]
    with zipfile.ZipFile(wheel) as z:
        info = next(n for n in z.namelist() if n.endswith(".dist-info/METADATA"))
        text = z.read(info).decode()
        points = z.read(info.replace("METADATA", "entry_points.txt")).decode()
    plain = [r for r in re.findall(r"^Requires-Dist: (.*)$", text, re.M) if "extra ==" not in r]
    assert len(plain) == len(settings["requirements"].split())
    assert not any(r.startswith("nbdev") for r in plain)
    assert f"Version: {settings['version']}" in text
    assert "run_im2im = mmv_im2im.cli:main" in points
    for extra in ("dev", "docs", "formats"):
        assert f"Provides-Extra: {extra}" in text


def test_all_imports_away_from_the_checkout(installed):
    out = python(installed, "from mmv_im2im.all import *\nimport mmv_im2im; print(mmv_im2im.__file__, callable(train))")
    assert str(installed[0]) in out and "True" in out


def test_command_lists_presets(installed):
    folder, env = installed
    script = folder / "site" / "bin" / "run_im2im"
    done = subprocess.run([sys.executable, str(script), "--list"], cwd=folder, env=env, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-3000:]
    for preset in (ROOT / "mmv_im2im" / "presets").glob("*.yaml"):
        assert preset.stem in done.stdout


def test_nbdev_is_absent_there(installed):
    out = python(installed, "try:\n    import nbdev\nexcept ModuleNotFoundError:\n    print('absent')")
    assert out.strip() == "absent"
