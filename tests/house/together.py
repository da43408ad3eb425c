"""Several messages of one group at once, as an engine has them computed."""

from sfl.plan import Span
from sfl.stage.training.vanilla import VanillaGroup

handle_together = VanillaGroup(Span(1, 2, embedding=False, head=True), 4).run
