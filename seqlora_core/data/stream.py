"""A list of concepts to learn one after another: a JSON or YAML file with one entry per concept."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

from ..errors import UserError, first_line
from .formats import read_regular, shown
from .listing import counted

MAX_STREAM = 2**24  # bytes; an entry has some hundred
_MAX_PROMPTS = 2**20  # bytes
_PATHS = ("images", "prior_images", "prompts")
# CustomConcept101 (Kumari et al., 2023) names these differently in its dataset.json, and has two more.
_PUBLISHED = {"instance_data_dir": "images", "class_prompt": "class_word", "prompt_filename": "prompts"}
_LEFT_OUT = ("instance_prompt", "class_data_dir")


@dataclass(frozen=True)
class Entry:
    """One entry of a list.

    Attributes:
        place: its number in the list, from 1.
        values: what the entry says, by the names of `train`'s options, with underscores; paths are absolute or start
            from the list's folder.
    """

    place: int
    values: Mapping[str, object]

    @property
    def name(self) -> str:
        """The name of the concept."""
        return str(self.values["name"])

    @property
    def images(self) -> Path:
        """The folder of its images."""
        return Path(str(self.values["images"]))

    def __str__(self) -> str:
        return f"Entry {self.place} ({shown(self.name)})"


@dataclass(frozen=True)
class Stream(Sequence[Entry]):
    """The entries of a list, with sentences about what is not used of it."""

    path: Path
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index):
        return self.entries[index]

    def find(self, name: str) -> Entry:
        """The entry of a concept.

        Raises:
            UserError: there is none.
        """
        for entry in self.entries:
            if entry.name.strip() == name:
                return entry
        raise UserError(f"The list {shown(self.path)} has no entry for the concept {name!r}: add one.")


def read_stream(path: Path | str, count: int | None = None) -> Stream:
    """Read a list of entries, each a mapping of names of `train`'s options, with - or _, to values.

    The `dataset.json` of CustomConcept101 is such a list, too: the folder of an entry's images gives its name.

    Args:
        count: how many entries to keep, from the first; None keeps all.

    Raises:
        UserError: the file cannot be read, or an entry lacks its name or images.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no list {shown(path)}: give a JSON or YAML file with one entry per concept.")
    content = _parse(read_regular(path, MAX_STREAM, "list"), path)
    if not isinstance(content, list) or not content:
        raise UserError(f"The list {shown(path)} is empty or no list: write [entry, entry, ...], one per concept.")
    if count is not None and count > len(content):
        raise UserError(f"The list {shown(path)} has {counted(len(content), 'concept')}, not {count}: ask for fewer.")
    entries = tuple(_entry(place, values, path) for place, values in enumerate(content[:count], start=1))
    unused = [key for key in _LEFT_OUT if any(key in values for values in content[:count])]
    notes = [f"{' and '.join(unused)} of {shown(path)} are not used."] if unused else []
    return Stream(path, entries, tuple(notes))


def _parse(content: bytes, path: Path) -> object:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"The list {shown(path)} is no UTF-8 text: save it as UTF-8.") from error
    try:
        if path.suffix.lower() not in (".yaml", ".yml"):
            return json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise UserError(f"The list {shown(path)} is not valid JSON ({first_line(error)}): correct it.") from error
    try:
        import yaml
    except ImportError as error:
        raise UserError(
            f"The list {shown(path)} is YAML, which needs a package: python -m pip install pyyaml, or write it as JSON."
        ) from error
    try:
        return yaml.load(text, _loader(yaml))
    except (yaml.YAMLError, RecursionError, ValueError, AttributeError) as error:  # the last two: tags like !!int x
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The list {shown(path)} is not valid YAML ({reason}): correct it.") from error


def _loader(yaml: ModuleType) -> type:
    """A safe loader of YAML that refuses a key given twice, and leaves numbers and dates as they are written.

    YAML reads a name like 010 as 8, and 12:30 as 750; options take numbers as texts anyway.
    """
    as_written = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp")}

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: ClassVar = {
            first: [(tag, pattern) for tag, pattern in resolvers if tag not in as_written]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def compose_mapping_node(self, anchor: object) -> object:
            node = super().compose_mapping_node(anchor)
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if repeated := _repeated(keys):
                raise yaml.YAMLError(f"{repeated!r} stands twice in an entry")
            return node

    return Loader


def _repeated(keys: Sequence[str]) -> str | None:
    return next((key for key in keys if keys.count(key) > 1), None)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"{_repeated([key for key, _ in pairs])!r} stands twice in an entry")
    return values


def _entry(place: int, content: object, path: Path) -> Entry:
    if not isinstance(content, dict):
        raise UserError(f"Entry {place} of {shown(path)} must have settings by name, not {str(content)[:60]!r}.")
    if repeated := _repeated([_key(key) for key in content]):
        raise UserError(f"Entry {place} of {shown(path)} has {repeated} under two names: take one of them out.")
    values = {_key(key): value for key, value in content.items() if key not in _LEFT_OUT}
    if "instance_data_dir" in content:
        values.setdefault("name", Path(str(values["images"])).name)
    paths = [key for key in _PATHS if values.get(key) is not None]
    for key in ("name", "images", *paths):
        value = values.get(key)
        if isinstance(value, bool) or not isinstance(value, (str, int, type(None))):
            raise UserError(f"The {key} of entry {place} of {shown(path)} is no text: put it into quotes.")
        if value is None or not str(value).strip():
            raise UserError(f"Entry {place} of {shown(path)} has no {key}: give it one.")
    values |= {key: str(path.parent / str(values[key])) for key in paths}
    return Entry(place, values)


def _key(key: object) -> str:
    return _PUBLISHED.get(str(key), str(key).replace("-", "_"))


def read_prompts(path: Path | str, class_word: str = "") -> tuple[str, ...]:
    """Read a file of prompts as CustomConcept101 publishes them: one per line, with {} in the place of the concept.

    Args:
        class_word: what stands for {} in prompts without it (one of the published files spells the class out).

    Raises:
        UserError: the file cannot be read, or a prompt has another place than one {}.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file of prompts {shown(path)}: give a text file with one prompt per line.")
    try:
        lines = read_regular(path, _MAX_PROMPTS, "file of prompts").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"The file of prompts {shown(path)} is not readable text: save it as UTF-8.") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not (prompt := line.strip()):
            continue
        if "{" not in prompt and class_word and class_word in prompt:
            prompt = prompt.replace(class_word, "{}", 1)
        rest = prompt.replace("{}", "", 1)
        if len(rest) == len(prompt) or "{" in rest or "}" in rest:
            raise UserError(f"Line {number} of {shown(path)} needs {{}} once, where the concept goes: {prompt[:60]!r}.")
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"The file of prompts {shown(path)} is empty: write one prompt per line.")
    return tuple(prompts)
