"""The report page: what stands on it, that it asks nothing of anybody, and how it behaves in a
browser."""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import nbformat
import pytest
from browser import CHROMIUM, Browser
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from survey_lib.errors import UsageError
from survey_lib.evidence import ledger
from survey_lib.report import effects
from survey_lib.report.page import drawn, page, sections, shown
from survey_lib.tables import TABLES

ROOT = Path(__file__).parent.parent
BOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
PUBLISHED = ledger.load(ROOT / "results" / "evidence.csv")
MANIFEST = json.loads((ROOT / "results" / "manifest.json").read_text())
VOID = {"meta", "img", "input", "br", "rect", "path", "circle", "link"}
COMMON = dict(books=BOOKS, citation=ROOT / "CITATION.cff")


class Parsed(HTMLParser):
    """tags: (name, attributes, text inside) of each element, in the order of their ends."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute stands twice in {tag}"
        self.open.append([tag, dict(attrs), ""])
        if tag in VOID:
            self.tags.append(tuple(self.open.pop()))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs), ""))

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def handle_endtag(self, tag):
        assert self.open[-1][0] == tag, f"{tag} closes {self.open[-1][0]}"
        self.tags.append(tuple(self.open.pop()))

    def all(self, tag):
        return [(attrs, text) for name, attrs, text in self.tags if name == tag]


@pytest.fixture(scope="module")
def text():
    lines = ledger.with_least(PUBLISHED)
    figure = effects(lines, name="evidence", caption="Every <line> & its interval").data
    return page(PUBLISHED, MANIFEST, figures=[figure], **COMMON)


@pytest.fixture(scope="module")
def parsed(text):
    return Parsed(text)


def words(text):
    return " ".join(text.split())


# ---- what stands there --------------------------------------------------------------------------


def test_every_line_of_the_ledger_stands_there_once(parsed):
    found = {attrs["id"]: (attrs, words(text)) for attrs, text in parsed.all("article")}
    assert len(found) == len(parsed.all("article")) == len(PUBLISHED)
    for line in PUBLISHED.itertuples():
        attrs, text = found[f"t{line.table}-r{line.row}-{line.method}"]
        assert attrs["data-verdict"] == line.verdict
        for part in (line.method, line.verdict, line.claim, line.baseline, line.metric):
            assert words(part) in text, line.method
        assert attrs["data-devices"] == line.devices
        fleet = f"; devices: {line.devices};" if line.devices else ";"
        assert f"{line.seeds} seeds; data: {line.dataset}{fleet}" in text


def test_the_tables_stand_there_as_the_survey_prints_them(parsed):
    lines = [words(text) for attrs, text in parsed.all("tr") if attrs.get("class") == "cells"]
    for table in TABLES.values():
        for row in table.rows:
            if row.in_table:
                cells = [[row.cells[c], row.cells_zh.get(c)] for c in row.cells]
                printed = words(" ".join(part for cell in cells for part in cell if part))
                assert re.sub(" ", "", printed) in [re.sub(" ", "", line) for line in lines]
        for erratum in table.errata:
            assert any(words(erratum.really) in line and erratum.sure in line for line in lines)


def test_counts_are_the_ledgers(parsed):
    ((_, text),) = [(a, t) for a, t in parsed.all("ul") if a.get("class") == "counts"]
    counts = Counter(PUBLISHED["verdict"])
    assert re.findall(r"(\d+)\W+(\w+)", text) == [
        (str(counts[v]), v) for v in ("supported", "partly", "contradicted", "inconclusive")
    ]


def test_every_picture_has_a_sentence_with_numbers(parsed):
    said = [attrs["alt"] for attrs, _ in parsed.all("img")]
    said += [attrs["aria-label"] for attrs, _ in parsed.all("svg") if attrs["role"] == "img"]
    assert len(said) == 1 + len(PUBLISHED)
    for sentence in said:
        assert len(re.findall(r"\d+", sentence)) >= 3 and sentence.endswith("."), sentence


def test_the_page_loads_nothing_and_its_links_lead_somewhere(text, parsed):
    loads = [a[k] for _, a, _ in parsed.tags for k in ("src", "srcset", "data", "poster") if k in a]
    assert loads and all(address.startswith("data:image/png;base64,") for address in loads)
    assert not parsed.all("link") and not re.search(r"url\(|@import|fetch\(|XMLHttp", text)
    ids = [attrs["id"] for _, attrs, _ in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    headings = {
        path.name: {
            title.replace(" ", "-")
            for cell in nbformat.read(path, as_version=4).cells
            for title in re.findall(r"^#+ (.*?)\s*$", cell.source, re.M)
        }
        for path in BOOKS
    }
    sections = 0
    for address in [attrs["href"] for attrs, _ in parsed.all("a")]:
        place, _, anchor = address.partition("#")
        if place.startswith("../notebooks/"):
            name = place.removeprefix("../notebooks/")
            assert not anchor or unquote(anchor) in headings[name], address
            sections += bool(anchor)
        elif place:
            assert place == "glossary.md" or re.match(r"https://[\w.-]+/", place), address
        else:
            assert anchor in ids or "=" in anchor, address
    assert sections == len(PUBLISHED)


def test_equal_input_gives_equal_bytes(text):
    lines = ledger.with_least(PUBLISHED)
    figure = effects(lines, name="evidence", caption="Every <line> & its interval").data
    assert page(PUBLISHED, MANIFEST, figures=[figure], **COMMON) == text


def test_whatever_the_data_say_stays_text():
    evil = "</p><script>alert(1)</script> \"x\" 'y' & {{ 7 * 7 }}"
    columns = ("claim", "baseline", "metric", "dataset", "devices")
    frame = PUBLISHED.head(1).assign(**{c: f"{evil} {c}" for c in columns})
    found = Parsed(page(frame, {"scale": evil, evil: [evil]}, **COMMON))
    assert len(found.all("script")) == 1 and "alert" not in found.all("script")[0][1]
    ((_, text),) = found.all("article")
    assert all(f"{evil} {c}" in text for c in columns)
    assert evil in found.all("svg")[0][0]["aria-label"]


def test_a_page_without_evidence_says_so_of_every_method():
    found = Parsed(page(PUBLISHED.head(0), MANIFEST, **COMMON))
    assert not found.all("article") and not found.all("img")
    lines = [t for a, t in found.all("p") if a.get("class") == "line also"]
    wanted = sum(len(row.methods) for table in TABLES.values() for row in table.rows)
    assert len(lines) == wanted and any("no evidence yet" in line for line in lines)


# ---- its parts ----------------------------------------------------------------------------------


def line(unit, effect, low, high):
    about = dict(method="m", metric="loss", baseline="b", verdict="partly")
    return SimpleNamespace(unit=unit, effect=effect, ci_low=low, ci_high=high, **about)


def test_a_difference_is_drawn_to_scale():
    # from 0 (no effect) to 3 (the upper end) on 240 - 2 * 8 pixels: 8 + 224 * value / 3
    bar = drawn(line("points", 2.0, 1.0, 3.0), least=2.0)
    assert [bar[k] for k in ("none", "low", "effect", "least", "high")] == [
        8.0, 82.7, 157.3, 157.3, 232.0
    ]  # fmt: skip
    assert "+2.0 [1.0, 3.0] points; least effect 2 points, no effect 0;" in bar["sentence"]


def test_a_factor_is_drawn_on_a_logarithmic_axis():
    bar = drawn(line("x", 0.5, 0.25, 1.0), least=0.5)  # a quarter, a half, one: equal steps
    assert [bar[k] for k in ("low", "effect", "least", "high", "none")] == [8, 120, 120, 232, 232]
    assert "least effect x0.5, no effect x1; partly." in bar["sentence"]


def test_what_is_not_finite_is_refused():
    with pytest.raises(UsageError, match="a ledger has finite numbers"):
        drawn(line("points", float("nan"), 0.0, 1.0), least=1.0)


def test_sections_and_figures_are_found_in_notebooks(tmp_path):
    png = tmp_path / "map.png"
    png.write_bytes(b"figure")
    figure = '<img src="data:image/png;base64,ZmlndXJl" alt="1, 2, 3."><figcaption>c</figcaption>'
    cells = [
        new_markdown_cell("# Title\n\n## First part  \n\ntext"),
        new_code_cell('lab.record(\n    "a", runs)'),
        new_markdown_cell("### Inner"),
        new_code_cell(
            'lab.judge("b", runs)', outputs=[new_output("display_data", {"text/html": figure})]
        ),
    ]
    path = tmp_path / "09_x.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    assert sections([path]) == {("09_x", "a"): "First part", ("09_x", "b"): "Inner"}
    assert shown(png, [path]) == [figure]
    assert shown(tmp_path / "other.png", [path]) == []
    png.write_bytes(b"another")
    assert shown(png, [path]) == []


# ---- in a browser -------------------------------------------------------------------------------

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
SHOWN = "document.querySelectorAll('article:not([hidden])').length"
SAID = "document.querySelector('#filter output').value"
CHOOSE = """(() => {{ const field = document.querySelector('#filter').elements['{name}'];
field.value = {value}; field.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture(scope="module")
def address(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path.as_uri()


def choose(browser, **values):
    for name, value in values.items():
        browser.run(CHOOSE.format(name=name, value=json.dumps(value)))


@in_browser
@pytest.mark.parametrize("dark", [False, True])
def test_it_loads_without_a_word_or_a_request(browser, address, dark):
    browser.open(address, dark=dark)
    assert browser.run(SHOWN) == len(PUBLISHED)
    assert browser.run(SAID) == f"{len(PUBLISHED)} of {len(PUBLISHED)} lines of evidence"
    assert browser.said == []
    assert [a for a in browser.asked if not a.startswith("data:image/png")] == [address]
    colours = browser.run("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    (ink,) = re.findall(r"^rgb\((\d+)", colours[0])
    assert (int(ink) > 128) == dark


@in_browser
def test_the_policy_of_the_page_refuses_what_comes_from_elsewhere(browser, address):
    browser.open(address)
    browser.run("document.body.append(Object.assign(new Image(), {src: 'https://example.org/x'}))")
    browser.run("new Promise(done => setTimeout(done, 100))")
    assert any("Content Security Policy" in said for said in browser.said)


@in_browser
def test_filters_leave_the_lines_that_fit(browser, address):
    browser.open(address)
    known = Counter(PUBLISHED["verdict"])
    for verdict in known:
        choose(browser, verdict=verdict)
        assert browser.run(SHOWN) == known[verdict]
        assert browser.run(SAID).startswith(f"{known[verdict]} of {len(PUBLISHED)} ")
    choose(browser, verdict="", table="2")
    assert browser.run(SHOWN) == (PUBLISHED["table"] == 2).sum()
    assert browser.run("[...document.querySelectorAll('section.table:not([hidden])')].length") == 1
    choose(browser, table="", kind="text")
    assert browser.run(SHOWN) == PUBLISHED["row"].str.startswith("text").sum()
    fleets = Counter(PUBLISHED["devices"])
    assert len(fleets) > 3
    for fleet in fleets:
        choose(browser, kind="", devices=fleet)
        assert browser.run(SHOWN) == fleets[fleet]
    choose(browser, devices="", q="CHOCO_sgd  compressed")
    names = browser.run("[...document.querySelectorAll('article:not([hidden])')].map(e => e.id)")
    assert "t2-r8-choco_sgd" in names and len(names) < len(PUBLISHED)
    choose(browser, q="nothing has this word")
    assert browser.run(SHOWN) == 0


@in_browser
def test_the_address_keeps_the_filter(browser, address):
    browser.open(address)
    choose(browser, verdict="supported", table="3", q="gradient step")
    kept, lines = browser.run("location.hash"), browser.run(SHOWN)
    assert kept == "#verdict=supported&table=3&q=gradient+step"
    browser.open(address + kept)
    assert browser.run(SHOWN) == lines < len(PUBLISHED)
    browser.run("document.querySelector('#filter button').click()")
    browser.run("new Promise(done => setTimeout(done, 50))")
    assert browser.run(SHOWN) == len(PUBLISHED) and browser.run("location.hash") == ""
    browser.open(f"{address}#verdict=nonsense&table=1")
    assert browser.run(SHOWN) == (PUBLISHED["table"] == 1).sum()
    first = PUBLISHED[PUBLISHED["table"] == 2].iloc[0]
    there = f"t2-r{first.row}-{first.method}"
    browser.run(f"location.hash = '{there}'; new Promise(done => setTimeout(done, 100))")
    assert not browser.run(f"document.getElementById('{there}').closest('[hidden]')")


@in_browser
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_window(browser, address, width):
    browser.open(address, width=width)
    assert browser.run("document.scrollingElement.scrollWidth") <= width
    outside = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.wide, thead')
    && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 99))"""
    assert browser.run(outside) == []


@in_browser
def test_with_scripts_off_everything_but_the_filter_is_there(browser, address):
    browser.open(address, scripts=False)
    root = browser.call("DOM.getDocument")["root"]["nodeId"]

    def box(selector):
        found = browser.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        return browser.call("DOM.getBoxModel", nodeId=found)["model"]

    assert all(box(f"#t{number} .line")["height"] > 20 for number in TABLES)
    assert box("#errata")["height"] > 100
    with pytest.raises(RuntimeError, match="box model"):
        box("#filter")


@in_browser
def test_in_print_the_filter_is_left_out(browser, address):
    browser.open(address, media="print", dark=True)
    look = "(q => getComputedStyle(document.querySelector(q)))"
    assert browser.run(f"{look}('#filter').display") == "none"
    assert browser.run(f"{look}('body').color") == "rgb(0, 0, 0)"
    assert browser.run(f"{look}('article').display") == "grid"
