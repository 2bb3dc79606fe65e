"""Triton's interpreter without what it does twice."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cbam.steps import DEVICE


@pytest.fixture(scope="module")
def fast_interpreter() -> Iterator[None]:
    """Interpret the kernels in half the time.

    Additions and products of indices are not checked for an overflow. Triton's functions are replaced by the
    interpreter's once for a kernel and for the modules of the functions that it calls, rather than in every call.
    """
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            from triton.runtime import interpreter

            builder = interpreter.interpreter_builder
            patch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
            prepared = {"cbam.kernels", "cbam.elementwise_kernels"}  # with the kernel

            def call(function: Any, *given: Any, **constants: Any) -> Any:
                if function.fn.__module__ not in prepared:
                    interpreter._patch_lang(function.fn)
                    prepared.add(function.fn.__module__)
                return function.rewrite()(*given, **constants)

            patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield
