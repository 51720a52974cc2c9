"""Table 4: data that are not independent and identically distributed (section 2.2.1)."""

from survey_lib.tables.schema import Erratum, Row, Table, cells

COLUMNS = ("Research classification", "Research direction", "Reference")

ROWS = (
    Row(
        number="1",
        cells=cells(COLUMNS, "Theoretical proof", "Source and classification", "[40]"),
        cells_zh=cells(COLUMNS, "理论上", "非独立同分布数据的来源", ""),
        refs=(40,),
        methods=(
            "noniid_statistics",
            "label_dirichlet",
            "feature_skew",
            "concept_shift",
            "concept_drift_style",
            "quantity_skew",
            "dependence",
            "train_test_shift",
        ),
        says=(
            "Non-IID data have three sources: devices with different distributions, devices that "
            "are not independent, and a shift between training and test data. The first has five "
            "kinds: skewed features, skewed labels, same features with different labels, same "
            "labels with different features, and unequal amounts of data."
        ),
    ),
    Row(
        number="2",
        cells=cells(COLUMNS, "Theoretical proof", "Astringency", "[96–97,99]"),
        cells_zh=cells(COLUMNS, "理论上", "收敛", ""),
        refs=(96, 97, 99),
        methods=("fedavg_decay", "local_gd", "scaffold_theory"),
        says=(
            "For strongly convex smooth problems FedAvg converges on non-IID data [96-97]; [99] "
            "derives its rate and proves that local updates drifting from the global optimum make "
            "it slow and unstable."
        ),
    ),
    Row(
        number="3",
        cells=cells(COLUMNS, "Theoretical proof", "Negative effect", "[98–99]"),
        cells_zh=cells(COLUMNS, "理论上", "模型收敛速度不稳定和模型准确率下降问题", ""),
        refs=(98, 99),
        methods=("hsu_degradation", "client_drift"),
        says=(
            "Non-IID data make convergence unstable and lower the accuracy. [98] grades the skew "
            "and sees accuracy fall as distributions diverge; [99] names the cause client drift."
        ),
    ),
    Row(
        number="4",
        cells=cells(COLUMNS, "Solution", "Modify existing algorithm", "[98–102]"),
        cells_zh=cells(COLUMNS, "解决方案", "修改现有的算法", ""),
        refs=(98, 99, 100, 101, 102),
        methods=(
            "fedavgm",
            "scaffold",
            "fedprox",
            "fednova",
            "fedvc",
            "fedir",
            "real_world_splits",
        ),
        says=(
            "[100] penalises the distance to the global model, [99] turns local updates back by "
            "control variates, [101] normalises the averaging so that the right objective is "
            "minimised, [98] adds server momentum, and [102] resamples and reweights clients' "
            "data; each improves accuracy or stability."
        ),
    ),
    Row(
        number="5",
        cells=cells(COLUMNS, "Solution", "Share information", "[103–105]"),
        cells_zh=cells(COLUMNS, "解决方案", "共享信息", ""),
        refs=(103, 104, 105),
        methods=("weight_divergence", "shared_data", "hybrid_fl", "fedcurv"),
        says=(
            "[103] explains the loss by weight divergence, measured by the distance between class "
            "distributions, and shares a small data set; [104] lets the few willing devices upload "
            "data chosen by a heuristic; [105] shares Fisher information to protect parameters "
            "that matter to each local model."
        ),
    ),
    Row(
        number="6",
        cells=cells(COLUMNS, "Solution", "Personalization model", "[106–107]"),
        cells_zh=cells(COLUMNS, "解决方案", "个性化模型", ""),
        refs=(106, 107),
        methods=("fedamp", "heurfedamp", "perfit_finetune", "perfit_meta", "perfit_kd"),
        says=(
            "One model need not fit all. In [106] every device keeps its own model, updated by "
            "messages between similar devices, with proven convergence; in [107] each device "
            "derives its model from a global one by transfer, meta-learning or distillation."
        ),
    ),
)

ERRATA = (
    Erratum(
        place="row 2, English cell",
        stands="Astringency.",
        really="Meant is convergence; table 3 has the same slip.",
        source="the survey's Chinese text",
        sure="checked",
    ),
    Erratum(
        place="section 3, challenge (4)",
        stands="No algorithm is best under every kind of non-IID data, citing [90].",
        really=(
            "[90] is FedAsync. The sentence is the finding of Li et al., Federated learning on "
            "non-IID data silos (arXiv 2102.02079), which is missing from the reference list."
        ),
        source="titles of both works; results table of the second",
        sure="checked",
    ),
    Erratum(
        place="row 2 and section 2.2.1 on [96-97]",
        stands="FedAvg converges for strongly convex smooth problems.",
        really=(
            "[96] needs a decaying step, and says that a fixed one stays of the order of the step "
            "away from the optimum. [97] treats smooth convex functions, not strongly convex ones. "
            "The survey leaves the condition on the step out."
        ),
        source="abstracts of [96] and [97]",
        sure="checked",
    ),
    Erratum(
        place="section 2.2.1 on [99]",
        stands="The first author is spelled Karimreddy (twice).",
        really="Karimireddy, as in the reference list.",
        source="the survey's own reference list",
        sure="checked",
    ),
    Erratum(
        place="row 5 and section 2.2.1 on [104]",
        stands="[104] chooses clients and the data they upload.",
        really=(
            "The defining step is missing: the server itself trains on the uploaded data and its "
            "model enters the average."
        ),
        source="[104]",
        sure="checked",
    ),
    Erratum(
        place="row 5 and section 2.2.1 on [105]",
        stands="Clients share the Fisher information matrix.",
        really="They share its diagonal and the diagonal's product with the weights.",
        source="[105] and public implementations of FedCurv",
        sure="checked",
    ),
    Erratum(
        place="row 5 and section 2.2.1 on [103]",
        stands="Skew is measured by the earth mover's distance.",
        really=(
            "What is computed is the L1 distance of label histograms; no ground distance between "
            "classes enters."
        ),
        source="[103], definition",
        sure="checked",
    ),
    Erratum(
        place="references [96], [99] to [102]",
        stands="Listed as preprints only.",
        really=(
            "They appeared at ICLR 2020 [96], ICML 2020 [99], MLSys 2020 [100], NeurIPS 2020 [101] "
            "and ECCV 2020 [102]."
        ),
        source="later citations of these works",
        sure="second-hand",
    ),
    Erratum(
        place="section 2.2.1 on [98] and [102]",
        stands="Both are called Hsu et al.",
        really="They are two works by the same three authors, of 2019 and of 2020.",
        source="the survey's own reference list",
        sure="checked",
    ),
    Erratum(
        place="row 1 and section 2.2.1 on [40]",
        stands="Two kinds are called same features, different labels, and the reverse.",
        really=(
            "[40] lists them in the other order. It calls them concept drift and concept shift, "
            "and versions of its text disagree on which is which, so name the factor that changes: "
            "P(x|y) or P(y|x)."
        ),
        source="[40], section 3.1, in a stored copy",
        sure="checked",
    ),
)

TABLE = Table(
    number=4,
    title="Related works of data non-independent and identical distribution issues",
    title_zh="数据非独立同分布问题相关工作",
    section="2.2.1",
    notebook="03_non_iid",
    columns=COLUMNS,
    columns_zh=("", "研究方向", "文献"),
    rows=ROWS,
    errata=ERRATA,
)
