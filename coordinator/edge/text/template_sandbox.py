"""The Jinja environment of chat templates. Owns that no operation in it is free.

It is transformers' environment, Jinja's immutable sandbox with the same filters and functions, in which operators,
methods, filters and tests pay before they act (`template_operations.py`, from the account in `template_meter.py`). What Jinja
does without asking its environment (`~`, slices, comparisons, keys of dictionaries, blocks that become a value, loops) is put
through filters of ours when a template is compiled. Their names and the account's have a space, which no template can write.
"""

from __future__ import annotations

import json
import types
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import Macro, markup_join, str_join
from jinja2.sandbox import (
    ImmutableSandboxedEnvironment,
    SandboxedEscapeFormatter,
    SandboxedFormatter,
)
from jinja2.utils import _PassArg
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from coordinator.edge.text.template_meter import ENTRY, Meter, is_atom, too_large, weight_of
from coordinator.edge.text.template_operations import (
    check_field,
    check_filter,
    check_form,
    check_method,
    check_operator,
)
from protocol.clock import wall_time_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jinja2.parser import Parser
    from jinja2.runtime import Context

METER = "its meter"
TICK, JOIN, CUT, PLAIN, KEPT = "a tick", "a join", "a cut", "a plain one", "a kept one"
MAX_CONCAT = 1 << 26
"""What a block may come to before anybody can be asked to pay for it."""
MAX_KEY = 4096
MAX_FORM = 1024
COMPARING = frozenset(
    {
        *("eq", "==", "equalto", "ne", "!=", "gt", ">", "greaterthan", "ge", ">=", "lt", "<"),
        *("lessthan", "le", "<=", "in"),
    }
)


class GenerationTag(Extension):
    """`{% generation %}` marks assistant text for training; serving shows its body as it is."""

    tags = {"generation"}  # noqa: RUF012 - the name and form that jinja2 reads

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body alone."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    if len(form) > MAX_FORM:
        raise too_large()
    return datetime.fromtimestamp(wall_time_s(), tz=UTC).astimezone().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """JSON as it stands: Jinja's own filter escapes for HTML, which a prompt must not be."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _meter_of(context: Context) -> Meter:
    meter = context.parent[METER]
    assert isinstance(meter, Meter)
    return meter


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates are rendered with a `Meter` among their variables, as METER."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, loopcontrols],
            finalize=_written,
        )
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        del self.globals["lipsum"]
        self.filters = {name: _paid_filter(name, own) for name, own in self.filters.items()}
        self.filters |= {TICK: _tick, JOIN: _joined, CUT: _cut, PLAIN: _plain, KEPT: _kept}
        tests = cast("dict[str, Callable[..., Any]]", self.tests)
        self.tests |= {name: _paid_test(tests[name]) for name in COMPARING}
        self.concat = _concat  # type: ignore[method-assign]

    def compile_tree(self, tree: nodes.Template) -> Any:
        """A template of a parsed one, which is changed."""
        return self.from_string(_Payments().visit(tree))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`left operator right`, paid."""
        check_operator(_meter_of(context), operator, left, right)
        return self.binop_table[operator](left, right)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`: a key that is a tuple is looked through to be hashed."""
        if isinstance(argument, tuple):
            weight_of(argument, MAX_KEY)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` and `str.format_map`, whose fields are paid one by one."""
        if not isinstance(value, types.MethodType | types.BuiltinMethodType):
            return None
        owner, name = value.__self__, value.__name__
        if not isinstance(owner, str) or name not in ("format", "format_map"):
            return None
        return _PaidFormat(self, owner, is_map=name == "format_map")

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """As ever; a `_PaidFormat` has none."""
        return not isinstance(obj, _PaidFormat) and super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """A call, paid; a macro's result is paid when it is there."""
        meter = _meter_of(__context)
        meter.tick()
        given = list(args)
        owner = getattr(__obj, "__self__", None)
        if isinstance(__obj, _PaidFormat):
            return __obj(meter, given, kwargs)
        if isinstance(owner, str | bytes | int) and not isinstance(__obj, Macro):
            check_method(meter, owner, __obj.__name__, given, kwargs)
            return super().call(__context, __obj, *given, **kwargs)
        if not isinstance(__obj, Macro):
            meter.spend_on(*args, *kwargs.values())
            meter.spend(ENTRY * len(owner) if isinstance(owner, list | dict) else 0)
        result = super().call(__context, __obj, *args, **kwargs)
        meter.spend(len(result) if isinstance(result, str) else 0)
        return result


class _PaidFormat:
    """One text's `format`; it is called by the environment only, which has the account."""

    def __init__(self, environment: TemplateSandbox, form: str, *, is_map: bool) -> None:
        self._environment = environment
        self._form = form
        self._is_map = is_map

    def __call__(self, meter: Meter, args: list[Any], named: dict[str, Any]) -> str:
        if self._is_map:
            if len(args) != 1 or named:
                raise TypeError("format_map() takes exactly one argument")
            args, named = [], args[0]
        check_form(meter, self._form)
        made = _formatter(self._environment, meter, self._form).vformat(self._form, args, named)
        return type(self._form)(made)


def _formatter(environment: TemplateSandbox, meter: Meter, form: str) -> SandboxedFormatter:
    kind: Any = _PaidEscapes if isinstance(form, Markup) else _PaidFields
    formatter: SandboxedFormatter = (
        kind(environment, escape=form.escape) if isinstance(form, Markup) else kind(environment)
    )
    formatter.meter = meter  # type: ignore[attr-defined]
    return formatter


