"The pages of the site as a browser shows them: equations, tables, code, search; without a network."
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT

SITE = ROOT / "_docs"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here; `make browser` installs it"),
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="no site here; `make docs` builds it"),
    pytest.mark.xdist_group("browser"),
]

# What a reader does, put at the end of a page
SCRIPTS = {
    "look": "",
    "search": """
        const box = document.querySelector('#quarto-search input');
        document.querySelector('#quarto-search button')?.click();
        box.focus(); box.value = 'receptive field';
        for (const kind of ['input', 'keyup', 'change']) box.dispatchEvent(new Event(kind, {bubbles: true}));
    """,
    "width": """
        const wide = [...document.querySelectorAll('main pre, main table, main .katex-display')].filter(e =>
            e.scrollWidth > e.clientWidth + 1 && !['auto', 'scroll'].includes(getComputedStyle(e).overflowX)
            && !e.closest('.table-responsive'));
        document.body.dataset.wide = wide.map(e => e.outerHTML.slice(0, 100)).join(' | ');
        document.body.dataset.page = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    """,
}


class Reader(SimpleHTTPRequestHandler):
    "Serves the site; `?look` and the like put a reader's script at the end of a page."

    def do_GET(self):
        path, _, does = self.path.partition("?")
        if does not in SCRIPTS:
            return super().do_GET()
        text = (SITE / path.lstrip("/")).read_text(encoding="utf-8")
        script = f"<script>addEventListener('load', () => setTimeout(() => {{{SCRIPTS[does]}}}, 500))</script>"
        body = text.replace("</body>", script + "</body>").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_): pass


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Reader, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def seen(address: str, page: str, folder, does: str = "look", width: int = 1400) -> str:
    "A page's elements after its scripts have run, in a browser that reaches this machine only."
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={folder}/profile",
         f"--window-size={width},1000", "--virtual-time-budget=8000", "--dump-dom", f"{address}/{page}?{does}"],
        capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def with_equations() -> list[str]:
    "Pages of notebooks that hold equations."
    pages = [p for p in sorted(SITE.rglob("*.html")) if 'class="math' in p.read_text(encoding="utf-8")]
    return [p.relative_to(SITE).as_posix() for p in pages]


@pytest.mark.parametrize("page", ["models/06_losses.html", "models/15_risk.html", "02_metrics.html"])
def test_equations_are_drawn_without_a_network(page, address, tmp_path):
    shown = seen(address, page, tmp_path)
    equations = len(re.findall(r'<span class="math (?:inline|display)"', (SITE / page).read_text(encoding="utf-8")))
    assert equations and shown.count('class="katex"') == equations
    assert "katex-error" not in shown


def test_no_page_needs_a_content_network():
    pages = with_equations()
    assert len(pages) > 10
    for page in pages:
        text = (SITE / page).read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|link)[^>]*(?:src|href)="https?://[^"]*\.(?:js|css)', text), page


def test_a_table_is_a_table(address, tmp_path):
    shown = seen(address, "models/00_base.html", tmp_path)
    assert shown.count("<table") >= 1 and shown.count("<th") >= 2
    assert "|---|" not in shown


@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.parametrize("page", ["index.html", "reference/config.html", "models/06_losses.html"])
def test_nothing_is_cut_off(page, width, address, tmp_path):
    shown = seen(address, page, tmp_path, "width", width)
    assert re.search(r'data-wide="([^"]*)"', shown)[1] == ""
    assert int(re.search(r'data-page="(-?\d+)"', shown)[1]) <= 0


def test_search_finds_a_page(address, tmp_path):
    found = re.findall(r'class="search-result" href="([^"]*)"', seen(address, "index.html", tmp_path, "search"))
    assert any(re.search("nets|tiling|tiled", f) for f in found), found
