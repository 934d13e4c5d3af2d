from deploy.command.gates import gates_text, verdict_text


def check(name, value, bound, passed):
    return {"name": name, "value": value, "bound": bound, "passed": passed}


def test_each_gate_is_told_with_its_value_and_bound_and_what_failed_comes_first():
    checks = [check("recall", 0.98123, 0.95, True), check("imbalance", 20.0, 16.0, False)]
    assert gates_text(checks) == "FAILED imbalance 20 (at most 16), recall 0.9812 (at least 0.95)"


def test_a_version_without_checks_has_none():
    assert gates_text([]) == "none"


def test_a_verdict_has_the_quality_or_what_failed():
    recall, quality = check("recall", 0.9, 0.95, True), check("quality", 0.1023, 0.0712, True)
    assert verdict_text([]) == ""
    assert verdict_text([recall]) == "gates passed"
    assert verdict_text([recall, quality]) == "gates passed, quality 0.1023 ≥ 0.0712"
    failed = [{**recall, "passed": False}, {**quality, "passed": False}]
    assert verdict_text([recall, failed[1]]) == "last refused: quality 0.1023 < 0.0712"
    assert verdict_text(failed) == "last refused: recall 0.9 < 0.95, quality 0.1023 < 0.0712"
    assert verdict_text([check("imbalance", 20.0, 16.0, False)]) == "last refused: imbalance 20 > 16"
