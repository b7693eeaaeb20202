"""No operation of a template is free of bounds, and none means anything else for it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

from coordinator.edge.http.limits import EdgeLimits
from coordinator.edge.text.chat_template import ChatTemplate
from coordinator.edge.text.kept_fields import try_template
from protocol.clock import ManualClock, SystemClock
from protocol.errors import ConfigError, InvalidRequest
from tests.marks import deep
from tests.patience import PATIENCE_S
from tests.unit.coordinator.edge.text.template_bombs import BOMBS

MEMORY_BYTES = 3 << 30
LIMIT_S = 4.0
"""Of the processor. The deadline is one second."""


def bombs(every: int) -> dict[str, Any]:
    """Of every so many, in a process with little memory: what was said, seconds, peak memory."""
    module = "tests.unit.coordinator.edge.text.template_bombs"
    done = subprocess.run(
        [sys.executable, "-m", module, str(MEMORY_BYTES), str(every)],
        capture_output=True,
        text=True,
        check=False,
        timeout=6 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {source: (said, took_s, peak) for source, said, took_s, peak in lines}


@pytest.mark.slow
@pytest.mark.parametrize("every", [4, deep(1)])
def test_whatever_would_take_all_memory_or_time_is_refused(every):
    found = bombs(every)
    assert len(found) == len(BOMBS[::every])
    for source, (said, took_s, _) in found.items():
        assert "chat template" in said, (source, said)
        assert "MemoryError" not in said
        assert took_s < LIMIT_S, source
    peak = max(peak for _, _, peak in found.values())
    assert peak < 2 << 30, "of 3 GiB that it might have taken"


CONTEXT: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "Hello <b>world</b>\n  bye "},
        {"role": "assistant", "content": "ok", "tool_calls": [{"a": [1, 2], "b": {"c": None}}]},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "description": "é'\""}}],
    "s": "one two\tthree\nfour",
    "n": 7,
    "f": 2.5,
    "l": [3, 1, 2, 1],
    "d": {"b": 1, "a": [1, {"x": "y"}]},
}
ORDINARY = [
    *("{{ s * 3 }}", "{{ 2 * s }}", "{{ l * 2 }}", "{{ n * n - f / 2 + n // 2 ** 3 % 5 }}"),
    *("{{ s + '!' + s }}", "{{ l + [4] }}", "{{ s ~ n ~ f ~ none ~ l }}", "{{ -n }}"),
    *("{{ 'a%sb%05.1f%%' % (s, f) }}", "{{ '%(x)s' % {'x': l} }}", "{{ '%s' % s }}"),
    *("{{ '{} {:>6} {x!r}'.format(s, n, x=l) }}", "{{ '{a}-{b}'.format_map(d) }}"),
    *("{{ '%s|%d'|format(s, n) }}", "{{ s.split() }}", "{{ s.split('o', 1) }}"),
    *("{{ s.splitlines() }}", "{{ ' x '.strip() }}", "{{ 'xxaxx'.strip('x') }}"),
    *("{{ s.replace('o', '0') }}", "{{ s.replace('', '-', 2) }}", "{{ s|replace('o', 0) }}"),
    *("{{ s|replace('o', '0', 1) }}", "{{ ','.join(['a', 'b']) }}", "{{ l|join(', ') }}"),
    *("{{ l|map('string')|join('+') }}", "{{ ','.join(l|map('string')) }}", "{{ 'abc'|join('.') }}"),
    *("{{ s.center(30, '*') }}", "{{ s|center(30) }}", "{{ 'a'.zfill(4) }}", "{{ s.expandtabs(3) }}"),
    *("{{ s|indent(2) }}", "{{ s|indent('> ', true) }}", "{{ s|wordwrap(5) }}", "{{ s|title }}"),
    *("{{ s|upper }}{{ s|lower }}{{ s|capitalize }}", "{{ s|trim('o') }}", "{{ s|wordcount }}"),
    *("{{ s.encode()|length }}", "{{ s.encode().hex() }}", "{{ s.find('t') }}{{ s.rfind('t') }}"),
    *("{{ s.partition(' ') }}{{ s.rpartition(' ') }}", "{{ s.rsplit(' ', 1) }}"),
    *("{{ s.translate({111: '0'}) }}", "{{ s.startswith('one') }}{{ s.endswith(('r', 'x')) }}"),
    *("{{ s[1:] }}{{ s[:-1] }}{{ s[::2] }}{{ s[0] }}", "{{ l[1:3] }}{{ l[-1] }}{{ l[::-1] }}"),
    *("{{ messages[0].content[:5] }}", "{{ messages[0]['content']|e }}", "{{ d.b }}x"),
    *("{{ d }}", "{{ d.items()|list }}", "{{ d|dictsort }}", "{{ d['a'][1].x }}", "{{ d.get('z', 4) }}"),
    *("{{ d|tojson }}", "{{ tools|tojson(indent=2) }}", "{{ d|tojson(separators=(',', ':')) }}"),
    *("{{ d|items|list }}", "{{ {n: s, 'k': l} }}", "{{ (1, s) }}{{ {(1, 2): 3}[(1, 2)] }}"),
    *("{{ l|sort }}{{ l|unique|list }}{{ l|sum }}{{ l|min }}{{ l|max }}{{ l|reverse|list }}",),
    *("{{ s|list }}", "{{ s|reverse }}", "{{ l|batch(3, 0)|list }}", "{{ l|slice(2)|list }}"),
    *("{{ messages|map(attribute='role')|list }}", "{{ messages|selectattr('role', 'eq', 'user')|list|length }}"),
    *("{{ messages|rejectattr('tool_calls')|first }}", "{{ messages|groupby('role') }}"),
    *("{{ '%(a(b))s %(c)5d%% %(c)x' % {'a(b)': s, 'c': n} }}", "{{ '%%%s%%' % s }}", "{{ '%-7.2s|' % s }}"),
    *("{{ [d, d]|map(attribute='a.1.x')|join(',') }}", "{{ messages|sort(attribute='role,content')|length }}"),
    *("{{ messages|join('+', 'role') }}{{ messages|map(attribute='q', default='-')|list }}",),
    *("{{ messages|unique(attribute='role')|list|length }}{{ [d]|sum('b') }}{{ l|map('abs')|first }}",),
    *("{{ s.encode('utf-8').decode('ascii') }}{{ 'é'.encode('latin-1')|length }}",),
    *("{{ l|select('in', [1, 2])|list }}", "{{ l|select('gt', 1)|list }}", "{{ f|round(1) }}{{ f|int }}"),
    *("{{ n == 7 }}{{ n != f }}{{ 1 < n < 9 }}{{ 'o' in s }}{{ l == [3, 1, 2, 1] }}{{ 9 not in l }}",),
    *("{{ n is odd }}{{ s is string }}{{ d is mapping }}{{ x is defined }}{{ n is eq 7 }}{{ n is in l }}",),
    *("{{ 'a' if n > 3 else 'b' }}", "{{ none or 'x' }}", "{{ not n }}", "{{ range(4)|list }}"),
    "{% set x %}a{{ s }}{% endset %}{{ x|length }}{{ x }}",
    "{% set x | upper %}a{{ s }}{% endset %}{{ x }}",
    "{% set ns = namespace(a=1) %}{% for i in l %}{% set ns.a = ns.a * 2 + i %}{% endfor %}{{ ns.a }}",
    "{% for k, v in d|dictsort %}{{ loop.index }}{{ k }}{{ v }}{{ loop.last }}{% endfor %}",
    "{% for i in l if i > 1 %}{{ i }}{{ loop.first }}{% else %}none{% endfor %}",
    "{% for i in l %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in [] %}{% else %}none{% endfor %}",
    "{% macro m(a, b=2) %}<{{ a }}{{ b }}{{ caller() if caller }}>{% endmacro %}{{ m(1) }}{{ m(s, b=l) }}",
    "{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}in{{ n }}{% endcall %}",
    "{% filter upper %}a{{ s }}{% endfilter %}",
    "{% for x in [[1, [2]], 3] recursive %}{{ loop(x) if x is iterable else x }};{% endfor %}",
    "{% with a = n %}{{ a }}{% endwith %}{% generation %}{{ s }}{% endgeneration %}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}",
    "{% set j = joiner(',') %}{{ j() }}{{ j() }}",
    "{{ dict(z=1, **d) }}{{ (1).bit_length() }}{{ (5).to_bytes(2, 'big') }}",
    "{{ s|truncate(9) }}{{ s|striptags }}{{ s|urlencode }}{{ 1000|filesizeformat }}{{ d|pprint }}",
    "{{ s|string|safe ~ '<' }}{{ ('<'|e) + '<' }}{{ ('%s'|safe) % '<' }}{{ ('{}'|safe).format('<') }}",
    "{% autoescape true %}{{ '<' ~ s }}{{ '<' }}{% endautoescape %}",
]  # fmt: skip


@pytest.mark.parametrize("source", ORDINARY)
def test_ordinary_operations_mean_what_they_mean_to_transformers(source):
    expected = _compile_jinja_template(source).render(**CONTEXT)
    template = ChatTemplate({"default": source}, {})
    assert template.render(CONTEXT, clock=ManualClock(), limits=EdgeLimits()) == expected


@pytest.mark.parametrize(
    "source",
    ["{{ 'a' * 10**9 }}", "{% if tools %}{{ 'a' * 10**9 }}{% endif %}{{ messages[0].content }}"],
)
def test_a_template_that_grows_without_bounds_is_refused_at_the_start(source):
    with pytest.raises(ConfigError, match="chat template makes too large a text"):
        try_template(ChatTemplate({"default": source}, {}), SystemClock(), EdgeLimits())


def test_what_only_one_conversation_makes_huge_is_refused_for_that_one():
    source = "{% for m in messages %}{{ 'a' * (m.content|int) }}{{ m.content }}{% endfor %}"
    template = ChatTemplate({"default": source}, {})
    try_template(template, ManualClock(), EdgeLimits())

    def rendered(content: str) -> str:
        context = {"messages": [{"role": "user", "content": content}]}
        return template.render(context, clock=ManualClock(), limits=EdgeLimits())

    assert rendered("3") == "aaa3"
    with pytest.raises(InvalidRequest, match="too large"):
        rendered("1000000000")


def test_a_long_conversation_is_not_too_large():
    source = (
        "{% set ns = namespace(s='') %}{% for m in messages %}{% set ns.s = ns.s + m.role %}"
        "{{ '<|' + m.role + '|>' + m.content.split('</think>')[-1].strip() | trim ~ '\\n' }}{% endfor %}"
    )
    template = ChatTemplate({"default": source}, {})
    context = {"messages": [{"role": "user", "content": "word " * 800}] * 1000}
    text = template.render(context, clock=ManualClock(), limits=EdgeLimits())
    assert len(text) == 1000 * (9 + 3999)
    context = {"messages": [{"role": "user", "content": "w" * 4_000_000}]}
    assert len(template.render(context, clock=ManualClock(), limits=EdgeLimits())) > 4_000_000
