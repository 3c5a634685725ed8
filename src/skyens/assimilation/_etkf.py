"""The ensemble transform Kalman filter."""

from skyens.assimilation._global_update import (
    SquareRootFilter,
    Weighing,
    degrees_of_freedom,
)
from skyens.assimilation._transform import transform


class ETKF(SquareRootFilter):
    """Ensemble transform Kalman filter: deterministic, with the symmetric square root.

    The analysis ensemble has the mean and the covariance of the Kalman update with the
    ensemble's covariance. Its anomalies are then multiplied by `inflation`; where no
    observation is used the background comes back as it is, uninflated.

    A NaN in a background that an unmasked observation sees makes the analysis NaN.

    Sources: Bishop et al. (2001), Mon. Wea. Rev. 129, 420-436; Hunt et al. (2007),
    Physica D 230, 112-126; Sakov & Oke (2008), Mon. Wea. Rev. 136, 1042-1053, for the
    rotation.
    """

    # Said again: type checkers would write one of their own for a module's subclass.
    __init__ = SquareRootFilter.__init__

    def _weigh(self, anomalies, innovation):
        weights, change = transform(anomalies, innovation, self.decompose)
        return Weighing(weights, weights, change, degrees_of_freedom(change))
