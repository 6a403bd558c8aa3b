"""Turn the docstrings' reStructuredText, which ``help`` shows well, into the site's Markdown."""

import inspect
import re
import textwrap
from typing import Any

from griffe import Extension, Object, dynamic_import


class DocstringMarkup(Extension):
    """Rewrite the docstring of each object that is rendered."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite one docstring, once griffe has read it and before it is parsed."""
        if obj.docstring is not None:
            if obj.is_class and getattr(obj, "decorators", None):  # which complete docstrings
                obj.docstring.value = inspect.getdoc(dynamic_import(obj.path)) or ""
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Rewrite equations, roles, literals, literal blocks and the heading of examples.

    Example:
        >>> to_markdown("The mean of :math:`s`, see :func:`~package.module.norm`.")
        'The mean of $s$, see `norm`.'
    """
    text = re.sub(
        r"^([ ]*)\.\. math::[ ]*\n((?:\1[ ]+.*\n?|[ ]*\n)+)", _equation, text, flags=re.MULTILINE
    )
    # griffe takes the singular for an admonition, whose prompts Markdown takes for quotes.
    text = re.sub(r"^([ ]*)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
    text = re.sub(r":math:`([^`]+)`", lambda match: f"${' '.join(match[1].split())}$", text)
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    return re.sub(
        r"^([ ]*)(\S.*)::\n\n((?:\1[ ]+.*\n?|[ ]*\n?)+)", _literal_block, text, flags=re.MULTILINE
    )


def _equation(match: re.Match[str]) -> str:
    indent, body = match[1], textwrap.dedent(match[2]).strip()
    if "&" in body or "\\\\" in body:
        body = f"\\begin{{aligned}}\n{body}\n\\end{{aligned}}"
    return textwrap.indent(f"$$\n{body}\n$$\n\n", indent)


def _literal_block(match: re.Match[str]) -> str:
    indent, body = match[1], textwrap.dedent(match[3]).strip("\n")
    block = textwrap.indent(f"```python\n{body}\n```\n", indent)
    return f"{indent}{match[2]}:\n\n{block}"
