"""Time ``import contraflow`` against ``import torch``, alternating, each in a process of its own.

Run: python benchmarks/import_time.py [repetitions]
"""

import statistics
import subprocess
import sys
import time


def seconds(module: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


def main(repetitions: int = 9) -> None:
    for module in ("torch", "contraflow"):
        seconds(module)  # fill the file cache
    pairs = [(seconds("torch"), seconds("contraflow")) for _ in range(repetitions)]
    torch_seconds, our_seconds = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(ours / theirs for theirs, ours in pairs)
    print(f"import torch {torch_seconds:.2f} s, import contraflow {our_seconds:.2f} s")
    print(f"median ratio of {repetitions} pairs: {ratio:.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
