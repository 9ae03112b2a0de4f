"""FineWeb and FineWeb-Edu as GPT-2 tokens.

Samples of 10 billion tokens (Penedo et al., "The FineWeb Datasets",
arXiv:2406.17557, licence ODC-By 1.0), tokenized with GPT-2's BPE and cut into
shards for llm.c and modded-nanogpt. FineWeb is the corpus of the nanoGPT
speedrun. Shards are downloaded and verified once, then need no network:

    benchopt prepare . -d "FineWeb[num_train_shards=18]"
    benchopt prepare . -d "FineWeb[corpus=fineweb-edu,num_train_shards=18]"
"""
import time
from typing import NamedTuple

from benchopt import BaseDataset
from benchopt.config import get_data_path

from benchmark_utils.console.errors import readable
from benchmark_utils.data.hub import fetch_shards, shard_versions
from benchmark_utils.data.shards import TokenShards
from benchmark_utils.harness.cache_key import Keyed
from benchmark_utils.harness.validation import CheckedParameters

SHARD_BYTES = 200_001_024
# Shards that a run downloads without being asked, 1 GB in total.
MAX_SHARDS_UNASKED = 5
# A value that equals no other, so that missing shards are prepared again.
NEVER_THE_SAME = time.time_ns


class Corpus(NamedTuple):
    """Shards of a corpus on the Hub, and their folder on the disk."""

    repository: str
    prefix: str
    folder: str
    train_shards: int
    # Validation loss to reach, in nats per token.
    target: float | None


CORPORA = {
    # Target: the loss of modded-nanogpt's speedrun.
    "fineweb": Corpus(
        "kjj0/fineweb10B-gpt2", "fineweb", "fineweb10B", 103, 3.28
    ),
    # No published run on these tokens gives a target.
    "fineweb-edu": Corpus(
        "kjj0/finewebedu10B-gpt2", "finewebedu", "finewebedu10B", 99, None
    ),
}
HELP = """\
Each shard has {:,} bytes, the last one for training fewer. If this machine
has no network or too small a disk, prepare the data where it has, with
  benchopt prepare . -d "{}"
and let benchopt find it: the shards are looked for in {folder} within the
folder that the environment variable BENCHOPT_DATA_HOME names, or where
data_paths: {{{folder}: <folder>}} in config.yml says."""
TOO_LARGE = """\
{} needs {} shards that are not in {}: {:.1f} GB, {:.0f} minutes at
100 Mbit/s. A run fetches at most {:.0f} GB unasked. Type one of
  benchopt prepare . -d "{}"
  benchopt run . --config configs/quickstart.yml
  benchopt run . -d "FineWeb[num_train_shards=1]" ...
The first fetches the shards, before the run. The second is a problem for a
laptop, without a download. The third is enough for 190 steps of 524,288
tokens (0.4 GB)."""


class Dataset(CheckedParameters, Keyed, BaseDataset):
    """GPT-2 tokens of FineWeb or FineWeb-Edu, from the Hub."""

    name = "FineWeb"
    requirements = ["huggingface_hub", "filelock"]

    parameters = {
        # "fineweb" or "fineweb-edu".
        "corpus": ["fineweb"],
        # Shards of 10**8 tokens each, 190 steps of 524,288 tokens: 1 to 103
        # of FineWeb, 1 to 99 of FineWeb-Edu; None is all.
        "num_train_shards": [None],
        # Branch, tag or commit of the Hub's repository.
        "revision": ["main"],
        # Whether training may read the tokens more than once.
        "repeat": [False],
    }

    test_parameters = {"num_train_shards": [1]}

    # The shards do not depend on them.
    prepare_cache_ignore = ("repeat", "base_seed")

    @classmethod
    def check_together(cls, values):
        corpus = values["corpus"]
        available = CORPORA[corpus].train_shards
        if values["num_train_shards"] is None:
            values["num_train_shards"] = available
        if values["num_train_shards"] > available:
            raise ValueError(
                f"num_train_shards={values['num_train_shards']} is more than "
                f"there are, corpus={corpus} has 1 to {available}: "
                f"FineWeb[corpus={corpus},num_train_shards={available}]."
            )

    @readable
    def prepare(self):
        """Download and verify the missing shards.

        Returns
        -------
        paths : list of Path
            The validation shard, then the training shards.
        """
        files = self._files()
        try:
            return fetch_shards(**files)
        except OSError as error:
            raise type(error)(f"{error}\n" + HELP.format(
                SHARD_BYTES, self._selector(), folder=files["folder"].name
            )) from error

    @readable
    def get_data(self):
        self._refuse_large_download()
        val, *train = self.prepare()
        return {
            "train": TokenShards(train, vocab_size=50257),
            "val": TokenShards([val], vocab_size=50257),
            "target": CORPORA[self.corpus].target,
            # Unknown without GPT-2's vocabulary.
            "entropy": None, "bytes_per_token": None,
            "repeat": self.repeat,
        }

    def cache_key(self):
        """Identify the shards: benchopt's cache does not see that they were
        deleted or replaced."""
        try:
            versions = shard_versions(**self._files())
        except ValueError:
            versions = None  # prepare raises the error.
        else:
            if None in versions:
                versions = NEVER_THE_SAME()
        return {"versions": versions}

    def _refuse_large_download(self):
        """Raise ``ValueError`` if a run would start with a long download."""
        files = self._files()
        missing = sum(
            not (files["folder"] / name).exists()
            for name in files["filenames"]
        )
        if missing > MAX_SHARDS_UNASKED:
            size = missing * SHARD_BYTES
            raise ValueError(TOO_LARGE.format(
                self._selector(), missing, files["folder"], size / 1e9,
                size * 8 / 1e8 / 60, MAX_SHARDS_UNASKED * SHARD_BYTES / 1e9,
                self._selector(),
            ))

    def _selector(self):
        """Return these shards as benchopt's command line takes them."""
        parameters = [f"num_train_shards={self.num_train_shards}"]
        if self.corpus != "fineweb":
            parameters.insert(0, f"corpus={self.corpus}")
        if self.revision != "main":
            parameters.append(f"revision={self.revision}")
        return f"FineWeb[{','.join(parameters)}]"

    def _files(self):
        """Return the arguments of ``fetch_shards``, validation first."""
        corpus = CORPORA[self.corpus]
        return dict(
            repo_id=corpus.repository, revision=self.revision,
            folder=get_data_path(corpus.folder),
            filenames=[f"{corpus.prefix}_val_000000.bin"] + [
                f"{corpus.prefix}_train_{number:06d}.bin"
                for number in range(1, self.num_train_shards + 1)
            ],
        )
