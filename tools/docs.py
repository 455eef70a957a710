"""Build the site from the notebooks into _docs, and fail when a link is broken.

The pages are rendered by Quarto where that program is on the PATH, and elsewhere by smalldocs.
Links to pages, files and headings of the site are looked up in what was rendered; other sites are
not asked. Python 3.10 without Quarto has neither program: the site is left out there.

nbdev names a page without its number (00_core.ipynb -> core.html) by `output-file`, a key that
smalldocs does not read, and links a name in backticks to that page by its full address.
For smalldocs the key is removed and such links become relative links to the notebook, so that they
are checked too and work on this machine; a page under nbdev's name leads to the real one, so that
addresses from elsewhere hold whichever program rendered.
"""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import warnings
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
PROC, SITE = ROOT / "_proc", ROOT / "_docs"


def mixed_cells(path: Path) -> list[str]:
    "First lines of the cells that import and do other things as well; nbdev runs those when it makes the page."
    found, text = [], path.read_text(encoding="utf-8")
    if "default_exp" not in text:  # nothing is documented from the notebook, so nothing is run
        return found
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or "nbdev_export()" in source or "%" in source[:1]:
            continue
        if re.search(r"^#\s*\|\s*(exports?|exporti|exec_doc|hide|eval:\s*false)\b", source, re.M):
            continue
        try:
            nodes = list(ast.walk(ast.parse(source)))
        except SyntaxError:  # a magic
            continue
        if any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in nodes) and \
                any(isinstance(n, (ast.Expr, ast.Assign)) for n in nodes):
            code = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
            found.append(code[0])
    return found


def process() -> None:
    "Process every notebook into _proc, as nbdev does for its own site."
    from nbdev.serve import proc_nbs

    warnings.filterwarnings("ignore", "Found cells containing imports")  # hidden cells only: see mixed_cells
    shutil.rmtree(PROC, ignore_errors=True)
    proc_nbs(n_workers=0)


def address() -> str:
    "Address of the published site, as settings.ini gives it."
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    return settings["DEFAULT"]["doc_host"] + settings["DEFAULT"]["doc_baseurl"]


def page_of(notebook: Path) -> Path:
    "Path of a processed notebook's page by nbdev's naming."
    return notebook.with_name(re.sub(r"^\d+[a-z]?_", "", notebook.stem) + ".html")


def unlink_code(text: str) -> str:
    "Markdown without the links that nbdev puts into fenced code, where they are not read as links."
    parts = re.split(r"(^```.*?^```)", text, flags=re.M | re.S)
    parts[1::2] = [re.sub(r"\[(`[^`]+`)\]\([^)]*\)", r"\1", code) for code in parts[1::2]]
    return "".join(parts)


def tidy(for_smalldocs: bool) -> None:
    "Rewrite the processed notebooks: signatures without links and, for smalldocs, links to notebooks."
    import nbformat

    notebooks = sorted(PROC.rglob("*.ipynb"))
    pages = {page_of(p).relative_to(PROC).as_posix(): p for p in notebooks}
    link = re.compile(re.escape(address()) + r"/([\w/.-]+\.html)")
    for p in notebooks:
        nb = nbformat.read(p, as_version=4)

        def relative(match: re.Match) -> str:
            target = pages.get(match[1])
            return Path(os.path.relpath(target, p.parent)).as_posix() if target else match[0]

        for cell in nb.cells:
            shown = [o["data"] for o in cell.get("outputs", []) if "text/markdown" in o.get("data", {})]
            for data in shown:
                data["text/markdown"] = unlink_code(data["text/markdown"])
            if not for_smalldocs:
                continue
            if cell.cell_type == "raw":
                cell.source = re.sub(r"^output-file:.*\n", "", cell.source, flags=re.M)
            elif cell.cell_type == "markdown":
                cell.source = link.sub(relative, cell.source)
            for data in shown:
                data["text/markdown"] = link.sub(relative, data["text/markdown"])
        nbformat.write(nb, p)


def redirect() -> None:
    "Beside each numbered page, one under nbdev's name that leads to it."
    for p in sorted(PROC.rglob("*.ipynb")):
        made = SITE / p.relative_to(PROC).with_suffix(".html")
        other = SITE / page_of(p).relative_to(PROC)
        if other != made:
            other.write_text(
                f'<!doctype html><meta charset="utf-8"><title>{made.stem}</title>\n'
                f'<link rel="canonical" href="{made.name}">\n'
                f'<script>location.replace("{made.name}" + location.hash)</script>\n'
                f'<noscript><meta http-equiv="refresh" content="0; url={made.name}"></noscript>\n'
                f'<a href="{made.name}">{made.name}</a>\n', encoding="utf-8")


class Page(HTMLParser):
    "Links of an HTML page, and the names in it that a link can lead to."

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[k] for k in ("id", "name") if attrs.get(k)}
        self.links += [attrs[k] for k in ("href", "src") if attrs.get(k)]


