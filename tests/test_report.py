import base64
import html.parser
import io
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from survey_lib import report
from survey_lib.errors import UsageError
from survey_lib.evidence.verdict import VERDICTS as JUDGED
from survey_lib.report import figures
from survey_lib.report import matrix as pictures
from survey_lib.report.figures import _forest
from survey_lib.report.text import NO_EVIDENCE, VERDICTS, effect_text, interval, plus_minus
from survey_lib.tables import TABLES

NASTY = r"a<b> & 50%_{x} $y$ #1 | ~^\ [z] 'q' \"p\""
LEDGER = "table row ref method claim baseline metric unit effect ci_low ci_high seeds verdict"
LEDGER = [*LEDGER.split(), "dataset", "devices", "scale", "notebook"]


@pytest.fixture
def history():
    """Accuracy grows by a quarter of its end a round; ends .79 .80 .81 (a) and .39 .40 .41 (b)."""
    return pd.concat(
        pd.DataFrame(
            {"label": label, "method": label, "seed": seed, "round": range(5)}
            | {name: np.arange(5.0) * (seed + 1) for name in ("clock", "bytes", "joules")}
            | {"accuracy": np.arange(5) / 4 * (end + 0.01 * (seed - 1)), "loss": 1.0}
        )
        for label, end in (("a", 0.8), ("b", 0.4))
        for seed in range(3)
    ).reset_index(drop=True)


@pytest.fixture
def table():
    def row(number, methods, **cells):
        return SimpleNamespace(number=number, methods=methods, cells=cells, refs=("58",))

    rows = (
        row("1", ("scaffold", "thirst"), Problem="Drift", Solution="Variates"),
        row("2", ("top_k",), Problem="Bytes", Solution=NASTY),
        row("3", (), Problem="Trust", Solution="None"),
    )
    return SimpleNamespace(number="4", columns=("Problem", "Solution"), rows=rows)


@pytest.fixture
def ledger():
    same = {"claim": "c", "metric": "accuracy", "ref": "58", "notebook": "02"}
    same |= {"table": 4, "dataset": "digits", "devices": "raspberry pi", "seeds": 5}
    lines = [
        {"row": "1", "method": "scaffold", "baseline": "fedavg", "unit": "points", "effect": 2.3}
        | {"ci_low": 1.1, "ci_high": 3.5, "verdict": "supported", "scale": "full"},
        {"row": "2", "method": "top_k", "baseline": "sgd", "unit": "x", "effect": 5.1}
        | {"ci_low": 4.2, "ci_high": 6.3, "verdict": "contradicted", "scale": "quick"},
        {"row": "2", "method": "mine", "baseline": "sgd", "unit": "x", "effect": 1.0}
        | {"ci_low": 0.8, "ci_high": 1.2, "verdict": "inconclusive", "scale": "full"},
    ]
    return pd.DataFrame([same | line for line in lines])[LEDGER]


def alt(shown):
    """The alt text as a browser reads it."""
    found = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.extend([attrs] * (tag == "img"))
    parser.feed(shown.data)
    return dict(found[0])["alt"]


def png(shown):
    return base64.b64decode(re.search(r"base64,([^\"]+)", shown.data)[1])


def every_figure(history, out=None):
    rows = pd.DataFrame(
        [("a", 2.0, 1.0, 3.0, 0.5, "points", "supported"), ("b", 2, 1.5, 3, 2, "x", "partly")],
        columns="method effect ci_low ci_high least unit verdict".split(),
    )
    spans = pd.DataFrame(
        [("p", 0, 2, "compute"), ("p", 1, 3, "send"), ("q", 0, 4, "wait"), ("q", 4, 5, "F")],
        columns="device start end what".split(),
    )
    common = {"caption": "cap <i>", "out": out}
    yield report.curves(history, target=0.605, name="curves", **common)
    yield report.effects(rows, "effects", **common)
    yield report.bars(
        history[history["round"] == 4], "label", "accuracy", "method", name="bars", **common
    )
    yield report.gantt(spans, "gantt", **common)
    yield report.heat(pd.DataFrame([[3, 0], [1, 6]]), "heat", **common)


def test_interval_is_the_t_interval():
    mean, half = interval([1.0, 2.0, 3.0])  # sd 1, t(2, 0.975) = 4.30265
    assert mean == 2 and half == pytest.approx(4.30265 / np.sqrt(3), rel=1e-5)
    assert np.isnan(interval([1.0])[1])


