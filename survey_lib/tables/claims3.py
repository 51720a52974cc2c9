"""What the methods of table 3 are claimed to do, see claims.py."""

from survey_lib.tables.schema import Claim

CLAIMS = (
    Claim(
        method="backup_workers",
        ref=58,
        text=(
            "Dropping the late gradients costs accuracy where the slow devices alone hold "
            "some classes: at least 5 points below waiting for all, after the same virtual "
            "time."
        ),
        baseline="synchronous SGD that waits for all",
        metric="final accuracy, two classes on the slowest devices only",
        unit="points",
        effect="difference",
        direction=-1,
        least=5.0,
    ),
    Claim(
        method="fedcs",
        ref=59,
        text=(
            "Choosing devices by their speed alone costs accuracy where the slow devices "
            "alone hold some classes: at least 5 points below taking all and waiting, after the "
            "same virtual time."
        ),
        baseline="fedavg, waiting for all",
        metric="final accuracy, two classes on the slowest devices only",
        unit="points",
        effect="difference",
        direction=-1,
        least=5.0,
    ),
    Claim(
        method="tifl",
        ref=83,
        text=(
            "Drawing the devices of a round from one tier of equal speed, with adaptive "
            "probabilities, reaches the target accuracy at least 1.5 times sooner than "
            "drawing them from all (five speed groups, IID data)."
        ),
        baseline="fedavg, waiting for all",
        metric="virtual seconds to target accuracy",
        unit="s",
        effect="ratio",
        direction=-1,
        least=1.5,
    ),
    Claim(
        method="hfl_adsgd",
        ref=84,
        text=(
            "Merging what stragglers send late, corrected, is at least 5 points more accurate "
            "than dropping it after the same virtual time, where stragglers alone hold two "
            "classes."
        ),
        baseline="fedavg, late uploads dropped",
        metric="final accuracy, two classes on the slowest devices only",
        unit="points",
        effect="difference",
        direction=1,
        least=5.0,
    ),
    Claim(
        method="elfish",
        ref=85,
        text=(
            "Training a rotating share of the neurons on slow devices, so that they keep "
            "pace, reaches the target accuracy at least twice as fast as waiting for them."
        ),
        baseline="fedavg, waiting for all",
        metric="virtual seconds to target accuracy",
        unit="s",
        effect="ratio",
        direction=-1,
        least=2.0,
    ),
    Claim(
        method="asysg_con",
        ref=61,
        text=(
            "With the prescribed step, gradients that are up to 32 updates old leave the mean "
            "squared gradient norm over 4000 updates within a quarter of that without delay."
        ),
        baseline="the same without delay",
        metric="mean squared gradient norm",
        unit="1",
        effect="ratio",
        direction=-1,
        least=1 / 1.25,
    ),
    Claim(
        method="delayed_mirror_descent",
        ref=86,
        text=(
            "After 20,000 steps a delay of 50 leaves the optimality gap of the averaged model "
            "within a quarter of that without delay."
        ),
        baseline="the same without delay",
        metric="optimality gap of the average",
        unit="1",
        effect="ratio",
        direction=-1,
        least=1 / 1.25,
    ),
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
    Claim(
        method="exp_penalty",
        ref=92,
        text=(
            "Scaling a gradient by 0.9^staleness keeps asynchronous SGD with 32 learners at "
            "least 20 points above the unscaled one at a step size at which that fails (0.4)."
        ),
        baseline="asynchronous SGD with a constant step",
        metric="accuracy after 1500 gradients",
        unit="points",
        effect="difference",
        direction=1,
        least=20.0,
    ),
    Claim(
        method="sasgd",
        ref=62,
        text=(
            "Dividing the step by the staleness keeps asynchronous SGD with 32 learners "
            "within a point of synchronous SGD after the same number of gradients, each at "
            "its best step size."
        ),
        baseline="synchronous SGD",
        metric="accuracy after 1500 gradients",
        unit="points",
        effect="difference",
        direction=1,
        least=-1.0,
    ),
    Claim(
        method="fasgd",
        ref=91,
        text=(
            "Dividing the step also by a moving standard deviation of the gradient ends at a "
            "test loss at least 10 % below that of dividing by staleness alone, with 128 "
            "learners, batches of 1 and each at its best step size."
        ),
        baseline="sasgd",
        metric="test loss after 3000 gradients",
        unit="1",
        effect="ratio",
        direction=-1,
        least=1 / 0.9,
    ),
    Claim(
        method="dana",
        ref=94,
        text=(
            "With momentum 0.9 and 32 learners, gradients at estimated future parameters are "
            "at least 20 points more accurate than one shared momentum at the same step size "
            "(0.02)."
        ),
        baseline="asynchronous SGD with one shared Nesterov momentum",
        metric="accuracy after 1500 gradients",
        unit="points",
        effect="difference",
        direction=1,
        least=20.0,
    ),
    Claim(
        method="fedsa",
        ref=95,
        text=(
            "Two stages whose local epochs, steps and mixing weights follow staleness and "
            "similarity end at least 3 points above FedAsync with a polynomial weight of its "
            "own best size (two label shards a device)."
        ),
        baseline="fedasync with polynomial weight, best alpha",
        metric="accuracy over the last 100 arrivals",
        unit="points",
        effect="difference",
        direction=1,
        least=3.0,
    ),
    Claim(
        method="async_linear_systems",
        ref=87,
        text=(
            "In spite of delay, 16 asynchronous processors solve a consistent linear system "
            "in at most 1.25 times the virtual time of 16 synchronous ones, both with their "
            "best step (exponential computing times)."
        ),
        baseline="the synchronous parallel method, best step",
        metric="virtual seconds to relative error 1e-3",
        unit="s",
        effect="ratio",
        direction=-1,
        least=1 / 1.25,
    ),
    Claim(
        method="downpour",
        ref=88,
        text=(
            "Adagrad makes Downpour robust to the step size: with 10 steps between fetches at "
            "least one more size of a grid of powers of two comes within 5 points of the best "
            "than with a fixed rate."
        ),
        baseline="downpour with a fixed rate",
        metric="usable step sizes out of equally many",
        unit="step sizes",
        effect="difference",
        direction=1,
        least=1.0,
    ),
    Claim(
        method="easgd",
        ref=89,
        text=(
            "Going from an exchange in every step to one in 40 costs EASGD at least 5 points "
            "less than Downpour, each at its best step size."
        ),
        baseline="downpour with a fixed rate",
        metric="accuracy lost from period 1 to 40",
        unit="points",
        effect="difference",
        direction=-1,
        least=5.0,
    ),
    Claim(
        method="sgd_momentum_nag",
        ref=93,
        text=(
            "At the same small step size (0.02), momentum 0.9 reaches a training loss of 0.2 "
            "in at most a third of the steps of SGD."
        ),
        baseline="SGD",
        metric="steps to training loss 0.2",
        unit="steps",
        effect="ratio",
        direction=-1,
        least=3.0,
    ),
)
