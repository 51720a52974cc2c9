"""What each method is claimed to do, written down before it is measured.

A claim states the comparison, the metric, the direction and the least effect that matters; the
notebook supplies the runs and the verdict follows by rule (evidence/verdict.py). A least effect
below zero (a factor below 1) is a margin: the claim is then "no worse by more than that".
"""

from survey_lib.tables.schema import Claim

_ALL = [
    # table 1
    Claim(
        method="fedsgd",
        ref=41,
        text=(
            "One full-batch gradient of a part of the devices a round does the work of gradient "
            "descent on all data: at most 1.5 times its rounds to the target accuracy."
        ),
        baseline="centralised gradient descent",
        metric="rounds to target accuracy",
        unit="rounds",
        effect="ratio",
        direction=-1,
        least=1 / 1.5,
    ),
    Claim(
        method="fedavg",
        ref=41,
        text=(
            "Several local epochs in small batches reach the target accuracy in at most a third "
            "of FedSGD's rounds, at equal bytes a round (IID data)."
        ),
        baseline="fedsgd",
        metric="rounds to target accuracy",
        unit="rounds",
        effect="ratio",
        direction=-1,
        least=3.0,
    ),
    # table 2
    Claim(
        method="allreduce_sgd",
        ref=68,
        text=(
            "Ring all-reduce is not all-to-all: at 16 devices the busiest one moves at most a "
            "quarter of the bytes a round that all-to-all would cost it."
        ),
        baseline="all-to-all exchange of gradients",
        metric="bytes of the busiest device a round",
        unit="B",
        effect="ratio",
        direction=-1,
        least=4.0,
    ),
    Claim(
        method="d_psgd",
        ref=69,
        text=(
            "Talking to four neighbours instead of taking part in all-reduce halves the virtual "
            "time to the target accuracy (16 devices, torus, IID data, 10 Mbit/s links with 5 "
            "ms latency)."
        ),
        baseline="allreduce_sgd",
        metric="virtual seconds to target accuracy",
        unit="s",
        effect="ratio",
        direction=-1,
        least=2.0,
    ),
    Claim(
        method="choco_sgd",
        ref=79,
        text=(
            "At the bytes of 40 dense rounds, gossip of compressed differences gives a better "
            "model than exact D-PSGD (16 devices, torus, IID data)."
        ),
        baseline="d_psgd",
        metric="accuracy at equal bytes (mean node)",
        unit="points",
        effect="difference",
        direction=1,
        least=1.0,
    ),
    # table 3
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
    # table 4
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
    # table 5
    Claim(
        method="naive_layerwise_mp",
        ref=109,
        text=(
            "A network cut over 4 devices that take turns is no faster than one device: a "
            "mini-batch takes at least as long."
        ),
        baseline="single_device",
        metric="virtual seconds a mini-batch",
        unit="s",
        effect="ratio",
        direction=1,
        least=1.0,
    ),
    Claim(
        method="gpipe",
        ref=113,
        text=(
            "Micro-batches halve the time of a mini-batch on 4 devices at an unchanged gradient."
        ),
        baseline="naive_layerwise_mp",
        metric="virtual seconds a mini-batch",
        unit="s",
        effect="ratio",
        direction=-1,
        least=2.0,
    ),
    # table 6
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
]

CLAIMS = {claim.method: claim for claim in _ALL}
