"""What each method is claimed to do, written down before it is measured.

A claim states the comparison, the metric, the direction and the least effect that matters; the
notebook supplies the runs and the verdict follows by rule (evidence/verdict.py). A least effect
below zero (a factor below 1) is a margin: the claim is then "no worse by more than that". A method
that stands in two tables may have a claim for each table's question.
"""

from survey_lib.tables import claims1, claims2, claims3, claims4, claims5, claims6
from survey_lib.tables.schema import Claim

CLAIMS: dict[tuple[int, str], Claim] = {
    (table, claim.method): claim
    for table, module in enumerate((claims1, claims2, claims3, claims4, claims5, claims6), 1)
    for claim in module.CLAIMS
}
