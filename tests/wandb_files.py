"""What wandb wrote offline, read by the tests; and the environment of somebody without an account."""

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import matplotlib
from wandb.proto.wandb_internal_pb2 import ArtifactRecord, Record


def without_account(home: Path) -> dict[str, str]:
    """The environment of somebody without an account."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "XDG", "LEEML"))}
    return kept | {
        "HOME": str(home),
        "NETRC": str(home / ".netrc"),
        "MPLCONFIGDIR": matplotlib.get_configdir(),  # its font list takes seconds to make
    }


def read_run(folder: Path) -> list[Record]:
    """Records of the offline run in <folder>/wandb.

    wandb 0.31 has its reader in Go only. The file is LevelDB's log: blocks of 32 KiB with pieces of records, each
    under its CRC-32, length and kind (1 whole, 2 first, 3 middle, 4 last); records are wandb's own protobuf.
    """
    (part,) = folder.glob("wandb/offline-run-*")
    return read_part(part)


def read_part(folder: Path) -> list[Record]:
    """Records of the one offline run in a folder offline-run-..."""
    (path,) = folder.glob("*.wandb")
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    records, whole, at = [], b"", 7
    while at < len(data):
        if (left := 2**15 - at % 2**15) < 7:  # too short for a piece
            at += left
            continue
        crc, length, kind = struct.unpack_from("<IHB", data, at)
        piece = data[at + 7 : at + 7 + length]
        assert crc == zlib.crc32(piece, zlib.crc32(bytes([kind])))
        whole = piece if kind in (1, 2) else whole + piece
        if kind in (1, 4):
            records.append(Record.FromString(whole))
        at += 7 + length
    return records


def config_of(records: list[Record]) -> dict[str, Any]:
    return {u.key: json.loads(u.value_json) for r in records for u in r.config.update if u.key}


def history_of(records: list[Record]) -> list[dict[str, Any]]:
    return [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item}
        for r in records
        if r.WhichOneof("record_type") == "history"
    ]


def artifacts_of(records: list[Record], kind: str) -> list[ArtifactRecord]:
    return [r.artifact for r in records if r.artifact.type == kind]
