"""Open a cache with pyarrow alone and compare it with what `cab-extract dump` says.

Usage:  python pipelines/check_arrow.py CACHE [--bin target/release/cab-extract] [--records N]

Reads the catalog as Parquet and the shards as Arrow IPC files, looks up N records spread over the cache by the catalog's
shard, block and row, and compares every field with the dump, bit for bit. Also: tensor shapes against the manifest, zstd
bodies, the catalog's byte ranges and CRC32C. One line per check; exit 1 if any fails.
Needs: pyarrow (16 or newer), numpy, safetensors.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ["record", "split", "sample_id", "source", "label", "view", "seed", "mix_partner", "mix_weight",
           "shard", "block", "row", "block_offset", "block_bytes", "block_crc32c"]
DTYPES = {"u8": pa.uint8(), "u32": pa.uint32(), "f16": pa.float16(), "f32": pa.float32()}
failed = []


def check(name, ok, figures=""):
    print(f"{'ok  ' if ok else 'FAIL'} {name}{': ' if figures else ''}{figures}", flush=True)
    if not ok:
        failed.append(name)


def crc32c(data):
    """CRC-32C (Castagnoli), byte by byte."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def open_shard(cache, index):
    return pa.ipc.open_file(pa.memory_map(str(cache / f"shards/{index:05}.arrow")))


def value(batch, name, row):
    """One record's tensor of column `name`, in the column's shape."""
    column = batch.column(name)
    flat = column.storage.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), *column.type.shape)[row]


def check_schema(cache, manifest, shard):
    path, split = shard["path"], shard["split"]
    schema = pa.ipc.open_file(pa.memory_map(str(cache / path))).schema
    fields = [field for field in manifest["fields"] if split in field["splits"]]
    wrong = [f"no column {name}" for name in ("record", "label") if name not in schema.names]
    for field in fields:
        kind = schema.field(field["name"]).type if field["name"] in schema.names else None
        if not isinstance(kind, pa.FixedShapeTensorType) or list(kind.shape) != field["shape"] \
                or kind.value_type != DTYPES[field["dtype"]]:
            wrong.append(f"{field['name']} is {kind}, the manifest says {field['dtype']} {field['shape']}")
    extra = set(schema.names) - {"record", "label"} - {field["name"] for field in fields}
    check(f"{path} ({split}): schema", not wrong and not extra,
          "; ".join(wrong + sorted(extra)) or f"{len(fields)} tensor columns as in the manifest")


def check_block(cache, row, schema):
    """The catalog's byte range holds exactly the block's record batch, compressed with zstd, and has the stated CRC."""
    path = cache / f"shards/{row['shard']:05}.arrow"
    with open(path, "rb") as file:
        file.seek(row["block_offset"])
        data = file.read(row["block_bytes"])
    name = f"{path.name}, block {row['block']}"
    crc = crc32c(data)
    check(f"{name}: CRC32C", crc == row["block_crc32c"], f"{crc:08x} of {len(data)} bytes")
    batch = pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(data)), schema)
    by_index = open_shard(cache, row["shard"]).get_batch(row["block"])
    check(f"{name}: range", batch.equals(by_index), f"{batch.num_rows} records")
    check(f"{name}: zstd", data.count(b"\x28\xb5\x2f\xfd") >= 1, f"{len(data) / batch.nbytes:.3f} of the raw bytes")


def check_records(cache, binary, rows):
    for row in rows:
        with tempfile.TemporaryDirectory() as temporary:
            to = Path(temporary) / "dump.safetensors"
            command = [binary, "dump", "--cache", cache, "--records", f"{row['record']}..{row['record'] + 1}", "--to", to]
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
            if done.returncode:
                check(f"record {row['record']}: dump", False, done.stderr.strip())
                continue
            dump = load_file(to)
        batch = open_shard(cache, row["shard"]).get_batch(row["block"])
        names = [name for name in batch.schema.names if name not in ("record", "label")]
        stored = {name: value(batch, name, row["row"]) for name in names}
        wrong = [name for name in names
                 if name not in dump or not np.array_equal(stored[name].astype(dump[name].dtype), dump[name][0])]
        if batch.column("record")[row["row"]].as_py() != row["record"]:
            wrong.append("record")
        label = batch.column("label")[row["row"]].as_py()
        if label != row["label"] or (label is not None and dump["label"].tolist() != [label]):
            wrong.append("label")
        check(f"record {row['record']} ({row['split']}, {row['sample_id']}, view {row['view']})", not wrong,
              f"differs in {', '.join(wrong)}" if wrong else f"{len(names)} fields and the label equal the dump's")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--bin", type=Path, default=ROOT / "target/release/cab-extract")
    parser.add_argument("--records", type=int, default=8, help="records of each split to compare")
    args = parser.parse_args()
    cache = args.cache
    manifest = json.loads((cache / "manifest.json").read_text())
    table = pyarrow.parquet.read_table(cache / "catalog.parquet")
    missing = [name for name in COLUMNS if name not in table.schema.names]
    check("catalog: columns", not missing, f"lacks {missing}" if missing else f"{table.num_rows} rows")
    catalog = sorted(table.to_pylist(), key=lambda row: row["record"])
    counts = {split: sum(row["split"] == split for row in catalog) for split in ("train", "val")}
    check("catalog: records", counts == {split: manifest["records"][split] for split in counts}, str(counts))
    ids = [row["record"] for row in catalog]
    check("catalog: every record once", len(set(ids)) == len(ids))
    stored = sum(batches.get_batch(i).num_rows for s in manifest["shards"]
                 for batches in [pa.ipc.open_file(pa.memory_map(str(cache / s["path"])))]
                 for i in range(batches.num_record_batches))
    check("shards: records", stored == len(ids), f"{stored} rows in {len(manifest['shards'])} shards")
    for split in counts:
        shards = [shard for shard in manifest["shards"] if shard["split"] == split]
        rows = [row for row in catalog if row["split"] == split]
        if not shards or not rows:
            continue
        check_schema(cache, manifest, shards[0])
        for row in (rows[0], rows[-1]):
            check_block(cache, row, open_shard(cache, row["shard"]).schema)
        spread = np.unique(np.linspace(0, len(rows) - 1, args.records).astype(int))
        check_records(cache, args.bin.resolve(), [rows[i] for i in spread])
    print(f"{len(failed)} checks failed" if failed else "all checks passed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
