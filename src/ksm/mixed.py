"""A batch whose images belong to different tasks, in one pass through the network.

The images are sorted by task. Where no task changed a module, it sees the whole batch; where tasks
differ, the module is replaced by one that gives each image what its task says:

| module | how |
|---|---|
| BatchNorm | once, with each image's channels as channels of their own |
| convolution | a loop over the tasks, or one convolution with a group for each task |
| all else, the heads too | a loop over the tasks |

Which of the two is faster depends on the layer, on how many images a task has, and on the machine,
and so does whether one pass is faster than each task by itself; it is measured, see `ksm.measured`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ksm import _torchvision as _torchvision

# isort: split
from timm.layers import BatchNormAct2d, Conv2dSame, pad_same

from ksm.bank import SHOWN
from ksm.clone import share
from ksm.errors import KsmError
from ksm.measured import Measured
from ksm.task import Task

Strategy = Literal["measured", "loop", "grouped"]


class Mixed:
    """Several tasks of one backbone, for batches whose images belong to different ones.

    An image's logits are those of `task.on(backbone)`, but for rounding. What is assumed of the
    network: in evaluation mode it treats each image by itself; the first dimension of a tensor is
    the batch's wherever it has the batch's length; nothing behind the head mixes the classes. A
    task in a grown network (CPG) runs by itself.

    The tensors stay where the backbone's are at this moment. Several threads may call it; their
    passes over mixed batches run one after another.

    Args:
        backbone: only read.
        tasks: of different names, learned on this backbone by any methods.
        strategy: how convolutions run that differ between tasks: `measured` times both ways, and
            one pass against each task by itself, the first time it meets a kind of layer and batch,
            which makes such a call slow, and remembers what it found in the cache folder; `loop`
            and `grouped` time nothing.

    Raises:
        KsmError: no task, two of one name, a task of another backbone, or no such strategy.
    """

    def __init__(
        self, backbone: nn.Module, tasks: Sequence[Task], strategy: Strategy = "measured"
    ) -> None:
        if strategy not in get_args(Strategy):
            known = ", ".join(get_args(Strategy))
            raise KsmError(f"strategy {strategy!r}: expected one of {known}")
        if not tasks:
            raise KsmError("a mixed batch of no tasks: give at least one")
        names = [task.name for task in tasks]
        if twice := [name for place, name in enumerate(names) if name in names[:place]]:
            raise KsmError(f"two tasks are named {twice[0]!r}: give each a name of its own")
        self._classes = {task.name: len(task.classes) for task in tasks}
        self._models = {task.name: task.on(backbone) for task in tasks}
        together = [task.name for task in tasks if task.grown == 1]
        self._place = {name: place for place, name in enumerate(together)}
        self._own = [self._models[name] for name in together]
        self._run = _Run(strategy, Measured("mixed"))
        methods = sorted({f"{task.method.name} {task.method.mask_from}" for task in tasks})
        self._label = f"network {tasks[0].fingerprint[:16]}, {', '.join(methods)}"
        self._lock = threading.RLock()
        self._network = share(backbone).eval()
        if len(self._own) > 1:
            _mix("", self._network, self._own, self._run)

    @torch.no_grad()
    def __call__(self, images: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Logits of each image by its own task.

        Args:
            images: shape (n, 3, h, w), float32, on the backbone's device, normalised as each
                image's task wants it.
            names: the name of a task for each image.

        Returns:
            n tensors of shape (classes of the image's task,), in the order of the images.

        Raises:
            KsmError: images of another shape, another number of names, or a name of no task here.
        """
        if images.dim() != 4:
            raise KsmError(f"images have shape {tuple(images.shape)}: expected (n, 3, h, w)")
        if len(names) != len(images):
            raise KsmError(f"{len(names)} task names for {len(images)} images: give one an image")
        images_of: dict[str, list[int]] = {}
        for image, name in enumerate(names):
            if name not in self._models:
                known = ", ".join(list(self._models)[:SHOWN])
                more = f" and {len(self._models) - SHOWN} more" if len(self._models) > SHOWN else ""
                raise KsmError(f"no task {name!r} here; the tasks are: {known}{more}")
            images_of.setdefault(name, []).append(image)
        together = sorted(images_of.keys() & self._place.keys(), key=self._place.__getitem__)
        if len(together) < 2:
            together = []
        ways: dict[str, Callable[[], dict[int, Tensor]]] = {
            "together": lambda: self._together(
                images, {name: images_of[name] for name in together}
            ),
            "apart": lambda: self._apart(images, {name: images_of[name] for name in together}),
        }
        chosen = "together"
        if together and self._run.strategy == "measured":
            with self._lock:
                kind = self._kind(images, [len(images_of[name]) for name in together])
                chosen = self._run.measured.fastest(kind, ways, images.device)
                self._run.measured.save()
        logits = self._apart(images, {n: i for n, i in images_of.items() if n not in together})
        if together:
            logits |= ways[chosen]()
        return [logits[image] for image in range(len(images))]

    def _apart(self, images: Tensor, images_of: dict[str, list[int]]) -> dict[int, Tensor]:
        """Logits of each image, each task by itself."""
        found: dict[int, Tensor] = {}
        for name, places in images_of.items():
            found.update(zip(places, self._models[name](images[places]), strict=True))
        return found

    def _together(self, images: Tensor, images_of: dict[str, list[int]]) -> dict[int, Tensor]:
        """Logits of each image, all tasks in one pass."""
        order = [image for places in images_of.values() for image in places]
        counts = [len(places) for places in images_of.values()]
        places = [self._place[name] for name in images_of]
        most = max(self._classes[name] for name in images_of)
        outputs = self._pass(images[order].contiguous(), places, counts, most)
        classes = [self._classes[n] for n, several in images_of.items() for _ in several]
        rows = zip(order, outputs, classes, strict=True)
        return {image: row[:count] for image, row, count in rows}

    def _kind(self, images: Tensor, counts: list[int]) -> str:
        """What decides whether one pass pays; lengths are rounded up to powers of two."""
        return (
            f"{self._label} on {_times(images.shape[2:])}, {len(counts)} tasks, longest "
            f"{_power(max(counts))} of {_power(sum(counts))}"
        )

    def _pass(self, images: Tensor, places: list[int], counts: list[int], classes: int) -> Tensor:
        """Outputs (n, classes) of a sorted batch; behind a task's last class they mean nothing."""
        with self._lock:
            self._run.batch = _Batch.of(places, counts, images.device)
            while True:
                try:
                    outputs = self._network(images)
                    if not isinstance(outputs, Tensor) or outputs.shape != (len(images), classes):
                        raise _Inseparable("")
                    self._run.measured.save()
                    return outputs
                except _Inseparable as found:
                    self._widen(found.name)

    def _widen(self, name: str) -> None:
        """Replace what holds the module `name` by a loop: more than `name` uses its tensors."""
        if isinstance(self._network, _Each):
            raise KsmError("the network's outputs are no logits of shape (images, classes)")
        outer = name.rpartition(".")[0]
        own = [model.get_submodule(outer) for model in self._own]
        _become(self._network.get_submodule(outer), _Each(outer, own, self._run))


