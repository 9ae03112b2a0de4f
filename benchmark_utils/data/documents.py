"""Text files, split into training and validation text, cut into passages.

The result depends on the contents of the files only, not on their names or
order: it is the same on every machine.
"""
import codecs
import glob
import hashlib
import sys
import sysconfig
from pathlib import Path

# One character in this many is for validation.
VALIDATION_SHARE = 10
# Maximum number of characters in a passage.
PASSAGE_LENGTH = 2048
# Byte-order marks of unsupported encodings. UTF-32 comes first, because one of
# its marks begins with one of UTF-16's.
MARKS = [
    ("UTF-32", codecs.BOM_UTF32_LE), ("UTF-32", codecs.BOM_UTF32_BE),
    ("UTF-16", codecs.BOM_UTF16_LE), ("UTF-16", codecs.BOM_UTF16_BE),
]
TEST_FOLDERS = {"test", "tests", "idle_test"}


def read_documents(path):
    """Find the documents of a folder, glob or, if None, Python's library.

    Hidden files of a folder, files that are not text, and duplicates are
    skipped.

    Returns
    -------
    documents : dict
        SHA-256 of the content, in decreasing order, to (Path, number of
        characters).
    skipped : dict of str to list of Path
        Skipped files by reason.

    Raises
    ------
    OSError
        If a file can't be read.
    ValueError
        If there is no text.
    """
    files = list_files(path)
    documents, skipped = {}, {}
    for file in files:
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        reason = why_no_text(data)
        if digest in documents:
            reason = "have the content of another"
        if reason:
            skipped.setdefault(reason, []).append(file)
        else:
            documents[digest] = file, len(data.decode())
    if sum(length for _, length in documents.values()) < 2:
        raise ValueError("\n".join([
            f"path={path} has no text that could be divided into training "
            "and validation.", *describe_skipped(skipped),
        ]))
    return dict(sorted(documents.items(), reverse=True)), skipped


def why_no_text(data):
    """Return the reason why these bytes are not read as text, or None."""
    if not data:
        return "are empty"
    for name, mark in MARKS:
        if data.startswith(mark):
            return f"are {name}: convert them (iconv -f {name} -t UTF-8)"
    # Like git, take zero bytes for a sign of binary content (or of UTF-16
    # without a byte-order mark).
    if b"\0" in data:
        return "are binary, with zero bytes"
    try:
        data.decode()
    except UnicodeDecodeError:
        return "are not UTF-8"


def describe_skipped(skipped):
    """Return a line per reason: how many files it skipped, and the first."""
    files = [file for group in skipped.values() for file in group]
    lines = [
        f"  skipped: {len(group):,} file(s) that {reason}, the first is "
        f"{printable(group[0])}" for reason, group in skipped.items()
    ]
    if any(file.suffix == ".bin" for file in files):
        lines.append(
            "  A .bin of token ids, such as nanoGPT's train.bin, becomes a "
            'shard with write_shard: see docs/data.rst, "Tokens".'
        )
    return lines


def printable(path):
    """Return a name with the characters that stdout can't show escaped."""
    encoding = sys.stdout.encoding or "ascii"
    return str(path).encode(encoding, "backslashreplace").decode(encoding)


def list_files(path):
    """Return the regular files of ``path``, sorted; raise ``ValueError`` if
    there are none."""
    if path is None:
        root = Path(sysconfig.get_path("stdlib"))
        # Only modules that every installation of this version has, without
        # test suites, third-party packages and files made by the build.
        files = [
            file for module in sys.stdlib_module_names
            for file in [root / f"{module}.py", *(root / module).rglob("*.py")]
            if not TEST_FOLDERS & set(file.relative_to(root).parts)
        ]
    elif not str(path).strip():
        raise ValueError(
            f"path={path!r} is empty. Give a folder, a file or a glob, or "
            "leave it out to read Python's standard library."
        )
    elif (given := Path(str(path)).expanduser()).is_dir():
        files = [
            file for file in given.rglob("*")
            if not any(
                part.startswith(".") for part in file.relative_to(given).parts
            )
        ]
    elif given.exists():
        files = [given]
    else:
        files = map(Path, glob.glob(str(given), recursive=True))
    # Reading a pipe would block until somebody writes to it.
    files = sorted(file for file in files if file.is_file())
    if not files:
        raise ValueError(
            f"path={path} matches no files. Give a folder, a file, or a glob "
            "such as 'texts/**/*.txt' in which ** stands for folders of any "
            "depth."
        )
    return files


def split(documents):
    """Divide the documents, in their order, by number of characters.

    Returns
    -------
    train, val : lists of (SHA-256, file, start, stop)
        Ranges of characters. At most one document is on both sides.
    """
    total = sum(length for _, length in documents.values())
    cut = total - max(1, total // VALIDATION_SHARE)
    train, val = [], []
    position = 0
    for digest, (file, length) in documents.items():
        # Characters of this document before the cut.
        before = min(max(cut - position, 0), length)
        if before:
            train.append((digest, file, 0, before))
        if before < length:
            val.append((digest, file, before, length))
        position += length
    return train, val


def read_passages(parts):
    """Cut the texts of (SHA-256, file, start, stop) into passages.

    Returns a list of str in the order of their hashes: shuffled, and the same
    on every machine.
    """
    passages = []
    for digest, file, first, stop in parts:
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(
                f"{file} was changed while it was read. Run again."
            )
        text = data.decode()
        for start in range(first, stop, PASSAGE_LENGTH):
            key = hashlib.sha256(f"{digest} {start}".encode()).digest()
            end = min(start + PASSAGE_LENGTH, stop)
            passages.append((key, text[start:end]))
    return [passage for _, passage in sorted(passages)]
