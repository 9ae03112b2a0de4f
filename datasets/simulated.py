"""A synthetic language of known entropy.

A document is a separator, a passage, a marker, and the same passage again. A
passage comes from a Markov chain in which each word has a few successors. A
bigram table learns the first half of each document; only a model that looks
back, as attention does, learns the second.
"""
import hashlib
import json

import numpy as np
from benchopt import BaseDataset
from benchopt.config import get_data_path

from benchmark_utils.console.errors import readable
from benchmark_utils.data.shards import TokenShards, write_shard
from benchmark_utils.harness.validation import CheckedParameters

# Increase it if the documents change: it names the folder of the shards.
FORMAT_VERSION = 1
DOCUMENTS_PER_CHUNK = 4096


class Dataset(CheckedParameters, BaseDataset):
    """Markov passages repeated after a marker; entropy in closed form."""

    name = "Simulated"
    requirements = []

    parameters = {
        # Words, the separator and the marker.
        "vocab_size": [256],
        # Possible successors of a word.
        "num_successors": [8],
        # Words in a passage: uniform between the two, both included.
        "min_length, max_length": [(6, 10)],
        "train_tokens": [10_000_000],
        "val_tokens": [200_000],
        # The target is the entropy plus this margin, in nats per token.
        "margin": [0.1],
        # Whether training may read the tokens more than once.
        "repeat": [False],
    }

    parameter_template = (
        "vocab={vocab_size},successors={num_successors},"
        "length={min_length}-{max_length},train={train_tokens},"
        "val={val_tokens},margin={margin},repeat={repeat}"
    )

    test_parameters = {"train_tokens": [20_000], "val_tokens": [5_000]}

    @readable
    def prepare(self):
        """Write the missing shards."""
        for stream, (path, num_tokens) in enumerate(self._files()):
            if not path.exists():
                rng = np.random.default_rng([FORMAT_VERSION, 1 + stream])
                write_shard(
                    path, self._tokens(rng, num_tokens), self.vocab_size
                )

    @readable
    def get_data(self):
        self.prepare()
        (train, _), (val, _) = self._files()
        entropy = self.entropy()
        return dict(
            train=TokenShards([train], self.vocab_size),
            val=TokenShards([val], self.vocab_size),
            target=entropy + self.margin, entropy=entropy,
            repeat=self.repeat,
        )

    def entropy(self):
        """Return the entropy rate of the language, in nats per token.

        Documents are independent: it is the entropy of one divided by its
        mean length. A document draws its length, its first word and
        ``length - 1`` successors; the rest follows from these.
        """
        lengths = np.arange(self.min_length, self.max_length + 1)
        per_document = (
            np.log(len(lengths))
            + _entropy(zipf(self.vocab_size - 2))
            + (lengths.mean() - 1) * _entropy(zipf(self.num_successors))
        )
        return float(per_document / (2 * lengths.mean() + 2))

    def _files(self):
        """Return (path, number of tokens) per shard, training first."""
        language = json.dumps([
            FORMAT_VERSION, self.vocab_size, self.num_successors,
            self.min_length, self.max_length, self.train_tokens,
            self.val_tokens,
        ])
        folder = get_data_path("simulated") / (
            hashlib.sha256(language.encode()).hexdigest()[:16]
        )
        return [
            (folder / "simulated_train_000001.bin", self.train_tokens),
            (folder / "simulated_val_000000.bin", self.val_tokens),
        ]

    def _tokens(self, rng, num_tokens):
        """Yield arrays of documents, ``num_tokens`` in total."""
        num_words = self.vocab_size - 2
        marker, separator = num_words, num_words + 1
        # The language is the same for both streams.
        successors = np.argsort(
            np.random.default_rng(FORMAT_VERSION).gumbel(
                np.log(zipf(num_words)), size=(num_words, num_words)
            ), axis=1,
        )[:, ::-1][:, :self.num_successors]
        first_word = np.cumsum(zipf(num_words))
        next_word = np.cumsum(zipf(self.num_successors))
        while num_tokens > 0:
            lengths = rng.integers(
                self.min_length, self.max_length + 1, DOCUMENTS_PER_CHUNK
            )
            passages = np.empty((len(lengths), self.max_length), np.int64)
            draws = rng.random(passages.shape)
            passages[:, 0] = _draw(first_word, draws[:, 0])
            for i in range(1, self.max_length):
                rank = _draw(next_word, draws[:, i])
                passages[:, i] = successors[passages[:, i - 1], rank]
            documents = [
                np.concatenate([[separator], words, [marker], words])
                for words in (
                    passage[:length]
                    for passage, length in zip(passages, lengths, strict=True)
                )
            ]
            tokens = np.concatenate(documents)[:num_tokens]
            num_tokens -= len(tokens)
            yield tokens


def zipf(n):
    """Return probabilities proportional to 1, 1/2, ..., 1/n."""
    weights = 1 / np.arange(1, n + 1)
    return weights / weights.sum()


def _entropy(probabilities):
    """Return the entropy of a distribution, in nats."""
    return float(-(probabilities * np.log(probabilities)).sum())


def _draw(cumulative, uniforms):
    """Draw indices by inverting the cumulative sum of a distribution."""
    indices = np.searchsorted(cumulative, uniforms, side="right")
    return np.minimum(indices, len(cumulative) - 1)
