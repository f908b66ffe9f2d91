"""The operators that change source code: what each of them makes, and what is refused."""

import ast
import doctest

import pytest

from tests.sabotage import operators
from tests.sabotage.operators import Unfit, change, definition, select

SOURCE = """
LIMITS = {"low": 1, "high": 2}
NAMES: tuple[str, ...] = ("first", "second")

class Door(Exception):
    kinds = ("oak", "iron")

    def lock(self, key, *rest):
        def turn(times):
            return times > 1
        if key is None or not turn(2):
            self.chain.open(key, mode=self.mode(key))
            return f"{key} opens"
        for one in rest:
            self.chain.close(one)
        return key

def lock(key):
    try:
        key.turn()
    finally:
        key.drop()
"""


def line(changed: str) -> str:
    """Return the lines of the changed source that the original has not, stripped."""
    before = ast.unparse(ast.parse(SOURCE)).split("\n")
    return "\n".join(text.strip() for text in changed.split("\n") if text not in before)


def test_the_example_in_the_docstring_runs() -> None:
    result = doctest.testmod(operators)
    assert result.attempted
    assert result.failed == 0


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("LIMITS", ast.Assign),
        ("NAMES", ast.AnnAssign),
        ("Door", ast.ClassDef),
        ("Door.kinds", ast.Assign),
        ("Door.lock", ast.FunctionDef),
        ("Door.lock.turn", ast.FunctionDef),
        ("lock", ast.FunctionDef),
    ],
)
def test_a_path_names_one_definition(path: str, kind: type[ast.stmt]) -> None:
    assert isinstance(definition(ast.parse(SOURCE), path), kind)


@pytest.mark.parametrize("path", ["Gate", "Door.turn", "Door.lock.key", "LIMITS.low"])
def test_a_path_that_names_nothing_is_refused(path: str) -> None:
    with pytest.raises(Unfit, match=f"of `{path}` matches 0 nodes"):
        definition(ast.parse(SOURCE), path)


def test_a_name_that_is_defined_twice_is_refused() -> None:
    with pytest.raises(Unfit, match=r"matches 2 nodes, not one \(line 1: x = 1; line 2: x = 2\)"):
        definition(ast.parse("x = 1\nx = 2"), "x")


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ("call:chain.open", "self.chain.open(key, mode=self.mode(key))"),
        ("call:open > .args[0]", "key"),
        ("call:open > keyword:mode > .value", "self.mode(key)"),
        ("call:mode > ^", "self.chain.open(key, mode=self.mode(key))"),
        ("if > .test > .values[-1]", "not turn(2)"),
        ("boolop:or", "key is None or not turn(2)"),
        ("unaryop:not > .operand", "turn(2)"),
        ("compare:>", "times > 1"),
        ("compare:is > .comparators[0]", "None"),
        ("return[0]", "return times > 1"),
        ("return[-1]", "return key"),
        ("attribute:self.chain[1]", "self.chain"),
        ("joinedstr", "f'{key} opens'"),
        ("for > .iter", "rest"),
        ("constant:2", "2"),
    ],
)
def test_a_selector_leads_to_one_node(selector: str, text: str) -> None:
    assert ast.unparse(select(definition(ast.parse(SOURCE), "Door.lock"), selector)) == text


@pytest.mark.parametrize(
    ("selector", "reason"),
    [
        ("call:shut", "matches 0 nodes, not one$"),
        ("call:pen", "matches 0 nodes"),
        ("constant:'ONE'", "matches 0 nodes"),
        ("return", r"matches 3 nodes, not one \(line 10: return times > 1; line 13: return f'{key} opens'; line 16"),
        ("return[3]", "matches 0 nodes"),
        ("return[-4]", "matches 0 nodes"),
        ("call:open > .args[1]", "matches 0 nodes"),
        ("call:open > .args", "matches 0 nodes"),
        ("call:open > .nothing", "matches 0 nodes"),
        ("Return", "`Return` is no step of a selector"),
        ("call: open", "matches 0 nodes"),
    ],
)
def test_a_selector_that_does_not_lead_to_one_node_is_refused(selector: str, reason: str) -> None:
    with pytest.raises(Unfit, match=reason):
        select(definition(ast.parse(SOURCE), "Door.lock"), selector)


