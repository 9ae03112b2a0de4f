"""The synthetic language has the entropy it claims, and GPTs approach it."""
import itertools

import numpy as np
import pytest

from benchmark_utils.data.token_file import TokenFile


@pytest.fixture
def dataset(bench):
    Dataset, = bench.check_dataset_patterns(["Simulated"], class_only=True)
    return lambda **parameters: Dataset.get_instance(**parameters)


def documents(tokens, separator):
    """Whole documents: the passages between separators."""
    starts = np.flatnonzero(tokens == separator)
    return [tokens[a + 1:b] for a, b in itertools.pairwise(starts)]


def test_passages_return_verbatim_after_the_marker(dataset):
    data = dataset(train_tokens=50_000, val_tokens=5_000).get_data()
    for shards in (data["train"], data["val"]):
        for document in documents(shards.arrays[0][:], separator=255):
            length = (len(document) - 1) // 2
            assert 6 <= length <= 10
            assert document[length] == 254
            np.testing.assert_array_equal(
                document[:length], document[length + 1:]
            )


@pytest.mark.slow
def test_entropy_is_that_of_the_documents(dataset):
    """The code length of the documents that are really written, under
    frequencies counted from them, approaches the closed form.

    With few words and a lot of text, counting costs next to nothing: the
    plug-in estimate is independent of how the text was generated.
    """
    simulated = dataset(
        vocab_size=18, num_successors=4, min_length=3, max_length=6,
        train_tokens=2_000_000, val_tokens=5_000,
    )
    data = simulated.get_data()
    docs = documents(data["train"].arrays[0][:], separator=17)
    firsts, lengths = np.zeros(16), np.zeros(7)
    pairs = np.zeros((16, 16))
    for document in docs:
        length = (len(document) - 1) // 2
        words = document[:length]
        firsts[words[0]] += 1
        lengths[length] += 1
        np.add.at(pairs, (words[:-1], words[1:]), 1)

    def code_length(counts):
        counts = counts[counts > 0]
        return -(counts * np.log(counts / counts.sum())).sum()

    total = code_length(firsts) + code_length(lengths) + sum(
        code_length(row) for row in pairs
    )
    measured = total / sum(len(document) + 1 for document in docs)
    assert measured == pytest.approx(data["entropy"], rel=2e-3)
    # Words are as unequal as in a text.
    assert firsts.max() > 4 * np.median(firsts)


def test_target_is_a_margin_above_the_entropy(dataset):
    data = dataset(train_tokens=1000, val_tokens=1000, margin=0.25).get_data()
    assert data["target"] - data["entropy"] == pytest.approx(0.25)


def test_shards_are_written_once_and_differ_between_splits(dataset):
    parameters = dict(train_tokens=3_000, val_tokens=3_000)
    data = dataset(**parameters).get_data()
    train, val = data["train"], data["val"]
    before = train.paths[0].stat().st_mtime_ns
    assert not np.array_equal(train.arrays[0], val.arrays[0])
    again = dataset(**parameters).get_data()["train"]
    assert again.paths[0].stat().st_mtime_ns == before
    np.testing.assert_array_equal(TokenFile(again.paths[0]), train.arrays[0])
    longer = dataset(train_tokens=4_000, val_tokens=3_000).get_data()["train"]
    assert longer.num_tokens == 4_000
    assert train.num_tokens == 3_000


@pytest.mark.parametrize("parameters, message", [
    ({"vocab_size": 6}, "num_successors=8 is more than the words of vocab"),
    ({"min_length": 9, "max_length": 8}, "min_length=9 is more than max_len"),
])
def test_an_impossible_language_is_refused(dataset, parameters, message):
    with pytest.raises(ValueError, match=message):
        dataset(**parameters)


@pytest.mark.slow
def test_a_gpt_beats_a_bigram_table_and_approaches_the_entropy(
        run, dataset):
    language = dict(
        vocab_size=34, num_successors=2, min_length=3, max_length=3,
        train_tokens=500_000, val_tokens=20_000,
    )
    frame = run(
        {"AdamW": {
            "num_steps": 400, "warmup_steps": 20, "cooldown": 0.5,
            "schedule": "linear",
        }},
        dict(n_layer=2, n_head=2, n_embd=64, context_length=64,
             batch_size=16, sequence_length=64, val_tokens=6400,
             eval_every=400),
        language | {"margin": 0.01},
    )
    data = dataset(**language).get_data()
    tokens = data["train"].arrays[0][:]
    pairs = np.zeros((34, 34))
    np.add.at(pairs, (tokens[:-1], tokens[1:]), 1)
    conditional = pairs / np.maximum(pairs.sum(1, keepdims=True), 1)
    bigram = -(
        pairs * np.log(np.where(pairs > 0, conditional, 1))
    ).sum() / pairs.sum()
    final = frame.value.iloc[-1]
    assert data["entropy"] < final < data["entropy"] + 0.15 < bigram
