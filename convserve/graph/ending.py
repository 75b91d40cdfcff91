"""The softmax at a network's end: added where scores are wanted as probabilities, left out where they are not."""

from dataclasses import replace

from convserve.graph.ir import Graph, Node

__all__ = ["before_softmax", "final_softmax", "with_softmax"]

_SOFTMAXES = ("Softmax", "LogSoftmax")


def final_softmax(graph: Graph) -> Node | None:
    """Return the Softmax or LogSoftmax whose values the first output shows, None where there is none."""
    producers = graph.producers()
    node = producers.get(graph.outputs[0].tensor)
    while node is not None and node.op == "Identity":
        node = producers.get(node.inputs[0])
    return node if node is not None and node.op in _SOFTMAXES else None


def with_softmax(graph: Graph) -> Graph:
    """Return a graph of one output with a Softmax over channels at its end, or as it is where it ends in one.

    Behind a LogSoftmax it gives the probabilities whose logarithms those are.
    """
    node = final_softmax(graph)
    if node is not None and node.op == "Softmax":
        return graph
    [output] = graph.outputs
    last = Node("Softmax", f"softmax of {output.name}", (output.tensor,), f"{output.tensor}/softmax")
    return replace(graph, nodes=[*graph.nodes, last], outputs=[replace(output, tensor=last.output)])


def before_softmax(graph: Graph) -> Graph:
    """Return a graph of one output without the Softmax or LogSoftmax at its end, or as it is where there is none."""
    node = final_softmax(graph)
    if node is None:
        return graph
    [output] = graph.outputs
    return graph.showing([replace(output, tensor=node.inputs[0])])
