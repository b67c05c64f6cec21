"""The long form of all attacks, in one command: crashes, faults of the disk, processes side by side, damaged inputs.

    python tests/attack.py [--count 5000] [--seed 0]

Everything that is neither a right result nor one sentence for the user ends it with an error.  Kills, faults and
readers are a tenth of the count each.
"""

import argparse
import collections
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import bank_attack
import damaged_images
import tensor_file_attack
import torch


def main() -> None:
    """Run all parts and print their counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    count, seed = arguments.count, arguments.seed
    torch.set_num_threads(1)
    for name, part in bank_attack.PARTS.items():
        own = count if name in ("manifests", "checkpoints") else count // 10
        _report(name, own, collections.Counter(part(own, seed)))
    files = tensor_file_attack.attack(count, seed, tensor_file_attack.checkpoint())
    _report("tensor files", count, collections.Counter(files))
    with tempfile.TemporaryDirectory() as folder:
        results, slowest = damaged_images.read_damaged(Path(folder), count, seed)
    _report("images", count, results)
    print(f"slowest image: {slowest:.1f} s")


def _report(name: str, count: int, results: collections.Counter) -> None:
    print(f"{name}: {count}, no fault; " + ", ".join(f"{what} {n}" for what, n in sorted(results.items())), flush=True)


if __name__ == "__main__":
    main()
