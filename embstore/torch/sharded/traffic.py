"""How many bytes a module's exchanges have moved to and from other ranks."""

from collections.abc import Sequence

from embstore.torch.sharded.wire import FREE, HEADER, Channel

KINDS = ("sizes", "keys", "rows", "gradients")


class Traffic:
    """Counts by kind of exchange; what a rank sends to itself is no traffic."""

    def __init__(self) -> None:
        self._counts = {kind: {"n": 0, "sent_bytes": 0, "received_bytes": 0} for kind in KINDS}

    def count(self, kind: str, channel: Channel, to: Sequence[int], of: Sequence[int]) -> None:
        """Count an exchange of `to` bytes to each rank and `of` bytes of each."""
        own = self._counts[kind]
        own["n"] += 1
        own["sent_bytes"] += sum(to) - to[channel.rank]
        own["received_bytes"] += sum(of) - of[channel.rank]

    def count_equal(self, kind: str, channel: Channel, n_words: int) -> None:
        """Count an exchange of headers with that many words behind the tags."""
        sizes = [8 * (HEADER + max(0, n_words - FREE))] * channel.world_size
        self.count(kind, channel, sizes, sizes)

    def snapshot(self) -> dict[str, dict[str, int]]:
        """Return the counts by kind."""
        return {kind: dict(own) for kind, own in self._counts.items()}
