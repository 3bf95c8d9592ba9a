from relay.control.rollouts.counts import Counts, TargetList


def test_counts_add_up() -> None:
    assert Counts(targets=1, failed=2) + Counts(targets=3) == Counts(targets=4, failed=2)
    assert Counts(targets=1, failed=2) * 3 == Counts(targets=3, failed=6)
    assert Counts(targets=1, reporting=5).plain() == {
        "targets": 1, "offered": 0, "applied": 0, "failed": 0, "silent": 0, "unhealthy": 0
    }  # fmt: skip


def test_targets_are_looked_up_lazily() -> None:
    asked: list[int] = []

    def each() -> list[tuple[str, str]]:
        asked.append(1)
        return [("eu", "a")]

    goals = TargetList(frozenset({"eu"}), each)
    assert (bool(goals), bool(TargetList(frozenset(), list)), asked) == (True, False, [])
    assert (list(goals), asked) == ([("eu", "a")], [1])
