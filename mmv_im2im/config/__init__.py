"Reading, checking and showing configs: every public name of the folder."
from ..core import moved
from ..options import DataOptions, option
from .fields import *
from .data_section import *
from .sections import *
from .reading import *
from .presets import *
from .load import *
from .reference import *


def __getattr__(name): return moved(f"{__name__}.{name}", name)
