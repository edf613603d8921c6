"""The inverse law, for every shape of base: what prepare has changed, release undoes to the last bit and attribute."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tara
import tiny_adapters
from tara.families.base import Base

PROMPT = "a xlo dog on the beach"


def state(pipe: Any) -> dict[str, Any]:
    """Everything that could differ: attributes of pipeline and modules, weights, processors, hooks."""
    everything: dict[str, Any] = {f"pipe.{name}": value for name, value in vars(pipe).items()}
    for part, model in pipe.components.items():
        for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
            for attribute, value in vars(module).items():
                entries = dict(value) if isinstance(value, dict) else {"": value}
                everything |= {f"{part}.{name}.{attribute}.{key}": entry for key, entry in entries.items()}
    return everything


class Before:
    """A pipeline's state at one moment."""

    def __init__(self, pipe: Any) -> None:
        self.state = state(pipe)
        self.values = {name: one.detach().clone() for name, one in self.state.items() if isinstance(one, Tensor)}

    def changed(self, pipe: Any) -> list[str]:
        """The names of what has come, gone or changed since."""
        after = state(pipe)
        return sorted(self.state.keys() ^ after.keys()) + [
            name for name in self.state.keys() & after.keys() if not self.is_same(name, after[name])
        ]

    def is_same(self, name: str, value: Any) -> bool:
        if name in self.values:
            return value is self.state[name] and torch.equal(value, self.values[name])
        return value is self.state[name] or bool(value == self.state[name])


def stock_call(pipe: Any) -> None:
    """A call without tara; a pipeline remembers settings of its last call, and transformers adds hooks at the first."""
    pipe("a dog", num_inference_steps=1, output_type="latent")


def test_prepare_then_release_leaves_the_pipeline_as_it_was(any_pipe: Any) -> None:
    adapter = tiny_adapters.random_adapter(Base(any_pipe))
    stock_call(any_pipe)
    before = Before(any_pipe)
    arguments = tara.prepare(any_pipe, PROMPT, [adapter])
    any_pipe(**arguments, num_inference_steps=1, output_type="latent")
    assert before.changed(any_pipe)
    tara.release(any_pipe)
    stock_call(any_pipe)
    assert before.changed(any_pipe) == []


@pytest.mark.parametrize("composer", ["tara", "regions"])
def test_a_prepared_block_leaves_the_pipeline_as_it_was_also_after_an_exception(any_pipe: Any, composer: str) -> None:
    adapter = tiny_adapters.random_adapter(Base(any_pipe), targets=tiny_adapters.ATTENTION)
    stock_call(any_pipe)
    before = Before(any_pipe)
    with pytest.raises(AttributeError), tara.prepared(any_pipe, PROMPT, [adapter], composer=composer) as arguments:
        any_pipe(**arguments, num_inference_steps=4, output_type="latent").images.no_such_attribute()
    stock_call(any_pipe)
    assert before.changed(any_pipe) == []
