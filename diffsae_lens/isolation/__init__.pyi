from ._controls import Control as Control
from ._controls import standard_controls as standard_controls
from ._labels import LabelledPrompts as LabelledPrompts
from ._pooled import PooledTexts as PooledTexts
from ._pooled import evaluate_pooled as evaluate_pooled
from ._score import evaluate_isolation as evaluate_isolation
from ._table import IsolationTable as IsolationTable
