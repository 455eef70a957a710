__version__ = "0.1.0"

from importlib import import_module, machinery
from sys import meta_path

# Modules by the names that they had, so that imports that people have written still work
MOVED = {
    "callbacks": "trainers.callbacks", "tuning": "trainers.tuning", "report": "trainers.report",
    "distances": "set_metrics",
    "data_modules.recipe": "data_modules.preprocessing data_modules.checks",
    "data_modules.transforms":
        "data_modules.normalization data_modules.labels data_modules.augmentation",
}


class _Moved:
    "Finds a module that has moved, and gives what it holds under its old name, too."
    @staticmethod
    def find_spec(name, path=None, target=None):
        "A spec for old names, None for all others."
        package, _, old = name.partition(".")
        if package == __name__ and old in MOVED: return machinery.ModuleSpec(name, _Moved)

    @staticmethod
    def create_module(spec): "An ordinary module, empty."

    @staticmethod
    def exec_module(module):
        "Fill it with what lies elsewhere."
        for new in MOVED[module.__name__.partition(".")[2]].split():
            found = vars(import_module(f"{__name__}.{new}"))
            vars(module).update({k: v for k, v in found.items() if not k.startswith("__")})
        module.__getattr__ = lambda name: import_module(f"{__name__}.core").moved(
            f"{__name__}.{new}", name
        )


meta_path.insert(0, _Moved)
