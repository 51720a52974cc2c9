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
)
