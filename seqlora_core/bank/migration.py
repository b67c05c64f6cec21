"""Records of earlier formats, brought to today's.  Plain data in and out, as `bank.json` and checkpoints hold it.

The tables are frozen: they say what version 0.1.0 of this program computed when a setting was left open, whatever
today's defaults are.
"""

from collections.abc import Mapping

_DEFAULTS_OF_0_1_0 = {
    "method": "seqlora",
    "hypergradient": "lookahead",
    "optimizer": "adam",
    "lr_coefficients": 1e-3,
    "lr_basis": 1e-3,
    "rank": 4,
    "steps": 800,
    "batch_size": 1,
    "accumulation": 1,
    "bilevel_iterations": 1,
    "inner_steps": 1,
    "lower_step": None,
    "ridge": None,
    "interference_penalty": None,
    "average": None,
    "clip": 1.0,
    "init": None,
    "coordinates": None,
    "layers": "cross-kv",
    "train_on": None,
    "column_sampling": "without-replacement",
    "prior_weight": 1.0,
    "resolution": 512,
    "crop": "center",
    "flip": False,
    "dtype": "float32",
    "gradient_checkpointing": False,
    "seed": 0,
}
_PLAIN = {"ridge": 1e-4, "interference_penalty": 0.0, "average": 0.0, "init": "random", "coordinates": "plain"}
_METHODS_OF_0_1_0 = {
    "seqlora": {
        "ridge": 0.0,
        "interference_penalty": 0.01,
        "average": 0.5,
        "init": "contrastive",
        "coordinates": "contrastive",
        "train_on": "alternate",
    },
    "alternating": {**_PLAIN, "train_on": "accumulated"},
    "orthogonal": {**_PLAIN, "train_on": "bare"},
    "inflora": {**_PLAIN, "train_on": "accumulated"},
    "lora": {**_PLAIN, "train_on": "bare"},
}
_NAMES_OF_0_1_0 = {
    "alpha": "lr_coefficients",
    "beta": "lr_basis",
    "crosstalk": "interference_penalty",
    "draw": "column_sampling",
}
_VALUES_OF_0_1_0 = {
    ("train_on", "subsets"): "alternate",
    ("lower_step", "kept"): "reuse",
    ("lower_step", "again"): "repeat",
}
_IMPORT_METRICS = {"kept": "remaining", "least_kept": "least_remaining"}


def requested_settings(config: Mapping[str, object]) -> dict:
    """The settings of a version 1 record under today's names, what was left open as None."""
    renamed = {_NAMES_OF_0_1_0.get(name, name): value for name, value in config.items()}
    renamed = {name: None if value == "auto" else value for name, value in renamed.items()}
    known = {name: value for name, value in renamed.items() if name in _DEFAULTS_OF_0_1_0}
    return {
        name: _VALUES_OF_0_1_0.get((name, value), value) if isinstance(value, str) else value
        for name, value in known.items()
    }


def resolved_settings(config: Mapping[str, object]) -> dict:
    """What version 0.1.0 computed for the settings of a version 1 record; empty for a concept that was not trained."""
    if not config:
        return {}
    requested = {**_DEFAULTS_OF_0_1_0, **requested_settings(config)}
    defaults = {
        "lower_step": "reuse" if requested["hypergradient"] == "lookahead" else "repeat",
        **_METHODS_OF_0_1_0.get(requested["method"], {}),
    }
    return {name: defaults.get(name) if value is None else value for name, value in requested.items()}


def concept_from_version_1(values: Mapping[str, object]) -> dict:
    """A concept's record of version 1 as one of version 2."""
    record = {name: value for name, value in values.items() if name not in ("config", "metrics")}
    config, metrics = dict(values.get("config") or {}), dict(values.get("metrics") or {})
    record["settings"], record["requested"] = resolved_settings(config), requested_settings(config)
    record["provenance"] = {
        "data": metrics.pop("data", ""),
        "source": metrics.pop("source", ""),
        "sha256": metrics.pop("sha256", ""),
        "projected": metrics.pop("projected", False),
    }
    record["metrics"] = {_IMPORT_METRICS.get(name, name): value for name, value in metrics.items()}
    return record
