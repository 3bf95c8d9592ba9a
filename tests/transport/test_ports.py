import pytest

from relay.errors import Overloaded
from relay.transport.ports import AssemblyBudget


def test_assembly_budget_is_shared() -> None:
    budget = AssemblyBudget(10)
    budget.take(6)
    with pytest.raises(Overloaded):
        budget.take(5)
    budget.give_back(6)
    budget.take(10)
    assert budget.used == 10
