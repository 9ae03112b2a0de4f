"""Names, paths and file operations that Windows allows."""
import os
import sys
from pathlib import Path, PureWindowsPath

import pytest
import torch

from benchmark_utils.harness import resume
from benchmark_utils.training import checkpoints
from benchmark_utils.training.trainer import Trainer

on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="this reads /proc"
)
RESERVED = set('<>:"/\\|?*') | {chr(code) for code in range(32)}


@pytest.mark.slow
def test_every_name_that_a_run_writes_is_allowed(run, tmp_path, monkeypatch):
    """Results, weights, rows, data, and checkpoints of a run that broke."""
    monkeypatch.setattr(resume, "get_data_path", lambda _: tmp_path / "data")
    monkeypatch.setenv("BENCHOPT_DATA_HOME", str(tmp_path / "generated"))
    options = {
        "save_weights": True, "log": "csv", "checkpoint_every": 3,
        "target": 3.5,
    }
    run({"AdamW": {}}, options)
    train_step = Trainer.train_step

    def broken_step(trainer, *batch):
        if trainer.step == 8:
            raise RuntimeError
        train_step(trainer, *batch)

    monkeypatch.setattr(Trainer, "train_step", broken_step)
    with pytest.raises(RuntimeError):
        run({"SGD": {}}, options)
    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*")]
    assert {path.suffix for path in written} >= {
        ".parquet", ".safetensors", ".csv", ".bin", ".json"
    }
    for path in written:
        assert not PureWindowsPath(path).is_reserved()
        for part in path.parts:
            assert not RESERVED & set(part) and part[-1] not in ". ", part


@on_linux
def test_a_path_with_a_drive_reaches_the_data_set(
        bench, tmp_path, monkeypatch):
    path = PureWindowsPath("C:\\books of mine\\one.txt").as_posix()
    # Here, a folder of that name.
    monkeypatch.chdir(tmp_path)
    Path(path).parent.mkdir(parents=True)
    Path(path).write_text("A text.")
    (_, parameters), = bench.check_dataset_patterns([f"Text[path='{path}']"])
    assert parameters["path"] == path


@on_linux
def test_a_checkpoint_is_forced_to_the_disk_as_windows_allows(
        tmp_path, monkeypatch):
    """Only what was opened for writing, and no folder."""
    import fcntl
    monkeypatch.setattr(sys, "platform", "win32")
    forced = []

    def fsync(descriptor):
        access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        assert access == os.O_RDWR
        forced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", fsync)
    path = checkpoints.save(tmp_path, 3, {"weight": torch.ones(3)})
    assert sorted(Path(file).name for file in forced) == [
        "SHA256SUMS", "state.json", "tensors.safetensors"
    ]
    assert checkpoints.load(path)["weight"].tolist() == [1, 1, 1]


@on_linux
def test_a_checkpoint_that_was_read_is_not_in_use(tmp_path):
    """Windows removes no file that is; other systems leave a remnant on a
    network file system."""
    path = checkpoints.save(tmp_path, 3, {"weight": torch.ones(2**20)})
    state = checkpoints.load(path)
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert state["weight"].sum() == 2**20
