import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxresearch.budget import Budget
from jaxresearch.errors import ConfigurationError

UNITS = {"s": "seconds", "steps": "steps", "tok": "tokens", "flop": "flops"}
MULTIPLIERS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("300s", 300, "seconds"),
        ("5m", 300, "seconds"),
        ("1.5h", 5400, "seconds"),
        (" 2000steps ", 2000, "steps"),
        ("50Mtok", 50_000_000, "tokens"),
        ("1.001ktok", 1001, "tokens"),
        ("1e15flop", 1e15, "flops"),
        ("2.5Pflop", 2.5e15, "flops"),
    ],
)
def test_a_budget_reads_as_people_write_it(text, amount, unit):
    assert Budget.parse(text) == Budget(amount, unit)


@given(st.integers(1, 10**9), st.sampled_from(["", "k", "M"]), st.sampled_from(["steps", "tok", "flop"]))
def test_whole_amounts_are_exact_under_every_multiplier(number, multiplier, suffix):
    assert Budget.parse(f"{number}{multiplier}{suffix}").amount == number * MULTIPLIERS[multiplier]


@given(st.integers(1, 10**6))
def test_a_decimal_that_means_a_whole_number_is_one(thousandths):
    assert Budget.parse(f"{thousandths // 1000}.{thousandths % 1000:03}ktok").amount == thousandths


@given(st.floats(1e-9, 1e18), st.sampled_from(["seconds", "flops"]))
def test_what_is_written_is_read_back_to_the_last_bit(amount, unit):
    budget = Budget(amount, unit)
    assert Budget.parse(str(budget)) == budget


@given(st.integers(1, 2**53), st.sampled_from(["steps", "tokens"]))
def test_whole_units_are_written_as_whole_numbers(amount, unit):
    budget = Budget(float(amount), unit)
    assert str(budget).startswith(str(amount))
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize("text", ["5e11flop", "3.3e12flop", "1500flop", "0.25s", "300s", "1e30flop"])
def test_a_budget_is_written_as_people_write_it(text):
    assert str(Budget.parse(text)) == text


@given(st.text(max_size=12))
def test_any_text_is_a_positive_finite_budget_or_one_clear_error(text):
    try:
        budget = Budget.parse(text)
    except ConfigurationError as error:
        problem, fix = error.message, error.fix
    else:
        assert budget.amount > 0
        assert math.isfinite(budget.amount)
        return
    assert problem.startswith("budget: ")
    assert "50Mtok" in fix


NO_BUDGETS = (
    *("", "300", "s", "-5s", "0s", "0steps", "1e999tok", "1e99999999999flop", "1.5steps", "0.0001ktok", "5kms", "1Ms"),
    *("5 s", "nans", "infs", "1e15flops", "50mtok", "3S", "٣s", "1_000tok", "300s\n300s", "0x10s"),
)


@pytest.mark.parametrize("text", NO_BUDGETS)
def test_what_is_no_budget_is_refused_with_examples(text):
    with pytest.raises(ConfigurationError, match="Write it like 300s"):
        Budget.parse(text)