def test_numbers_have_the_decimals_of_their_interval():
    assert plus_minus(0.81234, 0.0113) == "0.812 ± 0.011"
    assert plus_minus(5.0, 0.0) == "5"
    assert plus_minus(2.14e-6, 3.2e-7) == "(2.14 ± 0.32)e-06"
    assert plus_minus(1.0, 1e-9) == "1.000000 ± 0.000000" and plus_minus(0.0, 3e-7)[:3] == "(0."
    assert effect_text(5.1, 4.2, 6.3, "x") == "x5.1 [4.2, 6.3]"
    assert effect_text(2.3, 1.1, 3.5, "points") == "+2.3 [1.1, 3.5] points"
    assert effect_text(-120.0, -150, -90, "s") == "-120 [-150, -90] s"
    assert effect_text(3, 0.42, 30, "x") == "x3.00 [0.42, 30.00]"  # a factor never reads 0
    assert effect_text(2, np.nan, np.nan, "points") == "+2 (no interval) points"


def test_alt_texts_state_the_numbers(history):
    curves, effects, bars, gantt, heat = map(alt, every_figure(history))
    # ends .79 .80 .81: half-width 4.3027 * 0.01 / sqrt(3) = 0.0248
    assert "a ends at 0.800 ± 0.025 (3 seeds)" in curves
    # round 3: .5925 .6 .6075, round 4: all above .605, hence rounds 4 4 3
    assert "reaches 0.605 at round 4 (median; 3 of 3 seeds)" in curves
    assert "b ends at 0.400 ± 0.025 (3 seeds), reaches 0.605 in 0 of 3 seeds" in curves
    assert "a +2.0 [1.0, 3.0] points, supported; b x2.00 [1.50, 3.00], partly" in effects
    assert "a, a: 0.800 ± 0.025; b, b: 0.400 ± 0.025" in bars
    assert "Makespan 5 s; busy: p 60 %, q 20 %" in gantt  # p: 0 to 3 of 5, its overlap once
    assert "2 devices and 2 classes, 10 samples: 3 to 7 per device, of 1 to 2 classes" in heat


def test_bubbles_name_every_split_and_its_notes():
    counts = np.array([[3, 0], [1, 6]])
    splits = {f"split {k}": counts for k in range(5)}
    shown = report.bubbles(splits, "n", "c", notes={"split 1": "Gini 0.2\nL1 0.5"}, columns=2)
    assert "5 splits. split 0; split 1: Gini 0.2, L1 0.5; split 2" in alt(shown)
    assert (
        Image.open(io.BytesIO(png(shown))).size[1]
        > Image.open(io.BytesIO(png(report.bubbles(splits, "n", "c", columns=5)))).size[1]
    )


def test_boxes_say_median_and_percentiles():
    """0, 1, ..., 100: the 5th percentile is 5, the median 50."""
    values = np.arange(101.0)
    rows = [("one", "a", values), ("two", "a", values / 10), ("two", "b", values * np.nan)]
    frame = pd.concat(pd.DataFrame(dict(world=w, arm=a, accuracy=v)) for w, a, v in rows)
    how = dict(x="accuracy", y="arm", panel="world", name="n", caption="c")
    assert "one, a: 50 (5 to 95); two, a: 5 (0.5 to 9.5)." in alt(report.boxes(frame, **how))
    assert png(report.boxes(frame, **how)) == png(report.boxes(frame, **how))


def test_target_over_bytes_and_for_a_loss(history):
    shown = report.curves(history, x="bytes", target=0.605, name="n", caption="c")
    # rounds 4 4 3 at 1 2 3 bytes per round: 4 8 9 bytes
    assert "reaches 0.605 after 8 B (median; 3 of 3 seeds)" in alt(shown)
    shown = report.curves(history, y="loss", target=1.5, name="n", caption="c")
    assert "reaches 1.5 at round 0 (median; 3 of 3 seeds)" in alt(shown)


def test_same_data_same_bytes_whatever_the_readers_settings(history, tmp_path):
    import matplotlib

    first = list(every_figure(history, tmp_path))
    with matplotlib.rc_context({"font.size": 20, "savefig.dpi": 50, "axes.facecolor": "red"}):
        second = list(every_figure(history, tmp_path))
    assert [a.data for a in first] == [b.data for b in second]
    names = ["bars", "curves", "effects", "gantt", "heat"]
    files = sorted((tmp_path / "figures").iterdir())
    assert [file.name for file in files] == [f"{name}.png" for name in names]
    assert (tmp_path / "figures" / "heat.png").read_bytes() == png(first[-1])
    for shown in first:
        image = Image.open(io.BytesIO(png(shown)))
        assert not image.info.keys() & {"Software", "Creation Time", "date"}
        assert len(png(shown)) < 60_000


