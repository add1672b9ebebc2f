"""Hostile templates: none reaches Python, none runs or grows without end.

A template that escapes its budget shows as a test that hangs or eats the memory.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest

from enginewright.runtime.errors import ChatTemplateError
from enginewright.runtime.sandbox import rendering
from enginewright.runtime.text.chat import ChatTemplate

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]


def render(source: str, messages: list[dict[str, Any]] = MESSAGES) -> str:
    return ChatTemplate(source, "<s>", "</s>").render(messages)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ [''] | map(attribute='__class__') | list }}",
        "{{ '{0.__class__}'.format('') }}",
        "{{ '{x.__class__}'.format_map({'x': ''}) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ dict.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ namespace.__call__ }}",
        "{{ self.__init__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ loop.__class__ }}{% for x in [1] %}{{ loop.__class__ }}{% endfor %}",
        "{{ (messages | map('upper')).gi_frame }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ messages.clear() }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{% set ns = namespace({'_x': 1}) %}",
        "{{ lipsum() }}",
        "{{ messages | pprint }}",
    ],
)
def test_no_way_out(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        render(source)


def test_refused_attributes_are_named() -> None:
    with pytest.raises(ChatTemplateError, match="attribute '__class__' of str is unsafe"):
        render("{{ messages[0].role.__class__ }}")


DOUBLING = (
    "{%% set ns = namespace(x=%s) %%}{%% for i in range(99) %%}{%% set ns.x = %s %%}{%% endfor %%}"
)
TOWERS = (
    "{% set a = namespace(x=[1]) %}{% set b = namespace(x=[1]) %}{% for i in range(99) %}"
    "{% set a.x = STEP_A %}{% set b.x = STEP_B %}{% endfor %}{{ a.x == b.x }}"
)


def tower(step: str) -> str:
    return TOWERS.replace("STEP_A", step.replace("X", "a.x")).replace(
        "STEP_B", step.replace("X", "b.x")
    )


LOOP = "{% for i in range(99999) %}"
END = "{% endfor %}"
ENDLESS = {
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": LOOP * 3 + END * 3,
    "nested loops that print": LOOP * 3 + "x" + END * 3,
    "loops that only filter": LOOP + "{% for j in range(99999) if false %}" + END * 2,
    "a loop in an else": LOOP + "{% for j in [] %}{% else %}" + LOOP + END * 3,
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "deep recursive loop": "{% for x in [[]] recursive %}{% if loop.depth < 60 %}"
    "{{ loop([1, 1]) }}{% endif %}{% endfor %}",
    "recursive macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "branching call": "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call f() %}" * 30
    + "{% endcall %}" * 30,
    "recursive block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "output": LOOP + "x" * 1000 + END,
    "captured output": "{% set x %}" + LOOP + "x" * 10_000 + END + "{% endset %}",
    "output of a macro": "{% macro f() %}" + "x" * 10_000 + "{% endmacro %}{% set y %}"
    "{% for i in range(99999) %}{{ f() }}{% endfor %}{% endset %}",
    "str *": "{{ 'a' * 10**9 }}",
    "* str": "{{ 10**9 * 'a' }}",
    "list *": "{{ ([0] * 10**9) | length }}",
    "tuple *": "{{ ((0,) * 10**9) | length }}",
    "* of long strings": "{% set x = ['a' * 9999999] * 9999999 %}{{ x | join }}",
    "**": "{{ 10 ** (10 ** 8) }}",
    "** again": "{{ ((10 ** 9999) ** 9999) > 0 }}",
    "integers": DOUBLING % ("10**999", "ns.x * ns.x"),
    "doubling +": DOUBLING % ("'a'", "ns.x + ns.x"),
    "doubling ~": DOUBLING % ("'a'", "ns.x ~ ns.x"),
    "doubling list +": DOUBLING % ("[1]", "ns.x + ns.x") + "{{ ns.x | length }}",
    "doubling list": DOUBLING % ("[1]", "[ns.x, ns.x]") + "{{ ns.x }}",
    "doubling dict": DOUBLING % ("1", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x | tojson }}",
    "doubling dict()": DOUBLING % ("1", "dict(a=ns.x, b=ns.x)") + "{{ ns.x | string }}",
    "doubling namespace": DOUBLING % ("1", "namespace(a=[ns.x], b=[ns.x])")
    + "{{ ns.x.a == 1 }}"
    + LOOP * 2
    + END * 2,
    "doubling join": DOUBLING % ("'ab'", "[ns.x, ns.x] | join"),
    "doubling .join": DOUBLING % ("'ab'", "''.join([ns.x, ns.x])"),
    "doubling replace": DOUBLING % ("'a'", "ns.x.replace('a', 'aa')"),
    "doubling format": DOUBLING % ("'a'", "'%s%s' | format(ns.x, ns.x)"),
    "doubling %": DOUBLING % ("'a'", "'%s%s' % (ns.x, ns.x)"),
    "doubling .format": DOUBLING % ("'a'", "'{0}{0}'.format(ns.x)"),
    "doubling batch": DOUBLING % ("[1]", "[ns.x] | batch(2, ns.x) | list"),
    "doubling set": DOUBLING % ("'a'", "ns.x")
    + "{% set x = 'a' %}"
    + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "doubling filter block": "{% set x = 'a' %}" + "{% set x | replace('a', 'aaaa') %}{{ x }}"
    "{% endset %}" * 40,
    "comparing lists": tower("[X, X]"),
    "comparing batches": tower("[X] | batch(2, X) | list"),
    "comparing again and again": "{% set x = range(49999) | list %}"
    + "{% set y = range(49999) | list %}"
    + LOOP
    + "{{ x == y }}"
    + END,
    "searching again and again": "{% set x = range(49999) | list %}" + LOOP + "{{ -1 in x }}" + END,
    "testing again and again": "{% set x = range(49999) | list %}"
    + LOOP
    + "{{ -1 is in x }}"
    + END,
    "slicing again and again": "{% set x = range(49999) | list %}"
    + LOOP
    + "{% if x[1:] %}{% endif %}"
    + END,
    "sorting again and again": "{% set x = range(49999) | list %}" + LOOP + "{% if x | sort %}"
    "{% endif %}" + END,
    "lists again and again": LOOP + "{% if range(99999) | list %}{% endif %}" + END,
    "center": "{{ 'a' | center(10**9) }}",
    "center constant": "{{ 'a' | center(1000000000) }}",
    ".center": "{{ 'a'.center(10**9) }}",
    "ljust": "{{ 'a'.ljust(width) if width else 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "indent": "{{ 'a\nb' | indent(10**9) }}",
    "indent by text": "{{ ('a\n' * 9999) | indent('b' * 99999) }}",
    "batch": "{{ [1] | batch(10**9, 0) | list | length }}",
    "slice": "{{ [1] | slice(10**9) | list | length }}",
    "round": "{{ 1.5 | round(10**9, 'floor') }}",
    "to_bytes": "{{ (5).to_bytes(10**9, 'big') | length }}",
    "translate": "{{ ('a' * 9999).translate({97: 'b' * 99999}) }}",
    "join": "{{ ([''] * 99999) | join('b' * 99999) }}",
    "join of a generator": "{{ range(99999) | map('string') | join('b' * 99999) }}",
    ".join": "{{ ('b' * 99999).join([''] * 99999) }}",
    ".replace": "{{ ('a' * 99999).replace('', 'b' * 99999) }}",
    "replace": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "map": "{{ range(99999) | map('center', 99999) | join }}",
    "sum of lists": "{{ ([[0] * 99] * 9999) | sum(start=[]) | length }}",
    "tojson": "{{ [[[1]]] | tojson(indent=10**9) }}",
    "tojson by text": "{{ ([1] * 9999) | tojson(indent='b' * 99999) }}",
    "% width": "{{ '%1000000000d' % 1 }}",
    "% widths": "{{ ('%9999999d' * 999) % ((1,) * 999) }}",
    "% width by argument": "{{ '%*d' % (10**9, 1) }}",
    "% precision": "{{ '%.1000000000f' % 1 }}",
    "format width": "{{ '%1000000000d' | format(1) }}",
    ".format width": "{{ '{:>1000000000}'.format(1) }}",
    ".format width by argument": "{{ '{:>{}}'.format(1, 10**9) }}",
    ".format width by name": "{{ '{:>{w}}'.format(1, w=10**9) }}",
    ".format_map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "format through map": "{{ ['%1000000000d'] | map('format', 1) | list }}",
    "strftime": "{{ strftime_now('%1000000000Y') }}",
    "constant in an option": "{% autoescape 'a' | center(1000000000) %}{% endautoescape %}",
    "range of a range": "{{ range(99999) | list | length }}{{ range(-(10**18), 10**18) }}",
}

# What the bounds say; another error would mean that the attack itself is wrong.
BOUND = "units of work|recursion|too big|too large|far more|at most 100|width is an argument"


@pytest.mark.parametrize("name", ENDLESS)
def test_nothing_without_end(name: str) -> None:
    with pytest.raises(ChatTemplateError, match=BOUND):
        render(ENDLESS[name])


def test_bounds_do_not_depend_on_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same template gets as far every time."""
    monkeypatch.setattr(rendering, "LEAST_WORK", 1 << 16)
    source = "{% for i in range(9) %}{% for j in range(N) %}{% endfor %}{% endfor %}"
    low, high = 1, 9999
    while high - low > 1:
        middle = (low + high) // 2
        try:
            render(source.replace("N", str(middle)))
            low = middle
        except ChatTemplateError:
            high = middle
    for _ in range(3):
        render(source.replace("N", str(low)))
        with pytest.raises(ChatTemplateError, match="units of work"):
            render(source.replace("N", str(high)))


def test_long_conversations_are_no_attack() -> None:
    """A million characters in two thousand messages, with a loop that looks at all of them."""
    messages = [
        {"role": ("user", "assistant")[at % 2], "content": f"message {at} " * 50}
        for at in range(2000)
    ]
    source = (
        "{% for m in messages %}{% if (messages | length - 1) == loop.index0 %}last:{% endif %}"
        "{{ '<' + m.role + '>' + m['content'] | trim + '</>' }}{% if '</think>' in m.content %}"
        "{{ m.content.split('</think>')[-1].replace('\\n', ' ') }}{% endif %}{% endfor %}"
    )
    text = render(source, messages)
    assert text.count("</>") == 2000
    assert text.count("last:") == 1


def test_budgets_of_threads_are_apart() -> None:
    template = ChatTemplate("{% for i in range(50000) %}{{ i % 10 }}{% endfor %}")
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda: results.append(template.render(MESSAGES))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["0123456789" * 5000] * 4
