from convserve.plan.plan import Plan

class Executor:
    plan: Plan
    isa: str
    def __init__(self, plan: Plan, isa: str) -> None: ...
