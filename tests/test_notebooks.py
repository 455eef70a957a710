"What holds for every notebook: names, numbers, order of imports, outputs, and a place on the site."
import json
import re
import sys
from pathlib import Path
from statistics import median

import pytest
import yaml
from conftest import ROOT
from house import PACKAGE, imports, sources

sys.path.insert(0, str(ROOT / "tools"))
from docs import mixed_cells  # noqa: E402

from mmv_im2im.config import config_reference

NBS = ROOT / "nbs"
PATHS = sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
NAMES = [p.relative_to(NBS).as_posix() for p in PATHS]
TUTORIALS = [n for n in NAMES if n.startswith("tutorials/")]
PAGES = ("tutorials/", "reference/")  # notebooks there are read, and export nothing
COMPONENTS = [n for n in NAMES if n != "index.ipynb" and not n.startswith(PAGES)]


def cells(name: str) -> list[dict]:
    "Cells of a notebook, each source as one text."
    found = json.loads((NBS / name).read_text(encoding="utf-8"))["cells"]
    return [{**c, "source": "".join(c["source"])} for c in found]


def exported(name: str) -> str | None:
    "The module that a notebook says it becomes."
    found = [re.match(r"#\s*\|\s*default_exp\s+(\S+)\s*$", c["source"].strip()) for c in cells(name)]
    found = [m[1] for m in found if m]
    return found[0] if found else None


def module_of(name: str) -> str:
    "The module that a notebook must become, by its path."
    path = Path(name)
    return ".".join([*path.parent.parts, re.sub(r"^\d+_", "", path.stem)])


@pytest.mark.parametrize("name", COMPONENTS)
def test_path_and_module_agree(name):
    assert exported(name) == module_of(name)


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_page_grows_its_own_classes(name):
    """No name comes from the page's own module before its last exported cell.

    `@patch` would grow the class of the module by functions that know the page's classes: the notebooks that
    follow in the process of a test would meet two classes of one name.
    """
    code = [c["source"] for c in cells(name) if c["cell_type"] == "code"]
    last = max(i for i, s in enumerate(code) if re.match(r"#\s*\|\s*export", s))
    own = re.compile(rf"from mmv_im2im\.({re.escape(module_of(name))}|all) import")
    assert not [s for s in code[:last] if own.search(s)]


def lines_of(source: str) -> int:
    "Lines of code of a cell; a signature counts as one, its arguments are documentation."
    n, open_brackets = 0, 0
    for line in map(str.strip, source.splitlines()):
        if not line or line.startswith("#"): continue
        if open_brackets or re.match(r"(async )?def |class ", line):
            n += not open_brackets
            code = re.sub(r"#.*", "", line)
            open_brackets += sum(map(code.count, "([")) - sum(map(code.count, ")]"))
        else: n += 1
    return n


def only_imports(source: str) -> bool:
    "Whether a cell does nothing but import."
    code = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
    return all(re.match(r"\s*(import|from|\)|[\w, ]+,?$)", line) for line in code)


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_page_is_read_in_small_steps(name):
    "Exported cells are short, each is shown at work soon, and fewer than half of the cells export."
    code = [c["source"] for c in cells(name) if c["cell_type"] == "code"]
    code = [s for s in code if "default_exp" not in s and "nbdev_export()" not in s]
    is_exported = [bool(re.match(r"#\s*\|\s*export", s)) for s in code]
    run, sizes = 0, []
    for source, exports in zip(code, is_exported):
        if not exports:
            if not re.match(r"#\s*\|\s*hide", source): run = 0
        elif not only_imports(source):
            sizes.append(lines_of(source))
            run += sizes[-1]
            assert run <= 60, f"{run} exported lines without a cell that shows what they do, up to: {source[:80]}"
            assert sizes[-1] <= 40, f"{sizes[-1]} lines: {source[:80]}"
    assert sum(is_exported) < len(code) / 2, f"{sum(is_exported)} of {len(code)} cells export"


def test_most_exported_cells_are_short():
    code = [c["source"] for name in COMPONENTS for c in cells(name) if c["cell_type"] == "code"]
    sizes = [lines_of(s) for s in code if re.match(r"#\s*\|\s*export", s) and not only_imports(s)]
    assert median(sizes) <= 15


@pytest.mark.parametrize("name", [n for n in NAMES if n not in COMPONENTS])
def test_pages_export_nothing(name):
    assert exported(name) is None
    for cell in cells(name):
        assert not re.search(r"^#\s*\|\s*export[si]?\b", cell["source"], re.M)


