from relay.errors import Outcome, Overloaded, Problem, Refused, SettingsError, TooLarge


def test_problem_prints_as_file_line_path_reason() -> None:
    assert str(Problem("a.yaml", 3, "spec.rate", "too high")) == "a.yaml:3: spec.rate: too high"
    assert str(Problem("a.yaml", 0, "", "empty")) == "a.yaml: empty"


def test_refusal_carries_all_problems() -> None:
    problems = [Problem("a", 1, "x", "bad"), Problem("a", 2, "y", "worse")]
    refused = SettingsError(problems)
    assert refused.problems == tuple(problems)
    assert str(refused) == "a:1: x: bad\na:2: y: worse"
    assert Refused(problems, outcome=Outcome.CONFLICT).outcome is Outcome.CONFLICT


def test_outcome_distinguishes_client_and_server_faults() -> None:
    assert TooLarge("x").outcome is Outcome.TOO_LARGE
    assert Overloaded("x", retry_after_s=3).retry_after_s == 3
