"""What the methods of table 2 are claimed to do, see claims.py."""

from survey_lib.tables.schema import Claim

CLAIMS = (
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
        exact=True,
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
    Claim(
        method="ad_psgd",
        ref=69,
        text=(
            "With one device 10 times slower, asynchronous pairwise averaging reaches the target "
            "in at most half of D-PSGD's virtual time (16 devices, torus, IID data)."
        ),
        baseline="d_psgd",
        metric="virtual seconds to target accuracy",
        unit="s",
        effect="ratio",
        direction=-1,
        least=2.0,
    ),
    Claim(
        method="p2p_fl_bayes",
        ref=70,
        text=(
            "Devices that each observe one feature learn the whole model through their "
            "neighbours: at most a fifth of the excess error of learning alone (Bayesian linear "
            "regression on a ring)."
        ),
        baseline="local_only",
        metric="excess squared error (mean node)",
        unit="error",
        effect="ratio",
        direction=-1,
        least=5.0,
    ),
    Claim(
        method="gosgd",
        ref=71,
        text=(
            "Pushing the model in one step out of ten costs at most 2 points against exchanging "
            "it in every step (16 devices, IID data)."
        ),
        baseline="gossiping_sgd in every step",
        metric="final accuracy (mean node)",
        unit="points",
        effect="difference",
        direction=1,
        least=-2.0,
    ),
    Claim(
        method="gossiping_sgd",
        ref=72,
        text=(
            "With few devices and uneven computing times asynchronous gossip reaches the target "
            "at least 1.2 times sooner than all-reduce (8 devices)."
        ),
        baseline="allreduce_sgd",
        metric="virtual seconds to target accuracy",
        unit="s",
        effect="ratio",
        direction=-1,
        least=1.2,
    ),
    Claim(
        method="gossipgrad",
        ref=73,
        text=(
            "A rotating partner schedule is at least half a point more accurate than random "
            "matching at equal bytes (16 devices, one label shard each)."
        ),
        baseline="random matching",
        metric="final accuracy (mean node)",
        unit="points",
        effect="difference",
        direction=1,
        least=0.5,
    ),
    Claim(
        method="model_propagation",
        ref=74,
        text=(
            "Smoothing local models over a similarity graph with confidence at least halves the "
            "squared error of the better of local models and one common model."
        ),
        baseline="the better of local models and one common model",
        metric="squared error to the true targets",
        unit="error",
        effect="ratio",
        direction=-1,
        least=2.0,
    ),
    Claim(
        method="collaborative_learning_admm",
        ref=74,
        text=(
            "Learning the models jointly is at least 1 point more accurate than propagating "
            "finished local models (100 agents with 1 to 20 samples)."
        ),
        baseline="model_propagation",
        metric="final accuracy (mean agent)",
        unit="points",
        effect="difference",
        direction=1,
        least=1.0,
    ),
    Claim(
        method="online_push_sum",
        ref=75,
        text=(
            "Over one-way links push-sum lowers the average online loss at least 1.2 times below "
            "that of isolated learning (32 devices, data from one distribution)."
        ),
        baseline="isolated online learning",
        metric="average online loss",
        unit="nats",
        effect="ratio",
        direction=-1,
        least=1.2,
    ),
    Claim(
        method="gossip_dual_averaging_pairwise",
        ref=76,
        text=(
            "Swapping one observation makes a pairwise loss trainable by gossip: at least 20 "
            "points more AUC than without the swap (64 devices with one sample each, Watts-"
            "Strogatz graph)."
        ),
        baseline="no swap",
        metric="test AUC (mean node)",
        unit="points",
        effect="difference",
        direction=1,
        least=20.0,
    ),
    Claim(
        method="subgradient_push",
        ref=77,
        text=(
            "Push over one-way links that change every round needs at most two thirds of the "
            "bytes of symmetric exchange over the same links to 1 % relative error (16 devices, "
            "strongly convex, one label shard each)."
        ),
        baseline="d_psgd on the symmetrised graph",
        metric="bytes to 1 % relative squared error",
        unit="B",
        effect="ratio",
        direction=-1,
        least=1.5,
    ),
    Claim(
        method="sgp",
        ref=78,
        text=(
            "One message a round without reply halves the virtual time of all-reduce to the "
            "target accuracy on links of 10 Mbit/s (16 devices, IID data)."
        ),
        baseline="allreduce_sgd",
        metric="virtual seconds to target accuracy",
        unit="s",
        effect="ratio",
        direction=-1,
        least=2.0,
    ),
    Claim(
        method="osgp",
        ref=78,
        text=(
            "Overlapping communication and computation reaches the target at least 1.2 times "
            "sooner where both take equally long (16 devices, IID data, delay of one round)."
        ),
        baseline="sgp",
        metric="virtual seconds to target accuracy",
        unit="s",
        effect="ratio",
        direction=-1,
        least=1.2,
    ),
    Claim(
        method="choco_gossip",
        ref=79,
        text=(
            "Compressed differences reach the exact mean where compressed values do not: at most "
            "a thousandth of the error of direct compressed gossip after 1500 rounds (ring of 16, "
            "10 % of the entries)."
        ),
        baseline="direct compressed gossip",
        metric="squared distance to the mean",
        unit="error",
        effect="ratio",
        direction=-1,
        least=1000.0,
    ),
    Claim(
        method="segmented_gossip",
        ref=80,
        text=(
            "Ten segments from unlike peers reach the target at least 3 times sooner than whole "
            "models over slow paths between devices with faster access links."
        ),
        baseline="segmented_gossip with one segment",
        metric="virtual seconds to target accuracy",
        unit="s",
        effect="ratio",
        direction=-1,
        least=3.0,
    ),
)
