"""Compilation pays for itself or isn't done, and what a killed or broken
compiler leaves behind stops no run that did not insist."""
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import InductorError

from benchmark_utils.hardware import compilation
from benchmark_utils.hardware.compilation import choose_compile
from conftest import ROOT

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("g++"),
    reason="there is no g++",
)

COMPILE = """
import os
import subprocess
import torch
from benchmark_utils.hardware.compilation import choose_compile
for option in ("auto", True):
    print(*choose_compile(option, torch.device("cpu"), 1e18), flush=True)
if "CC" in os.environ:
    subprocess.check_call([os.environ["CC"], "--version"])
"""


def in_a_fresh_process(folder, **variables):
    """Decide in a process of its own, with a cache of its own."""
    return subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True,
        env=os.environ | {
            "TORCHINDUCTOR_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT),
        } | variables,
    )


@pytest.mark.parametrize("option, device, flops, expected", [
    ("auto", "cpu", 1e12, "too short"), ("auto", "cuda", 5e16, "too short"),
    ("auto", "mps", 1e30, "never been tried for the Apple GPU"),
    (False, "cpu", 1e30, "as asked for"),
])
def test_what_is_not_worth_it_is_not_compiled(
        monkeypatch, option, device, flops, expected):
    monkeypatch.setattr(compilation, "compiler_error", None)
    compiled, reason = choose_compile(option, torch.device(device), flops)
    assert not compiled and expected in reason


def test_nothing_is_compiled_on_windows_unless_asked_for(monkeypatch):
    monkeypatch.setattr(compilation, "compiler_error", lambda device: "")
    monkeypatch.setattr(sys, "platform", "win32")
    assert choose_compile("auto", CPU, 1e30) == (
        False, "compilation has never been tried on Windows"
    )
    assert choose_compile(True, CPU, 1.0) == (True, "as asked for")


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match="compile='yes' is not one of"):
        choose_compile("yes", CPU, 1e30)


def test_going_on_eager_names_the_reason(monkeypatch):
    """torch's own wrappers: they begin with a line without a reason."""
    def fail(*args, **kwargs):
        missing = FileNotFoundError(2, "No such file or directory", "g++")
        inner = InductorError(missing, None)
        raise BackendCompilerFailed(fail, inner, None)

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr(
        compilation, "compiler_error", compilation.compiler_error.__wrapped__
    )
    assert choose_compile("auto", CPU, 1e30) == (
        False, "compilation fails: FileNotFoundError: [Errno 2] No such file "
        "or directory: 'g++'",
    )


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A cache in which something has been compiled, by a compiler of several
    words: a stand-in for ccache notes what it is asked to run."""
    folder = tmp_path_factory.mktemp("compiled")
    ccache = folder / "my ccache"
    ccache.write_text(f'#!/bin/sh\necho "$1" >> {folder}/asked\n"$@"\n')
    ccache.chmod(0o755)
    output = in_a_fresh_process(
        folder / "cache", CXX=f"'{ccache}' g++", CC=f"'{ccache}' gcc"
    )
    assert output.returncode == 0, output.stderr
    assert "\nTrue as asked for\n" in output.stdout
    return folder


@needs_compiler
@pytest.mark.slow
def test_a_compiler_of_several_words_is_run(compiled):
    asked = (compiled / "asked").read_text().split()
    assert set(asked) == {"g++", "gcc"}


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("damage", ["empty", "cut", "zeros"])
def test_what_a_killed_compiler_left_is_compiled_again(compiled, damage):
    folder = compiled / "cache"
    library, = folder.glob("*/*.main.so")
    whole = library.read_bytes()
    broken = {
        "empty": b"", "cut": whole[:len(whole) // 2],
        "zeros": bytes(len(whole)),
    }[damage]
    library.write_bytes(broken)
    again = in_a_fresh_process(folder, CXX=str(folder / "CXX.sh"))
    assert again.returncode == 0, again.stderr
    assert len(library.read_bytes()) == len(whole)


def test_what_another_process_is_writing_is_left_to_it(tmp_path):
    (tmp_path / "ab").mkdir()
    written = tmp_path / "ab" / "cabc.main.so"
    written.touch()
    lock = compilation.filelock.FileLock(tmp_path / "locks" / "cabc.lock")
    (tmp_path / "locks").mkdir()
    with lock:
        compilation.drop_broken_entries(tmp_path)
    assert written.exists()
    compilation.drop_broken_entries(tmp_path)
    assert not written.exists()


def broken_compiler(folder):
    (folder / "cache").mkdir()
    compiler = folder / "g++"
    compiler.write_text("#!/bin/sh\necho this compiler is broken >&2\nexit 1")
    compiler.chmod(0o755)
    return {"CXX": str(compiler)}


def cache_that_is_a_file(folder):
    (folder / "cache").touch()
    return {}


def cache_from_which_nothing_may_run(folder):
    (folder / "cache").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "noexec", "tmpfs", folder / "cache"],
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("file systems can't be mounted here")
    return {}


@pytest.fixture
def unmounted(tmp_path):
    """Whatever the test mounts as its cache is unmounted."""
    yield
    if os.path.ismount(tmp_path / "cache"):
        subprocess.run(["umount", tmp_path / "cache"], check=True)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("damage", [
    broken_compiler, cache_that_is_a_file, cache_from_which_nothing_may_run
])
def test_auto_goes_on_without_compilation_and_insisting_says_why(
        tmp_path, damage, unmounted):
    folder, variables = tmp_path / "cache", damage(tmp_path)
    output = in_a_fresh_process(folder, **variables)
    assert output.stdout.startswith("False compilation fails: "), output
    assert output.returncode == 1
    assert "ValueError: compile=True, but compilation fails" in output.stderr
    assert str(folder) in output.stderr
