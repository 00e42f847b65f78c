"""Peak memory and speed of ``contraflow score`` on a large Parquet file.

    python benchmarks/score_memory.py [ROWS] [FOLDER]

Writes ROWS (10,000,000) rows of 6 correlated columns, trains the preset ``table`` for a few steps
on the first 100,000, and scores the whole file in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PIECE = 100_000


def main(rows: int, folder: Path) -> None:
    big, small = folder / "big.parquet", folder / "small.parquet"
    write(big, rows)
    write(small, PIECE)
    command = [sys.executable, "-m", "contraflow"]
    train = ["train", "table", "--data.path", str(small), "--out", str(folder), "--name", "run"]
    subprocess.run([*command, *train, "--trainer.max_steps", "20"], check=True)
    start = time.monotonic()
    score = ["score", str(folder / "run"), str(big), "--out", str(folder / "scores.parquet")]
    child = subprocess.Popen([*command, *score])
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - start
    if status:
        raise SystemExit(f"score failed with status {status}")
    scored = pq.ParquetFile(folder / "scores.parquet").metadata.num_rows
    assert scored == rows, (scored, rows)
    print(
        f"{rows:,} rows of 6 columns ({big.stat().st_size / 1e6:,.0f} MB): peak "
        f"{usage.ru_maxrss / 2**20:.2f} GiB, {seconds:,.0f} s, {rows / seconds:,.0f} rows/s"
    )


def write(path: Path, rows: int) -> None:
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(6, 6))
    names = [f"c{i}" for i in range(6)]
    schema = pa.schema([(name, pa.float64()) for name in names])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, PIECE):
            x = generator.normal(size=(min(PIECE, rows - start), 6)) @ mixing
            writer.write_table(pa.table({name: x[:, i] for i, name in enumerate(names)}))


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    if len(sys.argv) > 2:
        main(count, Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(count, Path(temporary))
