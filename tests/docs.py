"""What the tests of the documentation share: its commands, and a place to run
them in."""
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

from benchopt.results import read_results

ROOT = Path(__file__).parents[1]


def code_blocks(page, language):
    """The code of a page's blocks in one language, dedented."""
    blocks = re.findall(
        rf"^\.\. code-block:: {language}\n\n((?:    .*\n|\n)+)",
        (ROOT / page).read_text(), re.M,
    )
    return [textwrap.dedent(block).strip() for block in blocks]


class Clone:
    """A copy of the benchmark, without what running it left."""

    def __init__(self, folder):
        self.folder = folder
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(
            ".*", "__pycache__", "__cache__", "outputs", "data"
        ))

    def run(self, command, returncode=0, tracebacks=False, **environment):
        """Run a command of Python or a module; return what it prints."""
        program, *arguments = shlex.split(command)
        module = [] if program == "python" else ["-m", program]
        process = subprocess.run(
            [sys.executable, *module, *arguments], cwd=self.folder,
            env=os.environ | {"CI": "true"} | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=1200,
        )
        assert process.returncode == returncode, process.stdout
        assert ("Traceback" in process.stdout) == tracebacks, process.stdout
        return process.stdout

    def results(self):
        path, = (self.folder / "outputs").glob("*.parquet")
        return read_results(path)
