"From a config to a trained model: every public name of the folder."
from .callbacks import *
from .tuning import *
from .report import *
from .runs import *
from .trainer import *
from .training import *
