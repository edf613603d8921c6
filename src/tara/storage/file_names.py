"""Words and names made safe for use in file names."""

import re

MOST_BYTES = 120  # file systems allow 255 bytes; a number and a suffix are appended

# path separators, characters special to shells or file systems, control characters, lone surrogates
_SPECIAL = re.compile(r'[\s/\\:*?"<>|\x00-\x1f\x7f-\x9f\ud800-\udfff\u200b-\u200f\u202a-\u202e\u2066-\u2069]+')


def file_name(text: str) -> str:
    """The text as part of a file name: without path separators, not hidden, and short enough for file systems.

    ``../a dog`` becomes ``a-dog``. Texts that differ only in special characters have the same name.
    """
    plain = _SPECIAL.sub("-", text).strip(".-")
    return plain.encode()[:MOST_BYTES].decode(errors="ignore").rstrip(".-") or "unnamed"
