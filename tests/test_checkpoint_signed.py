"""Signed checkpoints: what was not written by someone with the key is refused, checksums or not."""

import json
import zlib

import checkpoint_kit as kit
import numpy as np
import pytest

import embstore as es
from embstore import checkpoint
from embstore.checkpoint import commit

KEY = b"a secret of some length"


pytestmark = pytest.mark.usefixtures("quick_disk")


def save(path, key=KEY, **options):
    table = kit.memory_table(24, 3, bloom_blocks=1)
    extra = {"x": np.arange(3)}
    return checkpoint.save_tables(path, {"t": table}, extra, hmac_key=key, **options)


def save_changes(path, base, key=KEY):
    """Save a delta, or a full checkpoint if one is due."""
    old = kit.memory_table(24, 3, bloom_blocks=1)
    table, changes = kit.changed_table(old, 6, 3, np.random.default_rng(0))

    def cut(is_delta):
        return {"t": changes if is_delta else table}

    return checkpoint.save_tables(path, cut, base=base, hmac_key=key)


def assert_refused(path, match, key=KEY):
    for call in (checkpoint.verify, checkpoint.load_tables):
        with pytest.raises(es.CorruptCheckpointError, match=match):
            call(path, hmac_key=key)


def test_a_signed_checkpoint_loads_with_its_key_and_without(tmp_path):
    save(tmp_path / "signed")
    save(tmp_path / "plain", key=None)
    assert kit.content_of(tmp_path / "signed") == kit.content_of(tmp_path / "plain")
    assert checkpoint.verify(tmp_path / "signed", hmac_key=KEY).n_rows == 24
    assert checkpoint.inspect(tmp_path / "signed", hmac_key=KEY)["generation"] == 1
    lines = (tmp_path / "signed" / "manifest.json").read_text().splitlines()
    assert [line[:14] for line in lines[-3:]] == [
        '"hmac_sha256":',
        '"sha256":"' + lines[-2][10:14],
        "}",
    ]
    data = {
        name: data for name, data in kit.files_of(tmp_path / "signed").items() if name[0] == "g"
    }
    assert data.items() <= kit.files_of(tmp_path / "plain").items()


@pytest.mark.promise("S6", "forgeries with right checksums, refused by the key")
def test_another_key_or_no_signature_is_refused(tmp_path):
    save(tmp_path)
    assert_refused(tmp_path, "not signed with the key given", key=b"another")
    with pytest.raises(es.CorruptCheckpointError, match="not signed with the key given"):
        checkpoint.inspect(tmp_path, hmac_key=b"another")
    save(tmp_path, key=None)
    assert_refused(tmp_path, "not signed with the key given")


@pytest.mark.parametrize(
    ("key", "error"), [("text", es.ArgumentTypeError), (b"", es.ArgumentError)]
)
def test_keys_that_are_none(key, error, tmp_path):
    for call in (checkpoint.verify, checkpoint.load_tables, checkpoint.inspect, checkpoint.compact):
        with pytest.raises(error, match="hmac_key must"):
            call(tmp_path, hmac_key=key)
    with pytest.raises(error, match="hmac_key must"):
        save(tmp_path / "new", key)
    assert not (tmp_path / "new").exists()


@pytest.mark.promise("S6", "forgeries with right checksums, refused by the key")
def test_a_changed_manifest_with_right_checksums_is_refused(tmp_path):
    save(tmp_path)

    def change(document):
        document["tables"][0]["state"]["n_train_steps"] = 8

    kit.forge_manifest(tmp_path, change)  # a right SHA-256; its hmac_sha256 is an ordinary member
    checkpoint.verify(tmp_path)
    assert_refused(tmp_path, "not signed with the key given")


@pytest.mark.promise("S6", "forgeries with right checksums, refused by the key")
def test_changed_data_with_right_checksums_is_refused(tmp_path):
    save(tmp_path)
    manifest = (tmp_path / "manifest.json").read_bytes()
    rows = kit.memory_table(24, 3).rows
    values = rows.values.copy()
    values[3, 1] = 7
    arrays = [rows.keys, values, rows.slots, rows.freq, rows.step]
    kit.forge_file(tmp_path, "rows", [arrays])
    assert_refused(tmp_path, "not signed with the key given")
    (tmp_path / "manifest.json").write_bytes(manifest)
    for call in (checkpoint.verify, kit.content_of):
        with pytest.raises(es.CorruptCheckpointError, match="have the checksum"):
            call(tmp_path)
    with pytest.raises(es.CorruptCheckpointError, match="has not the SHA-256 that was signed"):
        checkpoint.verify(tmp_path, hmac_key=KEY)


