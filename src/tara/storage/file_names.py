"""Words and names made safe for use in file names."""

import re

MOST_BYTES = 120  # of the 255 that file systems take; a number and an ending come behind it

# what separates folders or means something to a shell or a file system, controls, and half characters
_SPECIAL = re.compile(r'[\s/\\:*?"<>|\x00-\x1f\x7f-\x9f\ud800-\udfff\u200b-\u200f\u202a-\u202e\u2066-\u2069]+')


def file_name(text: str) -> str:
    """The text as a part of a file's name: in one folder, visible, and no longer than file systems take.

    ``../a dog`` becomes ``a-dog``; two texts that differ in special characters alone have one name.
    """
    plain = _SPECIAL.sub("-", text).strip(".-")
    return plain.encode()[:MOST_BYTES].decode(errors="ignore").rstrip(".-") or "unnamed"
