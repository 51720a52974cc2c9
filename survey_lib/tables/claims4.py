"""What the methods of table 4 are claimed to do, see claims.py."""

from survey_lib.tables.schema import Claim

CLAIMS = (
    Claim(
        method="noniid_statistics",
        ref=40,
        text=(
            "Each kind of skew moves the statistic of its own factor, and more than any "
            "kind moves a statistic that is not its own."
        ),
        baseline="the largest z-score of a statistic that a kind should not move",
        metric="smallest z-score of a kind's own statistic, against IID draws",
        unit="standard deviations",
        effect="ratio",
        direction=1,
        least=1.0,
    ),
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
        method="feature_skew",
        ref=40,
        text=(
            "Images turned by up to 45 degrees, in four groups of devices, cost FedAvg at "
            "least 3 points less than Dirichlet(0.1) labels do."
        ),
        baseline="fedavg on Dirichlet(0.1) labels",
        metric="accuracy lost against IID data",
        unit="points",
        effect="difference",
        direction=-1,
        least=3.0,
    ),
    Claim(
        method="concept_shift",
        ref=40,
        text=(
            "Where two groups of devices name the classes differently, no single model is "
            "right: devices that fine-tune it are at least 15 points more accurate on their "
            "own data."
        ),
        baseline="the global model of fedavg",
        metric="final accuracy on the devices' own test data",
        unit="points",
        effect="difference",
        direction=1,
        least=15.0,
    ),
    Claim(
        method="concept_drift_style",
        ref=40,
        text=(
            "Devices that see one style of each class alone fail on the others, and "
            "federation repairs it: FedAvg is at least 15 points above local training."
        ),
        baseline="local models",
        metric="final accuracy on all styles",
        unit="points",
        effect="difference",
        direction=1,
        least=15.0,
    ),
    Claim(
        method="quantity_skew",
        ref=40,
        text=(
            "Unequal amounts of data alone are nearly harmless where models are weighted by "
            "them: FedAvg ends at most 2 points below equal amounts."
        ),
        baseline="fedavg on equal amounts of data",
        metric="final accuracy",
        unit="points",
        effect="difference",
        direction=1,
        least=-2.0,
    ),
    Claim(
        method="dependence",
        ref=40,
        text=(
            "Where classes 0 to 4 are online in one half of a cycle and 5 to 9 in the "
            "other, the global model swings with the cycle, at least 5 times as far as with "
            "the same availability without a cycle."
        ),
        baseline="fedavg, the same mean availability at any time",
        metric="amplitude of accuracy at the cycle's period",
        unit="points",
        effect="ratio",
        direction=1,
        least=5.0,
    ),
    Claim(
        method="train_test_shift",
        ref=40,
        text=(
            "Test samples of the devices that trained overstate the accuracy at unseen "
            "devices by at least 3 points, where every device turns its images by an angle "
            "of its own."
        ),
        baseline="the same model on devices that did not train",
        metric="final accuracy",
        unit="points",
        effect="difference",
        direction=1,
        least=3.0,
    ),
    Claim(
        method="fedavg_decay",
        ref=96,
        text=(
            "With 5 local steps on skewed labels a step that decays as 1/t ends with at "
            "most a third of the excess loss of the best fixed step."
        ),
        baseline="fedavg with the best fixed step",
        metric="excess training loss",
        unit="nats",
        effect="ratio",
        direction=-1,
        least=3.0,
    ),
    Claim(
        method="local_gd",
        ref=97,
        text=(
            "Once high accuracy is asked for, local gradient descent saves nothing on "
            "skewed labels: with 20 local steps it needs no fewer rounds than gradient "
            "descent."
        ),
        baseline="gradient descent (one local step)",
        metric="rounds to an excess loss of 0.01",
        unit="rounds",
        effect="ratio",
        direction=1,
        least=1.0,
    ),
    Claim(
        method="scaffold_theory",
        ref=99,
        text=(
            "SCAFFOLD's limit is the optimum where FedAvg's is not: on unlike quadratics it "
            "ends at most a hundredth as far from the optimum."
        ),
        baseline="fedavg",
        metric="distance to the optimum after 100 rounds",
        unit="norm",
        effect="ratio",
        direction=-1,
        least=100.0,
    ),
    Claim(
        method="hsu_degradation",
        ref=98,
        text=(
            "Skew costs more where fewer devices report: from Dirichlet(100) to "
            "Dirichlet(0.1) FedAvg loses at least 3 points more with 10 % of the devices a "
            "round than with all."
        ),
        baseline="fedavg, all devices in each round",
        metric="accuracy lost from Dirichlet(100) to Dirichlet(0.1)",
        unit="points",
        effect="difference",
        direction=1,
        least=3.0,
    ),
    Claim(
        method="client_drift",
        ref=99,
        text=(
            "With Dirichlet(0.1) labels, client drift and the sampling of devices together "
            "make at least 3 times as much of a round's error as mini-batch noise."
        ),
        baseline="mini-batch noise",
        metric="squared error of a round's update",
        unit="squared norm",
        effect="ratio",
        direction=1,
        least=3.0,
    ),
    Claim(
        method="fedavgm",
        ref=98,
        text=(
            "Momentum at the server recovers much of the loss: at least 3 points with one "
            "label shard per device and 5 of 20 devices a round."
        ),
        baseline="fedavg",
        metric="accuracy over the last 5 rounds",
        unit="points",
        effect="difference",
        direction=1,
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
    Claim(
        method="fednova",
        ref=101,
        text=(
            "Where one half of the classes is at devices that take 2 local steps and the "
            "other at devices that take 20, normalised averaging ends at no more than half "
            "the excess loss (small step)."
        ),
        baseline="fedavg",
        metric="excess training loss",
        unit="nats",
        effect="ratio",
        direction=-1,
        least=2.0,
    ),
    Claim(
        method="fedvc",
        ref=102,
        text=(
            "Virtual clients of equal size make training steadier: the accuracy varies at "
            "most two thirds as much from round to round, where the devices' sizes are log- "
            "normal."
        ),
        baseline="fedavg",
        metric="standard deviation of the accuracy over the last 20 rounds",
        unit="points",
        effect="ratio",
        direction=-1,
        least=1.5,
    ),
    Claim(
        method="fedir",
        ref=102,
        text=(
            "Where every device has at least a little of each class, weighting samples by "
            "p(y) / q_i(y) makes the model at least 2 points more accurate after 10 rounds."
        ),
        baseline="fedavg",
        metric="accuracy after 10 rounds",
        unit="points",
        effect="difference",
        direction=1,
        least=2.0,
    ),
    Claim(
        method="real_world_splits",
        ref=102,
        text=(
            "A natural-looking split ranks methods differently from a Dirichlet split of "
            "the same label skew: the rank correlation is at least 0.2 lower than between "
            "two Dirichlet splits."
        ),
        baseline="two Dirichlet splits",
        metric="Kendall's tau of the methods' accuracies",
        unit="tau",
        effect="difference",
        direction=-1,
        least=0.2,
    ),
    Claim(
        method="weight_divergence",
        ref=103,
        text=(
            "The models of FedAvg and of centralised SGD part with the label skew: with one "
            "class per device at least 5 times as far as on IID data."
        ),
        baseline="IID data",
        metric="distance to the model of centralised SGD, relative to its norm",
        unit="of the norm",
        effect="ratio",
        direction=1,
        least=5.0,
    ),
    Claim(
        method="shared_data",
        ref=103,
        text=(
            "A balanced 5 % of the data, given to all devices of one class each, makes the "
            "model at least 10 points more accurate after 20 rounds."
        ),
        baseline="fedavg without shared data",
        metric="accuracy after 20 rounds",
        unit="points",
        effect="difference",
        direction=1,
        least=10.0,
    ),
    Claim(
        method="hybrid_fl",
        ref=104,
        text=(
            "A tenth of the devices suffices: where they let the server have data of all "
            "classes, its own training makes the model at least 3 points more accurate."
        ),
        baseline="fedcs, the same selection without uploaded data",
        metric="accuracy over the last 5 rounds",
        unit="points",
        effect="difference",
        direction=1,
        least=3.0,
    ),
    Claim(
        method="fedcurv",
        ref=105,
        text=(
            "Protecting the parameters that matter to the others is worth at least 1 point "
            "over a pull that treats all parameters alike, at 10 local epochs on two label "
            "shards."
        ),
        baseline="fedprox",
        metric="accuracy after 15 rounds",
        unit="points",
        effect="difference",
        direction=1,
        least=1.0,
    ),
    Claim(
        method="fedamp",
        ref=106,
        text=(
            "Messages between similar devices find the groups: at least 3 points above the "
            "best of local training, FedAvg and fine-tuned FedAvg where two groups name the "
            "classes differently."
        ),
        baseline="the best of local, global and fine-tuned models",
        metric="final accuracy on the devices' own test data",
        unit="points",
        effect="difference",
        direction=1,
        least=3.0,
    ),
    Claim(
        method="heurfedamp",
        ref=106,
        text=(
            "Cosine attention depends less on its scale than FedAMP's kernel: over two "
            "decades of it the accuracy varies by at least 3 points less."
        ),
        baseline="fedamp",
        metric="range of the accuracy over two decades of the scale",
        unit="points",
        effect="difference",
        direction=-1,
        least=3.0,
    ),
    Claim(
        method="perfit_finetune",
        ref=107,
        text=(
            "Fine-tuning the global model on the own data makes it at least 5 points more "
            "accurate there, with two label shards per device."
        ),
        baseline="the global model of fedavg",
        metric="final accuracy on the devices' own test data",
        unit="points",
        effect="difference",
        direction=1,
        least=5.0,
    ),
    Claim(
        method="perfit_meta",
        ref=107,
        text=(
            "A model trained for it adapts better: after one step on the own data it is at "
            "least 1 point more accurate than FedAvg's model after the same step."
        ),
        baseline="fedavg, then one step",
        metric="accuracy on the devices' own test data after one step",
        unit="points",
        effect="difference",
        direction=1,
        least=1.0,
    ),
    Claim(
        method="perfit_kd",
        ref=107,
        text=(
            "Distilled personal models, small ones among them, are at most 5 points below a "
            "fine-tuned large one, for a fraction of the traffic."
        ),
        baseline="fine-tuned fedavg, the large network everywhere",
        metric="final accuracy on the devices' own test data",
        unit="points",
        effect="difference",
        direction=1,
        least=-5.0,
    ),
)
