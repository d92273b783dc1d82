"""YAML that operators write, read strictly: where YAML would quietly take another meaning, it is refused.

A key twice is an error (YAML takes the last one), and numbers are what they look like: `0443` and
`52:54:00:12:34:56` stay texts (YAML 1.1 takes them for 291 and for seconds).
"""

import re
from pathlib import Path
from typing import Any

import yaml

from schemas.errors import UsageError

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
_INT_TAG, _MAP_TAG = "tag:yaml.org,2002:int", "tag:yaml.org,2002:map"


class _Strict(yaml.SafeLoader):
    """See the module."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise yaml.YAMLError(f"`{key.value}` is there twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value)
    loader.flatten_mapping(node)  # `<<`: what is merged in may be overridden
    return loader.construct_mapping(node, deep=True)


_Strict.yaml_implicit_resolvers = {
    first: [each for each in resolvers if each[0] != _INT_TAG]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Strict.add_implicit_resolver(_INT_TAG, _INTEGER, list("-+0123456789"))
_Strict.add_constructor(_MAP_TAG, _mapping)


def parse(text: str, source: str) -> Any:
    """The plain values in a text. Raises :class:`UsageError` that begins with ``source``."""
    try:
        return yaml.load(text, _Strict)
    except yaml.YAMLError as error:
        raise UsageError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UsageError(f"{source} is not valid YAML: nested too deeply") from None


def read(file: str | Path) -> Any:
    """The plain values in a file; None if it is empty. Raises :class:`UsageError`."""
    try:
        text = Path(file).read_text()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"cannot read {file}: not UTF-8 text") from None
    return parse(text, str(file))
