"""Any text: the user's own files, or what comes with Python.

    benchopt run . -d "Text[path='~/novels']"
    benchopt run . -d "Text[path='corpus/**/*.md',tokenizer=gpt2]"

One file is one document. The documents are put in the order of their hashes,
and the last tenth of the text is for validation: of a single file, its end, as
nanoGPT does it. Without a path, the text is the sources and documentation of
Python's standard library.

Documents are cut into passages as long as FineWeb's median document, each led
by the tokenizer's separator as these are, and the passages are shuffled:
batches are read in order, and a long file would fill hundreds of small ones
with nothing else. Shuffling takes as much memory as there is text.
"""
import hashlib
import json
import os
import secrets
import shutil
import sysconfig

from benchopt import BaseDataset
from benchopt.config import get_data_path

from benchmark_utils.console.errors import readable
from benchmark_utils.data.documents import (
    PASSAGE_LENGTH,
    VALIDATION_SHARE,
    describe_skipped,
    list_files,
    read_documents,
    read_passages,
    split,
)
from benchmark_utils.data.shards import TokenShards, write_shards
from benchmark_utils.data.tokenizers import SEPARATORS, make_encoder
from benchmark_utils.harness.cache_key import Keyed
from benchmark_utils.harness.validation import CheckedParameters

# Raise it whenever the same files make other shards: it is part of their
# folder's name.
FORMAT_VERSION = 2
# The prefixes of the shards' names.
SIDES = "text_train", "text_val"
# Beside the shards: documents, tokens and bytes of text on each side.
CORPUS_FILE = "corpus.json"


class Dataset(CheckedParameters, Keyed, BaseDataset):
    """Text files, nine tenths for training and one for validation."""

    name = "Text"
    requirements = []

    parameters = {
        # A folder, of which all files are read, or a glob. None: the sources
        # of Python's standard library, without its tests.
        "path": [None],
        # "bytes": vocabulary of 257, or "gpt2": 50,257, needs tiktoken.
        "tokenizer": ["bytes"],
        # Validation loss to reach, in nats per token. The default is for the
        # bytes of the standard library: five methods of
        # configs/all_solvers_text.yml get there in 400 steps, the others don't
        # (docs/tuning.rst).
        "target": [2.4],
        # Whether training may read the tokens more than once.
        "repeat": [False],
    }

    test_parameters = {
        "path": [os.path.join(sysconfig.get_path("stdlib"), "email")],
    }

    # What ``read_documents`` returns, found when first needed, and the hash of
    # the documents and of how they become shards.
    _documents = None
    _content = None
    _skipped = {}

    @classmethod
    def check_there(cls, values):
        if values["path"] is not None:
            list_files(values["path"])

    def cache_key(self):
        """benchopt doesn't see that a text was edited."""
        try:
            self._find_documents()
        except (OSError, ValueError):
            pass  # get_data says what is wrong.
        return {"content": self._content}

    def __setstate__(self, state):
        """A worker reads the text that the run was started with, or none."""
        self._content = state["content"]

    @readable
    def prepare(self):
        """Write the shards, unless they are there, and say what they hold."""
        self._open_shards()

    @readable
    def get_data(self):
        (train, val), corpus = self._open_shards()
        return dict(
            train=train, val=val, target=self.target, entropy=None,
            repeat=self.repeat,
            # The separators are tokens too, of no bytes.
            bytes_per_token=corpus[SIDES[1]]["bytes"] / val.num_tokens,
        )

    def _open_shards(self):
        if self._content is None:
            self._find_documents()
        folder = get_data_path("text") / self._content
        if not folder.is_dir():
            self._find_documents()
            self._write_shards(folder)
        vocab_size = SEPARATORS[self.tokenizer] + 1
        try:
            corpus = json.loads((folder / CORPUS_FILE).read_text())
            shards = [
                TokenShards(sorted(folder.glob(f"{side}_*.bin")), vocab_size)
                for side in SIDES
            ]
            for side, opened in zip(SIDES, shards, strict=True):
                if opened.num_tokens != corpus[side]["tokens"]:
                    raise ValueError(f"{side} shards are missing.")
                corpus[side]["bytes"], corpus[side]["documents"]
        except (FileNotFoundError, KeyError, ValueError) as error:
            raise ValueError(
                f"{folder} is damaged: {error} Delete this folder; it is "
                "written again from the text."
            ) from error
        print(f"Text as {self.tokenizer}, vocabulary of {vocab_size}, content "
              f"{self._content}:")
        for side, use in zip(SIDES, ("training", "validation"), strict=True):
            print(f"  {use}: {corpus[side]['tokens']:,} tokens in "
                  f"{corpus[side]['documents']:,} documents")
        # Of the standard library, nobody could do anything about them.
        for line in describe_skipped(self._skipped if self.path else {}):
            print(line)
        return shards, corpus

    def _find_documents(self):
        """Read all files once. The order of the documents is that of their
        hashes: the same on every machine, and unrelated to their names."""
        if self._documents is not None:
            return
        documents, self._skipped = read_documents(self.path)
        recipe = (
            FORMAT_VERSION, VALIDATION_SHARE, PASSAGE_LENGTH, self.tokenizer
        )
        content = hashlib.sha256(
            "\n".join([str(recipe), *documents]).encode()
        ).hexdigest()[:16]
        if self._content not in (None, content):
            raise ValueError(
                f"The files of path={self.path} have changed since this run "
                "was started. Start it again."
            )
        self._documents, self._content = documents, content

    def _write_shards(self, folder):
        """Write a folder under a temporary name and rename it, so that it is
        whole whenever it is there. If several processes do so at the same
        time, the first one's is kept: all are the same."""
        encode = make_encoder(self.tokenizer)
        separator = SEPARATORS[self.tokenizer]
        temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        corpus = {"tokenizer": self.tokenizer}
        try:
            for side, parts in zip(SIDES, split(self._documents), strict=True):
                passages = read_passages(parts)
                tokens = (
                    ids for passage in passages
                    for ids in ([separator], encode(passage))
                )
                paths = write_shards(temporary, side, tokens, separator + 1)
                corpus[side] = {
                    "documents": len(parts),
                    "tokens": TokenShards(paths, separator + 1).num_tokens,
                    "bytes": sum(len(text.encode()) for text in passages),
                }
            (temporary / CORPUS_FILE).write_text(json.dumps(corpus, indent=1))
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
