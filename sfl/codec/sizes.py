"""How large the next packets of a codec will be, from those seen so far; planners ask this."""

from __future__ import annotations

from dataclasses import dataclass

MEMORY = 0.1  # weight of the newest packet in the running averages


@dataclass(slots=True)
class SizeStats:
    """Running averages over a role's packets.

    `scored` is the share of rows that were not zero, `value_bits` the payload's bits for each value
    of those rows, everything counted.
    """

    packets: int = 0
    scored: float = 1.0
    value_bits: float = 32.0

    def observe(self, rows: int, sent_rows: int, hidden: int, payload_bytes: int) -> None:
        """Take one packet of `[rows, hidden]`, of which `sent_rows` were not zero."""
        self.packets += 1
        weight = max(MEMORY, 1.0 / self.packets)
        self.scored += weight * (sent_rows / rows - self.scored)
        if sent_rows:
            bits = 8.0 * payload_bytes / (sent_rows * hidden)
            self.value_bits += weight * (bits - self.value_bits)

    def bits(self, rows: int, hidden: int) -> float:
        """Bits that a packet of `[rows, hidden]` is expected to take."""
        return rows * hidden * self.scored * self.value_bits
