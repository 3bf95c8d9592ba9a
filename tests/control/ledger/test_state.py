from relay.control.ledger.state import State
from tests.conftest import TEMPLATE, assignment
from tests.control.ledger.made import applied, with_package
from tests.packages import package_assignment


def test_users_of_a_template() -> None:
    second = "---" + TEMPLATE.replace("version: v1", "version: v2")
    state = applied(State(), TEMPLATE, assignment("a"), second, assignment("b", priority=1, version="v2"))
    assert state.users_of_template("basic@v1") == {"a"}
    moved = applied(state, assignment("a", version="v2") + "  approval: {required: true}\n")
    assert moved.users_of_template("basic@v1") == {"a"}, "what is stable still pins it"
    assert moved.users_of_template("basic@v2") == {"a", "b"}, "its document asks for it"
    assert moved.users_of_template("none@v1") == set()


def test_users_of_a_package_and_pins_of_revisions() -> None:
    state = applied(with_package(State()), package_assignment())
    assert state.users_of_package("otelcol@1") == {"agents"}
    assert state.users_of_package("otelcol@2") == set()
    (name,) = state.contents
    assert name.startswith("Package/otelcol@1@")
    assert state.pinned.contents == state.contents
