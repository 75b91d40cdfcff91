"""Plans runs by simulating rows: bands, rings, arena and steps, to the byte."""

__all__: list[str] = []