def test_missing_values_break_nothing_and_are_told(history):
    history.loc[
        (history.label == "a") & (history.seed == 2) & (history["round"] > 2), "accuracy"
    ] = np.nan
    history.loc[history.label == "b", "accuracy"] = np.inf
    for x, logx in [("round", False), ("bytes", True), ("clock", False)]:
        text = alt(report.curves(history, x, logx=logx, target=0.1, name="n", caption="c"))
        assert "(3 seeds, 1 without a finite end)" in text
        assert "b has no finite value" in text
    ends = history[history["round"] == 4]
    assert "a: 0.795" in alt(report.bars(ends, "label", "accuracy", name="n", caption="c"))


def test_one_seed_has_no_interval(history):
    text = alt(report.curves(history[history.seed == 1], name="n", caption="c"))
    assert "a ends at 0.8 (one seed);" in text


def test_show_closes_the_figure_and_refuses_other_scripts():
    import matplotlib.pyplot as plt

    fig = plt.figure()
    report.show(fig, "n", "alt", "c")
    assert not plt.get_fignums()
    fig = Figure()
    fig.subplots().set_title("训练")
    with pytest.raises(UsageError, match="English"):
        report.show(fig, "n", "alt", "c")
    with pytest.raises(UsageError, match="dance"):
        spans = {"device": ["a"], "start": [0], "end": [1], "what": ["dance"]}
        report.gantt(pd.DataFrame(spans), "n", "c")


def test_html_survives_an_untrusted_notebook(history, table, ledger):
    shown = [*every_figure(history), report.html(report.survey_table(table, ledger), NASTY)]
    shown += [report.show_source(effect_text, interval), report.badge("partly")]
    for piece in shown:
        tags = set(re.findall(r"<(\w+)", piece.data))
        assert tags <= set(
            "figure img figcaption table caption thead tbody tr th td".split()
        ) | set("span div pre code".split())
        assert not re.search(r"\s(class|id|on\w+)=", re.sub(r"base64,[^\"]+", "", piece.data))
        for look in re.findall(r'style="([^"]*)"', piece.data):
            if re.search(r"(?<!-)color:", look.replace(" ", "")) and "<span" not in piece.data:
                assert "background" in look  # text colours only where the ground is known
    assert "cap &lt;i&gt;" in shown[0].data


def test_survey_table_sets_the_evidence_beside_the_cells(table, ledger):
    frame = report.survey_table(table, ledger)
    assert list(frame.columns)[:4] == ["Problem", "Solution", "method", "measured effect"]
    assert list(frame.method) == ["scaffold", "thirst", "top_k", "mine", ""]
    assert list(frame.Problem) == ["Drift", "", "Bytes", "", "Trust"]
    effects = ["+2.3 [1.1, 3.5] points", "", "x5.1 [4.2, 6.3]", "x1.00 [0.80, 1.20]", ""]
    assert list(frame["measured effect"]) == effects
    none = "no evidence yet"
    assert list(frame.verdict) == ["supported", none, "contradicted", "inconclusive", none]
    assert list(frame.dataset) == ["digits", "", "digits (quick)", "digits", ""]
    table.columns, table.rows[0].cells["method"] = ("method", "Solution"), "theirs"
    assert report.survey_table(table, ledger)["method (survey)"][0] == "theirs"


def test_a_row_that_names_works_of_another_says_where_they_are_measured(ledger):
    frame = report.survey_table(TABLES[3], ledger[:0]).set_index("method")["measured effect"]
    assert frame["aso_fed"] == "see table 1, row 6" and list(frame["fedasync"]) == ["", "see row 6"]
    assert frame["backup_workers"] == ""  # has a claim of its own in table 3
    assert report.survey_table(TABLES[1], ledger[:0])["measured effect"].iloc[-1] == "see row 1"
    here = ledger[:1].assign(table=1, row="6", method="aso_fed")
    assert report.summary(TABLES[3], here) == "Table 3: 1 of 14 rows with evidence"


def test_summary(table, ledger):
    assert report.summary(table, ledger) == (
        "Table 4: 2 of 3 rows with evidence, 3 methods: 1 supported, 1 contradicted, 1 inconclusive"
    )
    assert report.summary(table, ledger[:0]) == "Table 4: 0 of 3 rows with evidence"


