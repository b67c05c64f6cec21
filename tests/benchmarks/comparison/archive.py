"""All that an experiment has measured as one file, for going on from it on another machine.

Kept are the choices of step sizes and the results; not the banks and pictures, which are large.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from seqlora_core.errors import UserError
from seqlora_core.files import write_atomically

from .runs import read_json, write_json

FACTS = "experiment.json"


def write_archive(out: Path, path: Path) -> None:
    """Gathers what is in the folder `out` of an experiment, one line a file, so that two versions can be compared."""
    lines = [f"{json.dumps(name)}: {json.dumps(read_json(out / name), ensure_ascii=False)}" for name in _names(out)]
    write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def restore(archive: Path, out: Path) -> None:
    """Puts into `out` what it lacks.

    Raises:
        UserError: the archive is of other settings than what is in `out`.
    """
    files = read_json(archive)
    if files is None:
        raise UserError(f"There is no file {archive}: give one that an experiment wrote, archive.json.")
    found = read_json(out / FACTS)
    if found not in (None, files[FACTS]):
        raise UserError(f"{archive} holds an experiment with {files[FACTS]}, {out} one with {found}.")
    for name, document in files.items():
        path = out.joinpath(*name.split("/"))
        if out.resolve() not in path.resolve().parents:
            raise UserError(f"{archive} names a file outside its experiment, {name}.")
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, document)


def _names(out: Path) -> Iterator[str]:
    for pattern in (FACTS, "tuning/*.json", "results/*/*.json"):
        yield from sorted(path.relative_to(out).as_posix() for path in out.glob(pattern))
