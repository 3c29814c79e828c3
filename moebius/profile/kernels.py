"""Marks inside compiled code: before each kernel, the components that its operations came from.

torch.compile keeps with every operation, of the backward pass too, the lines of source that it came from. The names of the
functions in that trace say whose a kernel is, and one line in the code that inductor generates marks it. The kernels
themselves, and what is fused into them, are exactly those of a step that is not profiled.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from moebius.profile.timeline import REST, WHOLE

# By file and function; "" is any other function of the file. The innermost frame that is listed decides, but for the
# WHOLE components, which own all that they call.
OWNERS = {
    ("functional", "rms_norm"): "norms",
    ("rope", ""): "rotary",
    ("attention", "forward"): "attention_projections",
    ("attention", ""): "attention_core",
    ("flex", ""): "attention_core",
    ("router", ""): "router",
    ("statistics", ""): "router",
    ("experts", "sort_by_expert"): "dispatch",
    ("experts", "dispatch"): "dispatch",
    ("experts", "combine"): "combine",
    ("experts", ""): "expert_gemms",
    ("float8", "aligned"): "dispatch",
    ("float8", ""): "expert_gemms",
    ("mlp", "activate"): "activation",
    ("mlp", "forward"): "base_mlp",
    ("moe", "_join"): "combine",
    ("mtp", ""): "mtp",
    ("transformer", "head_loss"): "lm_head",
    ("head", ""): "lm_head",
    ("loss", "cross_entropy"): "lm_head",
}
# what costs nothing by itself, or comes with any component: it decides only where there is nothing else
PLAIN = re.compile(
    r"reshape|view|permute|transpose|slice|select|(un)?squeeze|expand|full|iota|scalar_tensor|empty|getitem|as_strided|split"
    r"|convert_element_type|_to_copy|clone|add"
)
# a kernel that is one of these by itself; what its inputs came from is among its operations, too
PRODUCT = re.compile(r"(^|_|[^a-z])(add|b|baddb)?mm\b|attention|^moebius\.")
FRAME = re.compile(r'File "([^"]+)", line \d+, in (\w+)')
PACKAGE = str(Path(__file__).parents[1])


@contextmanager
def marked_kernels() -> Iterator[None]:
    """What is compiled in this context has marks. Nothing is taken from the compiler's caches or left there."""
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor
    from torch._inductor.scheduler import Scheduler

    original_enter, original_codegen = Scheduler.enter_context, Scheduler._codegen

    def enter(self: Any, node: Any) -> None:
        original_enter(self, node)
        origins = {origin for part in node.get_nodes() if part.node is not None for origin in part.node.get_origins()}
        _write(self, owners([(str(origin.target), origin.stack_trace or "") for origin in origins]))

    def codegen(self: Any, nodes: Any) -> None:
        original_codegen(self, nodes)
        _write(self, ())  # what follows is whose the code around it is

    with (
        inductor.patch(fx_graph_cache=False),
        functorch.patch(enable_autograd_cache=False),
        patch.object(Scheduler, "enter_context", enter),
        patch.object(Scheduler, "_codegen", codegen),
    ):
        yield


def owners(operations: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The components of a kernel's operations, each given by its name and its trace of source lines."""
    operations = list(operations)
    operations = [each for each in operations if PRODUCT.search(each[0])] or operations
    names = {operation: _owner(*operation) for operation in operations}
    telling = {owner for (target, _), owner in names.items() if owner != REST and not PLAIN.search(_name(target))}
    return tuple(sorted(telling or set(names.values()) - {REST} or {REST}))


def _owner(target: str, trace: str) -> str:
    frames = [(Path(file).stem, function) for file, function in FRAME.findall(trace) if _is_ours(file, function)]
    found = [OWNERS.get((stem, function)) or OWNERS.get((stem, "")) for stem, function in frames]
    whole = next((owner for owner in found if owner in WHOLE), None)
    if whole:
        return whole
    if "rms_norm" in target:
        return "norms"
    return next((owner for owner in reversed(found) if owner), REST)


def _is_ours(file: str, function: str) -> bool:
    return file.startswith(PACKAGE) or function == "rms_norm"


def _name(target: str) -> str:
    return target.removeprefix("aten.").removeprefix("prims.")


def _write(scheduler: Any, components: tuple[str, ...]) -> None:
    from torch._inductor.virtualized import V

    if str(scheduler.current_device or scheduler.default_device_context or "cpu").startswith("cpu"):
        scheduler.flush()  # on a CPU code is collected, and written later
    V.graph.wrapper_code.add_import_once("from moebius.profile.timeline import passed")
    V.graph.wrapper_code.writeline(f"passed({', '.join(map(repr, components))})")
