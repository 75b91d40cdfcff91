"""The graph of a network: what it is, what its operations mean, and the rewrites that change it."""

__all__: list[str] = []
