"""The rules of all layers, one file a family; importing this package registers them."""

from functional_marl._lowering.rules import activation as activation
from functional_marl._lowering.rules import attention as attention
from functional_marl._lowering.rules import bilinear as bilinear
from functional_marl._lowering.rules import container as container
from functional_marl._lowering.rules import convolution as convolution
from functional_marl._lowering.rules import dropout as dropout
from functional_marl._lowering.rules import embedding as embedding
from functional_marl._lowering.rules import linear as linear
from functional_marl._lowering.rules import normalization as normalization
from functional_marl._lowering.rules import pooling as pooling
from functional_marl._lowering.rules import recurrent as recurrent
from functional_marl._lowering.rules import shape as shape
from functional_marl._lowering.rules import softmax as softmax
from functional_marl._lowering.rules import transformer as transformer

__all__ = [
    "activation",
    "attention",
    "bilinear",
    "container",
    "convolution",
    "dropout",
    "embedding",
    "linear",
    "normalization",
    "pooling",
    "recurrent",
    "shape",
    "softmax",
    "transformer",
]