@pytest.mark.parametrize(
    ("path", "selector", "operator", "replacement", "changed"),
    [
        ("Door.kinds", "constant:'oak'", "drop", "", "kinds = ('iron',)"),
        ("Door", ".bases[0]", "drop", "", "class Door:"),
        ("Door.lock", "compare:is", "drop", "", "if not turn(2):"),
        ("Door.lock", "keyword:mode", "drop", "", "self.chain.open(key)"),
        ("Door.lock", "call:close > ^", "drop", "", "pass"),
        ("Door.lock", "compare:is", "negate", "", "if not key is None or not turn(2):"),
        ("Door.lock", "unaryop:not", "negate", "", "if key is None or turn(2):"),
        ("Door.lock", "compare:>", "compare", "<=", "return times <= 1"),
        ("Door.lock", "compare:is", "compare", "not in", "if key not in None or not turn(2):"),
        ("Door.lock", "constant:2", "replace", "NODE - 1", "if key is None or not turn(2 - 1):"),
        ("Door.lock", "call:mode", "replace", 'NODE(".args[0]")', "self.chain.open(key, mode=key)"),
        ("Door.lock", "boolop", "replace", 'all([NODE, NODE(".values[0]")])',
         "if all([key is None or not turn(2), key is None]):"),
        ("Door.lock", "call:close > ^", "replace", 'if NODE("call > .args[0]"):\n    NODE\nNODE',
         "if one:\nself.chain.close(one)"),
        ("LIMITS", ".value", "replace", '{**NODE, "low": 0}', "LIMITS = {**{'low': 1, 'high': 2}, 'low': 0}"),
    ],
)  # fmt: skip
def test_an_operator_changes_one_node(path: str, selector: str, operator: str, replacement: str, changed: str) -> None:
    assert line(change(SOURCE, path, selector, operator, replacement)) == changed


def test_dropping_the_last_statement_leaves_the_rest_as_it_is() -> None:
    changed = change(SOURCE, "lock", "try > call:drop > ^", "drop")
    assert changed == ast.unparse(ast.parse(SOURCE.replace("key.drop()", "pass")))


@pytest.mark.parametrize(
    ("selector", "operator", "replacement", "reason"),
    [
        ("constant:1", "drop", "", "cannot be left out"),
        ("if > .test", "drop", "", "cannot be left out"),
        ("for", "negate", "", "is no condition"),
        ("boolop", "compare", "<", "is no comparison"),
        ("compare:>", "compare", "=>", "`=>` is no sign"),
        ("keyword:mode", "replace", "x", "neither a statement nor an expression"),
        ("constant:1", "replace", "1 +", "`with` does not compile"),
        ("constant:1", "replace", "return", "`with` does not compile"),
        ("constant:1", "replace", "NODE", "changes nothing"),
        ("constant:1", "replace", 'NODE(".left")', "matches 0 nodes"),
        ("compare:>", "compare", ">", "changes nothing"),
        ("for", "replace", "x = NODE", "stands on a line of its own"),
        ("for", "replace", "break", "the sabotaged code does not compile: 'break' outside loop"),
        ("call:close > ^", "replace", "nonlocal never", "does not compile"),
    ],
)
def test_what_an_operator_cannot_do_is_refused(selector: str, operator: str, replacement: str, reason: str) -> None:
    with pytest.raises(Unfit, match=reason):
        change(SOURCE, "Door.lock", selector, operator, replacement)


def test_names_of_local_variables_and_layout_do_not_matter() -> None:
    moved = SOURCE.replace("times", "turns").replace("one", "chosen").replace("(2):", "(\n        2\n    ):  # twice")
    for selector, operator in (("compare:>", "negate"), ("call:close > ^", "drop"), ("unaryop:not", "negate")):
        changed = change(moved, "Door.lock", selector, operator).replace("turns", "times").replace("chosen", "one")
        assert changed == change(SOURCE, "Door.lock", selector, operator)
