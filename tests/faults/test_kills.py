"A short version of kills.py, beside which it lies."
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from kills import FRAMEWORKS, kill_often  # noqa: E402


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_killed_at_random_moments_a_run_goes_on_to_the_same_weights(name, tmp_path):
    assert kill_often(name, 2, random.Random(1), tmp_path) > 0
