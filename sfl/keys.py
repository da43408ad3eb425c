"""Keyed randomness: every random choice is a pure function of what it is for.

A key names (run seed, device, round, step, micro-batch, block or tensor name, purpose), never a
process role or a cut. So moving the cut, recomputing or replaying draws the same numbers.
"""

import hashlib


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed that is a stable function of `parts`, on every platform and Python."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
