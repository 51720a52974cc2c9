"""Table 2: fully decentralised architecture, D-PSGD (section 2.1.2)."""

from survey_lib.tables.schema import Erratum, Row, Table, cells

COLUMNS = ("Research questions", "Research protocol", "Optimization objective", "Reference")

ROWS = (
    Row(
        number="1",
        cells=cells(
            COLUMNS,
            "Neighbor interaction",
            "Random selection",
            "Reduce interaction complexity",
            "[69-72]",
        ),
        cells_zh=cells(COLUMNS, "邻居交互", "随机选择", "", ""),
        refs=(69, 70, 71, 72),
        methods=("d_psgd", "ad_psgd", "p2p_fl_bayes", "gosgd", "gossiping_sgd"),
        says=(
            "D-PSGD drops the redundant interactions of AllReduce-SGD: a client talks to one or a "
            "few nodes and information diffuses. In these four works a client is said to pick any "
            "partner at random before each update and to average with it symmetrically."
        ),
    ),
    Row(
        number="2",
        cells=cells(
            COLUMNS,
            "Neighbor interaction",
            "Cooperation by batch rotation",
            "Improve model consistency",
            "[73]",
        ),
        cells_zh=cells(COLUMNS, "邻居交互", "分批轮换合作伙伴", "", ""),
        refs=(73,),
        methods=("gossipgrad",),
        says=(
            "Random partners make communication and the spread of gradients uneven, which costs "
            "throughput and convergence; partners are therefore rotated batch by batch, with "
            "theory in support."
        ),
    ),
    Row(
        number="3",
        cells=cells(
            COLUMNS,
            "Neighbor interaction",
            "Look for similar targets",
            "Best communication partner",
            "[74]",
        ),
        cells_zh=cells(COLUMNS, "邻居交互", "寻找具有相似目标的其他客户端", "最佳通信伙伴", ""),
        refs=(74,),
        methods=("model_propagation", "collaborative_learning_admm"),
        says=(
            "Clients look for others with similar targets, by confidence labels or by learning "
            "from the neighbours' behaviour; the models are said to converge well."
        ),
    ),
    Row(
        number="4",
        cells=cells(
            COLUMNS,
            "Neighbor interaction",
            "Single trust set",
            "Improve architecture robustness",
            "[75]",
        ),
        cells_zh=cells(COLUMNS, "邻居交互", "单信任集合", "提高了分散并行式架构的稳定性", ""),
        refs=(75,),
        methods=("online_push_sum",),
        says=(
            "Symmetric interaction is unrealistic in unstable environments; taking neighbours from "
            "sets of one-sided trust makes the decentralised architecture more stable."
        ),
    ),
    Row(
        number="5",
        cells=cells(
            COLUMNS,
            "Communication consumption",
            "Weight comparison selection",
            "Best communication partner",
            "[76]",
        ),
        cells_zh=cells(COLUMNS, "通信消耗", "按权重值选择交互客户端", "最佳通信伙伴", ""),
        refs=(76,),
        methods=("gossip_dual_averaging_pairwise",),
        says=(
            "Edges between nodes get weights, the ring is extended to a torus, and a client picks "
            "its partner by weight."
        ),
    ),
    Row(
        number="6",
        cells=cells(
            COLUMNS,
            "Communication consumption",
            "Asymmetric interaction",
            "Avoid redundant communication",
            "[77]",
        ),
        cells_zh=cells(COLUMNS, "通信消耗", "非对称交互", "", ""),
        refs=(77,),
        methods=("subgradient_push",),
        says=(
            "Symmetric exchange is seen as the main reason for the cost of communication; an "
            "asymmetric exchange lets devices train together and is proven to converge."
        ),
    ),
    Row(
        number="7",
        cells=cells(
            COLUMNS,
            "Communication consumption",
            "Overlapping communication computation",
            "Avoid redundant communication and computing",
            "[78]",
        ),
        cells_zh=cells(COLUMNS, "通信消耗", "允许通信和计算量重叠", "降低通信资源消耗", ""),
        refs=(78,),
        methods=("sgp", "osgp"),
        says=(
            "Builds on asymmetric exchange and lets communication overlap with computing, which "
            "saves communication resources."
        ),
    ),
    Row(
        number="8",
        cells=cells(
            COLUMNS,
            "Communication consumption",
            "Model compression",
            "Make full use of link resources",
            "[79]",
        ),
        cells_zh=cells(COLUMNS, "通信消耗", "模型压缩", "", ""),
        refs=(79,),
        methods=("choco_gossip", "choco_sgd"),
        says=(
            "Brings model compression into the decentralised architecture and studies how to "
            "adjust the compression factor; quality is kept and resources are saved."
        ),
    ),
    Row(
        number="9",
        cells=cells(
            COLUMNS,
            "Communication consumption",
            "Model cutting",
            "Improve communication flexibility",
            "[80]",
        ),
        cells_zh=cells(COLUMNS, "通信消耗", "模型切割", "", ""),
        refs=(80,),
        methods=("segmented_gossip",),
        says=(
            "Cuts the model into segments and synchronises clients segment by segment, so that the "
            "network between them is fully used."
        ),
    ),
    Row(
        number="text-1",
        cells={},
        cells_zh={},
        refs=(68,),
        methods=("allreduce_sgd",),
        says=(
            "Section 2.1.2: AllReduce-SGD keeps all clients' parameters identical and is said to "
            "need a handshake with every other client in each round. Models differ little, but "
            "the exchange is redundant and ignores scarce resources and unstable networks."
        ),
    ),
)

