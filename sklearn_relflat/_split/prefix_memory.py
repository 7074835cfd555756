"""What a model computes before a layer, kept for forward passes that repeat it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from torch import Tensor, nn


@dataclass
class _Call:
    """One call of a module: its place in time and a copy of what it returned."""

    start: int
    end: int | None = None
    output: Tensor | None = None


@dataclass
class _Answer:
    """A forward method that returns a known output.

    It hands out copies in the first pass. Those that nothing wrote to were not needed,
    and from then on the output itself is returned.
    """

    output: Tensor
    copies: list[Tensor] = field(default_factory=list)
    shared: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output or a copy."""
        if self.shared:
            return self.output
        self.copies.append(self.output.clone())
        return self.copies[-1]

    def learn(self) -> None:
        """Look at what a pass did with the copies."""
        if self.output._version > 0:
            raise ValueError(
                "Expected a model that works in place on the same tensors in every "
                "forward pass, got one that does so depending on the numbers. Replace "
                "the operation in place behind the layer."
            )
        if not self.shared:
            self.shared = all(copy._version == 0 for copy in self.copies)
        self.copies.clear()


@dataclass
class _Log:
    """Calls of all modules in one forward pass."""

    targets: Collection[nn.Module]
    clock: Iterator[int] = field(default_factory=count)
    calls: dict[nn.Module, list[_Call]] = field(default_factory=dict)
    first: int | None = None

    def enter(self, module: nn.Module, args: Any) -> None:
        """Note the start of a call."""
        call = _Call(next(self.clock))
        self.calls.setdefault(module, []).append(call)
        if self.first is None and module in self.targets:
            self.first = call.start

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Note the end of a call, with a copy: what follows may work in place."""
        calls = self.calls.get(module, [])
        if self.first is None and len(calls) == 1 and isinstance(output, Tensor):
            calls[0].end = next(self.clock)
            calls[0].output = output.detach().clone()

    def outermost(self) -> dict[nn.Module, _Answer]:
        """Return outputs of modules that were called once, before the layer."""
        if self.first is None:
            return {}
        found: dict[nn.Module, _Answer] = {}
        covered = -1
        single = [(m, calls[0]) for m, calls in self.calls.items() if len(calls) == 1]
        for module, call in sorted(single, key=lambda pair: pair[1].start):
            # What was called inside of a remembered module is not called again.
            if call.output is None or call.end is None or call.start < covered:
                continue
            found[module] = _Answer(call.output)
            covered = call.end
        return found


class PrefixMemory:
    """Outputs of the modules that end before a layer is called for the first time.

    A forward pass that differs from a recorded one in this layer alone computes the
    same in these modules. While the memory is in force they return what they returned
    before, and only functions that are no modules are evaluated again.

    Parameters
    ----------
    module : torch.nn.Module
        The model.
    targets : collection of torch.nn.Module
        The modules that apply the layer's weight. Where none of them is called as a
        module (inside of multi-head attention), nothing is remembered.

    Examples
    --------
    >>> import torch
    >>> calls = []
    >>> class Counted(torch.nn.Linear):
    ...     def forward(self, x):
    ...         calls.append(self)
    ...         return super().forward(x)
    >>> module = torch.nn.Sequential(Counted(2, 2), torch.nn.ReLU(), Counted(2, 1))
    >>> memory, x = PrefixMemory(module, [module[2]]), torch.ones(1, 2)
    >>> with memory.recorded():
    ...     expected = module(x)
    >>> with memory.in_force():
    ...     again = module(x)
    >>> torch.equal(expected, again), len(calls)
    (True, 3)
    """

    def __init__(self, module: nn.Module, targets: Collection[nn.Module]) -> None:
        self._module = module
        self._targets = targets
        self._answers: dict[nn.Module, _Answer] = {}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record one forward pass, in place of what was recorded before.

        Yields
        ------
        None
            While the forward pass is recorded.
        """
        self.forget()
        log = _Log(self._targets)
        with ExitStack() as stack:
            for module in self._module.modules():
                enter = module.register_forward_pre_hook(log.enter)
                stack.callback(enter.remove)
                leave = module.register_forward_hook(log.leave)
                stack.callback(leave.remove)
            yield
        self._answers = log.outermost()

    def forget(self) -> None:
        """Forget what was recorded."""
        self._answers = {}

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Let the remembered modules answer from memory.

        Yields
        ------
        None
            While the memory is in force.
        """
        with ExitStack() as stack:
            for module, answer in self._answers.items():
                # The instance's own dict: no parameter or submodule is touched.
                attributes = vars(module)
                stack.callback(_restore, attributes, attributes.get("forward"))
                attributes["forward"] = answer
            yield
            for answer in self._answers.values():
                answer.learn()


def _restore(attributes: dict[str, Any], forward: Any) -> None:
    """Put an instance's own forward method back, or take the borrowed one away."""
    if forward is None:
        del attributes["forward"]
    else:
        attributes["forward"] = forward
