"""Order of a network's layers, for `last:N`, `last_n_layers` and `layer_decay`."""

from torch import nn


def largest_module_list(network: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """Return the name and the module list with most parameters; None if the network has no list."""
    stacks = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.ModuleList)]
    if not stacks:
        return None
    return max(stacks, key=lambda stack: sum(parameter.numel() for parameter in stack[1].parameters()))


def depths_from_top(network: nn.Module) -> dict[str, int]:
    """Return the depth of each parameter below the top, by name.

    0 for parameters after the largest module list, 1 for its last layer, 2 for the one before; parameters before the
    list, such as embeddings, get one more than its first layer. All are 0 in a network without a list.
    """
    names = [name for name, _ in network.named_parameters()]
    stack = largest_module_list(network)
    if stack is None:
        return dict.fromkeys(names, 0)
    prefix, count = f"{stack[0]}.", len(stack[1])
    depths, before = {}, True
    for name in names:
        if name.startswith(prefix):
            depths[name] = count - int(name.removeprefix(prefix).partition(".")[0])
            before = False
        else:
            depths[name] = count + 1 if before else 0
    return depths
