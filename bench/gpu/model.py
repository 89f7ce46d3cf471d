"""The bytes that the card's memory must move for each key, whatever the code: the floor.

Distinct random keys, a table much larger than the cache, 32-byte sectors, every key found. A bucket
of the index is one line of 128 bytes that holds keys and row ids together. What the floor leaves
out (finding the distinct keys of a batch, sorting, two reads one after another) is what a figure
below 1 is made of.
"""

KEY, ROW_ID, LINE, SECTOR = 8, 4, 128, 32
META_BYTES = 16  # of a row: its key, step and freq
NORMAL_BYTES_PER_S = 4.3e12  # of a copy on the card that the targets are meant for (H200)


def find_bytes(dim):
    """Return the bytes a key of find: key, found, bucket, row, and the row again as output."""
    return KEY + ROW_ID + LINE + 8 * dim


def hit_bytes(dim):
    """Return the bytes a key of find_or_insert that has a row: its record is read and written."""
    return find_bytes(dim) + 2 * SECTOR


def insert_bytes(dim, slot_floats):
    """Return the bytes a key of find_or_insert without a row: three sectors of the bucket become
    dirty, values and slots are written, and the values again as output.
    """
    return KEY + ROW_ID + LINE + 3 * SECTOR + 4 * (dim + slot_floats) + 4 * dim


def mixed_bytes(dim, slot_floats, fresh_share):
    """Return the bytes a key of find_or_insert of which a share has no row."""
    return (1 - fresh_share) * hit_bytes(dim) + fresh_share * insert_bytes(dim, slot_floats)


def update_bytes(dim, slot_floats):
    """Return the bytes a key of an optimizer: gradient, and values and slots there and back."""
    return ROW_ID + 4 * dim + 2 * 4 * (dim + slot_floats)


def pooled_bytes(dim, bag):
    """Return the bytes an id of a pooled read: row ids are written and read, a bag is one row."""
    return KEY + 2 * ROW_ID + LINE + 4 * dim + 4 * dim / bag


def scan_bytes(dim, by_norm):
    """Return the bytes a row of an eviction scan: its record, and for norms its values."""
    return META_BYTES + (4 * dim if by_norm else 0)
