"""The cost model of a training step whose rows lie on many ranks; docs/scaling.md explains it.

A rank sends each of its distinct keys once, with its count, to the rank that owns it, gets a row
back, and sends a gradient. What stays on the rank is no traffic. All ranks are alike.
"""

from dataclasses import dataclass

KEY_BYTES, COUNT_BYTES, GRAD_BYTES = 8, 4, 4  # a gradient is float32, whatever the rows are


@dataclass(frozen=True)
class Work:
    """A step of one rank: its ids, of which `unique_share` are distinct, and the rows' shape."""

    n_ids: int
    dim: int
    unique_share: float
    value_bytes: int = 4

    @property
    def n_keys(self):
        """Distinct keys that the rank asks for, and that it is asked for as an owner."""
        return self.n_ids * self.unique_share

    def sent_bytes(self, world_size):
        """Return the bytes that a rank sends to others, by kind; it receives as many."""
        leaving = self.n_keys * (world_size - 1) / world_size
        return {
            "keys": leaving * (KEY_BYTES + COUNT_BYTES),
            "rows": leaving * self.value_bytes * self.dim,
            "gradients": leaving * GRAD_BYTES * self.dim,
        }


@dataclass(frozen=True)
class Network:
    """Ranks in nodes; rates are bytes a second that one rank sends while it receives as many."""

    name: str
    world_size: int
    per_node: int
    inside_rate: float
    between_rate: float
    latency_s: float

    def exchange_s(self, n_bytes):
        """Return the time of an all-to-all in which each rank sends `n_bytes` to others.

        What goes to the own node and to others goes at the same time.
        """
        others = max(1, self.world_size - 1)
        n_inside = min(self.per_node, self.world_size) - 1
        inside = n_bytes * n_inside / others / self.inside_rate
        between = n_bytes * (others - n_inside) / others / self.between_rate
        return self.latency_s + max(inside, between)


@dataclass(frozen=True)
class Costs:
    """What work on one rank takes: nanoseconds an id or key, and the dense part of a step."""

    dedup_ns: float
    find_ns: float
    apply_ns: float
    dense_s: float


STAGES = ("dedup", "keys", "find", "rows", "dense", "gradients", "apply")


def stages(work, network, costs):
    """Return the seconds of each stage of a step, in their order."""
    sent = work.sent_bytes(network.world_size)
    n_owned = work.n_keys
    found = {
        "dedup": work.n_ids * costs.dedup_ns * 1e-9,
        "keys": network.latency_s + network.exchange_s(sent["keys"]),  # sizes first
        "find": n_owned * costs.find_ns * 1e-9,
        "rows": network.exchange_s(sent["rows"]),
        "dense": costs.dense_s,
        "gradients": network.exchange_s(sent["gradients"]),
        "apply": n_owned * costs.apply_ns * 1e-9,
    }
    if network.world_size == 1:
        return found | {"keys": 0.0, "rows": 0.0, "gradients": 0.0}
    return found


def step_s(found):
    """Return the seconds of a step by its stages: in a row, with the next keys ahead, and bound.

    "bound" is what no schedule beats, however far it looks ahead: the busiest of network, table
    and dense part.
    """
    ahead = found["dedup"] + found["keys"]
    later = found["find"] + found["rows"] + found["gradients"] + found["apply"]
    network = found["keys"] + found["rows"] + found["gradients"]
    table = found["dedup"] + found["find"] + found["apply"]
    return {
        "in a row": sum(found.values()),
        "keys ahead": later + max(found["dense"], ahead),
        "bound": max(network, table, found["dense"]),
    }
