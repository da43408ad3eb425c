"""An example of a plug-in package for sfl. Importing it imports neither numpy nor torch.

Settings ask for the facts below. The code behind them is imported where it runs.
"""

from sfl.aggregation.traits import Traits
from sfl.codec.stages import Stage

DAMPED = Traits(
    "sfl_example_plugin.damped:Damped",
    reads=("server_learning_rate",),
    server_step=0.5,
    weighted_sum=True,
)
CENTRE = Stage("transform", "sfl_example_plugin.centre:make_centre")
