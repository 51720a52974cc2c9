"""Table 6: knowledge distillation (section 2.2.2). Its printed English title repeats table 4's."""

from survey_lib.tables.schema import Erratum, Row, Table, cells

COLUMNS = ("Research classification", "Research means", "Reference")

ROWS = (
    Row(
        number="1",
        cells=cells(COLUMNS, "Theoretical research", "Effectiveness", "[38,120-122]"),
        cells_zh=cells(COLUMNS, "理论研究", "知识蒸馏的有效性", ""),
        refs=(38, 120, 121, 122),
        methods=(
            "kd_logits",
            "fitnet_hint",
            "attention_transfer",
            "relational_kd",
            "sharma_edge_kt",
            "linear_distillation",
            "knowledge_points",
            "lottery_ticket",
            "scan",
        ),
        says=(
            "Experiments show that distillation works on edge devices and speeds up the student "
            "[38]; [120] collects results of typical methods, [121] proves the effect for linear "
            "classifiers, and [122] is said to quantify the knowledge in intermediate layers. "
            "Small nets are hard to train directly [116], and distillation beats that [119]."
        ),
    ),
    Row(
        number="2",
        cells=cells(COLUMNS, "Theoretical research", "Critical factor", "[38,121]"),
        cells_zh=cells(COLUMNS, "理论研究", "决定知识蒸馏成功的三个因素", ""),
        refs=(38, 121),
        methods=(
            "factor_geometry",
            "factor_optimisation_bias",
            "factor_sample_size",
            "factor_transfer_way",
        ),
        says=(
            "The way in which knowledge is transferred matters much for accuracy [38]; success "
            "depends on the geometry of the data, the bias of the optimiser and the size of the "
            "training set [121]."
        ),
    ),
    Row(
        number="3",
        cells=cells(COLUMNS, "Distributed knowledge distillation", "Co-distillation", "[122]"),
        cells_zh=cells(COLUMNS, "知识蒸馏在分布式环境下的进行", "共蒸馏", ""),
        refs=(122,),
        methods=("codistillation", "codistillation_shared_samples"),
        says=(
            "The mean logits of the students on several devices replace the teacher, so that no "
            "pre-trained one is needed; but devices must share training samples, which is bad for "
            "traffic and privacy."
        ),
    ),
    Row(
        number="4",
        cells=cells(
            COLUMNS, "Distributed knowledge distillation", "Federal distillation", "[123-126]"
        ),
        cells_zh=cells(COLUMNS, "知识蒸馏在分布式环境下的进行", "联邦蒸馏", ""),
        refs=(123, 124, 125, 126),
        methods=("federated_distillation_fd", "faug", "fml", "cfd", "fd_wireless_hfd"),
        says=(
            "Without shared data, a device averages its logits per class and the global average "
            "per class is what gets distilled [123]. This suits narrow radio channels and changing "
            "topologies; followers improve traffic or accuracy, theory is lacking [124-126]."
        ),
    ),
)

ERRATA = (
    Erratum(
        place="English title",
        stands="It repeats the title of table 4.",
        really="The Chinese title says knowledge distillation.",
        source="the survey's own captions",
        sure="checked",
    ),
    Erratum(
        place="row 1 and section 2.2.2 on [122]",
        stands=(
            "[122] explains distillation by quantifying the knowledge in intermediate layers and "
            "shows faster learning of more concepts."
        ),
        really=(
            "That is Cheng, Rao, Chen and Zhang (CVPR 2020, arXiv 2003.03622), missing from the "
            "reference list. [122] is the codistillation paper; row 1 inherits the error."
        ),
        source="abstracts of both works",
        sure="checked",
    ),
    Erratum(
        place="row 3 and section 2.2.2 on [122]",
        stands="Co-distillation needs shared samples and averages logits.",
        really=(
            "In [122] models on disjoint data exchange stale checkpoints, evaluate them on their "
            "own batches and combine predictions. Sharing samples is how [123] presents its "
            "baseline."
        ),
        source="[122], abstract; [123]",
        sure="checked",
    ),
    Erratum(
        place="row 2 and section 2.2.2 on [121]",
        stands="The third factor is the size of the training set.",
        really=(
            "The paper says strong monotonicity: the expected risk of the student always falls as "
            "the training set grows."
        ),
        source="[121], abstract",
        sure="checked",
    ),
    Erratum(
        place="row 1 and section 2.2.2 on [38]",
        stands="All existing techniques help the student to converge faster.",
        really=(
            "Its abstract says that both accuracy and speed depend on architecture and technique, "
            "and that some pairs have a negative effect."
        ),
        source="[38], abstract",
        sure="checked",
    ),
    Erratum(
        place="section 2.2.2 on [116]",
        stands="Theory proves that small models trained directly are worse than large ones.",
        really=(
            "The work is empirical, and shows that suitable sparse sub-networks, trained from "
            "their original initialisation, reach the accuracy of the dense network."
        ),
        source="[116], abstract",
        sure="checked",
    ),
    Erratum(
        place="English cells",
        stands="Federal distillation; research means.",
        really="Meant are federated distillation and the means of research.",
        source="the survey's Chinese text",
        sure="checked",
    ),
    Erratum(
        place="row 4 and section 2.2.2 on [124]",
        stands="Federated distillation saves traffic by sending outputs.",
        really="FML [124] sends the parameters of a model in each round, as FedAvg does.",
        source="[124] and its public code",
        sure="checked",
    ),
    Erratum(
        place="reference [122]",
        stands="The second author is spelled Peryera, and the date is 2020-08-20.",
        really=(
            "The name is Pereyra. The arXiv number says April 2018, and the work is of ICLR 2018."
        ),
        source="[122]; arXiv's numbering (year and month)",
        sure="checked",
    ),
    Erratum(
        place="reference [121]",
        stands="The preprint arXiv 2105.13093 is dated 2021-03-27.",
        really=(
            "The number itself says May 2021, so the printed date cannot be right; the work is of "
            "ICML 2019."
        ),
        source="arXiv's numbering (year and month)",
        sure="checked",
    ),
    Erratum(
        place="section 2.2.2 on [121]",
        stands="It is the first quantitative analysis of training by distillation.",
        really=(
            "The paper's own claim is narrower: linear and deep linear classifiers, two classes, "
            "soft labels."
        ),
        source="[121]",
        sure="checked",
    ),
)

TABLE = Table(
    number=6,
    title="Related works of data non-independent and identical distribution issues",
    title_zh="知识蒸馏相关工作",
    section="2.2.2",
    notebook="05_distillation",
    columns=COLUMNS,
    columns_zh=("", "", "文献"),
    rows=ROWS,
    errata=ERRATA,
)
