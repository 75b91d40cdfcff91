import numpy as np

from convserve.plan.plan import Plan

class Executor:
    plan: Plan
    isa: str
    mapped: np.ndarray | None
    def __init__(self, plan: Plan, isa: str, mapped: np.ndarray | None = None) -> None: ...