def test_written_tables_are_stable_escaped_and_whole(table, ledger, tmp_path):
    frame = report.survey_table(table, ledger)
    paths = report.write(frame, tmp_path, "table4", "50 % of <rows>")
    once = [path.read_bytes() for path in paths]
    assert [
        p.read_bytes() for p in report.write(frame, tmp_path, "table4", "50 % of <rows>")
    ] == once
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    csv, md, tex, page = (text.decode() for text in once)
    assert list(pd.read_csv(io.StringIO(csv)).Solution)[2] == NASTY and "\r" not in csv
    lines = md.splitlines()
    assert r"a&lt;b&gt; &amp; 50%\_\{x\} \$y\$ \#1 \| \~^\\ \[z\]" in md
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines[2:]} == {9}
    assert lines[3] == "| --- | --- | --- | --- | --- | --- | ---: | --- |"
    assert r"a\textless{}b\textgreater{} \& 50\%\_\allowbreak{}\{x\} \$y\$ \#1 \textbar{}" in tex
    assert r"\textasciitilde{}\textasciicircum{}\textbackslash{} {[}z{]}" in tex
    assert r"\caption{50 \% of \textless{}rows\textgreater{}}\label{tab:table4}" in tex
    assert {len(re.findall(r"(?<!\\)&", row)) for row in re.findall(r".+\\\\$", tex, re.M)} == {7}
    assert "a&lt;b&gt; &amp; 50%_{x}" in page and "<b>" not in page
    assert "– no evidence yet</span>" in page and "✓ supported</span>" in page


def test_html_of_plain_frames():
    page = report.html(pd.DataFrame({"n": [1.23456, None], "t": ["1", "x"]})).data
    assert re.search(r"text-align:right[^>]*>1\.235<", page)
    assert re.search(r"text-align:left[^>]*>1<", page)
    assert "nan" not in page.lower() and "caption" not in page
    means = pd.DataFrame({"m": ["a", "a", "b"], "v": [1.0, 2.0, 3.0]}).groupby("m").agg(["mean"])
    assert re.search(r">m</th>.*>v mean</th>", report.html(means).data)
    assert "<tbody>" in report.html(pd.DataFrame({"n": []})).data


def test_badge_needs_a_known_verdict():
    with pytest.raises(UsageError, match="supported, partly"):
        report.badge("fine")


def test_a_failed_write_leaves_the_old_files_and_nothing_else(tmp_path, monkeypatch):
    paths = report.write(pd.DataFrame({"a": [1]}), tmp_path, "t", "c")
    old = [path.read_bytes() for path in paths]
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        report.write(pd.DataFrame({"a": [2]}), tmp_path, "t", "c")
    assert [path.read_bytes() for path in paths] == old
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_every_verdict_has_a_badge():
    assert {*JUDGED, NO_EVIDENCE} == set(VERDICTS)


def test_least_effect_stands_on_the_claimed_side():
    line = {"method": "m", "effect": 2, "ci_low": 1, "ci_high": 3, "least": 4, "verdict": "partly"}
    for unit, direction, place in [("x", 1, 4), ("x", -1, 0.25), ("s", 1, 4), ("s", -1, -4)]:
        ax = Figure().subplots()
        _forest(ax, pd.DataFrame([line | {"unit": unit, "direction": direction}]), unit)
        assert [at for tick in ax.lines if tick.get_marker() == "|" for at in tick.get_xdata()] == [
            place
        ]


def test_show_source_shows_the_text_of_the_function():
    shown = report.show_source(interval)
    text = re.sub(r"<[^>]+>", "", shown.data)
    assert "survey_lib.report.text.interval" in text and "def interval(values)" in text
    assert shown.data == report.show_source(interval).data


def test_a_tiny_factor_is_said_and_does_not_stretch_the_axis():
    assert effect_text(4.87e-14, 4.05e-14, 5.86e-14, "x") == "x4.9e-14 [4.0e-14, 5.9e-14]"
    lines = pd.DataFrame(
        [("a", 1e-14, 5e-15, 2e-14, "supported"), ("b", 0.5, 0.4, 0.6, "partly")],
        columns=["method", "effect", "ci_low", "ci_high", "verdict"],
    ).assign(unit="x", least=2.0)
    ax = Figure().subplots()
    _forest(ax, lines, "x")
    assert 1e-4 < ax.get_xlim()[0] < 1e-3 and len(ax.get_xticks()) >= 3
    assert "x1.0e-14" in ax.texts[0].get_text() and "x0.50" in ax.texts[1].get_text()


# ---- tables of numbers as pictures


def cells(**more):
    """Gains -2, 0, 4 of one row and 1, 3, -1 of another, two seeds each."""
    gains = {"a": (-2, 1), "b": (0, 3), "c": (4, -1)}
    return pd.DataFrame(
        dict(row=row, way=way, seed=seed, gain=pair[k] + 0.1 * (seed - 0.5)) | more
        for way, pair in gains.items()
        for k, row in enumerate(("x", "y"))
        for seed in (0, 1)
    )


