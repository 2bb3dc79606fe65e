"""The Convolutional Block Attention Module (Woo et al., ECCV 2018, arXiv 1807.06521). Needs torch alone."""

from cbam.module import CBAM, ChannelAttention, SpatialAttention

__all__ = ["CBAM", "ChannelAttention", "SpatialAttention"]
