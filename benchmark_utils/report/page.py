"""benchopt's page of results, made to work without a network.

The page that ``benchopt run`` writes loads plotly and its tables from the
network, and stays empty without one. This module puts the scripts into the
file; plotly comes from the package ``plotly``, on which benchopt depends.
"""
import re
from pathlib import Path
from urllib.parse import quote

from plotly.offline import get_plotlyjs

from benchmark_utils.analysis.table import ResultsError

FOLDER = Path(__file__).parent
MARK = "<!-- This page loads nothing from the network. -->"
PLOTLY = re.compile(r'<script src="https://cdn\.plot\.ly/[^"]*"></script>')
# The tables, the animation of the brand and fonts.
OTHERS = re.compile(
    r'<script src="https://[^"]*"></script>|<link [^>]*"https://[^>]*>'
)


def page_of(results, outputs):
    """Name the page that benchopt writes for a file of results."""
    # benchopt quotes the name as in a URL.
    return Path(outputs) / quote(f"benchmark_nanogpt_{results.stem}.html")


def check_page(page):
    """Read a page of results.

    Raises
    ------
    FileNotFoundError
    ResultsError
        If it is not such a page.
    """
    page = Path(page)
    if not page.exists():
        raise FileNotFoundError(
            f"There is no page {page}. `benchopt plot . -f FILE.parquet "
            "--no-display` writes it."
        )
    html = page.read_text(encoding="utf-8")
    if MARK not in html and not PLOTLY.search(html):
        raise ResultsError(
            f"{page} is not a page of results as benchopt 1.10 writes it: it "
            "does not load plotly."
        )
    return html


def carry_scripts(page):
    """Put the scripts that a page of results loads into the page itself.

    Parameters
    ----------
    page : path
        As ``benchopt run`` or ``benchopt plot`` wrote it. It is replaced,
        unless it has its scripts already.

    Raises
    ------
    FileNotFoundError
    ResultsError
        See ``check_page``.
    """
    page = Path(page)
    html = check_page(page)
    if MARK in html:
        return
    scripts = (
        f"{MARK}\n<script>{get_plotlyjs()}</script>\n"
        f"<script>{(FOLDER / 'page.js').read_text()}</script>\n"
        f"<style>{(FOLDER / 'page.css').read_text()}</style>"
    )
    # plotly's source contains URLs of its own, so it is inserted last.
    before, after = PLOTLY.split(html, maxsplit=1)
    html = OTHERS.sub("", before) + scripts + OTHERS.sub("", after)
    write(page, html)


def write(path, text):
    """Write a file atomically: under a temporary name, then renamed."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
