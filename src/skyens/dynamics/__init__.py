"""Steps that we ship, and driving them: worlds, rollouts and keys for members."""

from skyens.dynamics._barotropic import BarotropicVorticity as BarotropicVorticity
from skyens.dynamics._barotropic import LinearBalance as LinearBalance
