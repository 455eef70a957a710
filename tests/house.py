"Facts about the house, read from the sources without importing them: modules, floors, imports."
import ast
from pathlib import Path

PACKAGE = "mmv_im2im"
# Floors of the house; a module imports from lower floors, or from its own floor without a circle.
FLOORS = {
    1: ("core", "options"),
    2: ("config", "metrics", "set_metrics", "vis", "tiling", "postprocess", "checkpoints"),
    3: ("data_modules", "models"),
    4: ("trainers", "inference"),
    5: ("cli", "widgets"),
}
# Folders of one floor that share nothing but the batch
APART = ({"data_modules", "models"},)
# Files that are no rooms of the house: nothing is learned from their imports
NO_ROOM = ("__init__", "_modidx")


def sources(root: Path) -> dict[str, str]:
    "Source by module name without the package (`data_modules.images`), `all` included."
    package = root / PACKAGE
    out = {}
    for path in sorted(package.rglob("*.py")):
        if path.stem not in NO_ROOM:
            out[".".join(path.relative_to(package).with_suffix("").parts)] = path.read_text(encoding="utf-8")
    return out


def room(module: str) -> str:
    "First part of a module's name: the folder, or the module itself at the top level."
    return module.split(".")[0]


def floor(module: str) -> int | None:
    "Floor of a module, or None where the house has no such room."
    return next((n for n, rooms in FLOORS.items() if room(module) in rooms), None)


def imports(module: str, source: str, modules: set[str]) -> set[str]:
    "Modules of the package that a source imports, anywhere in it, functions included."
    found = set()

    def add(name: str) -> None:
        "The longest known module that `name` begins with."
        parts = name.split(".")
        for n in range(len(parts), 0, -1):
            if ".".join(parts[:n]) in modules:
                found.add(".".join(parts[:n]))
                return
        if parts[0]:
            found.add(parts[0])

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(f"{PACKAGE}."):
                    add(alias.name[len(PACKAGE) + 1:])
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                here = module.split(".")[:-1]
                here = here[:len(here) - (node.level - 1)]
                base = ".".join([*here, *(node.module.split(".") if node.module else [])])
            elif node.module == PACKAGE or (node.module or "").startswith(f"{PACKAGE}."):
                base = node.module[len(PACKAGE) + 1:]
            else:
                continue
            for alias in node.names:
                name = f"{base}.{alias.name}".strip(".")
                if name in modules:
                    found.add(name)
                elif base:
                    add(base)
    return found - {module} - {"__version__"}


def faults(files: dict[str, str]) -> list[str]:
    "Every breach of the rules of the house, one sentence each."
    modules, out = set(files), []
    graph = {m: imports(m, text, modules) for m, text in files.items() if m != "all"}
    for module, needs in sorted(graph.items()):
        if floor(module) is None:
            out.append(f"{module} is on no floor; add it to FLOORS or move it")
            continue
        for other in sorted(needs):
            if other == "all":
                out.append(f"{module} imports all, which is for users only")
            elif floor(other) is None:
                out.append(f"{module} imports {other}, which is on no floor")
            elif floor(other) > floor(module):
                out.append(f"{module} (floor {floor(module)}) imports {other}, "
                           f"which is above it (floor {floor(other)})")
            elif room(other) != room(module) and any({room(other), room(module)} <= pair for pair in APART):
                out.append(f"{module} imports {other}; the two folders share only the batch")
    out += [f"circle: {' -> '.join(c)}" for c in circles(graph)]
    return out


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    "Closed walks of imports, one for each back edge of a depth-first search."
    state, path, found = {}, [], []

    def visit(module: str) -> None:
        "Walk on from one module."
        state[module] = "open"
        path.append(module)
        for other in sorted(graph.get(module, ())):
            if state.get(other) == "open":
                found.append([*path[path.index(other):], other])
            elif other not in state:
                visit(other)
        path.pop()
        state[module] = "done"

    for module in sorted(graph):
        if module not in state:
            visit(module)
    return found
