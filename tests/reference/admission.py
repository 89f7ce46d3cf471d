"""Who is admitted, docs/semantics.md, section 5: exact candidates, or a counting bloom filter."""

import numpy as np

from .hashing import fixed_hash, mix, mulhi

BLOCK_BITS = 512
N_PARTITIONS = 256


class AdmitAll:
    """Without a policy every key is admitted; nothing is remembered."""

    n_pending = 0

    def counts_before(self, keys):
        return np.zeros(len(keys), np.int64)

    def is_admitted(self, total):
        return np.ones(len(total), bool)

    def count(self, keys, before, occurrences):
        assert not len(keys)

    def forget(self, keys):
        """Keys that got a row or were erased are candidates no longer."""

    def clear(self):
        """Forget everything."""

    def candidates(self):
        return {}


class Counter(AdmitAll):
    """A candidate is key -> (count, epoch)."""

    def __init__(self, policy):
        self.min_count = policy.min_count
        self.ttl = policy.candidate_ttl or 0
        self.grain = max(1, self.ttl // 16)
        self.table = {}
        self.epoch = 0  # the greatest epoch that a find_or_insert has seen

    @property
    def n_pending(self):
        return len(self.table)

    def expire(self, step):
        """Drop the candidates that are too old at `step`; return how many."""
        epoch = step // self.grain if self.ttl else 0
        if epoch <= self.epoch:
            return 0
        self.epoch = epoch
        dead = [k for k, (_, e) in self.table.items() if (epoch - e) * self.grain > self.ttl]
        self.forget(dead)
        return len(dead)

    def counts_before(self, keys):
        return np.array([self.table.get(k, (0, 0))[0] for k in keys.tolist()], np.int64)

    def is_admitted(self, total):
        return total >= self.min_count

    def count(self, keys, before, occurrences):
        totals = (before + occurrences).tolist()
        self.table.update(zip(keys.tolist(), [(n, self.epoch) for n in totals], strict=True))

    def forget(self, keys):
        for key in keys:
            self.table.pop(int(key), None)

    def clear(self):
        self.table = {}

    def candidates(self):
        return self.table


class Bloom(AdmitAll):
    """256 sub-filters of 64-byte blocks; `cells` holds one number a cell, (n_blocks, C)."""

    def __init__(self, policy):
        self.min_count = policy.min_count
        self.cell_bits = policy.cell_bits
        self.n_hashes = policy.n_hashes
        self.blocks = policy.blocks_per_partition
        self.n_added = 0
        self.clear()

    def clear(self):
        n_cells = BLOCK_BITS // self.cell_bits
        self.cells = np.zeros((N_PARTITIONS * self.blocks, n_cells), np.int64)
        self.n_added = 0

    def places(self, keys):
        """Return the block of each key, and its cell positions with -1 for repeated ones."""
        z = fixed_hash(keys)
        partition = (z >> np.uint64(56)).astype(np.int64)
        block = mulhi(z << np.uint64(8), np.uint64(self.blocks)).astype(np.int64)
        return partition * self.blocks + block, self._positions(z)

    def _positions(self, z):
        b = {1: 9, 2: 8, 4: 7}[self.cell_bits]
        g, bits_left, n_refills = mix(z), 64, 0
        columns = []
        for _ in range(self.n_hashes):
            if bits_left < b:
                n_refills += 1
                g, bits_left = mix(z + np.uint64(n_refills)), 64
            position = (g & np.uint64((1 << b) - 1)).astype(np.int64)
            for earlier in columns:
                position = np.where(position == earlier, -1, position)
            columns.append(position)
            g, bits_left = g >> np.uint64(b), bits_left - b
        return np.stack(columns, axis=1)

    def counts_before(self, keys):
        block, positions = self.places(keys)
        counts = np.where(positions >= 0, self.cells[block[:, None], positions], 2**32)
        return counts.min(axis=1, initial=2**32)

    def is_admitted(self, total):
        return total >= self.min_count

    def count(self, keys, before, occurrences):
        block, positions = self.places(keys)
        used = positions >= 0
        at = (np.broadcast_to(block[:, None], positions.shape)[used], positions[used])
        np.add.at(self.cells, at, np.broadcast_to(occurrences[:, None], positions.shape)[used])
        self.cells[at] = np.minimum(self.cells[at], 2**self.cell_bits - 1)
        self.n_added += int((before == 0).sum())

    def halve(self):
        self.cells >>= 1
        self.n_added = 0

    def partition_bytes(self, partition):
        """Return the bytes of one sub-filter, as files hold it."""
        cells = self.cells[partition * self.blocks : (partition + 1) * self.blocks]
        by_byte = cells.reshape(-1, 8 // self.cell_bits) << np.arange(0, 8, self.cell_bits)
        return by_byte.sum(axis=1).astype(np.uint8)


def admission_state(policy):
    """Return what a new table keeps for `policy`: None, CounterAdmission or BloomAdmission."""
    if policy is None:
        return AdmitAll()
    return Counter(policy) if hasattr(policy, "candidate_ttl") else Bloom(policy)
