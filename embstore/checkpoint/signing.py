"""Signatures: an HMAC of the manifest, which then holds the SHA-256 of each data file.

Checksums guard against accidents alone: who can write to a checkpoint can make them right again. A
signature can be made only with the key.
"""

import hashlib
import hmac

from embstore.checkpoint.fsio import InputFile
from embstore.errors import ArgumentError, ArgumentTypeError

MEMBER = b',\n"hmac_sha256":"'
END = b'"'
MEMBER_BYTES = len(MEMBER) + 64 + len(END)
PIECE_BYTES = 1 << 20


def checked_key(hmac_key: object) -> bytes | None:
    """Return a key to sign with, or None; raise if it cannot be one."""
    if hmac_key is None:
        return None
    if not isinstance(hmac_key, bytes):
        raise ArgumentTypeError(f"hmac_key must be bytes, got {type(hmac_key).__name__}")
    if not hmac_key:
        raise ArgumentError("hmac_key must not be empty")
    return hmac_key


def member_of(body: bytes, hmac_key: bytes) -> bytes:
    """Return the member of a manifest that signs all bytes before it."""
    return MEMBER + hmac.new(hmac_key, body, hashlib.sha256).hexdigest().encode() + END


def is_signed(signed: bytes, hmac_key: bytes) -> bool:
    """Return whether bytes end with the member that signs them."""
    body, member = signed[:-MEMBER_BYTES], signed[-MEMBER_BYTES:]
    return hmac.compare_digest(member, member_of(body, hmac_key))


def sha256_of(file: InputFile) -> str:
    """Return the SHA-256 of a whole file in hexadecimal."""
    digest = hashlib.sha256()
    for offset in range(0, file.n_bytes, PIECE_BYTES):
        digest.update(file.read(offset, min(PIECE_BYTES, file.n_bytes - offset)))
    return digest.hexdigest()
