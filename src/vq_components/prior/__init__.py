"""The prior: a transformer over tokens, its conditions, and samplers. It knows integers only."""

from ._conditional import ConditionalPrior as ConditionalPrior
from ._conditional import PriorOutput as PriorOutput
from ._conditions import ClassLabel as ClassLabel
from ._conditions import Condition as Condition
from ._conditions import Coordinates as Coordinates
from ._conditions import SpatialTokens as SpatialTokens
from ._conditions import StartToken as StartToken
from ._generate import generate as generate
from ._mingpt import MinGPT as MinGPT
from ._order import TokenOrder as TokenOrder
from ._windows import generate_windows as generate_windows
