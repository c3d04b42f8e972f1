"""Triton's interpreter, where it does not do what a GPU does; import this before a kernel runs.

Of Triton 3.6: a number that rounds up to the next power of two in eight bits gets a wrong exponent,
and a loop whose end is data fails with NumPy 2.4.
"""

from typing import Any

import torch
from triton import language as tl
from triton.runtime import interpreter

_convert_float = interpreter._convert_float
_patch_lang_tensor = interpreter._patch_lang_tensor


def convert_float(numbers: Any, given: Any, wanted: Any, rounding: Any) -> Any:
    if (given, wanted) != (tl.float32, tl.float8e4nv):
        return _convert_float(numbers, given, wanted, rounding)
    made = torch.tensor(numbers).clamp(-448, 448).to(torch.float8_e4m3fn)
    return made.view(torch.uint8).numpy()


def patch_lang_tensor(tensor: Any, scope: Any) -> None:
    _patch_lang_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._convert_float = convert_float
interpreter._patch_lang_tensor = patch_lang_tensor
