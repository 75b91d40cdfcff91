from convserve.formats.mapping import Mapping
from convserve.plan.plan import Plan

class Executor:
    plan: Plan
    isa: str
    mapping: Mapping | None
    evict_weights: bool
    def __init__(
        self, plan: Plan, isa: str, mapping: Mapping | None = None, *, evict_weights: bool = False
    ) -> None: ...
