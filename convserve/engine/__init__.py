"""Runs plans: one loop over steps without the GIL, a team of threads, memory for each run."""

__all__: list[str] = []
