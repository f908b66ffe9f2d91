"""Change source code at one node of its syntax tree, addressed by path instead of by text.

Invariants
- Pure: source text in, source text out.
- A selector that does not match exactly one node is refused, with what it matched.
- The changed source compiles and differs from the original in more than its form.

A path names a definition of the module: `Class.method`, `function` or `NAME`. A selector leads from there to a node, in
steps separated by ` > `:

| step | node |
|---|---|
| `call`, `if`, `return`, `dict`, ... | below: nodes of this class of `ast` |
| `call:erase`, `call:store.erase` | below: calls by the name of the function, also its end |
| `name:NAME`, `attribute:plan.clip`, `keyword:NAME`, `constant:'text'` | below: by name or by value |
| `compare:!=`, `binop:/`, `boolop:or`, `unaryop:not` | below: by operator |
| `.test`, `.args[2]`, `.values[-1]` | a child, by the field of `ast` |
| `^` | above: the statement that contains the node |

`[n]` behind a step takes the n-th match from 0, outer before inner, in the order of the fields of `ast`.

>>> print(change("def half(x):\\n    return x / 2", "half", "binop:/ > .right", "replace", "3 * NODE"))
def half(x):
    return x / (3 * 2)
"""

import ast
import copy
import re
from collections.abc import Callable, Iterable, Iterator

STEP = re.compile(r"(?P<field>\.?)(?P<kind>[a-z_]+)(?P<label>:.+?)?(?:\[(?P<index>-?\d+)\])?")
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# Members of these can be left out without harm to the rest.
LISTS = (ast.Call, ast.Tuple, ast.List, ast.Set, ast.BoolOp, ast.ClassDef)
SIGNS = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.MatMult: "@", ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^", ast.LShift: "<<", ast.RShift: ">>",
    ast.And: "and", ast.Or: "or", ast.Not: "not", ast.USub: "-", ast.UAdd: "+", ast.Invert: "~",
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
    ast.Is: "is", ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in",
}  # fmt: skip
COMPARISONS = {sign: kind for kind, sign in SIGNS.items() if issubclass(kind, ast.cmpop)}


class Unfit(Exception):
    """The change does not apply to this source."""


def change(source: str, path: str, selector: str, operator: str, replacement: str = "") -> str:
    """Return `source` with one node changed; its comments are lost.

    Args:
        path: dotted name of the definition that contains the node.
        selector: steps from the definition to the node.
        operator: a key of OPERATORS.
        replacement: the sign for `compare`; for `replace` Python source, in which `NODE` is the selected node and
            `NODE("STEPS")` a node that these steps select below it.

    Raises:
        Unfit: path or selector do not match exactly one node, or the change cannot be made there or changes nothing.
    """
    tree = ast.parse(source)
    OPERATORS[operator](tree, select(definition(tree, path), selector), replacement)
    try:
        changed = ast.unparse(ast.fix_missing_locations(tree))
        compile(changed, "sabotaged", "exec")
    except (SyntaxError, ValueError) as error:
        raise Unfit(f"the sabotaged code does not compile: {error}") from error
    if changed == ast.unparse(ast.parse(source)):
        raise Unfit("the sabotage changes nothing")
    return changed


def definition(module: ast.Module, path: str) -> ast.stmt:
    """Return the class, function or assignment with this dotted path. Raises Unfit unless there is exactly one."""
    scope: ast.AST = module
    for name in path.split("."):
        scope = _only([node for node in _statements(scope) if name in _defined(node)], f"`{name}` of `{path}`")
    assert isinstance(scope, ast.stmt)
    return scope


def select(root: ast.AST, selector: str) -> ast.AST:
    """Return the node below `root` that the selector matches. Raises Unfit unless it is exactly one."""
    nodes = [root]
    for step in selector.split(" > "):
        nodes = _step(root, nodes, step)
    return _only(nodes, f"`{selector}`")


def _only(nodes: list[ast.AST], name: str) -> ast.AST:
    if len(nodes) != 1:
        lines = "; ".join(f"line {getattr(node, 'lineno', '?')}: {_one_line(node)}" for node in nodes)
        raise Unfit(f"{name} matches {len(nodes)} nodes, not one" + (f" ({lines})" if lines else ""))
    return nodes[0]


def _one_line(node: ast.AST) -> str:
    return ast.unparse(node).split("\n")[0]


def _statements(scope: ast.AST) -> Iterator[ast.stmt]:
    """Yield the statements of a scope, without those of the functions and classes in it."""
    for child in ast.iter_child_nodes(scope):
        if isinstance(child, ast.stmt):
            yield child
        if not isinstance(child, SCOPES):
            yield from _statements(child)


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, SCOPES):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}


