"""What the steps of a plan compute, and the choice of the instruction set."""

__all__: list[str] = []
