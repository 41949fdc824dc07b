"""The decoder of the mask codec as a graph, for pages that draw masks."""

from __future__ import annotations

from onnx import TensorProto
from torch import nn

from paligemma.checkpoints.onnx.graph import Graph
from paligemma.config import NUM_CODES_PER_MASK
from paligemma.tasks.seg_codec import CODE_SIDE, MASK_SIDE, MaskCodec

# N masks, D code dim


def mask_decoder(codec: MaskCodec) -> Graph:
    """codes int64[N, 16] -> masks float32[N, 64, 64], above 0 inside. See `MaskCodec.decode_masks`.

    Each code is the number in a `<seg>` token, 0 to 127.
    """
    graph = Graph("mask_decoder")
    codes = graph.input("codes", TensorProto.INT64, ["num_masks", NUM_CODES_PER_MASK])
    codebook = graph.constant(codec.codebook.numpy(), "codebook")
    x = graph.op("Transpose", graph.op("Gather", codebook, codes), perm=[0, 2, 1])  # (N, D, 16)
    grid = graph.constant([-1, codec.config.code_dim, CODE_SIDE, CODE_SIDE])
    x = _layer(graph, graph.op("Reshape", x, grid), "decoder", codec.decoder)
    masks = graph.op("Reshape", x, graph.constant([-1, MASK_SIDE, MASK_SIDE]))
    graph.output("masks", masks, ["num_masks", MASK_SIDE, MASK_SIDE])
    return graph


def _layer(graph: Graph, x: str, name: str, layer: nn.Module) -> str:
    if isinstance(layer, nn.Sequential):
        for child_name, child in layer.named_children():
            x = _layer(graph, x, f"{name}.{child_name}", child)
        return x
    if isinstance(layer, nn.ReLU):
        return graph.op("Relu", x)
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        assert layer.bias is not None
        assert isinstance(layer.padding, tuple)
        return graph.op(
            "Conv" if isinstance(layer, nn.Conv2d) else "ConvTranspose",
            x,
            graph.constant(layer.weight.numpy(), f"{name}.weight"),
            graph.constant(layer.bias.numpy(), f"{name}.bias"),
            kernel_shape=list(layer.kernel_size),
            strides=list(layer.stride),
            pads=[*layer.padding, *layer.padding],
        )
    # A residual block.
    (child,) = layer.children()
    return graph.op("Add", x, _layer(graph, x, name, child))
