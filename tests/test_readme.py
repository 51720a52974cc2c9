"""The README in both languages: the same commands, links and evidence."""

import re

import pytest

from survey_lib import reproduce as runner
from survey_lib.report.readme import VERDICTS
from survey_lib.reproduce import HERE, READMES

ENGLISH, CHINESE = (path.read_text() for path in READMES)


def code(text):
    """Blocks of code, and commands named within the text."""
    blocks = re.findall(r"^```.*?^```", text, re.M | re.S)
    named = re.findall(r"`((?:make|python|pip|dask|conda) [^`]*)`", text)
    return blocks, sorted(named)


def test_both_have_the_same_commands():
    assert code(CHINESE) == code(ENGLISH) and len(code(ENGLISH)[1]) > 10


def test_both_have_the_same_links_and_pictures_and_link_each_other():
    links = [sorted(re.findall(r"\]\(([^)]+)\)", text)) for text in (ENGLISH, CHINESE)]
    assert "README.zh-CN.md" in ENGLISH[:200] and "README.md" in CHINESE[:100]
    links[0].remove("README.zh-CN.md"), links[1].remove("README.md")
    assert links[0] == links[1]
    for link in links[1]:
        assert link.startswith("https://") or (HERE / link).exists(), link


def test_both_have_as_many_sections_and_rows_of_the_table_of_commands():
    for pattern in (r"^#+ ", r"^\| `make "):
        assert len(re.findall(pattern, CHINESE, re.M)) == len(re.findall(pattern, ENGLISH, re.M))


def test_both_show_the_published_ledger():
    numbers = []
    for text in (ENGLISH, CHINESE):
        [block] = re.findall("<!-- evidence: begin -->(.*?)<!-- evidence: end -->", text, re.S)
        rows = [line.split(" | ") for line in block.splitlines() if line.startswith("| ")][1:]
        cut = [[*cells[:4], re.sub("[^-+x0-9.,]", "", cells[4])] for cells in rows]
        verdicts = [VERDICTS.get(cells[5].strip("*| "), cells[5].strip("*| ")) for cells in rows]
        numbers.append((cut, verdicts))
    assert numbers[0] == numbers[1] and len(numbers[0][0]) > 100


def test_publishing_refreshes_both(tmp_path, monkeypatch):
    copies = tmp_path / "a.md", tmp_path / "b.zh-CN.md"
    for path, before in zip(copies, ("old", "alt"), strict=True):
        path.write_text(
            f"{before} <!-- evidence: begin -->\n| gone |\n<!-- evidence: end --> rest\n"
        )
    monkeypatch.setattr(runner, "READMES", copies)
    monkeypatch.setattr(runner, "evidence_markdown", lambda frame, chinese: f"| {chinese} |\n")
    runner.update_readme()
    new = "<!-- evidence: begin -->\n| {} |\n<!-- evidence: end --> rest\n"
    assert [p.read_text() for p in copies] == [
        f"old {new}".format(False),
        f"alt {new}".format(True),
    ]


@pytest.mark.parametrize("text", (ENGLISH, CHINESE), ids=("english", "chinese"))
def test_every_make_target_it_names_is_there(text):
    targets = set(re.findall(r"^([a-z]+):", (HERE / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z]+)", text)) <= targets
