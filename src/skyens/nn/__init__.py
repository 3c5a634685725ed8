"""Layers and networks for fields, and what stands before and after them.

`Channels` turns named fields into the `(channel, latitude, longitude)` array a network
takes, and back; `Normaliser` brings its channels to order one, and back to units;
`SFNO` is a stochastic spherical neural operator, and `NeuralStep` makes a network a
step that rolls out like any other.

`MLP`, `UNet`, `Transformer` and `SetNetwork` share one contract,
`network(x, level, *, condition=None)`, which a diffusion makes a denoiser of; made with
`noise_level=False` they are plain maps of fields. Fields lie on a `Plane` or on a grid
of the sphere. `Condition` is what a network may be told, and `Autoencoder` makes fields
smaller. `RandomFourierFeatures` is one field as a function of its coordinates.
"""

from skyens.nn._attention import (
    Attention as Attention,
    AttentionBlock as AttentionBlock,
    Rotary as Rotary,
)
from skyens.nn._autoencoder import Autoencoder as Autoencoder
from skyens.nn._blocks import ResidualBlock as ResidualBlock
from skyens.nn._channels import Channels as Channels
from skyens.nn._condition import Condition as Condition
from skyens.nn._convolution import Convolution as Convolution
from skyens.nn._domain import Plane as Plane
from skyens.nn._embedding import FourierEmbedding as FourierEmbedding
from skyens.nn._halving import Halving as Halving
from skyens.nn._mlp import MLP as MLP
from skyens.nn._neural_step import NeuralStep as NeuralStep
from skyens.nn._normaliser import Normaliser as Normaliser
from skyens.nn._pointwise import (
    ConditionalLayerNorm as ConditionalLayerNorm,
    GatedMLP as GatedMLP,
    Pointwise as Pointwise,
)
from skyens.nn._random_fourier_features import (
    RandomFourierFeatures as RandomFourierFeatures,
)
from skyens.nn._set_network import SetEncoder as SetEncoder, SetNetwork as SetNetwork
from skyens.nn._sfno import SFNO as SFNO
from skyens.nn._spectral import SpectralConv as SpectralConv
from skyens.nn._transformer import Transformer as Transformer
from skyens.nn._unet import UNet as UNet
