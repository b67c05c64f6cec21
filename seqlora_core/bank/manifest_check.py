"""Checks of the plain data in `bank.json`, which may come from anywhere, before it becomes records.

Raises ValueError throughout, with what is wrong; the caller names the file.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from ..errors import UserError
from . import names

MAX_WIDTH = 2**16  # of a layer; SD1.5 has up to 1280
MAX_RANK = 4096
_MAX_LAYERS = 4096
_MAX_TEXT = 10_000  # characters
_MAX_DEPTH = 5  # of settings and metrics, which hold numbers, texts, and flat lists and tables of them
_MAX_NUMBER = 2**63
_TEXTS = ("name", "token", "class_word", "method", "file", "sha256", "created")
_FOLDERS = {"file": "concepts", "thumbnail": "thumbnails", "embedding": "embeddings"}
_PROVENANCE = {"data": str, "source": str, "sha256": str, "projected": bool}
# Metrics that are printed; a report must not fail on them.
_NUMBERS = ("first_loss", "final_loss", "steps", "passes", "seconds", "images", "remaining", "least_remaining")
_CURVES = ("loss_curve", "word_loss_curve", "held_out_curve", "held_out_steps")
_METRICS = {**dict.fromkeys((*_NUMBERS, "held_out_loss", "share", "uncounted", "partly"), (int, float, type(None)))}
_METRICS |= {**dict.fromkeys(_CURVES, list), "left_out": dict, "alpha_known": bool, "device": str}


def check_document(document: Mapping[str, object]) -> None:
    """Check the types and ranges of all that is read from a manifest of the current version."""
    base, layers, concepts = document["base"], document["layers"], document["concepts"]
    _check_type("id", document["id"], str)
    _check_number("generation", document["generation"], 0, _MAX_NUMBER)
    _check_type("base", base, dict)
    for part in ("name", "fingerprint"):
        _check_type(f"the base's {part}", base[part], str)
    _check_type("text_encoder", document.get("text_encoder", ""), str)
    _check_type("layers", layers, dict)
    if len(layers) > _MAX_LAYERS:
        raise ValueError(f"it has {len(layers)} layers")
    for name, shape in layers.items():
        _check_type(f"the layer {name[:100]!r}", shape, dict)
        for part in ("width", "out"):
            _check_number(f"the {part} of the layer {name[:100]!r}", shape[part], 1, MAX_WIDTH)
    _check_type("concepts", concepts, list)
    for index, values in enumerate(concepts):
        _check_type(f"concept {index + 1}", values, dict)
        try:
            _check_concept(values)
        except (ValueError, UserError) as error:
            raise ValueError(f"concept {index + 1}: {str(error).rstrip('.')}") from error


def check_unique(concepts: Sequence[object]) -> None:
    """Check that no two concepts have one name, id or file; earlier versions allowed names that look alike."""
    for what, values in {
        "name": [concept.name.strip().casefold() for concept in concepts],
        "id": [concept.id for concept in concepts],
        "file": [file.casefold() for concept in concepts for file in concept.files],
    }.items():
        repeated = next((value for value in values if values.count(value) > 1), None) if _repeats(values) else None
        if repeated is not None:
            raise ValueError(f"two concepts have the {what} {repeated[:100]!r}")


def _repeats(values: Sequence[str]) -> bool:
    return len(set(values)) < len(values)


def _check_concept(values: Mapping[str, object]) -> None:
    for name in _TEXTS:
        _check_type(name, values[name], str)
    names.check_name(values["name"])
    for name in ("token", "class_word"):
        names.check_word(values[name], name.replace("_", " "))
    _check_type("id", values.get("id", ""), str)
    _check_number("rank", values["rank"], 1, MAX_RANK)
    for name in ("thumbnail", "embedding", "embedding_sha256"):
        _check_type(name, values.get(name, ""), str)
    for name, folder in _FOLDERS.items():
        if name == "file" or values.get(name):
            _check_relative(values[name], folder)
    skipped = values.get("layers_skipped", ())
    if not isinstance(skipped, (list, tuple)) or not all(isinstance(layer, str) for layer in skipped):
        raise ValueError("layers_skipped is no list of names")
    for name in ("provenance", "settings", "requested", "metrics"):
        _check_type(name, values.get(name, {}), dict)
        _check_depth(name, values.get(name, {}))
    for name, value in values.get("provenance", {}).items():
        if name in _PROVENANCE:
            _check_type(name, value, _PROVENANCE[name])
    _check_metrics(values.get("metrics", {}))


def _check_metrics(metrics: Mapping[str, object]) -> None:
    for name, value in metrics.items():
        if name in _METRICS:
            _check_type(name, value, _METRICS[name])
    numbers = [number for curve in _CURVES for number in metrics.get(curve, ())]
    numbers += metrics.get("left_out", {}).values()
    if not {*map(type, numbers)} <= {int, float}:  # a bank of a thousand concepts has 200,000 of them
        raise ValueError(f"{', '.join(_CURVES)} or left_out does not hold numbers")


def _check_relative(relative: str, folder: str) -> None:
    """What a manifest names must lie in its own folder."""
    parts = PurePosixPath(relative).parts
    inside = len(parts) == 2 and relative == "/".join(parts) and parts[0] == folder and ".." not in parts
    if not inside or set("\\:") & set(relative):
        raise ValueError(f"names a file outside its folder, {relative[:100]!r}")
    names.check_file_name(parts[1], "file's name")


def _check_type(what: str, value: object, kind: type | tuple[type, ...]) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{what} is {str(value)[:40]!r}")
    if isinstance(value, str) and len(value) > _MAX_TEXT:
        raise ValueError(f"{what} has {len(value)} characters")


def _check_number(what: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{what} is {str(value)[:40]!r}")


_HARMLESS = (float, str, bool, type(None))  # most of what a manifest holds


def _check_depth(what: str, value: object, depth: int = 0) -> None:
    if isinstance(value, (dict, list)):
        if value and depth == _MAX_DEPTH:
            raise ValueError(f"{what} is nested too deeply")
        for item in value.values() if isinstance(value, dict) else value:
            if type(item) not in _HARMLESS:
                _check_depth(what, item, depth + 1)
    elif type(value) is int and abs(value) >= _MAX_NUMBER:
        raise ValueError(f"{what} holds the number {str(value)[:40]}")
