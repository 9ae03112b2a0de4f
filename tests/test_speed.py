"""The benchmark scripts run, on sizes of seconds."""
import argparse
import json
import math
import subprocess
import sys

import pytest
import torch

from benchmark_utils.models.named import make_model
from conftest import ROOT
from speed import training

# One layer, two sequences of 32 tokens.
TINY = "--json --n-layer 1 --sequence-length 32 --micro-batch 2".split()
NARROW = "--n-head 2 --n-embd 32 --repetitions 2".split()


def run(script, *arguments):
    """What a script of speed/ prints."""
    return subprocess.run(
        [sys.executable, "-m", f"speed.{script}", *arguments], cwd=ROOT,
        check=True, text=True, stdout=subprocess.PIPE, timeout=600,
    ).stdout


@pytest.mark.slow
def test_training_speed_is_measured_side_by_side():
    variants = ["plain float32", "transformers", "float32", "matmul float32"]
    output = run(
        "training", *TINY, *NARROW, "--no-scaling", "--variants", *variants
    )
    rows = {row["variant"]: row for row in json.loads(output)}
    assert list(rows) == variants
    plain, ours = rows["plain float32"], rows["float32"]
    assert plain["speed_up"] == 1.0
    assert ours["speed_up"] == pytest.approx(
        plain["seconds"] / ours["seconds"]
    )
    # Two rows of 32 tokens, 6 per weight and 12 per width and position.
    flops = 64 * (6 * (50257 * 32 + 12 * 32**2) + 12 * 32 * 32)
    assert ours["gflops"] == pytest.approx(flops / ours["seconds"] / 1e9)
    assert ours["tokens_per_second"] == pytest.approx(64 / ours["seconds"])
    assert rows["matmul float32"]["share_of_ceiling"] == 1.0
    # AdamW's weights, gradients and two averages, of 1.6 M parameters.
    assert all(
        4 * 4 * 1.6 < row["peak_mib"] < 1000
        for name, row in rows.items() if "matmul" not in name
    )


@pytest.mark.slow
def test_each_model_is_measured_beside_its_own_ceiling():
    output = run(
        "training", *TINY, "--model", "rotary-tiny", "modern-tiny",
        "--repetitions", "1", "--variants", "float32", "matmul float32",
    )
    rows = {(r["model"], r["variant"]): r for r in json.loads(output)}
    assert len(rows) == 4
    for name, head in ("rotary-tiny", 50257), ("modern-tiny", 50304):
        model = make_model(name, 50257, n_layer=1)
        ours = rows[name, "float32"]
        ceiling = rows[name, "matmul float32"]
        assert ours["num_parameters"] == sum(
            p.numel() for p in model.parameters()
        )
        assert ours["first_loss"] == pytest.approx(math.log(50304), abs=0.4)
        products = 6 * 64 * (12 * 96**2 + 96 * head)
        assert ceiling["gflops"] * ceiling["seconds"] == pytest.approx(
            products / 1e9
        )
        attention = 12 * 64 * 96 * 32
        assert ours["gflops"] * ours["seconds"] == pytest.approx(
            (products + attention) / 1e9
        )
        assert ours["share_of_ceiling"] == pytest.approx(
            ours["gflops"] / ceiling["gflops"]
        )


@pytest.mark.slow
def test_the_speed_of_several_devices_is_measured():
    output = run("training", *TINY, *NARROW, "--num-devices", "2")
    one, two = json.loads(output)
    assert (one["num_devices"], two["num_devices"]) == (1, 2)
    for row in one, two:
        # Four rows of 32 tokens, whatever the number of devices.
        assert row["tokens_per_second"] == pytest.approx(128 / row["seconds"])
        assert row["cpu_seconds"] > 0 and row["cpu_seconds_apart"] > 0
    assert one["share_of_linear"] == 1.0
    assert two["share_of_linear"] == pytest.approx(
        one["seconds"] / two["seconds"] / 2
    )
    # What no communication can be faster than.
    assert two["share_of_linear_apart"] == pytest.approx(
        one["seconds"] / two["seconds_apart"] / 2
    )


def test_bfloat16_is_left_out_where_it_would_be_emulated():
    pytest.importorskip("transformers")
    assert training.possible_groups(torch.bfloat16) == training.GROUPS
    groups = training.possible_groups(torch.float32)
    assert [group[0] for group in groups] == [
        "plain float32", "evaluate float32"
    ]
    for group in groups:
        assert group[-1].endswith("matmul float32")
        assert "bfloat16" not in "".join(group)


def test_what_is_of_gpt2_alone_is_left_out_for_other_models():
    for group in training.possible_groups(torch.bfloat16, ("rotary",)):
        assert not {"plain float32", "transformers"} & set(group)
        assert "matmul" in group[-1]


def test_evaluation_is_measured_in_the_batches_that_it_uses(monkeypatch):
    cpu = torch.device("cpu"), "for this test"
    monkeypatch.setattr(training, "choose_device", lambda: cpu)
    options = argparse.Namespace(variants=None, micro_batch=[1, 4])
    shape = {"model": "gpt2", "context_length": 1024}
    runs = training.planned_runs(options, [shape], torch.float32)
    assert [(rows, group[0]) for rows, group in runs] == [
        (1, "plain float32"), (4, "plain float32"), (16, "evaluate float32"),
    ]


@pytest.mark.slow
def test_the_loader_is_measured_beside_a_plain_read():
    output = run(
        "loader", *"--rounds 1 --shards 2 --shard-tokens 2000000".split()
    )
    ratios = [
        float(line.split(":")[1].split()[0]) for line in output.splitlines()
        if line.strip().startswith("ours / plain:")
    ]
    assert len(ratios) == 3 and min(ratios) > 0
    assert "longest gap at a shard change" in output