class _PaidFields(SandboxedFormatter):
    meter: Meter

    def format_field(self, value: Any, format_spec: str) -> str:
        check_field(self.meter, value, format_spec)
        return str(super().format_field(value, format_spec))

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self.meter.spend_on(value)
        return super().convert_field(value, conversion)


class _PaidEscapes(_PaidFields, SandboxedEscapeFormatter):
    pass


def _paid_filter(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
    kind = _PassArg.from_obj(own)

    @pass_context
    def paid(context: Context, *args: Any, **kwargs: Any) -> Any:
        given = list(args)
        check_filter(_meter_of(context), name, given, kwargs)
        if kind is _PassArg.context:
            return own(context, *given, **kwargs)
        if kind is _PassArg.eval_context:
            return own(context.eval_ctx, *given, **kwargs)
        if kind is _PassArg.environment:
            return own(context.environment, *given, **kwargs)
        return own(*given, **kwargs)

    return paid


def _paid_test(own: Callable[..., Any]) -> Callable[..., Any]:
    @pass_context
    def paid(context: Context, *args: Any) -> Any:
        meter = _meter_of(context)
        meter.tick()
        meter.check(*(value for value in args if not is_atom(value)))
        return own(*args)

    return paid


@pass_context
def _written(context: Context, value: Any) -> Any:
    """What is printed: a list in a list in a list can be short and its text endless."""
    if not is_atom(value):
        _meter_of(context).spend_on(value)
    return value


@pass_context
def _tick(context: Context, value: Any) -> Any:
    _meter_of(context).tick()
    return value


@pass_context
def _joined(context: Context, *values: Any) -> str:
    _meter_of(context).spend_on(*values)
    join = markup_join if context.eval_ctx.autoescape else str_join
    return join(values)


@pass_context
def _cut(context: Context, value: Any, start: Any, stop: Any, step: Any) -> Any:
    place = slice(start, stop, step)
    if isinstance(value, str | bytes | list | tuple):
        size = len(range(*place.indices(len(value))))
        _meter_of(context).spend(size if isinstance(value, str | bytes) else size * ENTRY)
    return value[place]


@pass_context
def _plain(context: Context, value: Any) -> Any:
    """What is compared, or is a key: looked through like what is printed."""
    if not is_atom(value):
        _meter_of(context).check(value)
    return value


@pass_context
def _kept(context: Context, value: Any) -> Any:
    """What a block came to, where it becomes a variable."""
    _meter_of(context).spend_on(value)
    return value


def _concat(pieces: Iterable[str]) -> str:
    listed = list(pieces)
    if sum(map(len, listed)) > MAX_CONCAT:
        raise too_large()
    return "".join(listed)


def _filtered(name: str, value: nodes.Expr, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, list(args), [], None, None, lineno=value.lineno)


def _tick_statement(line: int) -> nodes.ExprStmt:
    return nodes.ExprStmt(_filtered(TICK, nodes.Const(None, lineno=line)), lineno=line)


def _looked_through(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filtered(PLAIN, node)


def _pay_concat(node: nodes.Concat) -> nodes.Node:
    return _filtered(JOIN, node.nodes[0], *node.nodes[1:])


def _pay_slice(node: nodes.Getitem) -> nodes.Node:
    if not isinstance(node.arg, nodes.Slice):
        return node
    ends = (node.arg.start, node.arg.stop, node.arg.step)
    return _filtered(CUT, node.node, *(end or nodes.Const(None) for end in ends))


def _pay_comparison(node: nodes.Compare) -> nodes.Node:
    node.expr = _looked_through(node.expr)
    for operand in node.ops:
        operand.expr = _looked_through(operand.expr)
    return node


def _pay_key(node: nodes.Pair) -> nodes.Node:
    node.key = _looked_through(node.key)
    return node


def _pay_block(node: nodes.AssignBlock) -> nodes.Node:
    node.filter = nodes.Filter(node.filter, KEPT, [], [], None, None, lineno=node.lineno)
    return node


def _pay_rounds(node: nodes.For) -> nodes.Node:
    node.body.insert(0, _tick_statement(node.lineno))
    if node.test is not None:
        node.test = nodes.And(_filtered(TICK, nodes.Const(1)), node.test)
    return node


def _pay_calls(node: nodes.Macro) -> nodes.Node:
    node.body.insert(0, _tick_statement(node.lineno))
    return node


_PAYING: dict[type[nodes.Node], Callable[[Any], nodes.Node]] = {
    nodes.Concat: _pay_concat,
    nodes.Getitem: _pay_slice,
    nodes.Compare: _pay_comparison,
    nodes.Pair: _pay_key,
    nodes.AssignBlock: _pay_block,
    nodes.For: _pay_rounds,
    nodes.Macro: _pay_calls,
}


class _Payments(NodeTransformer):
    """Puts the filters above where Jinja would not ask."""

    def get_visitor(self, node: nodes.Node) -> Callable[..., nodes.Node] | None:
        own = _PAYING.get(type(node))
        return None if own is None else partial(self._changed, own)

    def _changed(self, own: Callable[[Any], nodes.Node], node: nodes.Node) -> nodes.Node:
        return own(self.generic_visit(node))