def _below(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what is below a node, outer before inner."""
    for child in ast.iter_child_nodes(node):
        yield child
        yield from _below(child)


def _step(root: ast.AST, nodes: list[ast.AST], step: str) -> list[ast.AST]:
    """Return the nodes to which one step of a selector leads from `nodes`."""
    if step == "^":
        return _unique(_statement(root, node) for node in nodes)
    parts = STEP.fullmatch(step)
    if parts is None:
        raise Unfit(f"`{step}` is no step of a selector")
    kind, label, index = parts["kind"], (parts["label"] or "")[1:], parts["index"]
    if parts["field"]:
        values = [getattr(node, kind, None) for node in nodes]
        values = [_member(value, int(index)) if isinstance(value, list) and index else value for value in values]
        return [value for value in values if isinstance(value, ast.AST)]
    matches = _unique(child for node in nodes for child in _below(node) if _matches(child, kind, label))
    return [match for match in [_member(matches, int(index))] if match] if index else matches


def _unique(nodes: Iterable[ast.AST]) -> list[ast.AST]:
    return list(dict.fromkeys(nodes))


def _member(nodes: list[ast.AST], index: int) -> ast.AST | None:
    return nodes[index] if -len(nodes) <= index < len(nodes) else None


def _statement(root: ast.AST, node: ast.AST) -> ast.AST:
    """Return the innermost statement below `root` that contains the node."""
    around = [s for s in (root, *_below(root)) if isinstance(s, ast.stmt) and node in (s, *_below(s))]
    return around[-1] if around else root


def _matches(node: ast.AST, kind: str, label: str) -> bool:
    if type(node).__name__.lower() != kind:
        return False
    text = _label(node)
    return label in ("", text) or (isinstance(node, ast.Call | ast.Attribute) and text.endswith(f".{label}"))


def _label(node: ast.AST) -> str:
    """Return what identifies a node among those of its class: a name, a value or an operator."""
    match node:
        case ast.Name() | ast.Attribute():
            return _dotted(node)
        case ast.Call(func=function):
            return _dotted(function)
        case ast.Constant(value=value):
            return repr(value)
        case ast.keyword(arg=arg):
            return arg or ""
        case ast.Compare(ops=ops):
            return " ".join(SIGNS[type(op)] for op in ops)
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.UnaryOp(op=op) | ast.AugAssign(op=op):
            return SIGNS[type(op)]
    return ""


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _drop(tree: ast.Module, node: ast.AST, _: str) -> None:
    """Leave out a statement, an argument, an element or an operand."""
    parent, field = _place(tree, node)
    members = getattr(parent, field)
    if not isinstance(members, list) or not (isinstance(node, ast.stmt) or isinstance(parent, LISTS)):
        raise Unfit(f"`{_one_line(node)}` cannot be left out; only a statement, argument, element or operand can")
    members.remove(node)
    if not members and isinstance(node, ast.stmt):
        members.append(ast.Pass())
    if isinstance(parent, ast.BoolOp) and len(members) == 1:
        _put(tree, parent, members)


def _negate(tree: ast.Module, node: ast.AST, _: str) -> None:
    """Turn a condition into its opposite."""
    if not isinstance(node, ast.expr):
        raise Unfit(f"`{_one_line(node)}` is no condition")
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=opposite):
            _put(tree, node, [opposite])
        case _:
            _put(tree, node, [ast.UnaryOp(ast.Not(), node)])


def _compare(tree: ast.Module, node: ast.AST, sign: str) -> None:
    """Compare with another operator."""
    if not isinstance(node, ast.Compare) or len(node.ops) != 1 or sign not in COMPARISONS:
        raise Unfit(f"`{_one_line(node)}` is no comparison of two values, or `{sign}` is no sign of one")
    node.ops = [COMPARISONS[sign]()]


def _replace(tree: ast.Module, node: ast.AST, source: str) -> None:
    """Put other source in the place of a statement or expression."""
    if not isinstance(node, ast.stmt | ast.expr):
        raise Unfit(f"`{_one_line(node)}` is neither a statement nor an expression")
    try:
        new = ast.parse(source).body if isinstance(node, ast.stmt) else [ast.parse(source, mode="eval").body]
    except SyntaxError as error:
        raise Unfit(f"`with` does not compile: {error}") from error
    _put(tree, node, [_Filling(node).visit(part) for part in new])


class _Filling(ast.NodeTransformer):
    """Put copies of a node and of its parts in the place of `NODE` and `NODE("STEPS")`."""

    def __init__(self, node: ast.AST) -> None:
        self.node = node

    def visit_Expr(self, statement: ast.Expr) -> ast.AST:
        if isinstance(self.node, ast.stmt) and ast.unparse(statement) == "NODE":
            return copy.deepcopy(self.node)
        return self.generic_visit(statement)

    def visit_Call(self, call: ast.Call) -> ast.AST:
        match call:
            case ast.Call(func=ast.Name(id="NODE"), args=[ast.Constant(value=str(steps))]):
                return copy.deepcopy(select(self.node, steps))
        return self.generic_visit(call)

    def visit_Name(self, name: ast.Name) -> ast.AST:
        if name.id != "NODE":
            return name
        if isinstance(self.node, ast.stmt):
            raise Unfit("`NODE` is a statement, so it stands on a line of its own")
        return copy.deepcopy(self.node)


def _place(tree: ast.AST, node: ast.AST) -> tuple[ast.AST, str]:
    """Return the parent of a node, and in which of its fields the node is."""
    for parent in (tree, *_below(tree)):
        for field, value in ast.iter_fields(parent):
            if value is node or (isinstance(value, list) and any(member is node for member in value)):
                return parent, field
    raise AssertionError("the node is not in the tree")


def _put(tree: ast.AST, node: ast.AST, new: list[ast.AST]) -> None:
    """Replace a node by others; more or less than one is for a list only."""
    parent, field = _place(tree, node)
    value = getattr(parent, field)
    if isinstance(value, list):
        index = next(i for i, member in enumerate(value) if member is node)
        value[index : index + 1] = new
    else:
        (one,) = new
        setattr(parent, field, one)


OPERATORS: dict[str, Callable[[ast.Module, ast.AST, str], None]] = {
    "drop": _drop,
    "negate": _negate,
    "compare": _compare,
    "replace": _replace,
}
