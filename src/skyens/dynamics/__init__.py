"""Steps that we ship, and driving them: worlds, rollouts and keys for members.

A step is any callable `step(state, forcing=None, *, key=None) -> state` that carries
one member over one fixed time step.
"""

from skyens.dynamics._advection import Advection as Advection
from skyens.dynamics._barotropic import (
    BarotropicVorticity as BarotropicVorticity,
    LinearBalance as LinearBalance,
)
from skyens.dynamics._burgers import Burgers as Burgers
from skyens.dynamics._gravity_waves import (
    ExponentialRungeKutta as ExponentialRungeKutta,
    ImplicitExplicit as ImplicitExplicit,
)
from skyens.dynamics._height import BalancedHeight as BalancedHeight
from skyens.dynamics._keys import (
    Purpose as Purpose,
    member_keys as member_keys,
    run_key as run_key,
)
from skyens.dynamics._kuramoto_sivashinsky import (
    KuramotoSivashinsky as KuramotoSivashinsky,
)
from skyens.dynamics._lorenz63 import Lorenz63 as Lorenz63
from skyens.dynamics._lorenz96 import (
    Lorenz96 as Lorenz96,
    TwoScaleLorenz96 as TwoScaleLorenz96,
)
from skyens.dynamics._relaxed import Relaxed as Relaxed
from skyens.dynamics._rollout import rollout as rollout
from skyens.dynamics._shallow_water import ShallowWater as ShallowWater
from skyens.dynamics._shallow_water_state import (
    ShallowWaterState as ShallowWaterState,
)
from skyens.dynamics._stochastic import StochasticStep as StochasticStep
from skyens.dynamics._two_layer_qg import TwoLayerQG as TwoLayerQG
from skyens.dynamics._williamson import (
    cosine_bell as cosine_bell,
    galewsky_jet as galewsky_jet,
    isolated_mountain as isolated_mountain,
    random_flow as random_flow,
    rossby_haurwitz_wave as rossby_haurwitz_wave,
    solid_rotation as solid_rotation,
)
