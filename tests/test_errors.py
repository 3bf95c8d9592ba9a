from relay.errors import Outcome, Overloaded, Problem, Refused, SettingsError, TooLarge


def test_a_problem_prints_so_that_editors_can_follow_it() -> None:
    assert str(Problem("a.yaml", 3, "spec.rate", "too high")) == "a.yaml:3: spec.rate: too high"
    assert str(Problem("a.yaml", 0, "", "empty")) == "a.yaml: empty"


def test_a_refusal_carries_every_problem() -> None:
    problems = [Problem("a", 1, "x", "bad"), Problem("a", 2, "y", "worse")]
    refused = SettingsError(problems)
    assert refused.problems == tuple(problems)
    assert str(refused) == "a:1: x: bad\na:2: y: worse"
    assert Refused(problems, outcome=Outcome.CONFLICT).outcome is Outcome.CONFLICT


def test_whose_fault_it_is_shows_in_the_outcome() -> None:
    assert TooLarge("x").outcome is Outcome.TOO_LARGE
    assert Overloaded("x", retry_after_s=3).retry_after_s == 3
