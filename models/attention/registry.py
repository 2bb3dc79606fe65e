"""The kinds of attention.

For the command line, `configs/attention_kinds.yaml` has the same names, options and defaults.
"""

from models.attention import cbam, custom, squeeze_excitation, timm_modules
from models.attention.kind import Kind
from models.errors import ModelError

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (cbam.KIND, squeeze_excitation.KIND, *timm_modules.KINDS, custom.KIND)
}


def find(name: str) -> Kind:
    """Return a kind of attention.

    Raises:
        ModelError: if there is no such kind.
    """
    if name not in KINDS:
        raise ModelError(f"Unknown attention '{name}'; choose one of none, {', '.join(KINDS)}.")
    return KINDS[name]
