"From a config to a trained model: every public name of the folder."
from ..core import moved
from .callbacks import *
from .tuning import *
from .report import *
from .runs import *
from .trainer import *
from .training import *


def __getattr__(name): return moved(f"{__name__}.{name}", name)
