"""CBAM (Woo et al., ECCV 2018), from the package `cbam`."""

from cbam import CBAM, CBAMLayer
from models.attention.kind import Kind, defaults

KIND = Kind("cbam", CBAMLayer, {**defaults(CBAM), "output": "refined"})
