"""Maps and diagrams, drawn with matplotlib and cartopy.

Functions take arrays and return axes (a figure where they draw several maps); `save`
writes them. They draw in one house style (`style`) and leave matplotlib's own settings
as they are. Coastlines are shipped, and nothing is ever downloaded. This room needs
`pip install "skyens[plot]"`.
"""

from skyens.plot._coastlines import (
    coastlines as coastlines,
    draw_coastlines as draw_coastlines,
    trace_coastlines as trace_coastlines,
)
from skyens.plot._diagrams import (
    quantile_quantile as quantile_quantile,
    rank_histogram as rank_histogram,
    spectra as spectra,
    spread_skill as spread_skill,
)
from skyens.plot._maps import (
    increment as increment,
    map_field as map_field,
    map_forecast as map_forecast,
    spaghetti as spaghetti,
)
from skyens.plot._probabilities import (
    economic_value as economic_value,
    reliability as reliability,
    roc as roc,
)
from skyens.plot._scorecard import scorecard as scorecard
from skyens.plot._style import save as save, style as style
