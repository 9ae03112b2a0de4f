"""Tuning is the same for all, can be continued, and is what is reported."""
import csv
import math
import re

import pytest
import yaml

from conftest import ROOT
from tuning import tune
from tuning.ledger import TUNED, best, finalists, read_ledger

PROTOCOLS = tune.read_protocol(ROOT / "tuning" / "protocol.yml")
FIELDS = {"simulated": "all_solvers.yml", "text": "all_solvers_text.yml"}
SMALL = """
trials: 3
seeds: [7, 8]
finalists: 2
problems:
  tiny:
    ledger: {ledger}
    dataset: Simulated[train_tokens=20000,val_tokens=5000]
    objective: nanoGPT[n_layer=1,n_head=2,n_embd=16,context_length=16,\
sequence_length=16,batch_size=4,val_tokens=512,eval_every=4,device=cpu,\
dtype=float32]
fixed: {{num_steps: 4, warmup_steps: 1}}
ranges:
  AdamW: {{learning_rate: [0.001, 0.1], weight_decay: [0.01, 1.0]}}
  SGD: {{learning_rate: [0.1, 1.0], momentum: 0.5}}
"""


@pytest.fixture(params=FIELDS)
def problem(request):
    """The protocol of a problem, its ledger, and the field that it tuned."""
    protocol = PROTOCOLS[request.param]
    field = yaml.safe_load(
        (ROOT / "configs" / FIELDS[request.param]).read_text()
    )
    return protocol, read_ledger(ROOT / protocol["ledger"]), field


def test_every_solver_had_the_same_budget_from_its_declared_ranges(problem):
    protocol, ledger, _ = problem
    first, *others = protocol["seeds"]
    for solver, entry in protocol["ranges"].items():
        ranges, _ = tune.split_ranges(entry)
        settings = tune.sample(ranges, 8, first)
        rows = [row for row in ledger if row["solver"] == solver]
        for row in rows:
            setting = settings[int(row["trial"])]
            assert setting == {
                name: float(row[name]) for name in TUNED if row[name]
            }
            for name, (low, high) in ranges.items():
                assert low <= setting[name] <= high

        trials = {
            seed: [row for row in rows if int(row["seed"]) == seed]
            for seed in protocol["seeds"]
        }
        assert [int(row["trial"]) for row in trials[first]] == list(range(8))
        by_loss = sorted(
            trials[first], key=lambda row: float(row["val_loss"])
        )
        for seed in others:
            assert [row["trial"] for row in trials[seed]] == [
                row["trial"] for row in by_loss[:3]
            ], solver
        assert len(rows) == 8 + 3 * len(others)


def test_the_mean_over_the_seeds_decides():
    rows = [
        {"solver": "AdamW", "trial": trial, "learning_rate": rate,
         "weight_decay": "", "val_loss": loss}
        for trial, rate, loss in [
            ("0", "0.1", "2.0"), ("1", "0.2", "inf"), ("2", "0.3", "1.0"),
            ("3", "0.4", "3.0"), ("2", "0.3", "inf"), ("0", "0.1", "2.5"),
        ]
    ]
    assert finalists(rows, "AdamW", 3) == [2, 0, 3]
    # A divergent seed counts; a trial with one seed can't win any more.
    assert best(rows, "AdamW") == {"learning_rate": 0.1}


