"""Jobs that wait for each other, on devices and their links: when each of them is done."""

from collections import defaultdict
from heapq import heappop, heappush
from typing import NamedTuple

from survey_lib.pipeline import Event


class Job(NamedTuple):
    """A computation on a device, or (what = "send") a message to another one.

    after: numbers of earlier jobs that must be done before. seconds: of a message, its latency
    included, in all its tries; nbytes: in all of them. item: a number for the reader.
    """

    what: str
    device: int
    seconds: float
    after: tuple[int, ...] = ()
    to: int | None = None
    nbytes: int = 0
    item: int = 0
    tries: int = 1


def run_jobs(jobs: list[Job]) -> list[Event]:
    """The timetable of jobs, in their order: a device computes one at a time, sends one message at
    a time and hears one at a time; of those that could go on, the one that can start first does,
    and of these the first in the list."""
    left, then = [len(job.after) for job in jobs], defaultdict(list)
    for j, job in enumerate(jobs):
        for i in job.after:
            then[i].append(j)
    free, done, queue = defaultdict(float), [None] * len(jobs), []
    for j in range(len(jobs)):
        if not left[j]:
            heappush(queue, (0.0, j))
    while queue:
        start, j = heappop(queue)
        job = jobs[j]
        if job.what == "send":
            needs = ("up", job.device), ("down", job.to)
        else:
            needs = (("compute", job.device),)
        there = max(start, *(free[r] for r in needs))
        if there > start:  # taken meanwhile: back into the queue
            heappush(queue, (there, j))
            continue
        end = start + job.seconds
        for r in needs:
            free[r] = end
        message = dict(nbytes=job.nbytes, to=job.to, tries=job.tries)
        done[j] = Event(job.device, start, end, job.what, job.item, **message)
        for k in then[j]:
            left[k] -= 1
            if not left[k]:
                heappush(queue, (max(done[i].end for i in jobs[k].after), k))
    return done
