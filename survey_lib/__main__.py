"""`python -m survey_lib list | reproduce | verify | publish | cost | records | show METHOD`"""

import argparse
import errno
import importlib
import inspect
import pkgutil
import sys
from pathlib import Path

from survey_lib.errors import DataError, UsageError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 something failed or deviates, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="survey_lib", description="An executable survey of edge-edge training."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="methods of each table, and which have evidence")
    again = commands.add_parser("reproduce", help="run the notebooks and regenerate everything")
    again.add_argument("--scale", default="full")
    again.add_argument("--only", default="")
    again.add_argument("--seeds", default="")
    again.add_argument("--dataset", default="")
    again.add_argument("--out", default="")
    again.add_argument("--jobs", type=int, default=0)
    again.add_argument("--dask", default="")
    for name, text in (
        ("verify", "compare a run with results/"),
        ("publish", "make a full run the published one"),
        ("cost", "minutes and memory of each section, as measured"),
    ):
        commands.add_parser(name, help=text).add_argument("--out", default="build")
    commands.add_parser("records", help="make the citation metadata and the list of files anew")
    commands.add_parser("show", help="a method's claim, source and evidence").add_argument("method")
    given = vars(parser.parse_args(arguments))
    command = given.pop("command")
    try:
        return globals()[f"_{command}"](**given) or 0
    except UsageError as error:
        print(f"survey_lib: {error}", file=sys.stderr)
        return 2
    except DataError as error:
        print(f"survey_lib: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"survey_lib: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1


def _reproduce(**settings):
    from survey_lib.reproduce import Settings, reproduce

    return reproduce(Settings(**settings))


def _verify(out):
    from survey_lib.reproduce import verify

    return 1 if verify(Path(out)) else 0


def _publish(out):
    from survey_lib.reproduce import publish

    publish(Path(out))


def _records():
    from survey_lib.reproduce import HERE, records

    for path in records.refresh(HERE):
        print(path.relative_to(HERE))


def _cost(out):
    from survey_lib.evidence.cost import text
    from survey_lib.reproduce import Settings, known_costs

    print(text(known_costs(Path(out), Settings())))


def _list():
    from survey_lib.evidence import ledger
    from survey_lib.evidence.discoveries import sentence
    from survey_lib.reproduce import RESULTS
    from survey_lib.tables import TABLES

    frame = ledger.load(RESULTS / "evidence.csv") if (RESULTS / "evidence.csv").exists() else None
    for table in TABLES.values():
        print(f"Table {table.number}. {table.title}")
        for row in table.rows:
            for method in row.methods:
                found = (
                    []
                    if frame is None
                    else frame[(frame["table"] == table.number) & (frame["method"] == method)]
                )
                verdict = found["verdict"].iloc[0] if len(found) else "no evidence yet"
                print(f"  row {row.number:8} {method:34} {verdict}")
    if frame is not None:
        print(sentence(frame))


def _show(method):
    import survey_lib.methods
    from survey_lib.tables import claim, find

    places = find(method)
    if not places:
        known = sorted({m for t in _tables() for m in t.methods})
        raise UsageError(f'"{method}" is no method of the survey; there are {", ".join(known)}')
    for table, row in places:
        print(f"Table {table.number}, row {row.number}: {row.says}\n")
    for info in pkgutil.iter_modules(survey_lib.methods.__path__):
        module = importlib.import_module(f"survey_lib.methods.{info.name}")
        if hasattr(module, method):
            stated = claim(method)
            print(f"Claim: {stated.text}\n\n{inspect.getsource(getattr(module, method))}")
            return 0
    print("not implemented yet")


def _tables():
    from survey_lib.tables import TABLES

    return TABLES.values()


if __name__ == "__main__":
    sys.exit(main())