@dataclass(frozen=True)
class _Batch:
    """How the images of one call are sorted.

    Args:
        segments: place of the task, and the first and the last image but one, of each segment.
        present: what takes the tasks of the segments from a tensor with a row for each task.
        task: for each image, the place of its task.
        padded: which image stands where when each segment is filled up to the longest with its
            own last image: the first images of all segments, then the second ones, ...
        back: for each image, where it is in `padded`.
    """

    segments: list[tuple[int, int, int]]
    present: slice | Tensor
    task: Tensor
    padded: Tensor
    back: Tensor
    images: int
    longest: int

    @classmethod
    def of(cls, places: list[int], counts: list[int], device: torch.device) -> _Batch:
        """The batch in which task `places[i]` has the next `counts[i]` images; places ascend."""
        images, longest = sum(counts), max(counts)
        starts = [sum(counts[:i]) for i in range(len(counts))]
        consecutive = places[-1] - places[0] == len(places) - 1
        padded = [
            start + min(row, count - 1)
            for row in range(longest)
            for start, count in zip(starts, counts, strict=True)
        ]
        back = [row * len(counts) + i for i, count in enumerate(counts) for row in range(count)]
        task = [place for place, count in zip(places, counts, strict=True) for _ in range(count)]

        def tensor(values: list[int]) -> Tensor:
            return torch.tensor(values, device=device)

        return cls(
            [(p, s, s + n) for p, s, n in zip(places, starts, counts, strict=True)],
            slice(places[0], places[-1] + 1) if consecutive else tensor(places),
            tensor(task),
            tensor(padded),
            tensor(back),
            images,
            longest,
        )


