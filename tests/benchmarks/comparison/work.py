"""Jobs that several processes may share: each takes what no other one is at."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

_POLL_SECONDS = 5.0


@dataclass(frozen=True)
class Job:
    """Something that is cheap to do again once it is done, since all its results are kept.

    Attributes:
        lock: jobs with the same one are never done at the same time; the system frees it when a process dies.
    """

    name: str
    lock: Path
    do: Callable[[], None]


def work_off(jobs: Sequence[Job]) -> None:
    """Does all of them, in this order where others leave it; returns when every job has been done by somebody."""
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
