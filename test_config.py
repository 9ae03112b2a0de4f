"""Exceptions from benchopt's own tests."""
import pytest
from benchopt.config import get_data_path


def check_test_dataset_get_data(benchmark, dataset):
    folder = get_data_path("fineweb10B")
    shards = ["fineweb_val_000000.bin", "fineweb_train_000001.bin"]
    if dataset.name == "FineWeb" and not all(
        (folder / shard).exists() for shard in shards
    ):
        pytest.skip(
            "FineWeb is a download of 400 MB; get it first with "
            'benchopt prepare . -d "FineWeb[num_train_shards=1]"'
        )