class _Run:
    """What all replaced modules of a network read."""

    batch: _Batch

    def __init__(self, strategy: Strategy, measured: Measured) -> None:
        self.strategy: Strategy = strategy
        self.measured = measured


class _Inseparable(Exception):
    """The replaced module `name` was used otherwise than by calling it with the batch.

    So its place in the network must be found further out: see `Mixed._widen`. No AttributeError,
    which hasattr and properties would swallow.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Each(nn.Module):
    """Stands for a module of which each task has its own, and calls these one after another."""

    def __init__(self, name: str, own: Sequence[nn.Module], run: _Run) -> None:
        super().__init__()
        self.name, self.run = name, run
        self.own = tuple(own)  # a tuple, so that they are no submodules

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        batch = self.run.batch
        first = next((one for one in [*args, *kwargs.values()] if isinstance(one, Tensor)), None)
        if first is None or first.dim() == 0 or len(first) != batch.images:
            raise _Inseparable(self.name)
        parts: list[Any] = []
        for place, begin, end in batch.segments:
            own_args, own_kwargs = _cut((args, kwargs), begin, end, batch.images)
            parts.append(self.own[place](*own_args, **own_kwargs))
        return self._joined(parts)

    def _joined(self, parts: list[Any]) -> Any:
        """Outputs of the segments as those of the batch, padded with 0 where sizes differ."""
        first: Any = parts[0]
        if any(type(part) is not type(first) for part in parts):
            raise _Inseparable(self.name)
        if isinstance(first, Tensor):
            lengths = [end - begin for _, begin, end in self.run.batch.segments]
            if any(p.dim() != first.dim() or p.dim() == 0 for p in parts):
                raise _Inseparable(self.name)
            if [len(part) for part in parts] != lengths:
                raise _Inseparable(self.name)
            return torch.cat(_padded(parts))
        if type(first) in (list, tuple) and len({len(part) for part in parts}) == 1:
            return type(first)(self._joined(list(some)) for some in zip(*parts, strict=True))
        if isinstance(first, dict) and all(part.keys() == first.keys() for part in parts):
            return type(first)((k, self._joined([part[k] for part in parts])) for k in first)
        if first is None:
            return None
        raise _Inseparable(self.name)

    def __getattr__(self, name: str) -> Any:
        """Plain settings are the same for all tasks. Tensors, parts and methods are not."""
        value = getattr(self.own[0], name)
        plain = value is None or isinstance(value, bool | int | float | str)
        if plain and all(getattr(one, name) == value for one in self.own[1:]):
            return value
        raise _Inseparable(self.name)

    def __getitem__(self, key: object) -> nn.Module:
        raise _Inseparable(self.name)

    def __iter__(self) -> Iterator[nn.Module]:
        raise _Inseparable(self.name)

    def __len__(self) -> int:
        raise _Inseparable(self.name)


class _Conv(_Each):
    """A convolution whose weights differ between tasks.

    All weights lie in one tensor, and those of the tasks' own modules are views of it.
    """

    def __init__(self, name: str, own: Sequence[nn.Conv2d], run: _Run) -> None:
        super().__init__(name, own, run)
        self.conv = (own[0],)  # its settings are those of all
        self.weights = torch.stack([one.weight for one in own])
        biases = [one.bias for one in own if one.bias is not None]
        self.biases = torch.stack(biases) if biases else None
        for one, weight in zip(own, self.weights, strict=True):
            one.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or len(x) != self.run.batch.images:
            raise _Inseparable(self.name)
        ways: dict[str, Callable[[], Tensor]] = {
            "loop": lambda: _Each.forward(self, x),
            "grouped": lambda: self._grouped(x),
        }
        chosen: str = self.run.strategy
        if chosen == "measured":
            chosen = self.run.measured.fastest(self._kind(x), ways, x.device)
        return ways[chosen]()

    def _grouped(self, x: Tensor) -> Tensor:
        """One convolution of (longest, tasks * c, h, w), with the tasks' groups side by side."""
        batch, (conv,) = self.run.batch, self.conv
        tasks = len(batch.segments)
        weight = self.weights[batch.present].flatten(0, 1)
        bias = None if self.biases is None else self.biases[batch.present].flatten()
        padding = conv.padding
        if isinstance(conv, Conv2dSame):
            x = pad_same(x, list(conv.kernel_size), list(conv.stride), list(conv.dilation))
            padding = 0
        x = x.index_select(0, batch.padded).reshape(batch.longest, -1, *x.shape[2:])
        y = F.conv2d(x, weight, bias, conv.stride, padding, conv.dilation, tasks * conv.groups)
        return y.reshape(-1, conv.out_channels, *y.shape[2:]).index_select(0, batch.back)

    def _kind(self, x: Tensor) -> str:
        """What decides how long either way takes; lengths are rounded up to powers of two."""
        batch, (conv,) = self.run.batch, self.conv
        copied = ", weights gathered" if isinstance(batch.present, Tensor) else ""
        return (
            f"{type(conv).__name__} {conv.in_channels}-{conv.out_channels} "
            f"kernel {_times(conv.kernel_size)} stride {_times(conv.stride)} "
            f"padding {_times(conv.padding)} dilation {_times(conv.dilation)} "
            f"groups {conv.groups} on {_times(x.shape[2:])} {str(x.dtype).removeprefix('torch.')}, "
            f"{len(batch.segments)} tasks, longest {_power(batch.longest)} "
            f"of {_power(batch.images)}{copied}"
        )


