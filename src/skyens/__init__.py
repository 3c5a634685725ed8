"""Ensembles of the sky: composable JAX primitives for fields on the sphere.

The rooms are imported on first use, so `import skyens` stays cheap.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_ROOMS = (
    "assimilation",
    "data",
    "diffusion",
    "dynamics",
    "ensembles",
    "nn",
    "observations",
    "plot",
    "scores",
    "sparse",
    "sphere",
    "training",
)


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return importlib.import_module(f"skyens.{name}")
    raise AttributeError(f"module 'skyens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
