"""Execute and clean notebooks in place, so that the saved outputs are true: `notebooks.py [NOTEBOOK...]`.

Cells with `#| eval: false`, or with a flag of `tst_flags` (slow, gpu, ...), keep the outputs they have.
A notebook that fails is left as it was, and its traceback is printed.
"""
import os
import re
import subprocess
import sys
import time
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
_settings = ConfigParser(delimiters=["="], interpolation=None)
_settings.read(ROOT / "settings.ini", encoding="utf-8")
FLAGS = _settings["DEFAULT"]["tst_flags"].split()
WIDGET = "application/vnd.jupyter.widget-view+json"
SKIP = re.compile(rf"^#\s*\|\s*(eval:\s*false|{'|'.join(FLAGS)})\s*$", re.M | re.I)


class Client(NotebookClient):
    "Runs a notebook, leaving out cells that must not run unattended."

    async def async_execute_cell(self, cell, cell_index, *args, **kwargs):
        if cell.cell_type == "code" and SKIP.search(cell.source):
            return cell
        return await super().async_execute_cell(cell, cell_index, *args, **kwargs)


def drop_widgets(nb) -> None:
    "Leave out progress bars that are widgets: without a kernel they show nothing."
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]


def execute(path: Path) -> bool:
    "Execute one notebook and save it; False, with the traceback printed, when a cell fails."
    begin, name = time.time(), path.relative_to(ROOT)
    nb = nbformat.read(path, as_version=4)
    client = Client(nb, timeout=900, kernel_name="python3", store_widget_state=False,
                    extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
                    resources={"metadata": {"path": str(path.parent)}})
    try:
        client.execute()
    except CellExecutionError as e:
        print(f"{name}: {e}", file=sys.stderr)
        return False
    drop_widgets(nb)
    nbformat.write(nb, path)
    print(f"{name}: {time.time() - begin:.0f} s")
    return True


def main() -> int:
    "1 when a notebook failed, else 0."
    os.environ["IN_TEST"] = "1"  # nbdev_export() in a notebook's last cell does nothing
    paths = [Path(p).resolve() for p in sys.argv[1:]] or sorted((ROOT / "nbs").rglob("*.ipynb"))
    paths = [p for p in paths if not any(part.startswith((".", "_")) for part in p.parts)]
    failed = [p for p in paths if not execute(p)]
    for path in set(paths) - set(failed):
        subprocess.run(["nbdev_clean", "--fname", str(path)], cwd=ROOT, check=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
