"""The deterministic ensemble Kalman filter: half the gain for the anomalies."""

from skyens.assimilation._ensemble import matmul
from skyens.assimilation._global_update import (
    SquareRootFilter,
    Weighing,
    degrees_of_freedom,
)
from skyens.assimilation._transform import transform


class DEnKF(SquareRootFilter):
    """Deterministic ensemble Kalman filter.

    The mean is that of the Kalman update, and the anomalies are updated with half its
    gain, `A - K H A / 2`: an approximation of the square root that keeps a little more
    spread, `(I - K H) P + K H P H' K' / 4`, which inflates by itself where observations
    are strong. The anomalies are then multiplied by `inflation`; where no observation
    is used the background comes back as it is, uninflated.

    Source: Sakov & Oke (2008), Tellus A 60, 361-371, equation 15.
    """

    # Said again: type checkers would write one of their own for a module's subclass.
    __init__ = SquareRootFilter.__init__

    def _weigh(self, anomalies, innovation):
        weights, root = transform(anomalies, innovation, self.decompose)
        # (I + (N - 1) C^-1) / 2 - I, and (N - 1) C^-1 = (I + root)^2.
        change = root + matmul(root, root) / 2
        return Weighing(weights, weights, change, degrees_of_freedom(root))
