"""The glossary: unique terms in order, each in use, and linked from the notebooks."""

import re

import nbformat
import pytest

from survey_lib.errors import UsageError
from survey_lib.report.glossary import found, glossary
from survey_lib.reproduce import HERE, NOTEBOOKS, RESULTS
from survey_lib.tables import TABLES
from survey_lib.tables.glossary import TERMS, Term


def test_terms_are_unique_and_sorted():
    names = [term.english for term in TERMS]
    assert names == sorted(names, key=str.casefold) and 40 <= len(names) <= 75
    assert len({n.casefold() for n in names}) == len(names)
    assert len({term.chinese for term in TERMS}) == len(names)


def test_every_term_is_used():
    code = "\n".join(
        p.read_text()
        for p in sorted((HERE / "survey_lib").rglob("*.py"))
        if p.name != "glossary.py"
    )
    page = glossary(NOTEBOOKS)
    for term in TERMS:
        (line,) = re.findall(rf"^\| \*\*{re.escape(term.english)}\*\* .*$", page, re.M)
        assert re.search(r"\[(\d\d|table \d)\]", line) or found(term.english, code), term.english


def test_a_term_is_found_as_a_word_or_the_beginning_of_one():
    assert found("gossip", "Gossiping nodes") and found("micro-batch", "four micro batches")
    assert not found("IID", "non-IID data") and not found("server", "an observer")


@pytest.mark.parametrize("fields", [("", "一", "A."), ("a", " ", "A."), ("a", "一", "no end")])
def test_a_term_that_is_not_whole_is_refused(fields):
    with pytest.raises(UsageError, match="needs both languages"):
        Term(*fields)


def test_the_published_glossary_has_the_terms_and_its_links_lead_somewhere():
    page = (RESULTS / "glossary.md").read_text()
    for term in TERMS:
        assert f"| **{term.english}** | {term.chinese} | {term.meaning} |" in page
    links = set(re.findall(r"\]\(([^)]+)\)", page))
    assert links and all((RESULTS / link).exists() for link in links)


@pytest.mark.parametrize("name", sorted({t.notebook for t in TABLES.values()}))
def test_each_notebook_links_it_from_its_first_cell(name):
    first = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells[0]
    assert "(../results/glossary.md)" in first.source
