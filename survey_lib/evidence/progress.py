"""Progress with time left that leaves nothing behind: in a notebook, on a terminal, and in a file
for the runner."""

import json
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from survey_lib.evidence.store import write_atomic


class Progress:
    """`with Progress(total, title, out) as p: p.step()`. A notebook run by the runner names its
    file in the environment variable SURVEY_PROGRESS; then nothing is displayed in the notebook."""

    def __init__(self, total: int, title: str, out):
        self.total, self.title, self.done, self.begin = total, title, 0, time.monotonic()
        self.file = os.environ.get("SURVEY_PROGRESS")
        self.said = 0.0  # when the file was last written
        self.bar = None

    def __enter__(self):
        if self.file:
            self._report()
        elif "ipykernel" in sys.modules:
            from IPython.display import HTML, display

            self.bar = display(HTML(self.title), display_id=True)
        else:
            self.bar = tqdm(total=self.total, desc=self.title, leave=False)
        return self

    def step(self):
        self.done += 1
        if self.file:
            if time.monotonic() > self.said + 1 or self.done == self.total:
                self._report()
        elif isinstance(self.bar, tqdm):
            self.bar.update()
        elif self.bar is not None:
            from IPython.display import HTML

            left = (time.monotonic() - self.begin) / self.done * (self.total - self.done)
            self.bar.update(HTML(f"{self.title}: {self.done} of {self.total}, {left:.0f} s left"))

    def _report(self):
        self.said = time.monotonic()
        write_atomic(
            Path(self.file), json.dumps(dict(title=self.title, done=self.done, total=self.total))
        )

    def __exit__(self, *error):
        if isinstance(self.bar, tqdm):
            self.bar.close()
        elif self.bar is not None:
            from IPython.display import HTML

            self.bar.update(HTML(""))
