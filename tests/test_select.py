"""Some solvers of a configuration are run with its settings."""
import sys

import pytest
import yaml

from benchmark_utils.harness.select import OF_ALL, main, select
from benchmark_utils.solver import TrainingSolver
from conftest import ROOT

CONFIG = {
    "n-repetitions": 3,
    "solver": [
        "AdamW[num_steps=400,warmup_steps=40,learning_rate=0.01]",
        "Muon[num_steps=400,warmup_steps=40,learning_rate=0.02]",
        "Muon[num_steps=400,warmup_steps=40,learning_rate=0.03]",
    ],
}


def test_settings_are_those_of_the_configuration():
    chosen = select(CONFIG, ["muon"])
    assert chosen == CONFIG | {"solver": CONFIG["solver"][1:]}


def test_a_file_gets_what_all_have_in_common(tmp_path):
    file = tmp_path / "mine.py"
    file.touch()
    solvers = select(CONFIG, [str(file), "SGD[num_steps=7]"])["solver"]
    assert solvers == [
        f"{file}[num_steps=400,warmup_steps=40]",
        "SGD[num_steps=7,warmup_steps=40]",
    ]


def test_a_file_gets_only_what_every_solver_has(tmp_path):
    file = tmp_path / "mine.py"
    file.touch()
    config = {"solver": [
        "AdamW[num_steps=400,gain_learning_rate=0.1]",
        "Muon[num_steps=400,gain_learning_rate=0.1]",
    ]}
    assert select(config, [str(file)])["solver"] == [f"{file}[num_steps=400]"]
    assert OF_ALL == TrainingSolver.required_parameters


def test_settings_on_the_command_line_replace_those_of_their_name():
    """The others stay: the horizon, above all."""
    solvers = select(CONFIG, ["AdamW[learning_rate=[0.1,0.2],beta1=0.8]"])
    assert solvers["solver"] == [
        "AdamW[num_steps=400,warmup_steps=40,learning_rate=[0.1,0.2],"
        "beta1=0.8]"
    ]
    # Both rows of Muon come to be the same.
    assert select(CONFIG, ["Muon[learning_rate=1]"])["solver"] == [
        "Muon[num_steps=400,warmup_steps=40,learning_rate=1]"
    ]


def test_settings_of_the_objective_replace_those_of_their_name():
    config = CONFIG | {"objective": ["nanoGPT[n_layer=2,log=csv]", "nanoGPT"]}
    chosen = select(config, objective="log=None,target=3.5")
    assert chosen["objective"] == [
        "nanoGPT[n_layer=2,log=None,target=3.5]",
        "nanoGPT[log=None,target=3.5]",
    ]
    assert chosen["solver"] == CONFIG["solver"]


def test_a_name_that_is_nowhere_is_refused():
    with pytest.raises(ValueError, match="Moun is no .* Do you mean Muon?"):
        select(CONFIG, ["Moun"])
    with pytest.raises(ValueError, match="AdamW, Muon, and no file. Another"):
        select(CONFIG, ["SOAP"])


@pytest.mark.parametrize("config", ["quickstart", "smoke"])
def test_what_it_prints_is_a_configuration(
        config, bench, monkeypatch, capsys):
    path = ROOT / "configs" / f"{config}.yml"
    lion = str(ROOT / "solvers" / "lion.py")
    monkeypatch.setattr(sys, "argv", ["select", str(path), "AdamW", lion])
    main()
    chosen = yaml.safe_load(capsys.readouterr().out)
    whole = yaml.safe_load(path.read_text())
    assert chosen["dataset"] == whole["dataset"]
    assert chosen["solver"][0] == whole["solver"][0]
    adamw, lion = bench.check_solver_patterns(chosen["solver"])
    assert lion[1]["num_steps"] == adamw[1]["num_steps"]


@pytest.mark.parametrize("arguments, message", [
    (["{folder}/no.yml", "AdamW"], "No such file"),
    (["{folder}/list.yml", "AdamW"], "list.yml is no run configuration."),
    (["{folder}/mine.yml", "AdamW[0.1]"], "'0.1' is not written as name="),
    (["{folder}/mine.yml", "AdamW[a=1"], "AdamW[a=1 has no closing bracket."),
    (["{folder}/mine.yml", "-o", "csv", "AdamW"], "'csv' is not written as"),
    (["{folder}/mine.yml", "-o", "devise=cpu"],
     "nanoGPT has no parameter 'devise'. Do you mean device?"),
    (["{folder}/mine.yml", "-o", "device=gpu"], "device='gpu' must be auto,"),
    (["{folder}/mine.yml", "AdamW[learnin_rate=1]"],
     "AdamW has no parameter 'learnin_rate'. Do you mean learning_rate?"),
    (["{folder}/mine.yml", "Adw[learning_rate=1]"],
     "Patterns ['Adw'] did not match any solver. Available solvers are: Ad"),
    (["{folder}/mine.yml", "{folder}/no.py[num_steps=9]"],
     "Could not find file: {folder}/no.py"),
    (["{folder}/mine.yml", "--output", "{folder}/list.yml"],
     "list.yml is there already: remove it, or choose another name."),
])
def test_errors_are_one_sentence(
        arguments, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "list.yml").write_text("- 1")
    (tmp_path / "mine.yml").write_text(yaml.safe_dump(CONFIG))
    monkeypatch.setattr(sys, "argv", [
        "select", *(text.format(folder=tmp_path) for text in arguments)
    ])
    with pytest.raises(SystemExit, match="2"):
        main()
    usage, *_, last = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: python -m benchmark_utils.harness.select ")
    assert message.format(folder=tmp_path) in last
    assert (tmp_path / "list.yml").read_text() == "- 1"