def drawn(monkeypatch, frame, **how):
    """(2, 3, 4): the colours of the cells, the texts and the sentence of a matrix."""
    seen = {}
    monkeypatch.setattr(pictures, "show", lambda fig, name, alt, *_: seen.update(fig=fig, alt=alt))
    pictures.matrix(frame, rows="row", columns="way", value="gain", name="m", caption="c", **how)
    ax = seen["fig"].axes[0]
    image = ax.images[0]
    colours = image.cmap(image.norm(image.get_array()))
    return colours, [t.get_text() for t in ax.texts], seen["alt"]


def test_a_matrix_frames_the_best_of_each_row(monkeypatch):
    colours, texts, alt = drawn(monkeypatch, cells())
    assert alt == "Best of each row: x: c 4; y: b 3."
    assert texts[2] == "4.00 ±0.64" and len(texts) == 6
    blue = colours[0, 2]
    assert (colours[1, 1] == blue).all() and blue[2] > blue[0]
    assert alt != drawn(monkeypatch, cells(), largest=False)[2]
    assert "x: b 0" in drawn(monkeypatch, cells(), aside=("c",))[2]


def test_a_signed_matrix_shows_on_which_side_of_zero_a_cell_is(monkeypatch):
    colours, *_ = drawn(monkeypatch, cells(), signed=True)
    red, blue = colours[..., 0], colours[..., 2]
    good = np.array([[-2, 0, 4], [1, 3, -1]])
    assert (blue[good > 0] > red[good > 0]).all() and (blue[good < 0] < red[good < 0]).all()
    assert np.allclose(colours[0, 1], 1, atol=0.01), "white at 0"
    other, *_ = drawn(monkeypatch, cells(), signed=True, largest=False)
    assert (other[0, 2, 0] > other[0, 2, 2]) and (other[0, 0, 2] > other[0, 0, 0])


def test_a_matrix_counts_what_is_missing_and_refuses_what_is_there_twice(monkeypatch):
    frame = cells()
    frame.loc[0, "gain"] = np.inf
    assert drawn(monkeypatch, frame)[1][0] == "1 of 2"
    with pytest.raises(UsageError, match="a seed twice"):
        drawn(monkeypatch, pd.concat([cells(), cells()]))


def test_intervals_of_shares_end_where_shares_do(monkeypatch):
    seen = {}
    monkeypatch.setattr(figures, "show", lambda fig, *_: seen.update(fig=fig))
    frame = pd.DataFrame(dict(label="a", accuracy=[0.5, 0.9], loss=[0.5, 0.9]))
    for y, beyond in (("accuracy", False), ("loss", True)):
        figures.bars(frame, x="label", y=y, name="b", caption="c")
        (line,) = seen["fig"].axes[0].collections
        ends = line.get_segments()[0][:, 1]
        assert (ends[0] < 0 and ends[1] > 1) if beyond else (ends.min() >= 0 and ends.max() <= 1)


# ---- two languages ------------------------------------------------------------------------------


def test_the_chinese_term_stands_beside_the_english_cell_in_every_format(tmp_path, ledger):
    frame = report.survey_table(TABLES[1], ledger[:0])
    assert "Limited resources 网络资源受限" in set(frame["Research questions 实际问题"])
    report.write(frame, tmp_path, "t", f"Table. {TABLES[1].title_zh}")
    csv, md, tex, page = ((tmp_path / f"t.{k}").read_text() for k in ("csv", "md", "tex", "html"))
    assert "Limited resources 网络资源受限" in csv and "Limited resources 网络资源受限" in md
    assert '<span lang="zh-CN">网络资源受限</span>' in page
    # without a Chinese font, and under pdflatex, the terms are left out
    assert tex.count(r"\providecommand{\zh}[1]{}") == 1
    bare = re.sub(r"\\zh\{[^{}]*\}", "", tex)
    assert r"\zh{网络资源受限}" in tex and not re.search(r"[\u2e80-\u9fff]", bare)


def test_every_chinese_heading_and_cell_of_the_survey_is_shown(ledger):
    for table in TABLES.values():
        shown = report.survey_table(table, ledger[:0])
        text = "\n".join([*shown.columns, *shown.to_numpy(dtype=str).ravel()])
        terms = [z for row in table.rows for z in row.cells_zh.values()] + list(table.columns_zh)
        assert len(terms) > 3 and all(z in text for z in terms)
