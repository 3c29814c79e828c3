"""Put marks into compiled code: before each kernel, the components that its operations came from.

torch.compile keeps the source lines that each operation came from, also for the backward pass. The
names of the functions in that trace say which component a kernel belongs to, and one line in the
code that inductor generates marks it. The kernels themselves, and what is fused into them, are
exactly those of a step that is not profiled.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from moebius.profile.timeline import REST, WHOLE

PACKAGE = Path(__file__).parents[1]
TORCH = "torch"
OWNERS = {
    (TORCH, "rms_norm"): "norms",
    ("model/rope", ""): "rotary",
    ("model/attention", "forward"): "attention_projections",
    ("model/attention", ""): "attention_core",
    ("model/flex", ""): "attention_core",
    ("moe/router", ""): "router",
    ("moe/statistics", ""): "router",
    ("moe/balance", ""): "router",
    ("moe/experts", "sort_by_expert"): "dispatch",
    ("moe/experts", "dispatch"): "dispatch",
    ("moe/experts", "combine"): "combine",
    ("moe/experts", ""): "expert_gemms",
    ("kernels/experts", ""): "expert_gemms",
    ("moe/float8", "aligned"): "dispatch",
    ("moe/float8", ""): "expert_gemms",
    ("moe/mlp", "activate"): "activation",
    ("moe/mlp", "forward"): "base_mlp",
    ("moe/layer", "_join"): "combine",
    ("model/mtp", ""): "mtp",
    ("model/transformer", "head_loss"): "lm_head",
    ("model/head", ""): "lm_head",
    ("model/loss", "cross_entropy"): "lm_head",
}
"""Component of each function, by its file in the package and its name; "" stands for any other
function of the file. The innermost listed frame decides, except that a WHOLE component owns
everything that it calls."""
PLAIN = re.compile(
    r"reshape|view|permute|transpose|slice|select|(un)?squeeze|expand|full|iota|scalar_tensor"
    r"|empty|getitem|as_strided|split|convert_element_type|_to_copy|clone|add"
)
"""Operations that cost nothing by themselves, or that occur in every component. They only decide
the component of a kernel that consists of nothing else."""
PRODUCT = re.compile(r"(^|_|[^a-z])(add|b|baddb)?mm\b|attention|^moebius\.")
"""Operations that are always a separate kernel. Inductor also lists the operations that produced
their inputs under that kernel, but these do not belong to it."""
FRAME = re.compile(r'File "([^"]+)", line \d+, in (\w+)')


@contextmanager
def marked_kernels() -> Iterator[None]:
    """Mark everything that is compiled in this context.

    The compiler's caches are neither read nor written.
    """
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor
    from torch._inductor.scheduler import Scheduler

    original_enter, original_codegen = Scheduler.enter_context, Scheduler._codegen

    def enter(self: Any, node: Any) -> None:
        original_enter(self, node)
        origins = {
            origin
            for part in node.get_nodes()
            if part.node is not None
            for origin in part.node.get_origins()
        }
        operations = [(str(origin.target), origin.stack_trace or "") for origin in origins]
        _write(self, owners(operations))

    def codegen(self: Any, nodes: Any) -> None:
        original_codegen(self, nodes)
        _write(self, ())  # what follows belongs to the code around the compiled code

    with (
        inductor.patch(fx_graph_cache=False),
        functorch.patch(enable_autograd_cache=False),
        patch.object(Scheduler, "enter_context", enter),
        patch.object(Scheduler, "_codegen", codegen),
    ):
        yield


def owners(operations: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return the components that a kernel belongs to, in alphabetical order.

    operations: name and trace of source lines of each operation in the kernel.
    """
    operations = list(operations)
    products = [operation for operation in operations if PRODUCT.search(operation[0])]
    names = {operation: _owner(*operation) for operation in products or operations}
    telling = {
        owner
        for (target, _), owner in names.items()
        if owner != REST and not PLAIN.search(_name(target))
    }
    return tuple(sorted(telling or set(names.values()) - {REST} or {REST}))


def _owner(target: str, trace: str) -> str:
    """Return the component of one operation, from the outermost frame of its trace inwards."""
    listed = [OWNERS.get(frame) or OWNERS.get((frame[0], "")) for frame in _frames(trace)]
    whole = next((owner for owner in listed if owner in WHOLE), None)
    if whole:
        return whole
    if "rms_norm" in target:
        return "norms"
    return next((owner for owner in reversed(listed) if owner), REST)


def _frames(trace: str) -> Iterator[tuple[str, str]]:
    """Yield the file and function of each frame in the package or in torch's RMSNorm."""
    for file, function in FRAME.findall(trace):
        path = Path(file)
        if path.is_relative_to(PACKAGE):
            yield path.relative_to(PACKAGE).with_suffix("").as_posix(), function
        elif function == "rms_norm":
            yield TORCH, function


def _name(target: str) -> str:
    return target.removeprefix("aten.").removeprefix("prims.")


def _write(scheduler: Any, components: tuple[str, ...]) -> None:
    """Add a call of `passed` to the code that is being generated."""
    from torch._inductor.virtualized import V

    device = str(scheduler.current_device or scheduler.default_device_context or "cpu")
    if device.startswith("cpu"):
        scheduler.flush()  # code for a CPU is otherwise collected and written later
    V.graph.wrapper_code.add_import_once("from moebius.profile.timeline import passed")
    V.graph.wrapper_code.writeline(f"passed({', '.join(map(repr, components))})")