class _Norm(_Each):
    """A BatchNorm in evaluation mode that differs between tasks.

    torch's own BatchNorm of one image with n * c channels: each image's channels are normalised
    as its task says, to the same bits as by the task alone. Multiplying by and adding tensors of
    shape (n, c, 1, 1) takes as long and rounds otherwise.
    """

    def __init__(self, name: str, own: Sequence[_BatchNorm], run: _Run) -> None:
        super().__init__(name, own, run)
        self.eps = own[0].eps
        self.after = tuple(own[0].children())  # of BatchNormAct2d: its activation
        self.values = torch.stack([_norm_values(one) for one in own], 1)

    def forward(self, x: Tensor) -> Tensor:
        batch = self.run.batch
        if len(x) != batch.images or x.dim() < 2:
            raise _Inseparable(self.name)
        mean, var, weight, bias = self.values.index_select(1, batch.task).flatten(1)
        flat = x.reshape(1, -1, *x.shape[2:])
        y = F.batch_norm(flat, mean, var, weight, bias, eps=self.eps).reshape(x.shape)
        for module in self.after:
            y = module(y)
        return y


def _mix(name: str, module: nn.Module, own: Sequence[nn.Module], run: _Run) -> None:
    """Replace each part of the module whose tensors differ from those of a task's own."""
    statistics = isinstance(module, _BatchNorm) and module.running_mean is None  # of the batch
    if statistics or any(_addresses(one) != _addresses(module) for one in own):
        _become(module, _replacement(name, own, run))
        return
    for child, part in module._modules.items():
        if part is not None:
            path = f"{name}.{child}" if name else child
            _mix(path, part, [one.get_submodule(child) for one in own], run)


