"""Changes to a right request after which no library would send it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.attacks.wire import string


def changed(change: Callable[[Any], Any], made: Any) -> Any:
    change(made)
    return made


def cut(made: Any) -> None:
    """The last byte of the first tensor is missing."""
    made.raw_input_contents[0] = made.raw_input_contents[0][:-1]


def twice(made: Any) -> None:
    """The first input comes twice."""
    made.inputs.add().CopyFrom(made.inputs[0])
    made.raw_input_contents.append(made.raw_input_contents[0])


def batch(made: Any) -> None:
    """A batch of two."""
    made.inputs[0].shape[:] = [2, 1]
    made.raw_input_contents[0] = string(b"Hi", b"Ho")[2]


def of_region(made: Any) -> None:
    """All inputs are in shared memory that nobody has registered."""
    del made.raw_input_contents[:]
    for one in made.inputs:
        one.parameters["shared_memory_region"].string_param = "/dev/shm"
        one.parameters["shared_memory_byte_size"].int64_param = 4


def to_region(made: Any) -> None:
    """An output goes to such memory."""
    output = made.outputs.add(name="text_output")
    output.parameters["shared_memory_region"].string_param = "region"
    output.parameters["shared_memory_byte_size"].int64_param = 2**40


def typed(made: Any) -> None:
    """Typed contents beside the raw ones."""
    made.inputs[0].contents.bytes_contents.append(b"Ho")


def parameter(made: Any, name: str, value: Any) -> Any:
    kind = {str: "string_param", int: "int64_param", bool: "bool_param"}[type(value)]
    setattr(made.parameters[name], kind, value)
    return made


def version(made: Any, value: str) -> Any:
    made.model_version = value
    return made
