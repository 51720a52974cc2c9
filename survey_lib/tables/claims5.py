"""What the methods of table 5 are claimed to do, see claims.py."""

from survey_lib.tables.schema import Claim

CLAIMS = (
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
        exact=True,
    ),
    Claim(
        method="mgrit_layer_parallel",
        ref=108,
        text=(
            "Two iterations of the layer-parallel solver in place of an exact pass are "
            "enough: training ends at most 1 point below serial training, where the weights "
            "vary smoothly from layer to layer."
        ),
        baseline="serial training of the same residual network",
        metric="final accuracy",
        unit="points",
        effect="difference",
        direction=1,
        least=-1.0,
    ),
    Claim(
        method="soap_mcmc",
        ref=110,
        text=(
            "On unlike devices a mixed plan, some layers split over the batch and some over "
            "their outputs, found by simulated search, takes at most two thirds of the time "
            "of the better pure plan."
        ),
        baseline="the better of data parallelism and one device per layer",
        metric="virtual seconds a mini-batch",
        unit="s",
        effect="ratio",
        direction=-1,
        least=1.5,
        exact=True,
    ),
    Claim(
        method="megatron_tensor_parallel",
        ref=115,
        text=(
            "Where layers are wide and the batch is small (width 1024, 16 samples), "
            "splitting each layer takes at most half the time of data parallelism."
        ),
        baseline="data_parallel",
        metric="virtual seconds a mini-batch",
        unit="s",
        effect="ratio",
        direction=-1,
        least=2.0,
        exact=True,
    ),
    Claim(
        method="pipedream",
        ref=111,
        text=(
            "At the step size that is best for serial training, keeping the versions of the "
            "weights makes the asynchronous pipeline at least 3 points more accurate than "
            "the same pipeline without them."
        ),
        baseline="the same pipeline without stashed versions",
        metric="final accuracy",
        unit="points",
        effect="difference",
        direction=1,
        least=3.0,
    ),
    Claim(
        method="spectrain",
        ref=112,
        text=(
            "With momentum 0.9 and the step size that is best for serial training, "
            "predicted weights make the asynchronous pipeline at least 2 points more "
            "accurate than stashed ones."
        ),
        baseline="pipedream with momentum",
        metric="final accuracy",
        unit="points",
        effect="difference",
        direction=1,
        least=2.0,
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
        exact=True,
    ),
    Claim(
        method="one_f_one_b_flush",
        ref=113,
        text=(
            "One forward, one backward in turn: at an unchanged gradient the busiest of 4 "
            "stages holds at most half the activations of 16 micro-batches."
        ),
        baseline="gpipe",
        metric="peak bytes of activations, busiest stage",
        unit="B",
        effect="ratio",
        direction=-1,
        least=2.0,
        exact=True,
    ),
    Claim(
        method="pipedream_partitioner",
        ref=111,
        text=(
            "Cuts by profile and dynamic programming take at most two thirds of the time of "
            "equal numbers of layers, on four devices of speeds 4:2:1:1 in any order."
        ),
        baseline="equal numbers of layers",
        metric="virtual seconds a mini-batch, steady state",
        unit="s",
        effect="ratio",
        direction=-1,
        least=1.5,
        exact=True,
    ),
    Claim(
        method="rl_placement",
        ref=114,
        text=(
            "A policy trained from nothing but step times finds placements at least as fast "
            "as a rule of thumb that knows the speeds."
        ),
        baseline="the greedy rule",
        metric="virtual seconds a mini-batch",
        unit="s",
        effect="ratio",
        direction=-1,
        least=1.0,
    ),
)
