"""Any text: the user's own files, or what comes with Python.

    benchopt run . -d "Text[path='~/novels']"
    benchopt run . -d "Text[path='corpus/**/*.md',tokenizer=gpt2]"

One file is one document, and one in ten is for validation. Without a path,
the text is the sources and documentation of Python's standard library.

Documents are cut into passages as long as FineWeb's median document, each led
by the tokenizer's separator as these are, and the passages are shuffled:
batches are read in order, and a long file would fill hundreds of small ones
with nothing else. Shuffling takes as much memory as there is text.
"""
import glob
import hashlib
import json
import os
import secrets
import shutil
import sys
import sysconfig
from pathlib import Path

from benchopt import BaseDataset
from benchopt.config import get_data_path

from benchmark_utils.data.shards import TokenShards, write_shards
from benchmark_utils.data.tokenizers import SEPARATORS, make_encoder
from benchmark_utils.errors import readable
from benchmark_utils.parameters import CheckedParameters

# Raise it whenever the same files make other shards: it is part of their
# folder's name.
FORMAT_VERSION = 1
# One document in so many is for validation.
VALIDATION_SHARE = 10
# Characters in a passage, at most.
PASSAGE_LENGTH = 2048
# The prefixes of the shards' names.
SIDES = "text_train", "text_val"
# Beside the shards: documents and tokens on each side.
CORPUS_FILE = "corpus.json"
TEST_FOLDERS = {"test", "tests", "idle_test"}


class Dataset(CheckedParameters, BaseDataset):
    """Text files, split into training and validation by document."""

    name = "Text"
    requirements = []

    parameters = {
        # A folder, of which all files are read, or a glob. None: the sources
        # of Python's standard library, without its tests.
        "path": [None],
        # "bytes": vocabulary of 257, or "gpt2": 50,257, needs tiktoken.
        "tokenizer": ["bytes"],
        # Validation loss to reach, in nats per token. The default is for the
        # bytes of the standard library: 4 layers of width 128 get there in
        # 450 of 500 steps of 2,048 tokens with AdamW, and not with SGD.
        "target": [2.4],
        # Whether training may read the tokens more than once.
        "repeat": [False],
    }

    test_parameters = {
        "path": [os.path.join(sysconfig.get_path("stdlib"), "email")],
    }

    # {SHA-256 of the content: file} of the documents, found when first needed,
    # and the hash of these and of how they become shards.
    _documents = None
    _content = None
    _skipped = ()

    def _get_state(self):
        """benchopt's cache of results must notice that a text was edited."""
        try:
            self._find_documents()
        except (OSError, ValueError):
            pass  # get_data says what is wrong.
        return {"content": self._content}

    def __setstate__(self, state):
        self._content = state["content"]

    @readable
    def prepare(self):
        """Write the shards, unless they are there, and say what they hold."""
        self._open_shards()

    @readable
    def get_data(self):
        train, val = self._open_shards()
        return dict(
            train=train, val=val, target=self.target, entropy=None,
            repeat=self.repeat,
        )

    def _open_shards(self):
        if self.tokenizer not in SEPARATORS:
            raise ValueError(
                f"tokenizer={self.tokenizer} is unknown; use one of "
                f"{', '.join(SEPARATORS)}."
            )
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
            for side, opened in zip(SIDES, shards):
                if opened.num_tokens != corpus[side]["tokens"]:
                    raise ValueError(f"{side} shards are missing.")
        except (FileNotFoundError, KeyError, ValueError) as error:
            raise ValueError(
                f"{folder} is damaged: {error} Delete this folder; it is "
                "written again from the text."
            ) from error
        print(f"Text as {self.tokenizer}, vocabulary of {vocab_size}, content "
              f"{self._content}:")
        for side, use in zip(SIDES, ("training", "validation")):
            print(f"  {use}: {corpus[side]['tokens']:,} tokens in "
                  f"{corpus[side]['documents']:,} documents")
        if self._skipped:
            print(f"  skipped: {len(self._skipped):,} files that are not "
                  f"UTF-8, the first is {self._skipped[0]}")
        return shards

    def _find_documents(self):
        """Read all files once. The order of the documents is that of their
        hashes: the same on every machine, and unrelated to their names."""
        if self._documents is not None:
            return
        documents, self._skipped = read_documents(self.path)
        if len(documents) < 2:
            raise ValueError(
                f"path={self.path} gives {len(documents)} document(s): files "
                "of UTF-8 text that are not empty, each content once. "
                "Training and validation need at least one each. Cut large "
                "files into several."
            )
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
        documents = list(self._documents.items())
        num_val = max(1, len(documents) // VALIDATION_SHARE)
        temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        corpus = {"tokenizer": self.tokenizer}
        try:
            for side, part in zip(
                SIDES, (documents[num_val:], documents[:num_val])
            ):
                tokens = (
                    ids for passage in read_passages(part)
                    for ids in ([separator], encode(passage))
                )
                paths = write_shards(temporary, side, tokens, separator + 1)
                corpus[side] = {
                    "documents": len(part),
                    "tokens": TokenShards(paths, separator + 1).num_tokens,
                }
            (temporary / CORPUS_FILE).write_text(json.dumps(corpus, indent=1))
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def read_documents(path):
    """Find the documents of a folder, glob or, if None, Python's library.

    Hidden files are left out of a folder, and empty files and those whose
    content was seen before of everything.

    Returns
    -------
    documents : dict
        SHA-256 of the content, in increasing order: Path.
    skipped : list of Path
        Files that are not UTF-8.

    Raises
    ------
    OSError
        If a file can't be read.
    ValueError
        If there are no files.
    """
    files = list_files(path)
    if not files:
        raise ValueError(
            f"path={path} matches no files. Give a folder, or a glob such as "
            "'texts/**/*.txt' in which ** stands for folders of any depth."
        )
    documents, skipped = {}, []
    for file in files:
        data = file.read_bytes()
        try:
            data.decode()
        except UnicodeDecodeError:
            skipped.append(file)
        else:
            if data:
                documents.setdefault(hashlib.sha256(data).hexdigest(), file)
    return dict(sorted(documents.items())), skipped


def list_files(path):
    """The regular files that ``path`` stands for, sorted."""
    if path is None:
        root = Path(sysconfig.get_path("stdlib"))
        # The modules that every installation of this version has: no test
        # suite, no third-party packages, nothing made by the build.
        files = [
            file for module in sys.stdlib_module_names
            for file in [root / f"{module}.py", *(root / module).rglob("*.py")]
            if not TEST_FOLDERS & set(file.relative_to(root).parts)
        ]
    elif (folder := Path(str(path)).expanduser()).is_dir():
        files = [
            file for file in folder.rglob("*")
            if not any(
                part.startswith(".") for part in file.relative_to(folder).parts
            )
        ]
    else:
        files = map(Path, glob.glob(str(folder), recursive=True))
    # Never a pipe: reading one waits for whoever writes to it.
    return sorted(file for file in files if file.is_file())


def read_passages(documents):
    """Cut the texts of (SHA-256, file) pairs into passages.

    Returns a list of str. Its order looks random and is that of hashes, the
    same on every machine.
    """
    passages = []
    for digest, file in documents:
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(
                f"{file} was changed while it was read. Run again."
            )
        text = data.decode()
        for start in range(0, len(text), PASSAGE_LENGTH):
            key = hashlib.sha256(f"{digest} {start}".encode()).digest()
            passages.append((key, text[start:start + PASSAGE_LENGTH]))
    return [passage for _, passage in sorted(passages)]
