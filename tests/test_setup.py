"""pyproject.toml is the one list of dependencies; the lock and environment.yml agree with it."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
DECLARED = PROJECT["dependencies"] + sum(PROJECT["optional-dependencies"].values(), [])
SYSTEMS = {"linux": "posix", "darwin": "posix", "win32": "nt"}


def locked():
    """{name: [(requirement, hashes), ...]} from lines `name==version ; marker`, then the hashes."""
    found = {}
    for line in LOCK.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            head, *hashes = line.split("--hash=")
            requirement = Requirement(head)
            name = canonicalize_name(requirement.name)
            found.setdefault(name, []).append((requirement, [h.strip() for h in hashes]))
    return found


@pytest.mark.parametrize("declared", DECLARED)
def test_lock_satisfies_pyproject_on_every_system(declared):
    want = Requirement(declared)
    entries = locked().get(canonicalize_name(want.name))
    assert entries, f"{want.name} is not in requirements.lock; compile the lock again"
    for python in ("3.11", "3.12", "3.13"):
        for system, os_name in SYSTEMS.items():
            env = {
                **default_environment(),
                "python_version": python,
                "python_full_version": f"{python}.0",
                "sys_platform": system,
                "os_name": os_name,
            }
            hits = [r for r, _ in entries if r.marker is None or r.marker.evaluate(env)]
            assert len(hits) == 1, f"{want.name}: {len(hits)} lines for Python {python} on {system}"
            (pin,) = hits[0].specifier
            assert pin.operator == "==" and Version(pin.version) in want.specifier


def test_every_lock_line_is_an_exact_version_with_sha256():
    for name, entries in locked().items():
        for requirement, hashes in entries:
            assert [s.operator for s in requirement.specifier] == ["=="], name
            assert hashes, f"{name} has no hash"
            assert all(re.fullmatch("sha256:[0-9a-f]{64}", h) for h in hashes), name


def test_lock_names_no_index_url_or_folder():
    for line in LOCK.splitlines():
        assert not re.search(r"://|@|--(extra-)?index|--find-links|--trusted|(^|\s)[./~]", line), (
            line
        )
        assert line.startswith("    --hash=") or not line.startswith((" ", "-")), line


def test_lock_has_no_python_outside_the_declared_range():
    """The lowest Python that pyproject allows is served by the lock."""
    lowest = min(Version(s.version) for s in SpecifierSet(PROJECT["requires-python"]))
    assert (lowest.major, lowest.minor) == (3, 11)


def test_environment_yml_installs_the_lock():
    assert ENVIRONMENT["name"] == PROJECT["name"]
    assert set(ENVIRONMENT["channels"]) == {"conda-forge", "nodefaults"}
    *conda, last = ENVIRONMENT["dependencies"]
    assert last == {"pip": ["--require-hashes", "-r requirements.lock"]}
    pins = dict(entry.split("=", 1) for entry in conda)
    assert set(pins) == {"python", "pip"}
    assert Version(pins["pip"])  # one exact version
    python = pins["python"].removesuffix(".*")
    assert Version(python) in SpecifierSet(PROJECT["requires-python"])


def test_build_backend_is_in_the_lock():
    """`pip install --no-deps --no-build-isolation -e .` needs no package beyond the lock."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    for text in build["requires"]:
        want = Requirement(text)
        for requirement, _ in locked()[canonicalize_name(want.name)]:
            (pin,) = requirement.specifier
            assert Version(pin.version) in want.specifier


def test_citation_and_licence_name_the_same_release():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    assert citation["references"][0]["doi"] == "10.13374/j.issn2095-9389.2022.09.26.004"
