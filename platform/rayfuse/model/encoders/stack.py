"""The layers of a network from bottom to top: what `last:N`, `layers` and `layer_decay` count."""

from torch import nn


def largest_stack(network: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """The list of layers that holds most of the parameters, and its name; None where there is no list."""
    stacks = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.ModuleList)]
    if not stacks:
        return None
    return max(stacks, key=lambda stack: sum(parameter.numel() for parameter in stack[1].parameters()))


def depths_from_top(network: nn.Module) -> dict[str, int]:
    """How many layers below the top each parameter is, by name.

    0: what is registered after the largest stack of layers; then 1 for its last layer, and so on; what is registered
    before the stack, such as embeddings, is below its first layer. All are 0 in a network without a stack.
    """
    names = [name for name, _ in network.named_parameters()]
    stack = largest_stack(network)
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
