"""Chat templates: conversations as text, by jinja2 in its sandbox."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import jinja2
import jinja2.sandbox

from specc.runtime.errors import RunError
from specc.spec.errors import Diagnostic
from specc.spec.spec import Spec

Messages = Sequence[Mapping[str, str]]
HINT = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}, say"
EXAMPLE: Messages = ({"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"})


def template_mistakes(spec: Spec) -> Iterator[Diagnostic]:
    """Templates of stages with chats that cannot be read; none is run, which may take for ever."""
    for name, stage in spec.stages.items():
        if not stage.has_chats:
            continue
        try:
            _read(stage.template)
        except RunError as e:
            yield Diagnostic("S103", str(e), spec.mark(("stages", name, "template")), HINT)


def check_template(template: str) -> None:
    """Raises RunError for one that leaves out what the assistant says."""
    try:
        text = render(template, EXAMPLE)
    except RunError:
        return  # its word on this conversation, maybe
    if EXAMPLE[1]["content"] not in text:
        raise RunError(f"the chat template does not write what the assistant says; {HINT}")


@lru_cache(16)
def _compiled(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        keep_trailing_newline=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def refuse(message: object) -> None:
        raise jinja2.TemplateError(str(message))

    environment.globals["raise_exception"] = refuse
    return environment.from_string(template)


def _read(template: str) -> jinja2.Template:
    try:
        return _compiled(template)
    except jinja2.TemplateSyntaxError as e:
        raise RunError(f"the chat template does not parse: {e.message} (line {e.lineno})") from None
    except (RecursionError, MemoryError):
        raise RunError("the chat template does not parse: it goes too deep") from None


def render(template: str, messages: Messages, ask: bool = False) -> str:
    """A conversation as text by its jinja2 template; with `ask` the answer's head follows."""
    read = _read(template)
    try:
        text = read.render(messages=list(messages), add_generation_prompt=ask)
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as e:
        raise RunError(f"the chat template fails: {e}") from None
    except (RecursionError, MemoryError):
        raise RunError("the chat template fails: it goes too deep or makes too much") from None
    return str(text)
