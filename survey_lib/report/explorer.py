"""An explorer of stored runs: a menu for each choice, the picture at once where its runs are there,
and where they are not an offer to make them, with the seconds that it takes."""

import html
import inspect
import os
from collections.abc import Callable
from itertools import product
from statistics import mean

import ipywidgets as widgets
from IPython.display import HTML, display

from survey_lib.errors import UsageError
from survey_lib.evidence.cost import Costs
from survey_lib.evidence.sweep import keys, stored


def explorer(lab, choices: dict, cases: Callable, figure: Callable, *, name: str, seeds=None):
    """The picture of the first value of each choice and, in a live notebook, menus for the others.

    choices: {name: values, or {as the menu says it: value}}. Those that `figure` has as arguments
    go there, the others to `cases`. cases(**choices) -> {label: Case}: their runs over `seeds`
    (default: the lab's) make one picture. figure(runs, name=, caption=, **choices) -> HTML. name:
    the figure's. Runs that the store lacks are made only when asked for. Under `make reproduce`
    there is the picture alone, so that outputs repeat to the bit.
    """
    found = Explorer(lab, choices, cases, figure, list(seeds or lab.seeds), name)
    first = found.picture()
    static = HTML(first.data if first else f"<p>{found.offer()}</p>")
    if "SURVEY_RUNNER" in os.environ:
        return static
    display(static)
    return found.box


class Explorer:
    """What `explorer` shows: `menus` by name, `said`, `button`, and the picture in `frame`."""

    def __init__(self, lab, choices, cases, figure, seeds, name):
        self.lab, self.cases, self.figure, self.seeds, self.name = lab, cases, figure, seeds, name
        if empty := [k for k, values in choices.items() if not values]:
            raise UsageError(f"explorer {name}: no values for {empty[0]}; give one or more")
        self.values = {
            k: dict(v) if isinstance(v, dict) else {str(value): value for value in v}
            for k, v in choices.items()
        }
        self.drawn = set(inspect.signature(figure).parameters) & set(choices)
        self.menus = {
            k: widgets.Dropdown(
                options=list(v), description=_words(k), style={"description_width": "initial"}
            )
            for k, v in self.values.items()
        }
        self.said = widgets.HTML("Above is the first of each choice. Choose another.")
        self.button = widgets.Button(description="run it", layout={"display": "none"})
        self.log, self.frame = widgets.Output(), widgets.HTML()
        top = widgets.HBox(list(self.menus.values()), layout={"flex_flow": "row wrap"})
        self.box = widgets.VBox([top, self.said, self.button, self.log, self.frame])
        for menu in self.menus.values():
            menu.observe(self.look, "value")
        self.button.on_click(self.make)

    def chosen(self) -> dict:
        """The values that the menus stand at."""
        return {k: self.values[k][menu.value] for k, menu in self.menus.items()}

    def runs(self) -> dict:
        """The cases of what is chosen."""
        return self.cases(**{k: v for k, v in self.chosen().items() if k not in self.drawn})

    def picture(self) -> HTML | None:
        """The figure of what is chosen; None where the store lacks a run."""
        history, _ = stored(self.runs(), self.seeds, out=self.lab.out)
        if history is None:
            return None
        caption = "; ".join(f"{_words(k)}: {menu.value}" for k, menu in self.menus.items())
        drawn = {k: v for k, v in self.chosen().items() if k in self.drawn}
        return self.figure(history, name=self.name, caption=f"{caption}.", **drawn)

    def offer(self) -> str:
        """How many runs are missing, and the seconds that they take."""
        runs = self.runs()
        lacks = stored(runs, self.seeds, out=self.lab.out)[1]
        seconds = self.seconds(list(lacks.values()))
        price = "unknown time" if seconds is None else f"about {max(1, round(seconds))} s"
        every = len(runs) * len(self.seeds)
        lacking = f"{len(lacks)} of the {every} runs behind this picture are not stored"
        return f"{lacking}: {price}, once workers run."

    def seconds(self, lacks: list) -> float | None:
        """What these cases take, a run each, by what the same methods, else all of them, took at
        the other choices; None where nothing is known."""
        known, taken = Costs(self.lab.out).runs()["seconds"], {}
        own = {k: v.values() for k, v in self.values.items() if k not in self.drawn}
        for point in product(*own.values()):
            cases = self.cases(**dict(zip(own, point, strict=True)))
            for case, key in zip(cases.values(), keys(cases, self.seeds[:1]), strict=True):
                if key in known.index:
                    taken.setdefault(case.method, []).append(known[key])
        if not taken:
            return None
        any_method = [s for seconds in taken.values() for s in seconds]
        each = [mean(taken.get(case.method, any_method)) for case in lacks]
        return sum(each) / self.lab.jobs

    def look(self, _=None) -> None:
        """Show what is chosen, or offer it."""
        found = self.picture()
        self.frame.value = found.data if found else ""
        self.said.value = "" if found else self.offer()
        self.button.layout.display = "none" if found else None

    def make(self, _=None) -> None:
        """Make the missing runs of what is chosen, then show it; a run that fails says why."""
        self.button.disabled, self.said.value, failure = True, "running ...", ""
        with self.log:
            try:
                self.lab.sweep(self.runs(), seeds=self.seeds)
            except Exception as error:  # nobody else would show it
                failure = f"{type(error).__name__}: {html.escape(str(error))}"
        self.log.clear_output()
        self.button.disabled = False
        self.look()
        self.said.value = failure or self.said.value


def _words(name):
    return name.replace("_", " ")
