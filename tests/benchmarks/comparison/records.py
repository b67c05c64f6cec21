"""The experiment's files: results, choices of learning rates, and what a run keeps.

Records of version 0.1.0 hold the settings of a training run as they were requested, under "config", and learning rates
as "alpha" and "beta".  `read_record` is the one place that knows this.
"""

import json
from pathlib import Path

from seqlora_core.bank.migration import requested_settings, resolved_settings
from seqlora_core.files import write_atomically


def read_json(path: Path) -> dict | None:
    """Read what `write_json` wrote; None if there is no such file."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def write_json(path: Path, document: dict) -> None:
    """Write a file at one instant, so that an interruption never leaves half of it."""
    write_atomically(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


def read_record(path: Path) -> dict | None:
    """Read a result or a choice of learning rates, of any version, under today's names; None if there is no file."""
    record = read_json(path)
    return None if record is None else _today(record)


def _today(record: dict) -> dict:
    if "config" in record:  # a result: what its training runs were asked for
        kept = {name: value for name, value in record.items() if name not in ("config", "method")}
        return {**kept, "settings": resolved_settings(record["config"])}
    if "trials" in record:  # a choice
        pairs = {name: [_renamed(pair) for pair in record[name]] for name in ("trials", "finals") if name in record}
        return {**_renamed(record), **pairs}
    return record


def _renamed(pair: dict) -> dict:
    """A pair of learning rates under today's names, with whatever else is recorded of it."""
    others = {name: value for name, value in pair.items() if name not in ("alpha", "beta")}
    return {**requested_settings(pair), **others}
