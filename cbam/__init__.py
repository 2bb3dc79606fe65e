"""The Convolutional Block Attention Module (Woo et al., ECCV 2018, arXiv 1807.06521). Needs torch alone."""

from cbam.channel import ChannelAttention
from cbam.module import CBAM
from cbam.spatial import SpatialAttention

__all__ = ["CBAM", "ChannelAttention", "SpatialAttention"]
