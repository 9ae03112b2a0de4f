"""Tokenizers: from text to token ids.

``bytes`` takes the UTF-8 bytes: nothing to install or download. ``gpt2`` is
GPT-2's byte-pair encoding (Radford et al., 2019), as in FineWeb's shards, by
the optional package tiktoken. The last id is the separator that leads each
document.
"""
import numpy as np

SEPARATORS = {"bytes": 256, "gpt2": 50256}


def make_encoder(tokenizer):
    """Return the function that encodes a text.

    Parameters
    ----------
    tokenizer : str
        A key of ``SEPARATORS``.

    Returns
    -------
    encode : function from str to a sequence of int, shape [num_tokens]
        All ids are below the separator: text never contains one.

    Raises
    ------
    ValueError
        If tiktoken is needed and not installed.
    OSError
        If tiktoken can't get GPT-2's vocabulary.
    """
    if tokenizer == "bytes":
        return lambda text: np.frombuffer(text.encode(), np.uint8)
    try:
        import tiktoken
    except ImportError as error:
        raise ValueError(
            f"tokenizer={tokenizer} needs the package tiktoken: pip install "
            "tiktoken. tokenizer=bytes needs nothing."
        ) from error
    try:
        return tiktoken.get_encoding(tokenizer).encode_ordinary
    except OSError as error:
        raise OSError(
            "tiktoken downloads GPT-2's vocabulary (1.5 MB) when it is first "
            f"used, and could not: {error}. Use it once where there is a "
            "network, with the environment variable TIKTOKEN_CACHE_DIR set "
            "to a folder that is also there when training; or use "
            "tokenizer=bytes, which needs nothing."
        ) from error
