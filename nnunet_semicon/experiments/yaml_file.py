"""Reads YAML as sweep files need it."""

import re
from pathlib import Path
from typing import Any

import yaml

from nnunet_semicon.errors import UserError, nearest


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key stands once, 027 is the number 27, as everywhere in nnU-Net (YAML 1.1: octal).

    1e-3 is a number too, as in YAML 1.2 (YAML 1.1: a text), and a date is a text.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is there twice", key.start_mark)
            seen.add(key.value if isinstance(key.value, str) else id(key))
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> Any:
        leading_zeros = re.fullmatch(r"0[0-9]+", node.value)
        return int(node.value) if leading_zeros else self.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_str)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+"), list("-+.0123456789")
)


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        UserError: it does not exist, cannot be read or is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{path} does not exist{nearest(path.name, there)}; expected a sweep file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): expected a sweep file, a text in YAML") from None
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{path}{line} is not YAML ({problem}): correct it") from None
