"""The expert backends by name, as `parallel.expert_backend` and `train.expert_dtype` choose them.

Every backend has the same signature, `(x_TD, routing, weights) -> out_TD`. To add a backend, write
it in its own file, add its record to moebius/config/expert_backends.py, and add its place here.
"""

from importlib import import_module

from moebius.moe.experts import ExpertsFunction

_PLACES = {  # imported only when used: kernels need Triton, and FP8 registers an operator
    "loop": ("moebius.moe.experts", "loop"),
    "grouped": ("moebius.moe.experts", "grouped"),
    "triton": ("moebius.moe.experts", "triton"),
    "float8": ("moebius.moe.float8", "float8"),
}


def expert_backend(name: str) -> ExpertsFunction:
    """Return the function that runs the experts. Raises KeyError for an unknown name."""
    module, function = _PLACES[name]
    return getattr(import_module(module), function)
