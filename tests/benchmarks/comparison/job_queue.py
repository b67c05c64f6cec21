"""Jobs that several processes share: each takes one that no other process is working on."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

_POLL_SECONDS = 5.0


@dataclass(frozen=True)
class Job:
    """A piece of work whose results are all stored, so that doing it a second time costs little.

    Attributes:
        lock: jobs with the same lock file never run at the same time; the system frees it when a process dies.
    """

    name: str
    lock: Path
    do: Callable[[], None]


def run_jobs(jobs: Sequence[Job]) -> None:
    """Run all jobs, in this order except for those that are locked; return when each was done by some process."""
    pending = list(jobs)
    while pending:
        left = [job for job in pending if not _try(job)]
        if len(left) == len(pending):
            time.sleep(_POLL_SECONDS)
        pending = left


def _try(job: Job) -> bool:
    job.lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(job.lock, timeout=0):
            job.do()
    except Timeout:
        return False
    return True
