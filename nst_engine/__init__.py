"""Neural style transfer as a plain torch library.

Names are imported when first used, so that `nst_engine.options` and `nst_engine.networks` can be
had without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nst_engine.checkpoint import CheckpointError as CheckpointError
    from nst_engine.checkpoint import SessionState as SessionState
    from nst_engine.engine import Engine as Engine
    from nst_engine.engine import stylize as stylize
    from nst_engine.inputs import Style as Style
    from nst_engine.options import BudgetError as BudgetError
    from nst_engine.options import DetectorError as DetectorError
    from nst_engine.options import OptionError as OptionError
    from nst_engine.options import StylizeOptions as StylizeOptions
    from nst_engine.report import StepReport as StepReport
    from nst_engine.session import Session as Session
    from nst_engine.stopping import StopReason as StopReason
    from nst_engine.weights import WeightsError as WeightsError

_HOME = {
    "BudgetError": "options",
    "CheckpointError": "checkpoint",
    "DetectorError": "options",
    "Engine": "engine",
    "OptionError": "options",
    "Session": "session",
    "SessionState": "checkpoint",
    "StepReport": "report",
    "StopReason": "stopping",
    "Style": "inputs",
    "StylizeOptions": "options",
    "WeightsError": "weights",
    "stylize": "engine",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
