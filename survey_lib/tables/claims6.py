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
        method="fitnet_hint",
        ref=120,
        text=(
            "A hint from the teacher's middle layer makes a deep, thin student at least 1 "
            "point more accurate than softened outputs alone, with 100 labelled samples."
        ),
        baseline="kd_logits",
        metric="final accuracy",
        unit="points",
        effect="difference",
        direction=1,
        least=1.0,
    ),
    Claim(
        method="attention_transfer",
        ref=120,
        text=(
            "Spatial attention maps pass from a wide convolutional teacher to a narrow "
            "student without a regressor, and make it at least half a point more accurate."
        ),
        baseline="student_hard_labels",
        metric="final accuracy",
        unit="points",
        effect="difference",
        direction=1,
        least=0.5,
    ),
    Claim(
        method="relational_kd",
        ref=120,
        text=(
            "Relations between samples pass to an embedding of another size: a sample's "
            "nearest neighbour there is of its class at least 2 points more often."
        ),
        baseline="student_hard_labels",
        metric="accuracy of the nearest neighbour in the embedding",
        unit="points",
        effect="difference",
        direction=1,
        least=2.0,
    ),
    Claim(
        method="sharma_edge_kt",
        ref=38,
        text=(
            "Transfer from an intermediate and the last layer makes a shallower student at "
            "least 2 points more accurate than no transfer, with 100 labelled samples."
        ),
        baseline="student_hard_labels",
        metric="final accuracy",
        unit="points",
        effect="difference",
        direction=1,
        least=2.0,
    ),
    Claim(
        method="linear_distillation",
        ref=121,
        text=(
            "From as many samples as dimensions on, a linear student has its teacher's "
            "decisions from soft labels and not from hard ones: its risk is at least 10 "
            "points lower."
        ),
        baseline="logistic regression on hard labels",
        metric="transfer risk with n = d samples",
        unit="points",
        effect="difference",
        direction=-1,
        least=10.0,
    ),
    Claim(
        method="knowledge_points",
        ref=122,
        text=(
            "A distilled student encodes more knowledge points than the same student "
            "trained on hard labels."
        ),
        baseline="student_hard_labels",
        metric="knowledge points of the foreground",
        unit="pixels",
        effect="ratio",
        direction=1,
        least=1.0,
    ),
    Claim(
        method="lottery_ticket",
        ref=116,
        text=(
            "A sparse network with a tenth of the weights, trained from its original "
            "initialisation, ends at most 1 point below the dense one: small networks need "
            "not be worse."
        ),
        baseline="the dense network",
        metric="final accuracy",
        unit="points",
        effect="difference",
        direction=1,
        least=-1.0,
    ),
    Claim(
        method="scan",
        ref=119,
        text=(
            "Early exits that learn from the last one are at least half a point more "
            "accurate than exits that learn from labels alone."
        ),
        baseline="exits without distillation",
        metric="accuracy of the first exit",
        unit="points",
        effect="difference",
        direction=1,
        least=0.5,
    ),
    Claim(
        method="factor_geometry",
        ref=121,
        text=(
            "The better the classes are separated, the fewer samples a student needs: at "
            "most a third as many within 30 degrees of the teacher's direction as within "
            "80."
        ),
        baseline="data within 80 degrees",
        metric="samples until the risk is below 1 %",
        unit="samples",
        effect="ratio",
        direction=-1,
        least=3.0,
    ),
    Claim(
        method="factor_optimisation_bias",
        ref=121,
        text=(
            "Gradient descent from zero finds a better minimiser than most: its risk is at "
            "least 5 points lower than that of a random one with the same training loss."
        ),
        baseline="random minimisers of the same loss",
        metric="transfer risk",
        unit="points",
        effect="difference",
        direction=-1,
        least=5.0,
    ),
    Claim(
        method="factor_sample_size",
        ref=121,
        text=(
            "More samples do not hurt a distilled student, and do hurt one of hard labels: "
            "one sample more raises the risk at least 10 points less often."
        ),
        baseline="logistic regression on hard labels",
        metric="share of added samples that raise the risk",
        unit="points",
        effect="difference",
        direction=-1,
        least=10.0,
    ),
    Claim(
        method="factor_transfer_way",
        ref=38,
        text=(
            "Which technique meets which student explains more of the differences in "
            "accuracy than whether there is any transfer."
        ),
        baseline="transfer or none",
        metric="share of the variance, technique by student",
        unit="of the variance",
        effect="ratio",
        direction=1,
        least=1.0,
    ),
    Claim(
        method="codistillation",
        ref=122,
        text=(
            "Two models on disjoint data that learn from each other's stale checkpoints are "
            "at least half a point more accurate than without exchange."
        ),
        baseline="independent training",
        metric="final accuracy (mean of both)",
        unit="points",
        effect="difference",
        direction=1,
        least=0.5,
    ),
    Claim(
        method="codistillation_shared_samples",
        ref=122,
        text=(
            "Sharing samples and exchanging outputs on them is bad for traffic: 800 samples "
            "take at least twice the bytes of exchanging stale checkpoints."
        ),
        baseline="codistillation",
        metric="bytes of the whole training",
        unit="B",
        effect="ratio",
        direction=1,
        least=2.0,
        exact=True,
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
    Claim(
        method="faug",
        ref=123,
        text=(
            "Generated samples of the labels that a device lacks make federated "
            "distillation at least 10 points more accurate, where every device lacks 4 of "
            "10 labels."
        ),
        baseline="federated_distillation_fd",
        metric="final accuracy (mean node)",
        unit="points",
        effect="difference",
        direction=1,
        least=10.0,
    ),
    Claim(
        method="fml",
        ref=124,
        text=(
            "Private models of unlike width profit from the shared one: on data like their "
            "own they are at least 1 point more accurate than trained alone (Dirichlet "
            "0.3)."
        ),
        baseline="local_only",
        metric="final accuracy on the devices' own test data",
        unit="points",
        effect="difference",
        direction=1,
        least=1.0,
    ),
    Claim(
        method="cfd",
        ref=125,
        text=(
            "One bit per class is enough: the server's model ends at most 2 points below "
            "that of outputs sent as floating-point numbers (Dirichlet 0.3)."
        ),
        baseline="outputs in 32 bits",
        metric="final accuracy of the server's model",
        unit="points",
        effect="difference",
        direction=1,
        least=-2.0,
    ),
    Claim(
        method="fd_wireless_hfd",
        ref=126,
        text=(
            "Outputs at shared mean samples repair what unlike data do to federated "
            "distillation: at least 10 points more accurate over the same noisy channel at "
            "10 dB (Dirichlet 0.3)."
        ),
        baseline="federated distillation over the same channel",
        metric="final accuracy (mean node)",
        unit="points",
        effect="difference",
        direction=1,
        least=10.0,
    ),
)
