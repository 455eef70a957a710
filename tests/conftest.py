"What every test needs: paths, the package's source facts, and test images where they are at hand."
import faulthandler
import os
import sys
import zlib
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    "The checkout."
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    "Folder of extra real images: MMV_IM2IM_DATA, or ../shared/data. The test is skipped where there is none."
    folder = Path(os.environ.get("MMV_IM2IM_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no extra images: {folder} does not exist (set MMV_IM2IM_DATA)")
    return folder


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    "Six images of 64 x 64 pixels with labeled nuclei, only to be read; one is held back for validation unless a test says otherwise."
    from mmv_im2im.data_modules.samples import simulate_set
    return simulate_set(tmp_path_factory.mktemp("pairs"), 6, (64, 64), source="nuclei", target="labels")


@pytest.fixture(scope="session")
def bare_env() -> dict[str, str]:
    "Environment for a subprocess that is timed or that must not be measured by coverage."
    return {k: v for k, v in os.environ.items() if not k.startswith(("COV_", "COVERAGE_"))}


def pytest_collection_modifyitems(items):
    "Coverage takes half as long again as the tests themselves: every fourth is measured, the same ones always."
    for item in items:
        if zlib.crc32(item.nodeid.encode()) % 4: item.add_marker(pytest.mark.no_cover)


@pytest.fixture(autouse=True)
def processes_uncovered(request, monkeypatch):
    "What a test starts is measured where the test is."
    if request.node.get_closest_marker("no_cover"): monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture(autouse=True)
def no_test_hangs(request):
    "A test that has not ended after ten minutes prints where it stands and ends the whole run."
    faulthandler.dump_traceback_later(600, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()
