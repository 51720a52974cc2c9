"""What the methods of table 3 are claimed to do, see claims.py."""

from survey_lib.tables.schema import Claim

CLAIMS = (
    Claim(
        method="fedasync",
        ref=90,
        text=(
            "A mixing weight that falls with staleness keeps asynchronous training accurate "
            "where a constant weight of the same size does not (alpha = 0.6, two label shards a "
            "device)."
        ),
        baseline="fedasync with constant weight",
        metric="accuracy over the last 100 arrivals",
        unit="points",
        effect="difference",
        direction=1,
        least=5.0,
    ),
)
