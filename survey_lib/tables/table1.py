"""Table 1: parameter server, the centralised architecture (section 2.1.1)."""

from survey_lib.tables.schema import Erratum, Row, Table, cells

COLUMNS = (
    "Communication mechanism",
    "Optimization level",
    "Research questions",
    "Optimization objective",
    "Reference",
)

ROWS = (
    Row(
        number="1",
        cells=cells(
            COLUMNS,
            "Synchronization",
            "Equipment level",
            "Limited resources",
            "Improve local model quality",
            "[41]",
        ),
        cells_zh=cells(COLUMNS, "同步", "设备层次", "网络资源受限", "提高本地模型质量", ""),
        refs=(41,),
        methods=("fedsgd", "fedavg"),
        says=(
            "With network resources scarce, several local iterations per round instead of one make "
            "each upload worth more, so that fewer rounds are needed and the global model "
            "converges faster. The survey adds that this looks at one client at a time and leaves "
            "out how clients differ."
        ),
    ),
    Row(
        number="2",
        cells=cells(
            COLUMNS,
            "Synchronization",
            "Communication level",
            "Limited resources",
            "Reduce traffic",
            "[56]",
        ),
        cells_zh=cells(
            COLUMNS,
            "同步",
            "通信层次",
            "有限的网络资源",
            "避免因网络传输数据的冗余性带来的通信资源上不必要的消耗",
            "",
        ),
        refs=(56,),
        methods=("gaia_asp",),
        says=(
            "Most parameter updates contribute little, so an adjustable threshold decides whether "
            "a local update is uploaded at all. This avoids redundant traffic and keeps "
            "convergence under the resource limit."
        ),
    ),
    Row(
        number="3",
        cells=cells(
            COLUMNS,
            "Synchronization",
            "Equipment level",
            "Heterogeneous equipment",
            "Shorten communication time",
            "[58–59]",
        ),
        cells_zh=cells(
            COLUMNS,
            "同步",
            "设备层次",
            "设备异构性",
            "避免因“落后者”而拉长通信回合长度带来的损失",
            "",
        ),
        refs=(58, 59),
        methods=("backup_workers", "fedcs"),
        says=(
            "Both works act on the slow devices so that stragglers do not stretch the round: [58] "
            "adds backup nodes and drops what comes late, [59] leaves out clients that would "
            "answer too slowly."
        ),
    ),
    Row(
        number="4",
        cells=cells(
            COLUMNS,
            "Synchronization",
            "Equipment level",
            "Comprehensive consideration",
            "Architecture flexibility",
            "[60]",
        ),
        cells_zh=cells(COLUMNS, "同步", "设备层次", "综合考虑", "架构灵活性", ""),
        refs=(60,),
        methods=("adaptive_tau",),
        says=(
            "Scarce communication and unequal devices are treated together: within a fixed budget "
            "the number of local updates between two aggregations is adjusted on the fly, so that "
            "resources are used well and the global model converges fast."
        ),
    ),
    Row(
        number="5",
        cells=cells(
            COLUMNS,
            "Synchronization",
            "Communication level",
            "Unstable environment",
            "Architecture robustness",
            "[56]",
        ),
        cells_zh=cells(COLUMNS, "同步", "通信层次", "网络环境不稳定", "整体架构的鲁棒性", ""),
        refs=(56,),
        methods=("structured_lowrank", "structured_random_mask", "sketched_updates"),
        says=(
            "Two strategies, low-rank and sparse matrices, cut the uplink traffic and make the "
            "architecture more robust in unstable networks. The survey credits [56]; the work is "
            "[57], see the errata."
        ),
    ),
    Row(
        number="6",
        cells=cells(
            COLUMNS,
            "Asynchronization",
            "Equipment level",
            "Stale gradient",
            "Architecture flexibility",
            "[62–64]",
        ),
        cells_zh=cells(COLUMNS, "异步", "设备层次", "梯度陈旧", "架构灵活性", ""),
        refs=(62, 63, 64),
        methods=("sasgd", "paflm", "aso_fed"),
        says=(
            "Clients update at different rates, so models of different age meet and convergence "
            "suffers unless staleness is controlled. [62] and [63] adjust hyper-parameters as "
            "training goes; [64] moreover adds feature learning to the server's aggregation."
        ),
    ),
    Row(
        number="7",
        cells=cells(
            COLUMNS,
            "Asynchronization",
            "Communication level",
            "Comprehensive consideration",
            "Trade optimization",
            "[65]",
        ),
        cells_zh=cells(COLUMNS, "异步", "通信层次", "同时考虑", "权衡的优化", ""),
        refs=(65,),
        methods=("k_sync_async", "adasync"),
        says=(
            "The length of a round and the staleness it causes belong together; balancing the two "
            "makes convergence as a whole more efficient."
        ),
    ),
    Row(
        number="8",
        cells=cells(
            COLUMNS,
            "Asynchronization",
            "Equipment level",
            "Dynamic client",
            "Time consuming optimization",
            "[66]",
        ),
        cells_zh=cells(COLUMNS, "异步", "设备层次", "动态组成的客户端集合", "耗时优化", ""),
        refs=(66,),
        methods=("drl_node_selection",),
        says=(
            "A server covers a limited area, so the set of vehicles that take part changes. Times "
            "of computing, uploading and optimising are weighed together, and deep reinforcement "
            "learning picks the subset that keeps training accurate."
        ),
    ),
    Row(
        number="9",
        cells=cells(
            COLUMNS,
            "Asynchronization",
            "Overall architecture",
            "Heterogeneous equipment",
            "Architecture robustness",
            "[67]",
        ),
        cells_zh=cells(COLUMNS, "异步", "整体架构", "客户端的不可靠性", "鲁棒性", ""),
        refs=(67,),
        methods=("safa",),
        says=(
            "Clients go offline, crash or quit. Selecting clients after training (device level) "
            "and tolerating lag (communication level) make the asynchronous server more robust."
        ),
    ),
    Row(
        number="text-1",
        cells={},
        cells_zh={},
        refs=(57,),
        methods=("structured_lowrank", "structured_random_mask", "sketched_updates"),
        says=(
            "Section 2.1.1, synchronous part: further work on unequal devices is said to build on "
            "[41, 57], although the paragraph has spoken of [41] and [56]."
        ),
    ),
    Row(
        number="text-2",
        cells={},
        cells_zh={},
        refs=(61,),
        methods=("asysg_con",),
        says=(
            "Section 2.1.1, asynchronous part: old and new versions of the model mix, so "
            "controlling the staleness of gradients is essential for convergence."
        ),
    ),
    Row(
        number="text-3",
        cells={},
        cells_zh={},
        refs=(41,),
        methods=("fedavg",),
        says="Section 1.1: Google's FedAvg is used for language prediction on phone keyboards.",
    ),
)

