"""All errata found: those of the six tables, and those that belong to no table.

Nothing stands here from memory alone; how sure an entry is, its field `sure` says (schema.py).
"""

import pandas as pd

from survey_lib.tables import TABLES
from survey_lib.tables.schema import Erratum

COLUMNS = ("table", "place", "what stands there", "what is so", "source", "how sure")
CAPTION = (
    "Errata found in the survey. Checked: read in the work's text, abstract or code, or in the "
    "survey itself; second-hand: read in somebody else's account; argued: follows by reasoning."
)

GENERAL = (
    Erratum(
        place="section 1.1 on [41]",
        stands="FedAvg [41] was applied to the predictions of a phone's keyboard.",
        really=(
            "[41] has experiments on sets of images and of text. The keyboard is the subject of "
            "Hard et al. (arXiv 1811.03604), which is missing from the reference list."
        ),
        source="[41], experiments; abstract of the second work",
        sure="checked",
    ),
    Erratum(
        place="English abstract",
        stands="A shallow breadth learning system.",
        really="Meant is the broad learning system, as in the title of reference [25].",
        source="the survey's own reference list",
        sure="checked",
    ),
    Erratum(
        place="section 3, challenges against prospects",
        stands="Six challenges are followed by six prospects, numbered alike.",
        really=(
            "They do not map one to one: challenge 5 (adaptivity) has no prospect of its own, and "
            "prospect 5 (online learning) answers no numbered challenge."
        ),
        source="the survey's own text",
        sure="argued",
    ),
    Erratum(
        place="reference [5]",
        stands="The authors are Tan H S, Guo D, Ke Z C, et al.",
        really=(
            "The Chinese line has Guo De-ke and Zhang Chi as second and third: the given name of "
            "the one has become the family name of the other."
        ),
        source="the survey's own reference list",
        sure="checked",
    ),
    Erratum(
        place="references [26] and [27]",
        stands="The first author is spelled Al-Rakhani.",
        really="Al-Rakhami.",
        source="the publisher's record of [27]",
        sure="checked",
    ),
    Erratum(
        place="reference [38]",
        stands="The second author is spelled Biokhaghazadeh.",
        really="Biookaghazadeh.",
        source="the authors' university's record of [38]",
        sure="checked",
    ),
    Erratum(
        place="reference [56]",
        stands="The 14th USENIX NSDI, 2017, is placed in New York.",
        really="It was held in Boston.",
        source="[56], first page",
        sure="checked",
    ),
    Erratum(
        place="reference [93]",
        stands="30th International Conference on International Conference on Machine Learning.",
        really="The 30th International Conference on Machine Learning; two words stand twice.",
        source="publisher's record of [93]",
        sure="checked",
    ),
)


def errata() -> list[tuple[int | None, Erratum]]:
    """Every erratum with the number of its table, None where it belongs to none."""
    own = [(number, erratum) for number, t in TABLES.items() for erratum in t.errata]
    return [*own, *((None, erratum) for erratum in GENERAL)]


def frame() -> pd.DataFrame:
    """The errata as a table of texts, one a line; "" where there is no table."""
    lines = [
        (str(number or ""), e.place, e.stands, e.really, e.source, e.sure) for number, e in errata()
    ]
    return pd.DataFrame(lines, columns=list(COLUMNS))
