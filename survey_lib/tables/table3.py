"""Table 3: data parallelism, synchronous and asynchronous updates (section 2.2.1)."""

from survey_lib.tables.schema import Erratum, Row, Table, cells

COLUMNS = ("Parameter update method", "Main problems", "Solution", "Reference")

ROWS = (
    Row(
        number="1",
        cells=cells(COLUMNS, "Synchronize updates", "Client delay", "Client filtering", "[58–59]"),
        cells_zh=cells(COLUMNS, "同步更新", "客户端延迟", "过滤响应时间慢的客户端", ""),
        refs=(58, 59),
        methods=("backup_workers", "fedcs"),
        says=(
            "Waiting for the slowest client makes training time grow and leaves resources idle. "
            "[58] aggregates once a set number of gradients is back and drops the late ones, [59] "
            "filters out slow clients; both look at time only and may lose accuracy when data "
            "differ between clients."
        ),
    ),
    Row(
        number="2",
        cells=cells(COLUMNS, "Synchronize updates", "Client delay", "Client selection", "[83]"),
        cells_zh=cells(COLUMNS, "同步更新", "客户端延迟", "自适应的层选择算法", ""),
        refs=(83,),
        methods=("tifl",),
        says=(
            "Deleting slow clients may remove parts of the data for good. Clients are therefore "
            "put in tiers of similar speed, each round draws on one tier, and the tiers' "
            "probabilities are adapted to balance time and accuracy."
        ),
    ),
    Row(
        number="3",
        cells=cells(COLUMNS, "Synchronize updates", "Client delay", "Hybrid update", "[84]"),
        cells_zh=cells(COLUMNS, "同步更新", "客户端延迟", "混合式更新算法", ""),
        refs=(84,),
        methods=("hfl_adsgd",),
        says=(
            "A synchronous kernel serves the clients that are on time, an asynchronous updater "
            "merges what stragglers send later, and adaptive delayed SGD corrects their stale "
            "updates."
        ),
    ),
    Row(
        number="4",
        cells=cells(
            COLUMNS, "Synchronize updates", "Client delay", "Partial update of model", "[85]"
        ),
        cells_zh=cells(COLUMNS, "同步更新", "客户端延迟", "软更新", ""),
        refs=(85,),
        methods=("elfish",),
        says=(
            "Asynchrony does not cure stragglers at the root. Masking a share of the neurons on "
            "weak devices lets every device keep pace, and the aggregation balances what the "
            "partly trained models contribute."
        ),
    ),
    Row(
        number="5",
        cells=cells(
            COLUMNS, "Asynchronous update", "Obsolescence effect", "Astringency", "[61,86]"
        ),
        cells_zh=cells(COLUMNS, "异步更新", "陈旧效应", "收敛的理论保证", ""),
        refs=(61, 86),
        methods=("asysg_con", "delayed_mirror_descent"),
        says=(
            "Asynchronous updates need no waiting and run better in parallel; theory guarantees "
            "that asynchronous SGD converges on convex and on non-convex problems."
        ),
    ),
    Row(
        number="6",
        cells=cells(
            COLUMNS, "Asynchronous update", "Obsolescence effect", "Penalty old gradient", "[90,92]"
        ),
        cells_zh=cells(COLUMNS, "异步更新", "陈旧效应", "惩罚陈旧梯度", ""),
        refs=(90, 92),
        methods=("fedasync", "exp_penalty"),
        says=(
            "The simplest remedy uses only a small part of an old gradient [92]; [90] averages "
            "with a weight that depends on staleness and tolerates it in experiments. The price: "
            "gradients may become arbitrarily small, and the rate is not guaranteed at scale."
        ),
    ),
    Row(
        number="7",
        cells=cells(
            COLUMNS, "Asynchronous update", "Obsolescence effect", "Adjust learning rate", "[62,91]"
        ),
        cells_zh=cells(COLUMNS, "异步更新", "陈旧效应", "调整学习率", ""),
        refs=(62, 91),
        methods=("sasgd", "fasgd"),
        says=(
            "[62] counts staleness in rounds of the global model and divides the learning rate, "
            "with the accuracy of synchronous SGD and almost linear speed-up; [91] measures it by "
            "moving averages of gradient statistics and is said to be proven better in speed and "
            "scale."
        ),
    ),
    Row(
        number="8",
        cells=cells(COLUMNS, "Asynchronous update", "Obsolescence effect", "Use momentum", "[94]"),
        cells_zh=cells(COLUMNS, "异步更新", "陈旧效应", "动量", ""),
        refs=(94,),
        methods=("dana",),
        says=(
            "Momentum makes SGD faster and more accurate. [94] is said to be the first to use it "
            "asynchronously: it takes the gradient at an estimate of where the parameters will be, "
            "which reduces staleness."
        ),
    ),
    Row(
        number="9",
        cells=cells(
            COLUMNS,
            "Asynchronous update",
            "Obsolescence effect",
            "Adjust super parameters",
            "[95]",
        ),
        cells_zh=cells(COLUMNS, "异步更新", "陈旧效应", "自适应调整训练超参数", ""),
        refs=(95,),
        methods=("fedsa",),
        says=(
            "With non-IID data asynchrony makes staleness worse. FedSA trains in two stages and "
            "adapts its hyper-parameters to the devices' speeds and to how similar local models "
            "are."
        ),
    ),
    Row(
        number="text-1",
        cells={},
        cells_zh={},
        refs=(87,),
        methods=("async_linear_systems",),
        says=(
            "Section 2.2.1: named with [61, 86] as theory that asynchronous SGD converges on "
            "convex and non-convex problems."
        ),
    ),
    Row(
        number="text-2",
        cells={},
        cells_zh={},
        refs=(88,),
        methods=("downpour",),
        says=(
            "Section 2.2.1: DistBelief trains networks of billions of parameters on tens of "
            "thousands of cores with Downpour SGD; up to 2000 cores Adagrad and asynchronous SGD "
            "work well together."
        ),
    ),
    Row(
        number="text-3",
        cells={},
        cells_zh={},
        refs=(89,),
        methods=("easgd",),
        says="Section 2.2.1: named as one of the variants of the asynchronous update.",
    ),
    Row(
        number="text-4",
        cells={},
        cells_zh={},
        refs=(64, 72, 90),
        methods=("aso_fed", "gossiping_sgd", "fedasync"),
        says="Section 2.2.1: named with [89] as extensions and variants of asynchronous updates.",
    ),
    Row(
        number="text-5",
        cells={},
        cells_zh={},
        refs=(54, 81, 91, 93),
        methods=("sgd_momentum_nag",),
        says=(
            "Section 2.2.1: asynchrony parallelises better [54], staleness must be handled well "
            "[91], and momentum improves the speed and accuracy of SGD [81, 93]."
        ),
    ),
)

