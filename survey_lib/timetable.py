"""What happened when: the bars of a Gantt chart, and timetables made elsewhere."""

import pandas as pd

from survey_lib.errors import UsageError


def replay(world, events) -> None:
    """Charge a timetable of pipeline.Event, whose times count from now; the clock moves to its
    end. The first part of a message is latency."""
    span = max((e.end for e in events), default=0.0)
    active = {i: [] for e in events for i in (e.device, e.to) if i is not None}
    for e in events:
        start = e.start
        if e.what == "send":
            start = min(e.end, e.start + max(world.latency[[e.device, e.to]]))
            world.up[e.device] += e.nbytes
            world.down[e.to] += e.nbytes
            world.messages += 1
            world.radio[[e.device, e.to]] += e.end - start
            active[e.to].append((start, e.end))
        else:
            world.busy[e.device] += e.end - e.start
        active[e.device].append((start, e.end))
        world.note([e.device], [world.clock + e.start], [e.end - e.start], e.what)
    for i, spans in active.items():
        world.wait[i] += span - _covered(spans)
    world.clock += span
    world.ready[:] = world.clock


def _covered(spans):
    """Seconds that at least one of the (start, end) spans covers."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def gantt(bars: list | None) -> pd.DataFrame:
    """The bars (device, start, end, what) as a table."""
    if bars is None:
        raise UsageError("this world kept no timeline; build it with record=True")
    return pd.DataFrame(bars, columns=["device", "start", "end", "what"])


def cut(bars: list, devices, when: float) -> list:
    """The bars without what the devices would have computed after `when`."""
    gone = {(int(i), "compute") for i in devices}
    kept = (
        (i, start, min(end, when) if (i, what) in gone else end, what)
        for i, start, end, what in bars
    )
    return [bar for bar in kept if bar[1] <= bar[2]]
