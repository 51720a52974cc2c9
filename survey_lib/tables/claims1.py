"""What the methods of table 1 are claimed to do, see claims.py."""

from survey_lib.tables.schema import Claim

CLAIMS = (
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
    Claim(
        method="gaia_asp",
        ref=56,
        text=(
            "A relative threshold of 20 % that decays as 1/sqrt(t) needs at most a fifth of the "
            "bytes that exchange of everything needs to the target accuracy (5 sites, IID data)."
        ),
        baseline="fully synchronous exchange (threshold 0)",
        metric="bytes to target accuracy",
        unit="B",
        effect="ratio",
        direction=-1,
        least=5.0,
    ),
    Claim(
        method="backup_workers",
        ref=58,
        text=(
            "Waiting for 23 of 24 workers instead of all cuts the virtual time to the target "
            "accuracy by at least a quarter when computing times are heavy-tailed (Pareto, index "
            "1.5)."
        ),
        baseline="synchronous SGD that waits for all 24",
        metric="virtual seconds to target accuracy",
        unit="s",
        effect="ratio",
        direction=-1,
        least=4 / 3,
    ),
    Claim(
        method="fedcs",
        ref=59,
        text=(
            "Selecting the devices whose answers fit the deadline reaches the target accuracy at "
            "least 1.3 times sooner than selection blind to the deadline (IID data, 100 devices)."
        ),
        baseline="fedavg with the same deadline, late uploads discarded",
        metric="virtual seconds to target accuracy",
        unit="s",
        effect="ratio",
        direction=-1,
        least=1.3,
    ),
    Claim(
        method="adaptive_tau",
        ref=60,
        text=(
            "Within a fixed budget, the number of local steps chosen on the fly suits every case: "
            "its worst regret over all cases of data and costs is at least 5 points (of the range "
            "of the fixed settings' losses) below that of the best single fixed number."
        ),
        baseline="best single fixed tau",
        metric="worst regret over the cases, share of the range",
        unit="points",
        effect="difference",
        direction=-1,
        least=5.0,
    ),
    Claim(
        method="structured_lowrank",
        ref=57,
        text=(
            "Training only one factor of rank 8 of each update, a fraction of the upload, costs "
            "at most 1 point of accuracy after 40 rounds."
        ),
        baseline="fedavg",
        metric="accuracy after 40 rounds",
        unit="points",
        effect="difference",
        direction=1,
        least=-1.0,
    ),
    Claim(
        method="structured_random_mask",
        ref=57,
        text=(
            "Training a random quarter of the parameters on each device, a quarter of the upload, "
            "costs at most 2 points after 40 rounds when the server divides by how many devices "
            "touched each."
        ),
        baseline="fedavg",
        metric="accuracy after 40 rounds",
        unit="points",
        effect="difference",
        direction=1,
        least=-2.0,
    ),
    Claim(
        method="sketched_updates",
        ref=57,
        text=(
            "Updates subsampled to a quarter and quantised to 2 bits, about a 64th of the upload, "
            "cost at most 1 point of accuracy after 40 rounds."
        ),
        baseline="fedavg",
        metric="accuracy after 40 rounds",
        unit="points",
        effect="difference",
        direction=1,
        least=-1.0,
    ),
    Claim(
        method="sasgd",
        ref=62,
        text=(
            "At a step size where asynchronous SGD fails, dividing the step by the staleness "
            "makes it at least 20 points more accurate (32 learners, every gradient applied at "
            "once, alpha_0 = 0.4)."
        ),
        baseline="asynchronous SGD with a constant step",
        metric="accuracy after 1500 gradients",
        unit="points",
        effect="difference",
        direction=1,
        least=20.0,
    ),
    Claim(
        method="paflm",
        ref=63,
        text=(
            "When about a quarter of the gradients are sent, choosing them by the self-adaptive "
            "threshold is at least 1 point more accurate than sending as many at random."
        ),
        baseline="random suppression at the same ratio",
        metric="final accuracy at about a quarter sent",
        unit="points",
        effect="difference",
        direction=1,
        least=1.0,
    ),
    Claim(
        method="aso_fed",
        ref=64,
        text=(
            "With streaming skewed data, slow devices and dropouts, asynchronous online learning "
            "is at least 5 points more accurate on average over the same virtual time than "
            "FedAvg, which waits."
        ),
        baseline="fedavg on the same streams",
        metric="mean accuracy over virtual time",
        unit="points",
        effect="difference",
        direction=1,
        least=5.0,
    ),
    Claim(
        method="k_sync_async",
        ref=65,
        text=(
            "Half way, after 100 mean service times, waiting for 4 of 16 learners (K-async) has a "
            "lower loss than both waiting for all and waiting for one."
        ),
        baseline="the better of K = 16 (synchronous) and K = 1 (asynchronous)",
        metric="test loss after 100 mean service times",
        unit="nats",
        effect="ratio",
        direction=-1,
        least=1.0,
    ),
    Claim(
        method="adasync",
        ref=65,
        text=(
            "Raising K as the loss falls stays closer to the best fixed K at each of three times "
            "than any single fixed K does."
        ),
        baseline="best single fixed K",
        metric="largest ratio to the best fixed K's loss at three times",
        unit="x",
        effect="ratio",
        direction=-1,
        least=1.0,
    ),
    Claim(
        method="drl_node_selection",
        ref=66,
        text=(
            "A learned selection policy lowers the mean cost of a round by at least a fifth "
            "against random selection when vehicles come and go."
        ),
        baseline="random choice among those present",
        metric="mean cost of a round",
        unit="cost",
        effect="ratio",
        direction=-1,
        least=1.25,
    ),
    Claim(
        method="safa",
        ref=67,
        text=(
            "With 30 % of the devices crashing each round, selection after training and tolerance "
            "of lag reach the target accuracy at least 1.2 times sooner than FedAvg with the same "
            "deadline."
        ),
        baseline="fedavg with the same share of devices, deadline and crashes",
        metric="virtual seconds to target accuracy",
        unit="s",
        effect="ratio",
        direction=-1,
        least=1.2,
    ),
)
