"""What happened when: the bars of a Gantt chart, and timetables made elsewhere."""

import pandas as pd

from survey_lib.errors import UsageError


def replay(world, events, begin: float = 0.0, end: float | None = None) -> None:
    """Charge what of a timetable of pipeline.Event lies between begin and end (default: its last
    end), in s from its beginning; the clock moves by as much. The first part of a message is
    latency; it counts when it is through."""
    end = max((e.end for e in events), default=0.0) if end is None else end
    active = {i: [] for e in events for i in (e.device, e.to) if i is not None}
    for e in events:
        if e.end <= begin or e.start >= end:
            continue
        start, through = e.start, e.end <= end
        if e.what == "send":
            late = max(world.latency[e.device], world.latency[e.to])
            start = min(e.end, start + e.tries * late)
        span = max(start, begin), min(e.end, end)
        seconds = max(0.0, span[1] - span[0])
        if e.what == "send":
            world.radio[[e.device, e.to]] += seconds
            active[e.to].append(span)
            if through:
                world.up[e.device] += e.nbytes
                world.down[e.to] += e.nbytes
                world.messages += e.tries
                world.lost += e.nbytes * (e.tries - 1) / e.tries
        else:
            world.busy[e.device] += seconds
        active[e.device].append(span)
        if through:
            world.note([e.device], [world.clock + e.start - begin], [e.end - e.start], e.what)
    for i, spans in active.items():
        world.wait[i] += end - begin - _covered(spans)
    world.clock += end - begin
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
