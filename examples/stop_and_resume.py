"""Trains once without a stop, and once with stops, each time on another number of workers; compares
what both trained on, sample by sample.

    make train
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

TRAIN = Path(__file__).with_name("train.py")
WAYS = {
    "without a stop": [("--workers", "2")],
    "with stops": [
        ("--workers", "2", "--stop-after", "27"),
        ("--workers", "0", "--stop-after", "61"),
        ("--workers", "3"),
    ],
}


def main(arguments: list[str]) -> int:
    orders = []
    with tempfile.TemporaryDirectory() as folder:
        for name, runs in WAYS.items():
            run_folder = Path(folder) / name.replace(" ", "-")
            for run in runs:
                print(f"\n{name}: {' '.join(run)}", flush=True)
                command = [
                    sys.executable,
                    str(TRAIN),
                    "--folder",
                    str(run_folder),
                    *run,
                    *arguments,
                ]
                subprocess.run(command, check=True)
            orders.append((run_folder / "order.txt").read_text().splitlines())
    one, other = orders
    samples = sum(len(line.split("\t")) for line in one)
    if one != other:
        step = next(i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
        print(f"\nthe orders differ from step {step} on")
        return 1
    print(f"\nboth trained on the same {samples:,} samples in the same order, in {len(one)} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
