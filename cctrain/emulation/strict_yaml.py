"""YAML files of others, read as strictly as JSON, which they may be as well: small, plain, each key once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from cctrain.untrusted import text_of

_MOST_BYTES = 64 << 10


class _Loader(yaml.SafeLoader):
    """YAML without what a list of numbers does not need: tags, aliases (a few lines of which unfold without end), a key
    given twice, and YAML 1.1's readings of `on`, `1:30`, `010` or `1e5`. Words and numbers are those of JSON."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own attribute

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(problem="no aliases and no tags are allowed", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is no word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"null$|$"), ["n", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:true|false)$"), ["t", "f"])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?$"), list("-0123456789")
)


def read_yaml(path: Path) -> Any:
    """The content of the file `path`. Raises OSError or ValueError for anything else."""
    try:
        return yaml.load(text_of(path, _MOST_BYTES), _Loader)
    except yaml.MarkedYAMLError as error:
        mark, is_ours = error.problem_mark, type(error) is yaml.MarkedYAMLError
        line = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{line}{'' if is_ours else 'this is neither YAML nor JSON: '}{error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError("it is neither YAML nor JSON") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
