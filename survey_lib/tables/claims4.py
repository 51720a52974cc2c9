"""What the methods of table 4 are claimed to do, see claims.py."""

from survey_lib.tables.schema import Claim

CLAIMS = (
    Claim(
        method="label_dirichlet",
        ref=40,
        text=(
            "Label skew costs accuracy: with Dirichlet(0.1) labels FedAvg ends at least 3 "
            "points below IID data."
        ),
        baseline="fedavg on IID data",
        metric="final accuracy",
        unit="points",
        effect="difference",
        direction=-1,
        least=3.0,
    ),
    Claim(
        method="scaffold",
        ref=99,
        text=(
            "Control variates save more rounds under label skew than the factor 2 that they "
            "cost in bytes a round: fewer bytes to the target accuracy (Dirichlet 0.1)."
        ),
        baseline="fedavg",
        metric="bytes to target accuracy",
        unit="B",
        effect="ratio",
        direction=-1,
        least=1.0,
    ),
    Claim(
        method="fedprox",
        ref=100,
        text=(
            "The penalty on the distance to the global model makes the model more accurate when "
            "90 % of the devices do partial work on skewed labels, beyond what including their "
            "work does."
        ),
        baseline="fedavg that includes partial work (mu = 0)",
        metric="accuracy over the last 10 rounds",
        unit="points",
        effect="difference",
        direction=1,
        least=1.0,
    ),
)
