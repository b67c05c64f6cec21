"""What the queued graph says about a running node."""

from comfy_api.latest import io

_UNKNOWN_MODEL = "the connected model"


def model_file(node: type[io.ComfyNode]) -> str:
    """The file that a running node's MODEL was loaded from, by following the graph; a merge of two has none."""
    nodes, at, seen = node.hidden.prompt or {}, node.hidden.unique_id, set()
    while at in nodes and at not in seen:
        seen.add(at)
        inputs = nodes[at]["inputs"]
        for name in ("ckpt_name", "unet_name"):
            if isinstance(inputs.get(name), str):
                return inputs[name]
        link = inputs.get("model")
        at = link[0] if isinstance(link, list) else None
    return _UNKNOWN_MODEL


def origin_class(node: type[io.ComfyNode], name: str) -> str:
    """The class of the node that is linked to an input of a running node; empty if none is."""
    nodes = node.hidden.prompt or {}
    link = nodes.get(node.hidden.unique_id, {}).get("inputs", {}).get(name)
    return nodes.get(link[0], {}).get("class_type", "") if isinstance(link, list) else ""
