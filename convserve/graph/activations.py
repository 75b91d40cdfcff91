"""The activations: functions of one value by name, with the parameters that each takes and its arithmetic."""

import math
from dataclasses import dataclass, field

__all__ = ["ACTIVATIONS", "Activation"]


@dataclass(frozen=True, slots=True)
class Activation:
    """A function of one value: flops of one, and its parameters' names with their defaults, two at most.

    A default of None is a parameter that must be given. The formulas stand in docs/layers.md.
    """

    flops: int
    parameters: dict[str, float | None] = field(default_factory=dict)

    def values(self, attrs: dict[str, float]) -> tuple[float, float]:
        """Return a node's two parameters as the kernel takes them, 0 for those that the activation has not."""
        given = [float(attrs.get(name, default)) for name, default in self.parameters.items()]  # type: ignore[arg-type]
        first, second = (*given, 0.0, 0.0)[:2]
        return first, second


ACTIVATIONS: dict[str, Activation] = {
    "Relu": Activation(1),
    "LeakyRelu": Activation(2, {"alpha": None}),
    "ThresholdedRelu": Activation(1, {"alpha": None}),
    "Elu": Activation(12, {"alpha": None, "gamma": 1.0}),
    "Clip": Activation(2, {"min": -math.inf, "max": math.inf}),
    "Sigmoid": Activation(14),
    "HardSigmoid": Activation(4, {"alpha": None, "beta": None}),
    "HardSwish": Activation(5),
    "Swish": Activation(15, {"alpha": 1.0}),
    "Tanh": Activation(16),
    "Erf": Activation(26),
    "Gelu": Activation(30),
    "GeluTanh": Activation(24),
    "Softplus": Activation(32),
    "Softsign": Activation(3),
    "Mish": Activation(18),
    "Abs": Activation(1),
    "Sign": Activation(1),
    "Sqrt": Activation(1),
    "Exp": Activation(11),
    "Log": Activation(18),
    "Reciprocal": Activation(1),
    "Pow": Activation(29, {"exponent": None}),
}
