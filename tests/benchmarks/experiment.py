"""The comparison of all methods on the mini base, and every table and figure of it:

    python tests/benchmarks/experiment.py --out DIR [--only SECTION ...] [--counts N ...] [--seeds S ...]

The sections: `tuning` (learning rates of every method; before each section that needs them), `main` (all systems at 8,
16, 32 and 48 concepts; three seeds at 16), `ablation`, `choices` (what that leaves open, on the concepts that decide
learning rates), `published` (the paper's algorithm without our additions), `defaults` (of `train`), `subsets`, `others`
(images of other things), `order`, `rivals` (with single settings of SeqLoRA), `saturation`, `forecast`, `optimizer`
(plain gradient steps, with learning rates of their own), and `tables`, which writes the results so far to DIR/tables,
or to the folder given with --results; every section ends with it.

A run that was stopped continues with the same command: trained concepts and scores are stored in DIR and not made
again.  Start the command several times to use several cores; each process takes jobs that no other is working on.
With `--from tests/benchmarks/results/archive.json` it continues from the published results: only what they lack is
made (the grids of images are not).
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
from tests.benchmarks.comparison.job_queue import run_jobs  # noqa: E402
from tests.benchmarks.comparison.recipes import LAYERS, PASSES, SYSTEMS  # noqa: E402
from tests.benchmarks.comparison.report import write_report  # noqa: E402
from tests.benchmarks.comparison.sections import (  # noqa: E402
    SECTIONS,
    Experiment,
    ExperimentSection,
    Scope,
    choosing_jobs,
    deciding_jobs,
    fusion_tuning_jobs,
    walk_jobs,
)
from tests.benchmarks.comparison.tuning import CONCEPTS  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    sections = ["tuning", *SECTIONS, "tables"]
    parser.add_argument("--only", nargs="+", choices=sections, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--counts", type=int, nargs="+", default=[8, 16, 32, 48], metavar="N")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--systems", nargs="+", choices=[s.name for s in SYSTEMS], metavar="NAME", help="default: all")
    parser.add_argument("--passes", type=int, default=PASSES, help="forward-backward passes per concept (%(default)s)")
    parser.add_argument(
        "--layers", choices=LAYER_PRESETS, default=LAYERS, help="layers that every method adapts (%(default)s)"
    )
    parser.add_argument("--tuning-concepts", type=int, default=len(CONCEPTS), metavar="N", help="concepts per trial")
    parser.add_argument("--threads", type=int, default=1, help="threads of this process (%(default)s)")
    parser.add_argument("--from", type=Path, dest="archive", metavar="FILE", help="an archive.json to continue from")
    parser.add_argument("--results", type=Path, metavar="DIR", help="folder for tables and charts")
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
    asked = [SECTIONS[name] for name in args.only if name in SECTIONS]
    for section in SECTIONS.values() if args.only == ["tuning"] else asked:
        _tune(experiment, section)
        if section in asked:
            run_jobs(section.jobs(experiment))
    results = args.results or args.out / "tables"
    write_report(experiment, results)
    write_archive(args.out, results / "archive.json")


def _tune(experiment: Experiment, section: ExperimentSection) -> None:
    for jobs in (walk_jobs, deciding_jobs, choosing_jobs):
        run_jobs(jobs(experiment, section.needed(experiment.scope.systems)))
    if section.of_systems:
        run_jobs(fusion_tuning_jobs(experiment))


if __name__ == "__main__":
    main()
