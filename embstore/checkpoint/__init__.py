"""Checkpoints: directories of Arrow IPC files and one manifest; docs/format.md has every byte.

The room knows tables only by what they export and import, `TableView` and `TableSink`.
"""

from embstore.checkpoint.audit import VerifyReport, inspect, verify
from embstore.checkpoint.compact import compact
from embstore.checkpoint.content import (
    CandidateBlock,
    DeltaView,
    RowBlock,
    TableSink,
    TableView,
)
from embstore.checkpoint.entries import Layer
from embstore.checkpoint.reader import LoadedCheckpoint, LoadedTable, generations, load_tables
from embstore.checkpoint.save import SaveReport, save_tables

__all__ = [
    "CandidateBlock",
    "DeltaView",
    "Layer",
    "LoadedCheckpoint",
    "LoadedTable",
    "RowBlock",
    "SaveReport",
    "TableSink",
    "TableView",
    "VerifyReport",
    "compact",
    "generations",
    "inspect",
    "load_tables",
    "save_tables",
    "verify",
]
