"""Jobs against hand-made timetables and the pipeline's own."""

import itertools

import numpy as np
import pytest

from survey_lib.jobs import Job, run_jobs
from survey_lib.pipeline import fill_drain, timetable


def spans(events):
    return [(e.start, e.end) for e in events]


def test_by_hand():
    """Device 0 computes a (2 s) and c (1 s), sends a to 1 (3 s) beside c; 1 computes b after it."""
    jobs = [
        Job("F", 0, 2.0),
        Job("send", 0, 3.0, (0,), 1, 10),
        Job("F", 1, 4.0, (1,)),
        Job("F", 0, 1.0),
    ]
    assert spans(run_jobs(jobs)) == [(0, 2), (2, 5), (5, 9), (2, 3)]


def test_what_can_start_first_does():
    """Job 1 waits for 0 on the other device; job 2, later in the list, is not held up by it."""
    jobs = [Job("F", 1, 5.0), Job("F", 0, 1.0, (0,)), Job("F", 0, 2.0)]
    assert spans(run_jobs(jobs)) == [(0, 5), (5, 6), (0, 2)]


def test_a_device_sends_one_message_and_hears_one_at_a_time():
    two = [Job("send", 0, 1.0, to=1, nbytes=1), Job("send", 0, 1.0, to=2, nbytes=1)]
    assert spans(run_jobs(two)) == [(0, 1), (1, 2)]
    two = [Job("send", 1, 1.0, to=0, nbytes=1), Job("send", 2, 1.0, to=0, nbytes=1)]
    assert spans(run_jobs(two)) == [(0, 1), (1, 2)]
    back = [Job("send", 1, 1.0, to=0, nbytes=1), Job("send", 0, 1.0, to=1, nbytes=1)]
    assert spans(run_jobs(back)) == [(0, 1), (0, 1)]


@pytest.mark.parametrize("seed", range(5))
def test_rules_on_random_graphs(seed):
    rng, n = np.random.default_rng(seed), 3
    jobs = []
    for j in range(60):
        after = tuple(int(i) for i in np.flatnonzero(rng.random(j) < 0.1))
        d, e = rng.permutation(n)[:2]
        send = rng.random() < 0.4
        how = dict(to=int(e), nbytes=1) if send else {}
        jobs.append(Job("send" if send else "F", int(d), rng.uniform(0.1, 1), after, **how))
    events = run_jobs(jobs)
    for job, event in zip(jobs, events, strict=True):
        assert event.end - event.start == pytest.approx(job.seconds)
        assert all(events[i].end <= event.start + 1e-12 for i in job.after)
    lanes = {}
    for e in events:
        keys = [("c", e.device)] if e.to is None else [("up", e.device), ("down", e.to)]
        for key in keys:
            lanes.setdefault(key, []).append((e.start, e.end))
    for lane in lanes.values():
        assert all(a[1] <= b[0] + 1e-12 for a, b in itertools.pairwise(sorted(lane)))


def test_a_chain_is_the_pipeline_with_one_micro_batch():
    rng, K = np.random.default_rng(0), 4
    f, b, size = rng.uniform(1, 2, (3, K, 1))
    table = timetable(fill_drain(K, 1), f, b, 10 * size[:3], link=lambda d, e: (0.5, 10.0))
    jobs, last = [], ()
    for k in range(K):
        jobs.append(Job("F", k, f[k, 0], last))
        if k < K - 1:
            nbytes = int(10 * size[k, 0])
            jobs.append(Job("send", k, 0.5 + nbytes / 10, (len(jobs) - 1,), k + 1, nbytes))
        last = (len(jobs) - 1,)
    for k in reversed(range(K)):
        jobs.append(Job("B", k, b[k, 0], last))
        if k:
            nbytes = int(10 * size[k - 1, 0])
            jobs.append(Job("send", k, 0.5 + nbytes / 10, (len(jobs) - 1,), k - 1, nbytes))
        last = (len(jobs) - 1,)
    assert max(e.end for e in run_jobs(jobs)) == pytest.approx(max(e.end for e in table))
