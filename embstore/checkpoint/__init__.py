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
from embstore.checkpoint.mapped import (
    FoundRows,
    MappedCheckpoint,
    MappedTable,
    ReadOnlySource,
    map_tables,
    read_config,
)
from embstore.checkpoint.output import Pace
from embstore.checkpoint.reader import LoadedCheckpoint, LoadedTable, generations, load_tables
from embstore.checkpoint.reshard import ReshardReport, reshard
from embstore.checkpoint.restore import fill
from embstore.checkpoint.save import SaveReport, save_tables
from embstore.checkpoint.shards import OpenShards, Shard, check_shard, count_entries, shard_of
from embstore.checkpoint.source import SavedTable, TableSource

__all__ = [
    "CandidateBlock",
    "DeltaView",
    "FoundRows",
    "Layer",
    "LoadedCheckpoint",
    "LoadedTable",
    "MappedCheckpoint",
    "MappedTable",
    "OpenShards",
    "Pace",
    "ReadOnlySource",
    "ReshardReport",
    "RowBlock",
    "SaveReport",
    "SavedTable",
    "Shard",
    "TableSink",
    "TableSource",
    "TableView",
    "VerifyReport",
    "check_shard",
    "compact",
    "count_entries",
    "fill",
    "generations",
    "inspect",
    "load_tables",
    "map_tables",
    "read_config",
    "reshard",
    "save_tables",
    "shard_of",
    "verify",
]
