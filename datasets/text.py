"""Text files of the user, or Python's standard library.

    benchopt run . -d "Text[path='~/novels']"
    benchopt run . -d "Text[path='corpus/**/*.md',tokenizer=gpt2]"

Each file is a document. Documents are sorted by hash, and the last tenth of
the text is for validation: the end of a single file, as in nanoGPT. Without a
path, the text is the sources and documentation of Python's standard library.

Documents are cut into passages as long as FineWeb's median document, each led
by the tokenizer's separator. Passages are shuffled, because a long file would
otherwise fill hundreds of consecutive batches. The whole text is in memory.
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

# Increase it if the same files make other shards: it names their folder.
FORMAT_VERSION = 2
# Prefixes of the shards' names.
SIDES = "text_train", "text_val"
# Numbers of documents, tokens and bytes of text on each side.
CORPUS_FILE = "corpus.json"


class Dataset(CheckedParameters, Keyed, BaseDataset):
    """Text files, nine tenths for training and one for validation."""

    name = "Text"
    requirements = []

    parameters = {
        # File, folder (all its files) or glob; None is Python's standard
        # library without its tests.
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

    # The result of ``read_documents``, once needed, and the hash of the
    # documents and of the settings that make shards of them.
    _documents = None
    _content = None
    _skipped = {}

    @classmethod
    def check_there(cls, values):
        if values["path"] is not None:
            list_files(values["path"])

    def cache_key(self):
        """Identify the text: benchopt does not see that it was edited."""
        try:
            self._find_documents()
        except (OSError, ValueError):
            pass  # get_data raises the error.
        return {"content": self._content}

    def __setstate__(self, state):
        """Make a worker use the text that the run was started with."""
        self._content = state["content"]

    @readable
    def prepare(self):
        """Write the missing shards, and print their contents."""
        self._open_shards()

    @readable
    def get_data(self):
        (train, val), corpus = self._open_shards()
        return dict(
            train=train, val=val, target=self.target, entropy=None,
            repeat=self.repeat,
            # Separators are tokens of no bytes.
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
        # Nobody can change the skipped files of the standard library.
        for line in describe_skipped(self._skipped if self.path else {}):
            print(line)
        return shards, corpus

    def _find_documents(self):
        """Read all files, once."""
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
        """Write the shards to a temporary folder and rename it. If several
        processes do so at once, the first one's is kept: all are equal."""
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
