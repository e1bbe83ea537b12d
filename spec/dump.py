"""Plain data as YAML that spec/yaml.py reads back unchanged: a text that looks like a number is quoted."""

from __future__ import annotations

import re
from typing import Any

import yaml

from specc.spec.yaml import FLOAT, INT, NOT_FINITE, WORDS


class _Dumper(yaml.SafeDumper):
    """PyYAML writes for YAML 1.1; specc reads the scalars of 1.2."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_other = text in WORDS or text == "<<" or any(p.fullmatch(text) for p in (INT, FLOAT, NOT_FINITE))
    quoted = is_other or not text.isprintable()
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if quoted else None)


def _float(dumper: yaml.SafeDumper, number: float) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:float", repr(number))


_Dumper.add_representer(str, _text)
_Dumper.add_representer(float, _float)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"(?:{FLOAT.pattern})$"), list("-+.0123456789"))


def dump(data: Any) -> str:
    """The leaves stand on one line each."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True, default_flow_style=None))
