"""Table 5: model parallelism (section 2.2.2)."""

from survey_lib.tables.schema import Erratum, Row, Table, cells

COLUMNS = ("Research direction", "Main problems", "Solution", "Reference")

ROWS = (
    Row(
        number="1",
        cells=cells(
            COLUMNS,
            "Parallel pipeline",
            "Gradient obsolescence problem",
            "Save version model parameters",
            "[111]",
        ),
        cells_zh=cells(COLUMNS, "流水线模型并行", "梯度陈旧问题", "保存版本模型参数", ""),
        refs=(111,),
        methods=("pipedream",),
        says=(
            "Several mini-batches keep the pipeline full while transfer and computing overlap. A "
            "batch's backward pass may meet other weights than its forward pass did, so versions "
            "of the parameters are kept to make the backward pass correct."
        ),
    ),
    Row(
        number="2",
        cells=cells(
            COLUMNS,
            "Parallel pipeline",
            "Gradient obsolescence problem",
            "Weight prediction",
            "[112]",
        ),
        cells_zh=cells(COLUMNS, "流水线模型并行", "梯度陈旧问题", "权值预测", ""),
        refs=(112,),
        methods=("spectrain",),
        says=(
            "Weights are predicted from a smoothed gradient to remove staleness in the pipeline; "
            "throughput is said to be 98.5 % above data parallelism on average."
        ),
    ),
    Row(
        number="3",
        cells=cells(
            COLUMNS,
            "Parallel pipeline",
            "Gradient obsolescence problem",
            "Synchronize updates",
            "[113]",
        ),
        cells_zh=cells(COLUMNS, "流水线模型并行", "梯度陈旧问题", "同步更新", ""),
        refs=(113,),
        methods=("gpipe", "one_f_one_b_flush"),
        says=(
            "GPipe joins synchronous updates with a pipeline for networks that are sequences of "
            "layers, and trained an image model of over 500 million and a Transformer of over 6 "
            "billion parameters."
        ),
    ),
    Row(
        number="4",
        cells=cells(
            COLUMNS,
            "Model cutting training",
            "Adaptive cutting and unloading",
            "Dynamic programming",
            "[111]",
        ),
        cells_zh=cells(COLUMNS, "模型切割", "自适应切割模型", "动态规划", ""),
        refs=(111,),
        methods=("pipedream_partitioner",),
        says=(
            "The time of each layer is predicted, then the model is cut by dynamic programming. "
            "This is made for data centres; cutting for unequal and changing edge devices is open."
        ),
    ),
    Row(
        number="5",
        cells=cells(
            COLUMNS,
            "Model cutting training",
            "Adaptive cutting and unloading",
            "Intensive learning",
            "[114]",
        ),
        cells_zh=cells(COLUMNS, "模型切割", "切割和卸载", "强化学习", ""),
        refs=(114,),
        methods=("rl_placement",),
        says=(
            "Reinforcement learning splits and places the network; the execution time is the "
            "reward that trains the policy."
        ),
    ),
    Row(
        number="text-1",
        cells={},
        cells_zh={},
        refs=(82, 108, 109, 110, 115),
        methods=(
            "naive_layerwise_mp",
            "mgrit_layer_parallel",
            "soap_mcmc",
            "megatron_tensor_parallel",
        ),
        says=(
            "Section 2.2.2: a model is split when one device cannot hold or compute it [82, 108]. "
            "The strict order of layers leaves later workers idle, and all depends on the split "
            "[109]; hybrids with data parallelism go further [110-111], and models of billions of "
            "parameters [115] raise the need."
        ),
    ),
)

ERRATA = (
    Erratum(
        place="rows 1 and 4, reference [111]",
        stands="PipeDream is cited by its preprint of 2018, and only stashing is described.",
        really=(
            "The refereed form is SOSP 2019, with Narayanan as first author; the preprint also has "
            "vertical sync, which the survey leaves out."
        ),
        source="[111]; abstract of the SOSP paper",
        sure="checked",
    ),
    Erratum(
        place="row 3",
        stands="GPipe solves gradient staleness.",
        really=(
            "A synchronous pipeline has none: GPipe avoids it by flushing and pays with the "
            "bubble, (K-1)/(M+K-1) of the time for K equal stages and M micro-batches. The table "
            "hides this trade."
        ),
        source="[113]; closed form of the schedule",
        sure="argued",
    ),
    Erratum(
        place="row 2 and section 2.2.2 on [112]",
        stands="Weight prediction raises throughput by 98.5 % over data parallelism.",
        really=(
            "The comparison is of pipelining with data parallelism; prediction acts on accuracy. "
            "The abstract's headline is a speed-up of up to 8.91, and the figure of 98.5 % could "
            "not be found."
        ),
        source="[112], abstract",
        sure="checked",
    ),
    Erratum(
        place="English cells",
        stands="Gradient obsolescence, unloading, intensive learning.",
        really="Meant are gradient staleness, offloading and reinforcement learning.",
        source="the survey's Chinese text",
        sure="checked",
    ),
    Erratum(
        place="section 2.2.2, problem (1)",
        stands="While one worker computes, all its successors are idle.",
        really=(
            "Every other worker is idle, since the predecessors wait for the backward pass: each "
            "of K equal stages is busy 1/K of the time."
        ),
        source="order of the forward and backward passes",
        sure="argued",
    ),
    Erratum(
        place="table 5 and section 2.2.2 on [108], [110] and [115]",
        stands="[108] stands for the definition of model parallelism; the table has none of them.",
        really=(
            "Layer-parallel training [108] is a technique of its own (layers run concurrently by "
            "multigrid in time), and so are FlexFlow [110] and Megatron-LM [115]; they deserve "
            "rows."
        ),
        source="[108], abstract; titles of [110] and [115]",
        sure="checked",
    ),
    Erratum(
        place="table 5 against section 2.2.2 on [110-111]",
        stands="There is no row for hybrid parallelism.",
        really="The text treats the combination with data parallelism and cites two works for it.",
        source="the survey's own text",
        sure="checked",
    ),
    Erratum(
        place="row 1",
        stands="Keeping versions ensures the correctness of the backward pass.",
        really=(
            "It makes the forward and backward pass of one batch consistent; the gradient is as "
            "stale as before."
        ),
        source="[111], weight stashing",
        sure="argued",
    ),
)

TABLE = Table(
    number=5,
    title="Related works of model parallelism",
    title_zh="模型并行相关工作",
    section="2.2.2",
    notebook="04_model_parallel",
    columns=COLUMNS,
    columns_zh=("研究方向", "问题", "方法", "文献"),
    rows=ROWS,
    errata=ERRATA,
)
