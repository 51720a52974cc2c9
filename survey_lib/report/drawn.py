"""Figures that are drawn once: kept under OUT/drawn, read from there while nothing has changed."""

import base64
import re
from collections.abc import Callable
from functools import wraps
from inspect import signature
from pathlib import Path

import matplotlib
import PIL
from IPython.display import HTML

from survey_lib.errors import DataError
from survey_lib.evidence.store import Store, canonical, read_sealed, write_atomic, write_sealed

LIBRARIES = {"matplotlib": matplotlib.__version__, "pillow": PIL.__version__}
PNG = re.compile(r'src="data:image/png;base64,([A-Za-z0-9+/=]+)"')


def drawn(draw: Callable[..., HTML]) -> Callable[..., HTML]:
    """`draw(..., name=, out=)`, which makes a figure of its arguments alone: drawn anew where an
    argument, its source or a library is another than last time; without `out`, always."""

    @wraps(draw)
    def drawing(*args, **how):
        given = dict(signature(draw).bind(*args, **how).arguments)
        out, name = given.pop("out", None), given["name"]
        try:
            key = Store.key({"draw": canonical(draw), "given": canonical(given), **LIBRARIES})
        except TypeError:  # an argument that cannot be told from others
            out = None
        if out is None:
            return draw(*args, **how)
        path = Path(out) / "drawn" / f"{name}.html"
        try:
            last, _, page = read_sealed(path).partition("\n")
        except (FileNotFoundError, DataError):
            last = None
        if last == key:
            png = base64.b64decode(PNG.search(page)[1])
            write_atomic(Path(out) / "figures" / f"{name}.png", png)
            return HTML(page)
        figure = draw(*args, **how)
        write_sealed(path, f"{key}\n{figure.data}")
        return figure

    return drawing