def _become(module: nn.Module, new: _Each) -> None:
    """Turn the object itself into `new`: code of the network may hold it elsewhere too."""
    module.__class__ = type(new)
    module.__dict__ = new.__dict__


def _addresses(module: nn.Module) -> dict[str, tuple[int, torch.Size]]:
    tensors = {**module._parameters, **module._buffers}
    return {k: (t.data_ptr(), t.shape) for k, t in tensors.items() if t is not None}


def _replacement(name: str, own: Sequence[nn.Module], run: _Run) -> _Each:
    if len({(type(one), *_shapes(one)) for one in own}) > 1 or any(_hooked(one) for one in own):
        return _Each(name, own, run)
    norms = [one for one in own if isinstance(one, _BatchNorm) and _is_plain_norm(one)]
    if len(norms) == len(own):
        return _Norm(name, norms, run)
    convs = [one for one in own if isinstance(one, nn.Conv2d) and _is_plain_conv(one)]
    if len(convs) == len(own) and run.strategy != "loop":
        return _Conv(name, convs, run)
    return _Each(name, own, run)


def _shapes(module: nn.Module) -> Iterator[tuple[str, torch.Size]]:
    return ((name, shape) for name, (_, shape) in sorted(_addresses(module).items()))


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _is_plain_norm(norm: _BatchNorm) -> bool:
    """Whether it is torch's BatchNorm, or timm's, which goes on with an activation."""
    known = type(norm).forward in (_BatchNorm.forward, BatchNormAct2d.forward)
    return known and norm.running_mean is not None and not any(_values_below(norm))


def _values_below(module: nn.Module) -> Iterator[Tensor]:
    for child in module.children():
        yield from [*child.parameters(), *child.buffers()]


def _is_plain_conv(conv: nn.Conv2d) -> bool:
    """Whether it is torch's convolution with zeros around, or timm's in TensorFlow's way."""
    known = type(conv).forward in (nn.Conv2d.forward, Conv2dSame.forward)
    return known and conv.padding_mode == "zeros" and not any(conv.children())


def _norm_values(norm: _BatchNorm) -> Tensor:
    """Mean, variance, weight and bias, shape (4, c)."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None
    # Without affine values torch leaves these two out; 1 and 0 give the same bits.
    weight, bias = norm._parameters.get("weight"), norm._parameters.get("bias")
    scale = torch.ones_like(mean) if weight is None else weight.detach()
    shift = torch.zeros_like(mean) if bias is None else bias.detach()
    return torch.stack([mean, var, scale, shift])


def _cut(value: Any, begin: int, end: int, images: int) -> Any:
    """Images `begin` to `end` of all tensors in a call's arguments that have the batch."""
    if isinstance(value, Tensor):
        return value[begin:end] if value.dim() and len(value) == images else value
    if type(value) in (list, tuple):
        return type(value)(_cut(one, begin, end, images) for one in value)
    if isinstance(value, dict):
        return type(value)((key, _cut(one, begin, end, images)) for key, one in value.items())
    return value


def _padded(parts: list[Tensor]) -> list[Tensor]:
    """The tensors, filled up with 0 to the largest size in each dimension but the first."""
    sizes = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    return [
        F.pad(
            part,
            [
                n
                for size, own in zip(sizes[::-1], part.shape[:0:-1], strict=True)
                for n in (0, size - own)
            ],
        )
        for part in parts
    ]


def _times(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, Sequence) else str(value)


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()
