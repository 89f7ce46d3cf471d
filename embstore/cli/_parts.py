"""What the bytes of a checkpoint's table are spent on, from the summary of `inspect`."""

from collections.abc import Mapping
from typing import Any

VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
META_BYTES = 8 + 4 + 8  # key, freq and step of a row


def parts_of(summary: Mapping[str, Any], index: int) -> dict[str, int]:
    """Return the bytes of a table on disk by what they hold; parts that are not there are left out.

    values, slots and meta (key, freq, step) are those of the full save; deltas are counted whole;
    framing is what Arrow and padding add.
    """
    table = summary["tables"][index]
    own = [file for file in summary["files"] if file["table"] == index]
    full = [f for f in own if f["kind"] == "rows" and f.get("layer", 0) == 0]
    n_rows = sum(file["rows"] for file in full)
    slot_floats = sum(width for _, width in table["slots"])
    parts = {
        "values": n_rows * table["dim"] * VALUE_BYTES[table["dtype"]],
        "slots": n_rows * slot_floats * 4,
        "meta": n_rows * META_BYTES,
    }
    parts["framing"] = sum(file["bytes"] for file in full) - sum(parts.values())
    for file in own:
        if file not in full:
            name = "deltas" if file.get("layer", 0) else file["kind"]
            parts[name] = parts.get(name, 0) + file["bytes"]
    return {name: n_bytes for name, n_bytes in parts.items() if n_bytes}
