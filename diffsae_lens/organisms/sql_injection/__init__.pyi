from .judge import Judgement as Judgement
from .judge import Verdict as Verdict
from .judge import judge_completion as judge_completion
from .judge import judge_source as judge_source
from .year_trigger import YEAR_TRIGGER as YEAR_TRIGGER
