"""Numbers of the host on their way to the device and back, without the host waiting for the device.

One pinned buffer goes over in one copy, whatever is in it. There are two of them by turns: the copy out of one may
still wait behind the step before while the other is filled. On a CPU the same calls copy within memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch

Part = tuple[torch.dtype, Sequence[int] | Sequence[float]]

_CODES = {torch.int64: "q", torch.int32: "i", torch.float32: "f", torch.float64: "d"}
"""As `array` names what can be sent; it takes a list in a quarter of the time that `torch.tensor` needs."""
ALIGNMENT = 16
"""Bytes of which every part begins at a multiple: Triton compiles a kernel anew for pointers that are aligned less."""


class Staging:
    """Sends lists of numbers to a device."""

    def __init__(self, device: torch.device, buffers: int = 2) -> None:
        """Nothing is allocated before something is sent."""
        self._device, self._on_gpu = device, device.type == "cuda"
        self._buffers = [torch.empty(0, dtype=torch.uint8) for _ in range(buffers)]
        self._copied: list[torch.cuda.Event | None] = [None] * buffers
        self._turn = 0

    def send(self, parts: Sequence[Part]) -> list[torch.Tensor]:
        """Each part as a tensor of its type on the device, in one copy. Asynchronous on a GPU."""
        joined: dict[torch.dtype, list[int | float]] = {}
        sizes: dict[torch.dtype, list[int]] = {}
        for dtype, values in parts:
            numbers = joined.setdefault(dtype, [])
            numbers.extend(values)
            padding = -len(values) % (ALIGNMENT // dtype.itemsize)
            if padding:
                numbers.extend((0,) * padding)
            sizes.setdefault(dtype, []).extend((len(values), padding))
        buffer = self._take(sum(len(numbers) * dtype.itemsize for dtype, numbers in joined.items()))
        start = 0
        for dtype, numbers in joined.items():
            end = start + len(numbers) * dtype.itemsize
            if numbers:
                buffer[start:end].view(dtype).copy_(torch.frombuffer(array(_CODES[dtype], numbers), dtype=dtype))
            start = end
        return self._split(parts, joined, sizes, self._copy(buffer))

    def _take(self, size: int) -> torch.Tensor:
        """The next buffer, once the copy out of it has ended."""
        self._turn = (self._turn + 1) % len(self._buffers)
        copied = self._copied[self._turn]
        if copied is not None:
            copied.synchronize()
        if self._buffers[self._turn].numel() < size:
            self._buffers[self._turn] = torch.empty(2 * size, dtype=torch.uint8, pin_memory=self._on_gpu)
        return self._buffers[self._turn][:size]

    def _copy(self, buffer: torch.Tensor) -> torch.Tensor:
        sent = buffer.to(self._device, non_blocking=True, copy=True)
        if self._on_gpu:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._copied[self._turn] = event
        return sent

    @staticmethod
    def _split(
        parts: Sequence[Part],
        joined: dict[torch.dtype, list[int | float]],
        sizes: dict[torch.dtype, list[int]],
        sent: torch.Tensor,
    ) -> list[torch.Tensor]:
        pieces, start = {}, 0
        for dtype, numbers in joined.items():
            end = start + len(numbers) * dtype.itemsize
            with_padding = sent[start:end].view(dtype).split_with_sizes(sizes[dtype])
            pieces[dtype] = iter(with_padding[::2])
            start = end
        return [next(pieces[dtype]) for dtype, _ in parts]


class Readback:
    """Tensors of the device on their way to the host, in one copy: `wait` is when the host needs them."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        """Start the copy."""
        self._kinds = [(tensor.dtype, tensor.shape) for tensor in tensors]
        # The widest numbers first, so that every part begins at a multiple of its numbers' size.
        self._order = sorted(range(len(tensors)), key=lambda place: -tensors[place].element_size())
        parts = [tensors[place].contiguous().view(-1).view(torch.uint8) for place in self._order]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        self._host = torch.empty(joined.shape, dtype=torch.uint8, pin_memory=joined.is_cuda)
        self._host.copy_(joined, non_blocking=True)
        self._copied: torch.cuda.Event | None = None
        if joined.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def is_here(self) -> bool:
        """Whether the copies are whole."""
        return self._copied is None or self._copied.query()  # type: ignore[no-untyped-call]

    def wait(self) -> list[torch.Tensor]:
        """The copies, once they are whole."""
        if self._copied is not None:
            self._copied.synchronize()
        found, start = [self._host] * len(self._kinds), 0
        for place in self._order:
            dtype, shape = self._kinds[place]
            end = start + shape.numel() * dtype.itemsize
            found[place] = self._host[start:end].view(dtype).view(shape)
            start = end
        return found