ERRATA = (
    Erratum(
        place="section 2.2.1 on [58]",
        stands="80 % of the gradients arrive within 2 s, of the last gradients only 30 %.",
        really=(
            "The statement is about steps: in 80 % of them the 98th of 100 gradients is there "
            "within 2 s, in only 30 % of them the last one. It describes an order statistic, not "
            "shares of one step's gradients."
        ),
        source="[58], as retold by others",
        sure="second-hand",
    ),
    Erratum(
        place="section 2.2.1, after [90]",
        stands="Penalising stale gradients in general makes them arbitrarily small.",
        really=(
            "[62], where the remark comes from, directs it at the exponential penalty of [92] "
            "only; the polynomial weight of [90] decays far more slowly."
        ),
        source="[62], text",
        sure="checked",
    ),
    Erratum(
        place="row 6",
        stands="[90] penalises old gradients.",
        really="It mixes whole client models, with a weight that depends on staleness.",
        source="[90], algorithm and public re-implementations",
        sure="checked",
    ),
    Erratum(
        place="row 8 and section 2.2.1 on [94]",
        stands="[94] is the first to use momentum asynchronously.",
        really=(
            "[89] has a momentum version and [62] ran its asynchronous experiments with momentum "
            "0.9. What [94] claims is momentum with almost no loss of final accuracy."
        ),
        source="abstracts of [89] and [94]; [62], text",
        sure="checked",
    ),
    Erratum(
        place="row 7 and section 2.2.1 on [91]",
        stands="[91] proves a significant gain in convergence speed and scalability.",
        really=(
            "It has experiments on one task (MNIST, a perceptron with 200 hidden units) and no "
            "proof. Its printed update rule is inverted against its own text and code."
        ),
        source="[91], text and the author's code",
        sure="checked",
    ),
    Erratum(
        place="row 4 and section 2.2.1 on [85]",
        stands="The method is called soft update.",
        really=(
            "The paper says soft-training; soft update usually means slow copying of a target "
            "network in reinforcement learning."
        ),
        source="[85]",
        sure="checked",
    ),
    Erratum(
        place="row 5 and section 2.2.1 on [61,86-87]",
        stands="All three support convergence on convex and non-convex problems.",
        really=(
            "[86] is the convex case and [61] the non-convex one; [87], absent from the table, "
            "treats consistent linear systems only."
        ),
        source="titles and abstracts of the three works",
        sure="checked",
    ),
    Erratum(
        place="table 3",
        stands="[88] and [89] do not appear.",
        really="The text treats both as asynchronous methods; they belong in the table.",
        source="the survey's own text",
        sure="checked",
    ),
    Erratum(
        place="row 7 against table 1, row 6",
        stands="[62] adjusts the learning rate here and is an equipment-level method there.",
        really="It is one and the same rule at the server, classed in two ways.",
        source="[62], text",
        sure="checked",
    ),
    Erratum(
        place="section 2.2.1 on waiting for stragglers",
        stands="Training time grows exponentially.",
        really=(
            "The source speaks of the time to collect the last few gradients. The expected "
            "maximum of K exponential times grows only like log K."
        ),
        source="mean of an order statistic, H_K for rate 1; [58] as retold by others",
        sure="argued",
    ),
    Erratum(
        place="rows 5 to 9, English cells",
        stands="Astringency, obsolescence effect, super parameters.",
        really="Meant are convergence, the effect of staleness, and hyper-parameters.",
        source="the survey's Chinese text",
        sure="checked",
    ),
    Erratum(
        place="sections 2.1.1 and 2.2.1",
        stands=(
            "Asynchronous means waiting for some number of arrivals in one section and updating at "
            "each arrival in the other."
        ),
        really="In the terms of [65] the first is K-async or K-batch-async, the second K = 1.",
        source="the survey's own text against [65]",
        sure="argued",
    ),
)

TABLE = Table(
    number=3,
    title="Related works of data parallel",
    title_zh="数据并行相关工作",
    section="2.2.1",
    notebook="02_data_parallel",
    columns=COLUMNS,
    columns_zh=("参数更新方式", "问题", "方法", "文献"),
    rows=ROWS,
    errata=ERRATA,
)
