import pandas as pd

from survey_lib.evidence.steady import steady


def test_the_fill_does_not_count():
    clock = [0.0, 10.0, 10.0, 12.0, 14.0]  # rounds 0, 2, 4, 6, 8: two seconds every two rounds
    history = pd.DataFrame(dict(round=[0, 2, 4, 6, 8], clock=clock))
    assert steady(history) == 1.0
