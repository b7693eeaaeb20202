"""Templates of which one operation, or a few, would take all memory or all time. Owns the list, and a program that renders
each of them with little memory: prints what was said, how long it took and how much memory was taken."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from coordinator.edge.http.limits import EdgeLimits
from coordinator.edge.text.chat_template import ChatTemplate
from protocol.clock import SystemClock
from protocol.errors import ConfigError, InvalidRequest

_NS = "{% set ns = namespace(s='x', l=[], t=(1,), u=(1,)) %}"


def _growing(step: str, end: str, rounds: int = 60) -> str:
    return f"{_NS}{{% for i in range({rounds}) %}}{step}{{% endfor %}}{end}"


def _nested(end: str) -> str:
    """A tuple whose text has 2^60 numbers, and another of these."""
    return _growing("{% set ns.t = (ns.t, ns.t) %}{% set ns.u = (ns.u, ns.u) %}", end)


_TEXTS = [
    "'a' * 10**9",
    "('a' * 10**9)|length",
    "[1] * 10**9",
    "(1,) * 10**9",
    "10**9 * 'ab'",
    "'a'|safe * 10**9",
    "10**(10**9)",
    "(10**(10**8))|string",
    "'aa'.replace('a', 'b' * 10**6).replace('b', 'c' * 10**6)",
    "('a' * 10**6).replace('', 'b' * 10**6)",
    "('a' * 10**6)|replace('a', 'b' * 10**6)",
    "('a' * 10**6)|replace(new='b' * 10**6, old='a')",
    "(('a' * 10**6)|safe).replace('a', 'b' * 10**6)",
    "('b' * 10**6).join('a' * 10**6)",
    "(['a'] * 900000)|join('b' * 900000)",
    "(['a'] * 900000)|join(d='b' * 900000)",
    "range(100000)|map('string')|join('b' * 900000)",
    "('b' * 900000).join(range(100000)|map('string'))",
    "'a'.center(10**9)",
    "'a'|center(1000000000)",
    "'a'|center(width=10**9)",
    "['a']|map('center', 10**9)|list",
    "(['a']|map(attribute='center')|first)(10**9)",
    "('a'|attr('ljust'))(10**9)",
    "'a'.zfill(10**9)",
    "'\\t'.expandtabs(10**9)",
    "'\\t'.expandtabs(tabsize=10**9)",
    "'%1000000000d' % 1",
    "'%1000000000d'|format(1)",
    "'%*d' % (10**9, 1)",
    "'%.1000000000f' % 1.5",
    "'%(a)1000000000d' % {'a': 1}",
    "('%(a)s' * 100000) % {'a': 'a' * 10**7}",
    "['%1000000000d']|string|format(1)",
    "'{:1000000000}'.format(1)",
    "'{:{}}'.format(1, 10**9)",
    "'{:>{w}}'.format(1, w=10**9)",
    "'{a:1000000000}'.format_map({'a': 1})",
    "['{:1000000000}'][0]['format'](1)",
    "('{0}' * 100000).format('a' * 10**7)",
    "('a\\n' * 10**6)|indent('x' * 10**6, true)",
    "'a\\nb'|indent(10**9)",
    "[1, [2, [3]]]|tojson(indent=10**9)",
    "[1]|tojson(separators=('x' * 10**7, 'y'))",
    "[1]|batch(10**9, 'x')|list",
    "[1]|slice(10**9)|list",
    "1.5|round(10**9, 'floor')",
    "15|round(-10**9)",
    "('a' * 10**7)|wordwrap(1)",
    "('http://a ' * 10**6)|urlize",
    "('<' * 10**7)|striptags",
    "('a-' * 10**7)|title",
    "('a' * 10**7).rfind('b' + 'a' * 5000000)",
    "('a' * 10**7).strip('b' * 5000000 + 'a')",
    "('a' * 10**7)|trim('b' * 5000000 + 'a')",
    "('a' * 10**7).rsplit('b' + 'a' * 5000000)",
    "('a' * 10**7).rpartition('b' + 'a' * 5000000)",
    "('a' * 10**7).translate({97: 'b' * 10**7})",
    "('ab' * 8000000)|list",
    "(1).to_bytes(10**9, 'big')",
    "(1).to_bytes(length=10**9, byteorder='big')",
    "lipsum(n=100000)",
    "range(10**9)|list",
    "([[1] * 100000] * 10000)|sum(start=[])",
    "strftime_now('%Y' * 10**7)",
    "cycler('a' * 10**9)",
    "'%(a(b))1000000000d' % {'a(b)': 1}",
    "('%(' * 1000000) % {}",
    "('%%' * 4000000) % ()",
    "('{0' + '.real' * 3000000 + '}').format(1)",
    "range(99999)|map(attribute='real' + '.real' * 10**4)|list",
    "range(99999)|map(attribute='real' + '.real' * 10**4)|join",
    "range(99999)|selectattr('real' + '.real' * 10**4)|list",
    "range(99999)|rejectattr('real' + '.real' * 10**4)|list",
    "range(99999)|sort(attribute='real' + '.real' * 10**4)",
    "range(99999)|sort(attribute='real' + ',real' * 10**4)",
    "range(99999)|groupby('real' + '.real' * 10**4)",
    "range(99999)|unique(attribute='real' + '.real' * 10**4)|list",
    "range(99999)|max(attribute='real' + '.real' * 10**4)",
    "range(99999)|min(false, 'real' + '.real' * 10**4)",
    "range(99999)|sum(attribute='real' + '.real' * 10**4)",
    "range(99999)|join(',', 'real' + '.real' * 10**4)",
    "('é' * 5000000).encode('punycode')",
    "('é' * 5000000).encode(encoding='idna')",
]
_INSIDE = [
    "{{ ns.t }}",
    "{{ ns.t|string|length }}",
    "{{ ns.t|tojson|length }}",
    "{{ ns.t|upper|length }}",
    "{{ ns.t ~ 'x' }}",
    "{{ '%s' % (ns.t,) }}",
    "{{ '{}'.format(ns.t) }}",
    "{{ '{!r}'.format(ns.t) }}",
    "{{ [ns.t]|join }}",
    "{{ ns }}",
    "{{ {'a': ns.t}.items() }}",
    "{{ {'a': ns.t}.values() }}",
    "{{ ns.t == ns.u }}",
    "{{ ns.t < ns.u }}",
    "{{ ns.t in [ns.u] }}",
    "{{ [ns.t]|select('equalto', ns.u)|list }}",
    "{{ [ns.t, ns.u]|sort|length }}",
    "{{ {ns.t: 1}|length }}",
    "{{ {}[ns.t] }}",
    "{{ {}.get(ns.t) }}",
    "{{ ns.t in {} }}",
    "{{ dict([(ns.t, 1)])|length }}",
    "{{ [ns.t]|unique|list|length }}",
    "{{ [ns.u].index(ns.t) }}",
    "{{ raise_exception(ns.t) }}",
]
_LOOPS = [
    _growing("{% set ns.s = ns.s + ns.s %}", ""),
    _growing("{% set ns.s = ns.s ~ ns.s %}", ""),
    _growing("{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}", ""),
    "{% macro d(s) %}{{ s }}{{ s }}{% endmacro %}" + _growing("{% set ns.s = d(ns.s) %}", ""),
    _growing("{% set ns.l = [ns.l, ns.l] %}", "{{ ns.l == [[ns.l]] }}{{ ns.l }}"),
    _growing("{% set ns.t = (ns.t,) %}", "{{ {ns.t: 1}|length }}", 99_999),
    _growing("{% set ns.s = 9 ** 99999 %}", "", 99_999),
    _growing("{% set ns.l = ns.l + [('a' * 9000000)[1:]] %}", "", 99_999),
    _growing("{% set ns.l = ns.l + [([1] * 900000).copy()] %}", "", 99_999),
    _growing("{% set ns.l = ns.l + [([1] * 900000)|list] %}", "", 99_999),
    "{% for i in range(99999) %}{{ 'a' * 1000000 }}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% for a in [range(99999)] * 99999 if a|list == [] %}{% endfor %}",
    "{{ ([range(99999)] * 99999)|map('list')|list|length }}",
    "{{ ([range(99999)] * 99999)|map('sum')|sum }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for x in [1] recursive %}{{ loop([x, x]) }}{% endfor %}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    "{{ raise_exception('a' * 9000000) }}",
]
_SOURCES = [
    "{{ " + "(" * 99_999 + "1" + ")" * 99_999 + " }}",
    "{{ " + "-" * 99_999 + "1 }}",
    "{{ " + "not " * 99_999 + "1 }}",
    "{{ " + "1+" * 99_999 + "1 }}",
    "{{ x" + ".a" * 99_999 + " }}",
    "{{ x" + "|e" * 99_999 + " }}",
    "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "{% for i in x %}" * 30 + "{% endfor %}" * 30,
    "{{ " + "9" * 99_999 + " }}",
    "{% include 'x' %}",
    "{% extends 'x' %}",
]
BOMBS = [
    *(f"{{{{ {text} }}}}" for text in _TEXTS),
    *map(_nested, _INSIDE),
    *_LOOPS,
    *_SOURCES,
]


def render(source: str) -> str:
    """What is said of a template that should be refused."""
    context = {"messages": [{"role": "user", "content": "x"}], "tools": None}
    try:
        template = ChatTemplate({"default": source}, {})
        text = template.render(context, clock=SystemClock(), limits=EdgeLimits())
    except (ConfigError, InvalidRequest) as error:
        return str(error)
    return f"rendered {len(text)} characters"


def peak_bytes() -> int:
    """The most memory that this program had. `ru_maxrss` is no less than what the process had that started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(":", 1) for line in lines)["VmHWM"].removesuffix("kB")) * 1024


def main() -> None:
    """Renders every so many of them, a line of JSON each: seconds are of the processor."""
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
    for source in BOMBS[:: int(sys.argv[2])]:
        start_s = time.process_time()
        said = render(source)
        peak = peak_bytes()
        print(json.dumps([source[:200], said, time.process_time() - start_s, peak]), flush=True)


if __name__ == "__main__":
    main()
