"""The network and the attention that a weights file records."""

from typing import Any

NETWORK = "network"  # key of a converted file: the network's name for `models.build`


def network(content: Any) -> str:
    """Return the name for `models.build` of the network in a run's checkpoint or a converted file; empty if unknown.

    Args:
        content: content of the file.
    """
    if not isinstance(content, dict):
        return ""
    identity = content.get("identity")
    if not isinstance(identity, dict):
        return str(content.get(NETWORK, ""))
    library, name = identity.get("model.library", "torchvision"), identity.get("model.name") or ""
    return {"torchvision": name, "timm": f"timm/{name}"}.get(library, "")


def attention(content: Any) -> dict[str, Any]:
    """Return kind and options of the attention in a run's checkpoint; empty if the file is none."""
    identity = content.get("identity") if isinstance(content, dict) else None
    if not isinstance(identity, dict) or "model.attention" not in identity:
        return {}
    options = {key.removeprefix("attention."): v for key, v in identity.items() if key.startswith("attention.")}
    return {"kind": identity["model.attention"], **options}
