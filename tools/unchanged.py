"""Run a command and fail when it changes a notebook or a module: `unchanged.py ADVICE -- COMMAND...`.

Contents are compared before and after, so it works with uncommitted changes too.
"""
import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("nbs", "mmv_im2im")


def snapshot() -> dict[str, str]:
    "SHA-256 of every notebook, module and preset, by path from the root."
    files = (p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.is_file())
    keep = [p for p in files if not {"__pycache__", ".ipynb_checkpoints"} & set(p.parts)]
    return {str(p.relative_to(ROOT)): hashlib.sha256(p.read_bytes()).hexdigest() for p in keep}


def main() -> int:
    "Exit status of the command, or 1 when it changed a file."
    cut = sys.argv.index("--")
    advice, command = " ".join(sys.argv[1:cut]), sys.argv[cut + 1:]
    before = snapshot()
    status = subprocess.run(command, cwd=ROOT).returncode
    if status:
        return status
    after = snapshot()
    changed = sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    if not changed:
        print(f"{' '.join(command)} changed nothing ({len(after)} files)")
        return 0
    print(f"{' '.join(command)} changed {len(changed)} file(s):", file=sys.stderr)
    for path in changed:
        print(f"    {path}", file=sys.stderr)
    print(f"What to do: {advice}.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
