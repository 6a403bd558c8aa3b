"""Turn the site's equations into MathML, which browsers show without a script."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

# What pymdownx.arithmatex makes of equations, with the delimiters of LaTeX inside.
_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)


def on_page_content(text: str, **kwargs: Any) -> str:
    r"""Replace the equations of a page.

    Example:
        >>> on_page_content(r'<span class="arithmatex">\(x &lt; 1\)</span>').partition("<mrow>")[2]
        '<mi>x</mi><mo>&#x0003C;</mo><mn>1</mn></mrow></math></span>'
    """
    return _EQUATION.sub(_to_mathml, text)


def _to_mathml(match: re.Match[str]) -> str:
    tag, equation = match[1], html.unescape(match[2]).strip()
    equation = equation.replace("{aligned}", "{split}")  # which latex2mathml knows
    display = "block" if tag == "div" else "inline"
    mathml = convert(equation, display=display)
    # A closing bar that has an exponent stretches downwards alone.
    mathml = mathml.replace("<mo>&#x02016;", '<mo stretchy="false">&#x02016;')
    return f'<{tag} class="arithmatex">{mathml}</{tag}>'
