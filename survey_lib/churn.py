"""When devices are off: alternating exponential times, or a trace."""

from bisect import bisect_right

import numpy as np
import pandas as pd

from survey_lib.errors import UsageError
from survey_lib.streams import stream


class Churn:
    """When each device is off: alternating exponential times, or a trace.

    switches: of each device that was asked for, the times (s) at which it goes off, on, off, ...
    """

    def __init__(self, churn, seed):
        self.seed, self.switches, self.rng, self.means = seed, {}, {}, None
        if isinstance(churn, tuple):
            if len(churn) != 2 or not (churn[0] > 0 and churn[1] > 0):
                raise UsageError(
                    f"churn = {churn}; expected (mean seconds on, mean seconds off), both above 0"
                )
            self.means = churn
        else:
            frame = churn if isinstance(churn, pd.DataFrame) else pd.read_csv(churn)
            if not {"device", "start", "end"} <= set(frame.columns):
                raise UsageError(
                    f"a churn trace has the columns device, start, end; found {list(frame.columns)}"
                )
            for i, start, end in (
                frame[["device", "start", "end"]].sort_values("start").itertuples(index=False)
            ):
                if not start <= end:
                    raise UsageError(
                        f"churn trace: device {int(i)} is off from {start} s to {end} s; "
                        "expected start <= end"
                    )
                times = self.switches.setdefault(int(i), [])
                if times and start <= times[-1]:  # overlapping times off are one
                    times[-1] = max(times[-1], float(end))
                else:
                    times += [float(start), float(end)]

    def until(self, i: int, t: float) -> tuple[bool, float]:
        """(off, end): whether device i is off at time t, and until when it stays as it is."""
        times = self.switches.get(i)
        if self.means is None:
            times = times or []
        elif times is None or times[-2] <= t:
            times = self._draw(i, t)
        k = bisect_right(times, t)
        return k % 2 == 1, times[k] if k < len(times) else np.inf

    def _draw(self, i, t):
        """The switches of device i, drawn up to one at least when it goes off after t."""
        on, off = self.means
        if i not in self.rng:
            rng = self.rng[i] = stream(self.seed, "churn", i)
            first = rng.random() < off / (on + off)
            self.switches[i] = [0.0, rng.exponential(off)] if first else []
        rng, times = self.rng[i], self.switches[i]
        while not times or times[-2] <= t:
            start = (times[-1] if times else 0.0) + rng.exponential(on)
            times += [start, start + rng.exponential(off)]
        return times

    def next_off(self, i: int, t: float) -> float:
        """When device i goes off next, from time t on: -inf if it is off at t, inf if never."""
        off, end = self.until(i, t)
        return -np.inf if off else end

    def finish(self, i: int, start: float, seconds: float) -> float:
        """When work of so many seconds is done that pauses while device i is off."""
        t = start
        while True:
            off, end = self.until(i, t)
            if not off and t + seconds <= end:
                return t + seconds
            if end == np.inf:
                return np.inf
            seconds -= 0.0 if off else end - t
            t = end


class Watch:
    """Which of some devices are off, asked again and again as time goes on."""

    def __init__(self, churn: Churn, devices):
        self.churn, self.devices = churn, [int(i) for i in devices]
        self.off, self.end = np.zeros(len(devices), bool), np.full(len(devices), -np.inf)

    def __call__(self, t: float) -> np.ndarray:
        for j in np.flatnonzero(self.end <= t):
            self.off[j], self.end[j] = self.churn.until(self.devices[j], t)
        return self.off
