"""Any network under nnU-Net's calling convention, so that plans can name it by its dotted path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_pretrain.networks.locate import check_arguments, locate, locate_network
from nnunet_pretrain.networks.planned import total_stride

PREFIX = "backbone."


class DeepSupervisionSwitch:
    """What nnU-Net's trainer sets as `network.decoder.deep_supervision`; no module, so it adds no weights.

    Attributes:
        deep_supervision: Whether the network returns all its outputs or the first.
    """

    def __init__(self, deep_supervision: bool) -> None:
        self.deep_supervision = deep_supervision


class AdaptedNetwork(nn.Module):
    """A network of any importable class, as nnU-Net's trainer and predictor expect one.

    With deep supervision off, the result is one tensor: the first, if the network returns several (a list, a tuple or
    a dict, also nested). With deep supervision on, it is the list of all of them, the finest first.

    Weights keep the names of the wrapped network behind "backbone.". The wrapped class initialises itself.

    Args:
        input_channels: Channels of the image; nnU-Net gives it.
        num_classes: Output channels; nnU-Net gives it.
        network: Dotted path of the class.
        input_argument: What the class calls the number of input channels.
        output_argument: What the class calls the number of output channels.
        arguments: Its other arguments, JSON values.
        imported_arguments: Names of those arguments whose value is the dotted path of what is to be passed.
        strides: Downsampling of each stage, one number per axis, in nnU-Net's form: the first is all ones. nnU-Net
            derives the scales of deep supervision from it; every edge of a patch must be divisible by the product.
        deep_supervision: Whether to return all outputs; nnU-Net gives it and switches it later.
        axis_order: Order in which the wrapped network sees the image's axes, such as [2, 1, 0] for one that learned on
            arrays in x, y, z; None leaves nnU-Net's order z, y, x. Outputs are turned back, and strides and patches
            stay in nnU-Net's order.

    Raises:
        ValueError: The class cannot be found or refuses its arguments, or the axis order is no permutation.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        network: str,
        input_argument: str = "in_channels",
        output_argument: str = "out_channels",
        arguments: Mapping[str, Any] | None = None,
        imported_arguments: Sequence[str] = (),
        strides: Sequence[Sequence[int]] = (),
        deep_supervision: bool = False,
        axis_order: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if axis_order is not None and sorted(axis_order) != list(range(len(axis_order))):
            raise ValueError(f"axis_order must hold each axis once, such as [2, 1, 0], got {list(axis_order)}")
        self.axis_order = None if axis_order is None else tuple(axis_order)
        self._axes_back = tuple(list(axis_order or ()).index(axis) for axis in range(len(axis_order or ())))
        self._path = network
        self._arguments: dict[str, Any] = {input_argument: input_channels, output_argument: num_classes}
        self._output_argument = output_argument
        reserved = set(self._arguments) & set(arguments or {})
        if reserved:
            raise ValueError(f"{network}: nnU-Net gives {', '.join(sorted(reserved))}; remove it from the arguments")
        self._arguments |= arguments or {}
        for name in imported_arguments:
            if name not in self._arguments:
                raise ValueError(
                    f"{network}: '{name}' is to be imported, but the arguments are {list(self._arguments)}"
                )
            self._arguments[name] = locate(self._arguments[name])
        self.divisor = tuple(total_stride(strides))
        self.decoder = DeepSupervisionSwitch(deep_supervision)
        self.backbone = self._build(self._arguments)

    def _build(self, arguments: Mapping[str, Any]) -> nn.Module:
        called = locate_network(self._path)
        check_arguments(self._path, called, arguments)
        try:
            return called(**arguments)
        except Exception as error:
            given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise ValueError(f"{self._path}({given}) failed: {error}; correct the arguments") from error

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Applies the network.

        Args:
            x: Images, (batch, channels, *axes).

        Returns:
            Logits (batch, classes, *axes), or with deep supervision the list of them, the finest first.

        Raises:
            ValueError: An edge of the images is not divisible by the strides, or the network returns no tensor.
        """
        edges = tuple(x.shape[2:])
        if self.divisor and (
            len(edges) != len(self.divisor) or any(e % d for e, d in zip(edges, self.divisor, strict=True))
        ):
            raise ValueError(f"{self._path} needs edges divisible by {self.divisor}, got a patch of {edges}")
        if self.axis_order is None:
            outputs = _tensors(self.backbone(x))
        else:
            outputs = [_turned(y, self._axes_back) for y in _tensors(self.backbone(_turned(x, self.axis_order)))]
        if not outputs:
            raise ValueError(f"{self._path} returned no tensor")
        return outputs if self.decoder.deep_supervision else outputs[0]

    def head_names(self) -> tuple[str, ...]:
        """Returns the names of the weights that belong to the classes: those whose shape depends on their number."""
        classes = self._arguments[self._output_argument]
        with torch.random.fork_rng(devices=[]):
            other = self._build({**self._arguments, self._output_argument: classes + 1}).state_dict()
        own = self.backbone.state_dict()
        return tuple(f"{PREFIX}{name}" for name, tensor in own.items() if tensor.shape != other[name].shape)


def _turned(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """Returns an array (batch, channels, *axes) with its spatial axes in another order."""
    if x.ndim != len(order) + 2:
        raise ValueError(f"axis_order {list(order)} is for {len(order)} axes, got an array of shape {tuple(x.shape)}")
    return x.permute(0, 1, *(axis + 2 for axis in order)).contiguous()


def _tensors(output: Any) -> list[Tensor]:
    """Returns the tensors of an output in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    return [tensor for part in output for tensor in _tensors(part)] if isinstance(output, (list, tuple)) else []
