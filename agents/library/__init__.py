"""The builtin model's library: source edits of the subject, and hints about its hyperparameters.

Priors come from what others published (each idea names its source where there is one), not from runs on the default
corpus: the builtin model is a control, and a control must not have seen the answers. One has: that sizes are halved where
text is short (`RunSize`) is a published rule, but it was chosen, and its weights with it, after runs on the default corpus
had shown that small models win there (docs/tournament/builtin.md). `models/kernels.py` is left alone: it is written for
speed, and rewritten for it.
"""

from agents.library._base import Hint, Idea, RunSize
from agents.library.hints import HINTS, hint
from agents.library.model import MODEL_IDEAS
from agents.library.training import TRAINING_IDEAS

LIBRARY: tuple[Idea, ...] = (*MODEL_IDEAS, *TRAINING_IDEAS)

__all__ = ["HINTS", "LIBRARY", "Hint", "Idea", "RunSize", "hint"]