def test_numbers_have_no_gaps():
    for folder in {Path(n).parent for n in NAMES if n != "index.ipynb" and not n.startswith("reference/")}:
        names = sorted(Path(n).name for n in NAMES if Path(n).parent == folder and n != "index.ipynb")
        numbers = [re.match(r"(\d\d)_[a-z0-9_]+\.ipynb$", n) for n in names]
        assert all(numbers), f"{folder}: names are NN_topic.ipynb, got {names}"
        first = int(numbers[0][1])
        assert first in (0, 1) and [int(m[1]) for m in numbers] == list(range(first, first + len(names))), names


def test_a_notebook_imports_from_smaller_numbers():
    files = sources(ROOT)
    order = {module_of(n): n for n in COMPONENTS}
    for name in COMPONENTS:
        module = module_of(name)
        if module not in files:
            continue
        for other in imports(module, files[module], set(files)):
            if other in order and Path(order[other]).parent == Path(name).parent:
                assert order[other] < name, f"{name} imports {order[other]}, which comes later"


@pytest.mark.parametrize("name", NAMES)
def test_outputs_show_without_a_kernel(name):
    text = (NBS / name).read_text(encoding="utf-8")
    assert '"application/vnd.jupyter.widget' not in text, "execute it with `make notebooks`, which leaves out widgets"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_begins_with_its_title(name):
    first = cells(name)[0]
    assert first["cell_type"] == "markdown"
    # nbdev takes the title and one line of description out of this cell, and drops whatever else is in it
    assert re.fullmatch(r"# [^\n]+\n\n> [^\n]+\s*", first["source"]), \
        f"{name}: the first cell is '# Title', an empty line, '> One sentence.', and nothing else"


@pytest.mark.parametrize("name", NAMES)
def test_saved_outputs_are_whole(name):
    assert (NBS / name).stat().st_size < 1_000_000
    pictures = 0
    for cell in cells(name):
        if cell["cell_type"] != "code":
            continue
        assert "execution_count" not in cell or cell["execution_count"] is None
        for output in cell["outputs"]:
            assert output["output_type"] != "error", f"{name} has a saved error in: {cell['source'][:200]}"
            data = output.get("data", {})
            assert not any("widget" in kind for kind in data), f"{name}: a widget is shown as a still picture"
            pictures += any(kind.startswith("image/") for kind in data)
            text = "".join(output.get("text", [])) + "".join(data.get("text/plain", []))
            for path in (str(ROOT), str(Path.home())):
                assert path == "/" or path not in text, f"{name} shows a path of one machine: {path}"
    assert pictures <= 12, f"{name} has {pictures} pictures; a page with so many reads badly"
    if name in TUTORIALS:
        assert pictures, f"{name} shows no picture"


@pytest.mark.parametrize("name", COMPONENTS)
def test_cells_of_a_component(name):
    sizes = []
    for cell in cells(name):
        if cell["cell_type"] == "code" and re.search(r"^#\s*\|\s*export[si]?\b", cell["source"], re.M):
            sizes.append(len(cell["source"].strip().splitlines()) - 1)
    assert max(sizes, default=0) <= 60, f"{name}: the longest exported cell has {max(sizes)} lines; split it"
    assert not mixed_cells(NBS / name), f"{name}: imports need a cell of their own: {mixed_cells(NBS / name)}"


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_begins_as_a_reader_does(name):
    code = [c["source"] for c in cells(name) if c["cell_type"] == "code"]
    assert re.search(rf"^from {PACKAGE}\.all import \*$", code[0], re.M)


def test_the_saved_reference_is_that_of_the_config():
    shown, = (o for c in cells("reference/config.ipynb") for o in c.get("outputs", []))
    assert "".join(shown["data"]["text/markdown"]) == config_reference(), "run tools/notebooks.py nbs/reference/config.ipynb"


def test_every_notebook_has_one_place_in_the_sidebar():
    site = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    patterns = []

    def walk(entry) -> None:
        "Collect the pages and patterns of a sidebar entry."
        if isinstance(entry, str):
            patterns.append(entry)
        elif isinstance(entry, list):
            for e in entry:
                walk(e)
        elif "contents" in entry:
            walk(entry["contents"])
        elif not entry["href"].startswith("http"):
            patterns.append(entry["href"])

    walk(site["website"]["sidebar"]["contents"])
    for name in NAMES:
        hits = [p for p in patterns if Path(p).parent == Path(name).parent and Path(name).match(p)]
        assert len(hits) == 1, f"{name} is named {len(hits)} times in the sidebar of _quarto.yml"
