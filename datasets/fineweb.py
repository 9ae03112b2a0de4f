"""FineWeb, as tokens of GPT-2: the corpus of the nanoGPT speedrun.

The sample of 10 billion tokens of FineWeb (Penedo et al., "The FineWeb
Datasets", 2024, licence ODC-By 1.0), tokenized with GPT-2's BPE and cut into
shards for llm.c and modded-nanogpt. Shards are fetched from the Hub, verified
once, and from then on used without a network. Ahead of time:

    benchopt prepare . -d "FineWeb[num_train_shards=18]"
"""
import time

from benchopt import BaseDataset
from benchopt.config import get_data_path

from benchmark_utils.data.hub import fetch_shards
from benchmark_utils.data.shards import TokenShards
from benchmark_utils.errors import readable
from benchmark_utils.parameters import CheckedParameters

REPOSITORY = "kjj0/fineweb10B-gpt2"
MAX_TRAIN_SHARDS = 103
HELP = """\
Each shard has 200,001,024 bytes, the last one for training (103) 110,649,110.
If this machine has no network or too small a disk, prepare the data where it
has, with
  benchopt prepare . -d "FineWeb[num_train_shards={}]"
and let benchopt find it: the shards are looked for in fineweb10B within the
folder that the environment variable BENCHOPT_DATA_HOME names, or where
data_paths: {{fineweb10B: <folder>}} in config.yml says."""


class Dataset(CheckedParameters, BaseDataset):
    """GPT-2 tokens of FineWeb, from the Hub."""

    name = "FineWeb"
    requirements = ["huggingface_hub", "filelock"]

    parameters = {
        # 1 to 103, of 10**8 tokens each: 190 steps of 524,288 tokens.
        "num_train_shards": [103],
        # Branch, tag or commit of the Hub's repository.
        "revision": ["main"],
        # Whether training may read the tokens more than once.
        "repeat": [False],
    }

    test_parameters = {"num_train_shards": [1]}

    # What is fetched does not depend on them.
    prepare_cache_ignore = ("repeat", "base_seed")

    @readable
    def prepare(self):
        """Fetch and verify the shards that aren't there.

        Returns
        -------
        paths : list of Path
            The validation shard, then the training shards.
        """
        names = self._names()
        folder = get_data_path("fineweb10B")
        try:
            return fetch_shards(REPOSITORY, names, folder, self.revision)
        except OSError as error:
            raise type(error)(
                f"{error}\n{HELP.format(self.num_train_shards)}"
            ) from error

    def _names(self):
        """The files of the shards, validation first."""
        if (
            type(self.num_train_shards) is not int
            or not 1 <= self.num_train_shards <= MAX_TRAIN_SHARDS
        ):
            raise ValueError(
                f"num_train_shards is {self.num_train_shards!r}; FineWeb has "
                f"1 to {MAX_TRAIN_SHARDS} training shards."
            )
        if not isinstance(self.revision, str) or not self.revision:
            raise ValueError(
                f"revision is {self.revision!r}; it must be the name of a "
                "branch, tag or commit, in quotes if it looks like a number."
            )
        return ["fineweb_val_000000.bin"] + [
            f"fineweb_train_{number:06d}.bin"
            for number in range(1, self.num_train_shards + 1)
        ]

    def _get_state(self):
        """benchopt caches what it has prepared and run, and doesn't see that
        files were deleted or replaced: their versions are part of the key,
        and what is missing has a new one each time."""
        folder = get_data_path("fineweb10B")
        try:
            versions = [
                (info.st_size, info.st_mtime_ns) for info in (
                    (folder / name).stat() for name in self._names()
                )
            ]
        except OSError:
            versions = time.time_ns()
        except ValueError:
            versions = None  # prepare says what is wrong.
        return {"versions": versions}

    def __setstate__(self, state):
        """Nothing to restore: the state is there for the cache key."""

    @readable
    def get_data(self):
        val, *train = self.prepare()
        # The loss that modded-nanogpt's speedrun stops at; the entropy of
        # the text is unknown.
        return {
            "train": TokenShards(train, vocab_size=50257),
            "val": TokenShards([val], vocab_size=50257),
            "target": 3.28, "entropy": None, "repeat": self.repeat,
        }
