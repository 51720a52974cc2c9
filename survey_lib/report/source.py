"""The source of a method, coloured, as it stands in the library."""

import html
import inspect
import textwrap

from IPython.display import HTML
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

BOX = "background:#F8F8F8;color:#1A1A1A;padding:8px 12px;margin:0;line-height:1.35;"
BOX += "white-space:pre;overflow-x:auto"


def show_source(*functions) -> HTML:
    """The source code of `functions`, one after the other; readable on light and dark pages."""
    return HTML("\n".join(_listing(function) for function in functions))


def _listing(function) -> str:
    function = inspect.unwrap(function)
    code = textwrap.dedent(inspect.getsource(function))
    spans = highlight(code, PythonLexer(), HtmlFormatter(noclasses=True, nowrap=True))
    where = html.escape(f"{function.__module__}.{function.__qualname__}")
    return (
        f'<div style="margin:8px 0px"><div style="font-size:85%"><code>{where}</code></div>'
        f'<pre style="{BOX}">{spans}</pre></div>'
    )
