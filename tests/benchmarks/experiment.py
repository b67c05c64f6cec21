"""The comparison of all methods on the mini base, and every table and figure of it:

    python tests/benchmarks/experiment.py --out DIR [--only PART ...] [--counts N ...] [--seeds S ...] [--results DIR]

The parts: `tuning` (step sizes of every method; before each part where they are missing), `main` (all systems at 8, 16,
32 and 48 concepts; three seeds at 16), `ablation`, `choices` (what that leaves open, on the concepts that decide step
sizes), `published` (the paper's algorithm without what is ours), `defaults` (of `train`), `subsets`, `others` (pictures
of other things), `order`, `rivals` (with single settings of SeqLoRA), `saturation`, `forecast`, `optimizer` (plain
gradient steps, with step sizes of their own), and `tables`, which writes what is there so far into DIR/tables, or into
the folder given with --results; any part ends with it.

A run that was stopped goes on with the same command: concepts that were trained and pictures that were scored are in
DIR and not made again.  Start the command several times to use several cores; each process takes what no other is at.
With `--from tests/benchmarks/results/archive.json` it goes on from the published results: only what they lack is made
(of the grids of pictures, nothing).
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402

from seqlora_core.cli.terminal import quiet_libraries  # noqa: E402
from seqlora_core.errors import UserError  # noqa: E402
from seqlora_core.model.base import load_base  # noqa: E402
from seqlora_core.monitor import Monitor  # noqa: E402
from seqlora_core.training.config import LAYER_PRESETS  # noqa: E402
from tests.benchmarks.comparison.archive import restore, write_archive  # noqa: E402
from tests.benchmarks.comparison.parts import (  # noqa: E402
    PARTS,
    Experiment,
    Part,
    Scope,
    choosing_jobs,
    deciding_jobs,
    fusion_tuning_jobs,
    walk_jobs,
)
from tests.benchmarks.comparison.recipes import LAYERS, PASSES, SYSTEMS  # noqa: E402
from tests.benchmarks.comparison.report import write_report  # noqa: E402
from tests.benchmarks.comparison.tuning import CONCEPTS  # noqa: E402
from tests.benchmarks.comparison.work import work_off  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", nargs="+", choices=["tuning", *PARTS, "tables"], default=list(PARTS), metavar="PART")
    parser.add_argument("--counts", type=int, nargs="+", default=[8, 16, 32, 48], metavar="N")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--systems", nargs="+", choices=[s.name for s in SYSTEMS], metavar="NAME", help="default: all")
    parser.add_argument("--passes", type=int, default=PASSES, help="forward-backward passes a concept")
    parser.add_argument(
        "--layers", choices=LAYER_PRESETS, default=LAYERS, help="that every method adapts (%(default)s)"
    )
    parser.add_argument("--tuning-concepts", type=int, default=len(CONCEPTS), metavar="N", help="that a trial learns")
    parser.add_argument("--threads", type=int, default=1, help="of this process")
    parser.add_argument("--from", type=Path, dest="archive", metavar="FILE", help="an archive.json to go on from")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where tables and figures go")
    args = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(args.threads)
    systems = [system for system in SYSTEMS if not args.systems or system.name in args.systems]
    scope = Scope(args.counts, args.seeds, args.passes, args.layers, args.tuning_concepts, systems)
    try:
        if args.archive:
            restore(args.archive, args.out)
        experiment = Experiment(load_base("mini", "cpu"), args.out, scope, Monitor())
    except UserError as error:
        parser.error(str(error))
    parts = [PARTS[name] for name in args.only if name in PARTS]
    for part in PARTS.values() if args.only == ["tuning"] else parts:
        _tune(experiment, part)
        if part in parts:
            work_off(part.jobs(experiment))
    results = args.results or args.out / "tables"
    write_report(experiment, results)
    write_archive(args.out, results / "archive.json")


def _tune(experiment: Experiment, part: Part) -> None:
    for jobs in (walk_jobs, deciding_jobs, choosing_jobs):
        work_off(jobs(experiment, part.needed(experiment.scope.systems)))
    if part.of_systems:
        work_off(fusion_tuning_jobs(experiment))


if __name__ == "__main__":
    main()