ERRATA = (
    Erratum(
        place="row 5 and its sentence in section 2.1.1",
        stands="[56] is credited with low-rank and sparse updates that cut the uplink.",
        really=(
            "These are the structured updates of [57] (low rank or a random mask). [57] is in the "
            "reference list and never appears in the table; row 5 should cite it."
        ),
        source="abstracts of [56] and [57]",
        sure="checked",
    ),
    Erratum(
        place="section 2.1.1, 'on the basis of [41,57]'",
        stands="Work on unequal devices starts from [41] and [57].",
        really="The discussion just before is of [41] and [56]; 56 and 57 look interchanged twice.",
        source="the survey's own text",
        sure="argued",
    ),
    Erratum(
        place="row 2",
        stands="A local model update is uploaded once its change passes a threshold.",
        really=(
            "Gaia filters each parameter by |accumulated update / value| and delays the rest; no "
            "client is silenced as a whole."
        ),
        source="[56], the authors' later public code",
        sure="checked",
    ),
    Erratum(
        place="row 2",
        stands="Gaia is filed under one central, synchronous parameter server.",
        really=(
            "It keeps a parameter server in each data centre, synchronised peer to peer over the "
            "wide area, and calls its model approximate synchronous parallel: neither a single "
            "server nor strictly synchronous."
        ),
        source="[56], abstract; the peer-to-peer part from a review of the paper",
        sure="second-hand",
    ),
    Erratum(
        place="row 9",
        stands="SAFA is an asynchronous method.",
        really=(
            "Its title says semi-asynchronous: it has rounds with a deadline, and clients staler "
            "than the lag tolerance are synchronised by force."
        ),
        source="[67], title and public code",
        sure="checked",
    ),
    Erratum(
        place="row 7",
        stands="[65] works at the communication level, asynchronously.",
        really=(
            "Its runtime analysis has random straggling delays of workers and no link, message "
            "size or bandwidth; the K-sync and K-batch-sync half of its methods is synchronous."
        ),
        source="[65], abstract and model",
        sure="checked",
    ),
    Erratum(
        place="row 3",
        stands="The objective is to shorten communication time.",
        really=(
            "What shrinks is the length of the round, which in [58] is set by computing "
            "stragglers rather than by the network."
        ),
        source="[58], waiting times of the slowest workers",
        sure="argued",
    ),
    Erratum(
        place="row 6",
        stands="[62] is an adjustment on the device.",
        really="The parameter server divides the learning rate, using its own version count.",
        source="[62], text",
        sure="checked",
    ),
    Erratum(
        place="reference [62]",
        stands="The preprint arXiv 1511.05950 is dated 2014-04-05.",
        really="The number itself says November 2015, so the printed date cannot be right.",
        source="arXiv's numbering (year and month)",
        sure="checked",
    ),
    Erratum(
        place="reference [62]",
        stands="Cited as a preprint.",
        really="It appeared at IJCAI 2016.",
        source="later citations of [62]",
        sure="second-hand",
    ),
    Erratum(
        place="section 2.1.1 on [58-59]",
        stands="Leaving out slow clients is praised without a warning.",
        really=(
            "Section 2.2.1 gives the warning: accuracy may fall when slow clients hold data that "
            "nobody else has. It belongs to both places."
        ),
        source="the survey's own text",
        sure="argued",
    ),
)

TABLE = Table(
    number=1,
    title="Related works of a parameter server with centralized architecture",
    title_zh="参数服务器集中式架构相关工作",
    section="2.1.1",
    notebook="01_architectures",
    columns=COLUMNS,
    columns_zh=("通信协调机制", "层次", "实际问题", "目标", "文献"),
    rows=ROWS,
    errata=ERRATA,
)
