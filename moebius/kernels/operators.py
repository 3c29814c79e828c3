"""Define operators that torch.compile treats as opaque, around functions that launch kernels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Launches = Callable[..., list[Tensor]]
"""A function that launches kernels. It returns new tensors, and changes none of its arguments."""
Save = Callable[[Any, tuple, list[Tensor]], None]
"""Keeps on its first argument, given inputs and outputs, what the backward pass needs."""
Gradients = Callable[..., tuple[Tensor | None, ...]]
"""(what was saved, *gradients of the outputs, run=backward) -> the gradients of the inputs."""

# torch.library.custom_op would wrap every call in Python code that costs the host too much time.
library = torch.library.Library("moebius", "FRAGMENT")


def operator(name: str, run: Launches, fake: Launches) -> Any:
    """Define the operator moebius::NAME, which calls `run`, and return it.

    `fake` returns empty tensors with the shapes and dtypes that `run` returns.
    """
    library.define(name + torch.library.infer_schema(run, mutates_args=()))
    library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"moebius::{name}", fake, lib=library)
    return getattr(torch.ops.moebius, name).default


def differentiate(name: str, save: Save, gradients: Gradients, backward: Launches) -> None:
    """Register the gradient of moebius::NAME, which calls the operator `backward`.

    The gradient is registered on the operator. If instead an autograd function called the
    operators, activation checkpointing in compiled code could not recompute what the function
    saves (torch 2.11).
    """
    torch.library.register_autograd(
        f"moebius::{name}",
        lambda ctx, grads: gradients(ctx, *grads, run=backward),
        setup_context=lambda ctx, inputs, output: save(ctx, inputs, output),
        lib=library,
    )


class Differentiable:
    """A function made of kernels, and its gradient, for eager and for compiled code.

    Outside of torch.compile an autograd function runs it; operators cost the host more time per
    call.
    """

    def __init__(
        self,
        name: str,
        forward: tuple[Launches, Launches],
        backward: tuple[Launches, Launches],
        save: Save,
        gradients: Gradients,
    ):
        """Define the operators moebius::NAME and moebius::NAME_backward.

        forward, backward: what runs, and what returns empty tensors of the same shapes.
        """
        self.forward, self.backward, self.save, self.gradients = (
            forward[0], backward[0], save, gradients,
        )  # fmt: skip
        self.operator = operator(name, *forward)
        differentiate(name, save, gradients, operator(f"{name}_backward", *backward))

    def __call__(self, *inputs: Any) -> list[Tensor]:
        """Return the outputs. Those of integers have no gradient."""
        if torch.compiler.is_compiling():
            return self.operator(*inputs)
        return _Eager.apply(self, *inputs)


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx, function: Differentiable, *inputs: Any
    ) -> tuple[Tensor, ...]:
        outputs = function.forward(*inputs)
        function.save(ctx, inputs, outputs)
        ctx.function = function
        ctx.mark_non_differentiable(*(out for out in outputs if not out.is_floating_point()))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, *ctx.function.gradients(ctx, *grads, run=ctx.function.backward)