@pytest.mark.parametrize("optimum, calls", [
    # Inside the first range; at its upper end; two moves below its lower end.
    (0.03, 1), (0.3, 2), (0.002, 3),
])
def test_a_range_is_moved_while_the_best_rate_is_at_its_edge(
    bench, tmp_path, monkeypatch, optimum, calls
):
    """On a bowl in place of a training, the rate nearest its bottom is found,
    and there is one on either side of it."""
    def bowl(benchmark, solver, protocol, setting, seed):
        return abs(math.log(setting["learning_rate"] / optimum)), 0.0

    monkeypatch.setattr(tune, "run_trial", bowl)
    path = tmp_path / "ledger.csv"
    protocol = dict(
        trials=4, move_range=4, seeds=[1000], finalists=1, ledger=path,
        fixed={}, ranges={
            "SGD": {"learning_rate": [0.01, 0.16], "momentum": 0.5}
        },
    )
    tune.tune(bench, protocol, ["SGD"])
    rows = read_ledger(path)
    assert len(rows) == 4 * calls
    found = best(rows, "SGD")["learning_rate"]
    rates = [float(row["learning_rate"]) for row in rows]
    assert min(rates) < found < max(rates)
    # New rates are those of the first range, moved by powers of four.
    for move in range(calls):
        factor = (4 if optimum > 0.1 else 1 / 4) ** move
        assert rates[4 * move:4 * move + 4] == pytest.approx(
            [rate * factor for rate in rates[:4]], rel=5e-3
        )
    # What was broken off goes on, and comes to the same.
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]))
    tune.tune(bench, protocol, ["SGD"])
    assert path.read_text() == "".join(lines)


@pytest.mark.slow
def test_a_trial_that_stops_at_its_target_is_refused(bench, tmp_path):
    """Its last loss would be compared with those of whole horizons."""
    protocol = tmp_path / "small.yml"
    protocol.write_text(SMALL.format(ledger="unused"))
    protocol = tune.read_protocol(protocol)["tiny"]
    setting = {"learning_rate": 0.1, "weight_decay": 0.1}
    loss, _ = tune.run_trial(bench, "AdamW", protocol, setting, seed=7)
    assert 3 < loss < 6
    protocol["objective"] = protocol["objective"].replace(
        "dtype", "target=5.9,dtype"
    )
    with pytest.raises(ValueError, match="AdamW reached the target"):
        tune.run_trial(bench, "AdamW", protocol, setting, seed=7)


def test_ranges_are_equally_wide():
    for entry in PROTOCOLS["simulated"]["ranges"].values():
        ranges, _ = tune.split_ranges(entry)
        for name, (low, high) in ranges.items():
            width = {"learning_rate": 30, "weight_decay": 100}[name]
            assert high / low == pytest.approx(width)


def test_the_field_runs_with_the_best_settings_found(bench, problem):
    """On the same problem and horizon, with seeds that were not tuned on."""
    protocol, ledger, field = problem
    assert field["solver"] == [
        tune.selector(bench, solver, protocol, best(ledger, solver))
        for solver in protocol["ranges"]
    ]
    assert field.get("seed", 0) not in protocol["seeds"]
    tuned, reported = (
        re.sub(r"eval_every=\d+", "", objective)
        for objective in (protocol["objective"], field["objective"][0])
    )
    assert tuned == reported


@pytest.mark.slow
def test_tuning_continues_and_comes_back_the_same(
        tmp_path, monkeypatch, capsys):
    ledger, protocol = tmp_path / "ledger.csv", tmp_path / "small.yml"
    protocol.write_text(SMALL.format(ledger=ledger))

    monkeypatch.setattr("sys.argv", ["tune", str(protocol)])

    def run():
        tune.main()
        return capsys.readouterr().out

    def losses():
        with ledger.open() as file:
            return [row["val_loss"] for row in csv.DictReader(file)]

    output = run()
    first = losses()
    # Of each solver three trials, and two of them again.
    assert len(set(first)) == 10
    lines = ledger.read_text().splitlines(keepends=True)
    # Broken off after seven of ten.
    ledger.write_text("".join(lines[:-3]))
    assert run().count("trial") == 3
    assert losses() == first
    finished = ledger.read_text()
    again = run()
    assert ledger.read_text() == finished
    assert again.splitlines()[1:] == output.splitlines()[-2:]
    # Other ranges are other trials.
    protocol.write_text(protocol.read_text().replace("0.001", "0.002"))
    with pytest.raises(ValueError, match="no trial of the protocol"):
        run()
    assert ledger.read_text() == finished
    assert re.fullmatch(
        r"- SGD\[num_steps=4,warmup_steps=1,momentum=0.5,learning_rate=.*\]",
        again.splitlines()[2],
    )