def shorten_links(site: Path) -> None:
    """Let links of names that nbdev made lead to the page where it shows no heading for the name.

    Such are private helpers and methods without `show_doc`; the writer, who only put backticks, is not at fault.
    """
    pages = {p.resolve(): Page(p) for p in sorted(site.rglob("*.html"))}
    for path in pages:

        def shorten(match: re.Match) -> str:
            target = (path.parent / match[1]).resolve() if match[1] else path
            known = target not in pages or match[2] in pages[target].ids
            return match[0] if known else f'<a href="{match[1] or path.name}"{match[3]}><code>'

        text = path.read_text(encoding="utf-8")
        short = re.sub(r'<a href="([^"#:]*)#([^"]+)"([^>]*)><code>', shorten, text)
        if short != text:
            path.write_text(short, encoding="utf-8")


KATEX = re.compile(r"https://cdn\.jsdelivr\.net/npm/katex@([\d.]+)/dist/")


def katex(version: str) -> Path | None:
    "Folder of KaTeX's files, fetched once by npm; None where there is no npm, or it reaches no registry."
    folder = ROOT / ".venv" / f"katex-{version}"
    if not folder.exists():
        npm = shutil.which("npm")
        if not npm:
            return None
        with TemporaryDirectory(dir=ROOT / ".venv") as temporary:
            said = subprocess.run([npm, "pack", "--silent", f"katex@{version}"], cwd=temporary, stdout=subprocess.DEVNULL)
            if said.returncode:
                return None
            with tarfile.open(next(Path(temporary).glob("*.tgz"))) as packed:
                packed.extractall(temporary, filter="data")
            (Path(temporary) / "package" / "dist").rename(folder)
    return folder


def draw_equations(site: Path) -> None:
    "Let pages take KaTeX, which draws equations, from the site itself, so that they show without a network."
    pages = {p: text for p in sorted(site.rglob("*.html")) if KATEX.search(text := p.read_text(encoding="utf-8"))}
    if not pages:
        return
    version = KATEX.search(next(iter(pages.values())))[1]
    source, target = katex(version), site / "site_libs" / "katex"
    if source is None:
        print("no npm to fetch KaTeX: the pages load it from a content network when they are read")
        return
    needed = ["katex.min.css", "katex.min.js", "contrib/auto-render.min.js"]
    for name in needed + [f.relative_to(source).as_posix() for f in source.glob("fonts/*.woff2")]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, target / name)
    for page, text in pages.items():
        page.write_text(KATEX.sub(os.path.relpath(target, page.parent) + "/", text), encoding="utf-8")


def broken_links(site: Path) -> list[str]:
    "Links within the site to a page, file or heading that is not there."
    pages = {p.resolve(): Page(p) for p in sorted(site.rglob("*.html"))}
    found = set()
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            heading = unquote(parts.fragment)
            if not target.exists() or heading and target in pages and heading not in pages[target].ids:
                found.add(f"{path.relative_to(site.resolve())}: broken link {link}")
    return sorted(found)


def run(*command: str) -> int:
    "Exit status of a command run in the root of the repository."
    return subprocess.run(command, cwd=ROOT).returncode


def main() -> int:
    "0 when the site is built and every link of it holds."
    has_smalldocs, quarto = shutil.which("smalldocs"), shutil.which("quarto")
    if not (has_smalldocs or quarto):
        print("no site: smalldocs needs Python 3.11, and no `quarto` is on the PATH")
        return 0
    mixed = {p.relative_to(ROOT): cells for p in sorted((ROOT / "nbs").rglob("*.ipynb"))
             if (cells := mixed_cells(p))}
    if mixed:
        print("cells that hold imports and other code; keep imports in a cell of their own:", file=sys.stderr)
        for path, cells in mixed.items():
            print(*(f"    {path}: {cell}" for cell in cells), sep="\n", file=sys.stderr)
        return 1
    process()
    tidy(for_smalldocs=not quarto)
    if quarto:
        status = run("quarto", "render", str(PROC), "--no-execute")
    else:
        if run("smalldocs", "check", str(PROC)):
            print("the site has broken links or unknown keys (above); mend the notebook or _quarto.yml",
                  file=sys.stderr)
            return 1
        status = run("smalldocs", "render", "--quiet", str(PROC))
    if status:
        return status
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.move(PROC / "_docs", SITE)
    pages = sum(1 for _ in PROC.rglob("*.ipynb"))
    if not quarto:
        redirect()
    shorten_links(SITE)
    draw_equations(SITE)
    broken = broken_links(SITE)
    if broken:
        print(*broken, "mend these links in the notebooks", sep="\n", file=sys.stderr)
        return 1
    print(f"{pages} pages by {'quarto' if quarto else 'smalldocs'}: {SITE / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
