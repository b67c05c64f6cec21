"""Everything that an experiment has measured, as one file, to continue from on another machine.

It holds the chosen learning rates and the results, not the banks and images, which are large.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from seqlora_core.errors import UserError
from seqlora_core.files import write_atomically

from .records import read_json, write_json

FACTS = "experiment.json"


def write_archive(out: Path, path: Path) -> None:
    """Gather the records of the experiment in folder `out`, one line per file, so that versions can be compared."""
    lines = [f"{json.dumps(name)}: {json.dumps(read_json(out / name), ensure_ascii=False)}" for name in _names(out)]
    write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def restore(archive: Path, out: Path) -> None:
    """Copy what `out` lacks into it.

    Raises:
        UserError: the archive does not exist, holds other settings than `out`, or names a file outside of it.
    """
    files = read_json(archive)
    if files is None:
        raise UserError(f"There is no file {archive}. Give the archive.json of an experiment.")
    found = read_json(out / FACTS)
    if found not in (None, files[FACTS]):
        raise UserError(
            f"{archive} holds an experiment with {files[FACTS]}, but {out} one with {found}. Give another folder."
        )
    for name, document in files.items():
        path = out.joinpath(*name.split("/"))
        if out.resolve() not in path.resolve().parents:
            raise UserError(f"{archive} names a file outside its experiment, {name}. Use an archive that you trust.")
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, document)


def _names(out: Path) -> Iterator[str]:
    for pattern in (FACTS, "tuning/*.json", "results/*/*.json"):
        yield from sorted(path.relative_to(out).as_posix() for path in out.glob(pattern))
