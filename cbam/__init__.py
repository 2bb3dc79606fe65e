"""The Convolutional Block Attention Module (Woo et al., ECCV 2018, arXiv 1807.06521), and its insertion into any CNN.

Requires only torch.
"""

from cbam.attachment import InsertionError
from cbam.calibration import calibrate, calibrating
from cbam.channel import ChannelAttention
from cbam.insertion import Insertion, check, gates, insert, insert_layer, places, remove
from cbam.layer import AttentionLayer, CBAMLayer
from cbam.module import CBAM
from cbam.scaled_gate import ScaledGate
from cbam.spatial import SpatialAttention

__all__ = [
    "CBAM",
    "AttentionLayer",
    "CBAMLayer",
    "ChannelAttention",
    "Insertion",
    "InsertionError",
    "ScaledGate",
    "SpatialAttention",
    "calibrate",
    "calibrating",
    "check",
    "gates",
    "insert",
    "insert_layer",
    "places",
    "remove",
]
