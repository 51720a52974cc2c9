"""Figures kept and read again: the same bytes, and drawn anew whenever something is another."""

from decimal import Decimal

import pandas as pd
import pytest

from survey_lib.report import figures
from survey_lib.report.figures import bars


@pytest.fixture
def drawings(monkeypatch):
    """The names of the figures that were drawn, in their order."""
    names, show = [], figures.show
    monkeypatch.setattr(figures, "show", lambda *a: names.append(a[1]) or show(*a))
    return names


def frame(value=1.0):
    return pd.DataFrame(dict(x=["a", "a", "b", "b"], y=[value, 2.0, 3.0, 5.0]))


def plot(out, data=None, caption="c", **how):
    return bars(
        frame() if data is None else data, "x", "y", name="f", caption=caption, out=out, **how
    )


def test_the_second_time_it_is_read_not_drawn(tmp_path, drawings):
    first = plot(tmp_path)
    png = tmp_path / "figures" / "f.png"
    before = png.read_bytes()
    png.unlink()
    assert plot(tmp_path).data == first.data and png.read_bytes() == before
    assert drawings == ["f"]


@pytest.mark.parametrize(
    "change",
    [
        dict(data=frame(1.0 + 1e-15)),
        dict(data=frame().astype(dict(y="float32"))),
        dict(data=frame().rename(index={0: 7})),
        dict(data=frame()[["y", "x"]]),
        dict(caption="d"),
        dict(ylabel="z"),
    ],
)
def test_whatever_is_given_counts(tmp_path, drawings, change):
    plot(tmp_path)
    plot(tmp_path, **change)
    plot(tmp_path, **change)
    assert drawings == ["f", "f"]


def test_source_and_libraries_count(tmp_path, drawings, monkeypatch):
    plot(tmp_path)
    monkeypatch.setattr("survey_lib.evidence.store.source_hash", lambda f: "another")
    plot(tmp_path)
    monkeypatch.setitem(figures.drawn.__globals__["LIBRARIES"], "matplotlib", "0")
    plot(tmp_path)
    assert drawings == ["f"] * 3


@pytest.mark.parametrize("damage", [b"", b"x", None])
def test_a_damaged_one_is_drawn_anew(tmp_path, drawings, damage):
    whole = plot(tmp_path)
    path = tmp_path / "drawn" / "f.html"
    data = path.read_bytes()
    path.write_bytes(data[:-9] + b"?" + data[-8:] if damage is None else damage)
    assert plot(tmp_path).data == whole.data and path.read_bytes() == data
    assert drawings == ["f", "f"]


def test_without_a_folder_nothing_is_kept(drawings):
    plot(None), plot(None)
    assert drawings == ["f", "f"]


def test_what_cannot_be_told_apart_is_drawn(tmp_path, drawings):
    for _ in range(2):
        plot(tmp_path, ref=Decimal("1.5"))
    assert drawings == ["f", "f"] and not (tmp_path / "drawn").exists()
