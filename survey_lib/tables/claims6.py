"""What the methods of table 6 are claimed to do, see claims.py."""

from survey_lib.tables.schema import Claim

CLAIMS = (
    Claim(
        method="kd_logits",
        ref=120,
        text=(
            "With 50 labelled samples on the device, a small student taught by softened outputs "
            "is at least 2 points more accurate than the same student on hard labels."
        ),
        baseline="student_hard_labels",
        metric="final accuracy",
        unit="points",
        effect="difference",
        direction=1,
        least=2.0,
    ),
    Claim(
        method="federated_distillation_fd",
        ref=123,
        text=(
            "Exchanging mean outputs per class makes the devices' models at least 1 point more "
            "accurate than training alone (Dirichlet 0.3)."
        ),
        baseline="local_only",
        metric="final accuracy (mean node)",
        unit="points",
        effect="difference",
        direction=1,
        least=1.0,
    ),
)