ERRATA = (
    Erratum(
        place="title and section 2.1.2",
        stands="D-PSGD is spelled out as dispersed parallel SGD and names an architecture.",
        really="The literature says decentralized parallel SGD, which is one algorithm.",
        source="title of Lian et al. 2017 (arXiv 1705.09056)",
        sure="checked",
    ),
    Erratum(
        place="section 2.1.2 on [69]",
        stands="[69] is cited for the D-PSGD architecture.",
        really=(
            "[69] is the asynchronous AD-PSGD. D-PSGD is Lian et al. 2017 (arXiv 1705.09056), "
            "which is missing from the reference list."
        ),
        source="titles of both works",
        sure="checked",
    ),
    Erratum(
        place="section 2.1.2 on [68]",
        stands="AllReduce-SGD needs a handshake with every other client (all-to-all).",
        really=(
            "[68] describes ring collectives: each node talks to one successor, in 2(n-1) messages "
            "that carry 2(n-1)/n model volumes."
        ),
        source="[68]; the count follows from the ring algorithm",
        sure="checked",
    ),
    Erratum(
        place="row 1",
        stands="[69-72] select partners at random and exchange symmetrically.",
        really=(
            "Of these only AD-PSGD [69] does both. [70], like D-PSGD itself, mixes over a fixed "
            "neighbour matrix, [71] pushes one way with sum-weights, and [72] compares pulling "
            "and pushing one way."
        ),
        source="[69-72], algorithms",
        sure="checked",
    ),
    Erratum(
        place="row 5",
        stands="[76] weights edges, extends a ring to a torus and picks the partner by weight.",
        really=(
            "It does none of this: it treats pairwise objectives (AUC, metric learning) by dual "
            "averaging over uniformly drawn edges of complete, Watts-Strogatz and cycle graphs. "
            "The row has no supporting citation; which work was meant is unknown."
        ),
        source="[76]",
        sure="checked",
    ),
    Erratum(
        place="row 5",
        stands="Its group is communication consumption.",
        really=(
            "The text discusses [76] under the choice of neighbours; a merged cell may have "
            "slipped by one row."
        ),
        source="the survey's own text",
        sure="argued",
    ),
    Erratum(
        place="row 3",
        stands="[74] selects neighbours with similar targets.",
        really=(
            "The similarity graph is given. Confidence weighs an agent's own initial model, the "
            "second method learns jointly by ADMM, and the outcome is personalised models rather "
            "than one consensus model."
        ),
        source="[74], abstract",
        sure="checked",
    ),
    Erratum(
        place="row 4",
        stands="[75] is filed under robustness in an unstable environment.",
        really=(
            "Its abstract treats one-sided trust without a central server and analyses regret; "
            "robustness is not among its claims."
        ),
        source="[75], abstract",
        sure="checked",
    ),
    Erratum(
        place="row 6",
        stands="[77] is motivated by what symmetric communication costs.",
        really=(
            "Its setting is time-varying directed graphs where a node knows only its out-degree, "
            "so that doubly stochastic weights cannot be had; and it is the stochastic variant for "
            "strongly convex functions."
        ),
        source="[77], title and abstract",
        sure="checked",
    ),
    Erratum(
        place="row 8",
        stands="[79] adjusts the compression factor and compresses models.",
        really=(
            "The compressor stays fixed and only the consensus step size is tuned; what is "
            "compressed is the difference of models, which is not model compression in the sense "
            "of section 2.2.2."
        ),
        source="[79], algorithms and public code",
        sure="checked",
    ),
    Erratum(
        place="row 2 and reference [73]",
        stands="The name is GossipGrad, and no limit is mentioned.",
        really=(
            "The paper writes GossipGraD. Its ring shuffle moves raw samples between nodes, which "
            "the survey's premise (data stay on the device) excludes."
        ),
        source="[73], title and algorithm",
        sure="checked",
    ),
    Erratum(
        place="section 2.1.2",
        stands="Decentralised training suits many spread edge devices better.",
        really=(
            "The evidence is not from the edge: [69], [72], [73] and [78] report data-centre "
            "hardware, [76] simulations on graphs."
        ),
        source="abstracts of these works",
        sure="argued",
    ),
)

TABLE = Table(
    number=2,
    title="Related works of dispersed parallel stochastic gradient descent",
    title_zh="分散并行式架构 (D-PSGD) 相关工作",
    section="2.1.2",
    notebook="01_architectures",
    columns=COLUMNS,
    columns_zh=("问题", "方式", "目标", "文献"),
    rows=ROWS,
    errata=ERRATA,
)