def patched(data, changed, first, last, place):
    """Return `changed` with 4 bytes at `place` for which the CRC-32 of [first, last) is `data`'s.

    A CRC is linear: which of the 32 bits to flip is the solution of 32 equations.
    """
    wanted = zlib.crc32(data[first:last])
    found = bytearray(changed)
    now = zlib.crc32(found[first:last])
    effects = []
    for bit in range(32):
        flipped = bytearray(found)
        flipped[place + bit // 8] ^= 1 << bit % 8
        effects.append((zlib.crc32(flipped[first:last]) ^ now, 1 << bit))
    rest, bits = now ^ wanted, 0
    for top in reversed(range(32)):
        pivot = next(e for e in effects if e[0] >> top & 1)
        effects = [
            (e[0] ^ pivot[0], e[1] ^ pivot[1]) if e[0] >> top & 1 else e
            for e in effects
            if e is not pivot
        ]
        if rest >> top & 1:
            rest, bits = rest ^ pivot[0], bits ^ pivot[1]
    mask = bits.to_bytes(4, "little")
    found[place : place + 4] = bytes(
        a ^ b for a, b in zip(found[place : place + 4], mask, strict=True)
    )
    return bytes(found)


@pytest.mark.promise("S6", "forgeries with right checksums, refused by the key")
def test_data_forged_to_the_same_checksum_is_refused_by_the_signature_alone(tmp_path):
    save(tmp_path)
    path = kit.first_file(tmp_path)
    entry = kit.read_manifest(tmp_path)["files"][0]
    data = path.read_bytes()
    rows = kit.memory_table(24, 3).rows
    value = data.index(rows.values.tobytes())
    forged = bytearray(data)
    forged[value : value + 4] = np.float32(1e9).tobytes()
    freq = data.index(rows.freq.tobytes())  # any 32 bits are a frequency
    header, block = entry["sections"][0][0], entry["sections"][1][0]
    forged = patched(data, forged, header, header + block, freq)
    assert forged != data
    path.write_bytes(forged)
    found = kit.content_of(tmp_path)  # nothing but the key tells
    assert found["t"]["rows"] != kit.content_of_table(kit.memory_table(24, 3))["rows"]
    with pytest.raises(es.CorruptCheckpointError, match="has not the SHA-256 that was signed"):
        checkpoint.verify(tmp_path, hmac_key=KEY)


@pytest.mark.promise("S6", "forgeries with right checksums, refused by the key")
def test_each_byte_of_a_signed_manifest_counts(tmp_path):
    save(tmp_path)
    path = tmp_path / "manifest.json"
    data = path.read_bytes()
    begin = data.index(b"hmac_sha256") - 20
    for offset in [*range(0, begin, 31), *range(begin, len(data))]:
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        assert_refused(tmp_path, r"manifest\.json")


@pytest.mark.promise("S6", "forgeries with right checksums, refused by the key")
def test_chains_are_signed_as_a_whole(tmp_path):
    base = save(tmp_path / "a")
    report = save_changes(tmp_path / "a", base.digest)
    assert report.kind == "delta"
    checkpoint.verify(tmp_path / "a", hmac_key=KEY)
    assert_refused(tmp_path / "a", "not signed with the key given", key=b"another")
    with pytest.raises(es.CorruptCheckpointError, match="not signed with the key given"):
        checkpoint.compact(tmp_path / "a", hmac_key=b"another")
    compacted = checkpoint.compact(tmp_path / "a", hmac_key=KEY)
    assert compacted.n_deltas == 0
    checkpoint.verify(tmp_path / "a", hmac_key=KEY)


@pytest.mark.parametrize("other", [None, b"another"])
def test_a_delta_is_signed_only_on_what_is_signed(other, tmp_path):
    base = save(tmp_path, key=other)
    report = save_changes(tmp_path, base.digest)
    assert (report.kind, report.reason) == ("full", "the base is not signed with the key")
    checkpoint.verify(tmp_path, hmac_key=KEY)
    unsigned = save_changes(tmp_path, report.digest, key=None)
    assert unsigned.kind == "delta"
    checkpoint.verify(tmp_path)
    assert_refused(tmp_path, "not signed with the key given")


@pytest.mark.promise("S6", "forgeries with right checksums, refused by the key")
def test_kept_generations_are_checked_too(tmp_path):
    save(tmp_path, keep_last=3)
    save(tmp_path, key=None, keep_last=3)
    save(tmp_path, keep_last=3)
    checkpoint.verify(tmp_path, generation=1, hmac_key=KEY)
    with pytest.raises(es.CorruptCheckpointError, match=commit.kept_name(2)):
        checkpoint.verify(tmp_path, generation=2, hmac_key=KEY)


@pytest.mark.parametrize("value", [None, 3, "0" * 63, "G" * 64])
def test_hashes_that_are_none(value, tmp_path):
    save(tmp_path)
    kit.forge_manifest(tmp_path, lambda document: document["files"][0].update(sha256=value))
    with pytest.raises(es.CorruptCheckpointError, match="sha256 is"):
        checkpoint.verify(tmp_path)


def test_a_signed_manifest_without_hashes_is_refused(tmp_path, monkeypatch):
    save(tmp_path, key=None)
    document = json.loads((tmp_path / "manifest.json").read_bytes())
    assert "sha256" not in document["files"][0]
    monkeypatch.setattr("embstore.checkpoint.manifest.is_signed", lambda data, key: True)
    assert_refused(tmp_path, "has no sha256 of g00000001-t000-rows")
