"""Checkpoints: directories of Arrow IPC files and one manifest; docs/format.md has every byte.

The room knows tables only by what they export and import, `TableView` and `TableSink`.
"""

from embstore.checkpoint.audit import VerifyReport, inspect, verify
from embstore.checkpoint.content import CandidateBlock, RowBlock, TableSink, TableView
from embstore.checkpoint.reader import LoadedCheckpoint, LoadedTable, load_tables
from embstore.checkpoint.reshard import ReshardReport, reshard
from embstore.checkpoint.restore import fill
from embstore.checkpoint.shards import OpenShards, Shard, check_shard, count_entries
from embstore.checkpoint.source import TableSource
from embstore.checkpoint.writer import save_tables

__all__ = [
    "CandidateBlock",
    "LoadedCheckpoint",
    "LoadedTable",
    "OpenShards",
    "ReshardReport",
    "RowBlock",
    "Shard",
    "TableSink",
    "TableSource",
    "TableView",
    "VerifyReport",
    "check_shard",
    "count_entries",
    "fill",
    "inspect",
    "load_tables",
    "reshard",
    "save_tables",
    "verify",
]
