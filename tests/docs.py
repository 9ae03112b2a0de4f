"""Commands of the documentation, and copies of the benchmark to run them in.
"""
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
from benchopt.results import read_results

from benchmark_utils.data.shards import HEADER_BYTES, MAGIC, VERSION

ROOT = Path(__file__).parents[1]


def code_blocks(page, language):
    """The code of a page's blocks in one language, dedented."""
    blocks = re.findall(
        rf"^\.\. code-block:: {language}\n\n((?:    .*\n|\n)+)",
        (ROOT / page).read_text(), re.M,
    )
    return [textwrap.dedent(block).strip() for block in blocks]


def write_empty_shards(data_home):
    """Write all shards of FineWeb as sparse files of zeros; return their
    folder."""
    folder = data_home / "fineweb10B"
    folder.mkdir()
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, VERSION, 10**8
    for name in ["val_000000"] + [f"train_{i:06d}" for i in range(1, 104)]:
        with open(folder / f"fineweb_{name}.bin", "wb") as file:
            file.write(header.tobytes())
            file.truncate(HEADER_BYTES + 2 * 10**8)
    return folder


def shortened(problem):
    """Shorten the text of a configuration of ``configs/problems/`` to two
    steps of one sequence, with one seed."""
    for long, short in [
        (r"num_steps=\d+", "num_steps=2"),
        (r"warmup_steps=\d+", "warmup_steps=1"),
        (r"batch_size=\d+", "batch_size=1"),
        (r"val_tokens=\d+(?=,eval)", "val_tokens=256"),
        (r"n-repetitions: 3", "n-repetitions: 1"),
    ]:
        problem, count = re.subn(long, short, problem)
        assert count > 0
    return problem


class Clone:
    """A copy of the benchmark, without what running it left."""

    def __init__(self, folder):
        self.folder = folder
        left = shutil.ignore_patterns(".*", "__pycache__", "__cache__")
        shutil.copytree(ROOT, folder, ignore=lambda path, names: (
            left(path, names)
            # These are code elsewhere: benchmark_utils/data, for one.
            | ({"outputs", "data"} if Path(path) == ROOT else set())
        ))

    def start(self, command, **environment):
        """Start a command of Python or a module, as a Popen."""
        program, *arguments = shlex.split(command)
        module = [] if program == "python" else ["-m", program]
        return subprocess.Popen(
            [sys.executable, "-u", *module, *arguments], cwd=self.folder,
            env=os.environ | {"CI": "true"} | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )

    def run(self, command, returncode=0, tracebacks=False, **environment):
        """Run a command to its end; return what it prints."""
        with self.start(command, **environment) as process:
            try:
                output, _ = process.communicate(timeout=1200)
            except BaseException:
                process.kill()
                raise
        assert process.returncode == returncode, output
        assert ("Traceback" in output) == tracebacks, output
        return output

    def results(self):
        path, = (self.folder / "outputs").glob("*.parquet")
        return read_results(path)
