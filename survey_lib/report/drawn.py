"""Figures that are drawn once: kept under OUT/drawn, read from there while nothing has changed."""

import base64
import hashlib
import re
from collections.abc import Callable
from functools import wraps
from inspect import signature
from pathlib import Path

import matplotlib
import pandas as pd
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
            key = Store.key({"draw": canonical(draw), "given": _given(given), **LIBRARIES})
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


def _given(value):
    """An argument as data; frames, series and indices by names, types and a hash of their bits."""
    if isinstance(value, pd.DataFrame):
        columns = [_given(value.iloc[:, k]) for k in range(value.shape[1])]
        return [_given(value.index), *columns]
    if isinstance(value, pd.Series | pd.Index):
        bits = pd.util.hash_pandas_object(value).to_numpy().tobytes()
        return [_given(value.name), str(value.dtype), hashlib.sha256(bits).hexdigest()]
    if isinstance(value, dict):
        return {str(k): _given(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_given(v) for v in value]
    return canonical(value)
