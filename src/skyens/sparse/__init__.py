"""Sparse regression: which few of many candidate terms explain a target.

A regression is compressed once (`compress`) and then solved as often as wished: at the
evidence optimum (`rvm`), along a path (`backward_path`, `elbow`), by thresholds
(`stlsq`), smoothly (`ridge`) or by sampling (`horseshoe`).
"""

from skyens.sparse._compress import (
    SparseProblem as SparseProblem,
    collinear as collinear,
    compress as compress,
)
from skyens.sparse._constraints import Constraints as Constraints
from skyens.sparse._corrected_step import (
    CorrectedStep as CorrectedStep,
    RefinedError as RefinedError,
    refine as refine,
)
from skyens.sparse._derivatives import (
    SpectralDerivative as SpectralDerivative,
    sphere_jacobian as sphere_jacobian,
    sphere_terms as sphere_terms,
)
from skyens.sparse._horseshoe import (
    HorseshoeSamples as HorseshoeSamples,
    horseshoe as horseshoe,
)
from skyens.sparse._least_squares import Solution as Solution
from skyens.sparse._library import (
    Library as Library,
    Term as Term,
    active_names as active_names,
    polynomials as polynomials,
)
from skyens.sparse._model_error import (
    ModelErrorPairs as ModelErrorPairs,
    model_error_pairs as model_error_pairs,
)
from skyens.sparse._path import (
    Elbow as Elbow,
    SparsePath as SparsePath,
    backward_path as backward_path,
    elbow as elbow,
)
from skyens.sparse._quadratures import (
    Endpoint as Endpoint,
    Simpson as Simpson,
    Trapezoid as Trapezoid,
)
from skyens.sparse._resample import (
    bootstrap as bootstrap,
    stability_selection as stability_selection,
)
from skyens.sparse._ridge import ridge as ridge
from skyens.sparse._rvm import SparseFit as SparseFit, rvm as rvm
from skyens.sparse._stlsq import stlsq as stlsq
from skyens.sparse._updates import (
    EM as EM,
    MacKay as MacKay,
    Sequential as Sequential,
)
from skyens.sparse._weak import (
    FluxDerivative as FluxDerivative,
    WeakForm as WeakForm,
    flux_polynomials as flux_polynomials,
    weak_form as weak_form,
)
