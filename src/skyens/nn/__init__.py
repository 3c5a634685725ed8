"""Layers and networks for fields on the sphere, and what stands before and after them.

`Channels` turns named fields into the `(channel, latitude, longitude)` array a network
takes, and back; `Normaliser` brings its channels to order one, and back to units;
`SFNO` is a stochastic spherical neural operator, and `NeuralStep` makes a network a
step that rolls out like any other.
"""

from skyens.nn._channels import Channels as Channels
from skyens.nn._neural_step import NeuralStep as NeuralStep
from skyens.nn._normaliser import Normaliser as Normaliser
from skyens.nn._pointwise import (
    ConditionalLayerNorm as ConditionalLayerNorm,
    GatedMLP as GatedMLP,
    Pointwise as Pointwise,
)
from skyens.nn._sfno import SFNO as SFNO
from skyens.nn._spectral import SpectralConv as SpectralConv
