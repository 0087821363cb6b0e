"""The environment of chat templates that come with a request: everything that they do is counted.

What is counted: each turn of a loop, each call (macros, blocks and recursive loops too), each filter, test
and comparison, and the size of every value that is made, printed or put together. What makes large values
out of small ones is looked at before it runs. Methods and filters that chat templates do not need are not
there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import BuiltinMethodType, MethodType
from typing import Any, Final, cast

from jinja2 import Template, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext
from jinja2.visitor import NodeTransformer

from headrace.server.tasks.template_budget import MAX_INTEGER_BITS, Budget
from headrace.server.tasks.template_environment import TemplateEnvironment
from headrace.server.tasks.template_filters import ALLOWED, bounded

COMPILE_CHARACTERS: Final = 1_000_000
COMPILE_SECONDS: Final = 1.0
"""For what Jinja computes when it compiles a template: expressions of constants."""

_TEXT: Final = frozenset(
    {
        "capitalize", "casefold", "center", "count", "endswith", "expandtabs", "find", "format", "format_map",
        "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower",
        "isnumeric", "isprintable", "isspace", "istitle", "isupper", "join", "ljust", "lower", "lstrip",
        "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition",
        "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
        "zfill",
    }
)  # fmt: skip
_METHODS: Final[tuple[tuple[type, frozenset[str]], ...]] = (
    (str, _TEXT),
    (dict, frozenset({"copy", "get", "items", "keys", "values"})),
    (list, frozenset({"copy", "count", "index"})),
    (tuple, frozenset({"count", "index"})),
    (float, frozenset({"is_integer"})),
    (LoopContext, frozenset({"changed", "cycle"})),
)


class BoundedEnvironment(TemplateEnvironment):
    """As the models' own templates have it, within a budget. For several threads, one rendering in each."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__()
        self._local = threading.local()
        self.finalize = self._printed
        for name in ("lipsum", "cycler"):
            del self.globals[name]
        self.filters = {
            name: bounded(name, apply, self._budget)
            for name, apply in self.filters.items()
            if name in ALLOWED
        }

    @contextmanager
    def budget(self, budget: Budget) -> Iterator[None]:
        """Have what this thread renders use ``budget``."""
        self._local.budget = budget
        try:
            yield
        finally:
            del self._local.budget

    def bounded_template(self, tree: nodes.Template) -> Template:
        """Compile a parsed template, which is changed."""
        with self.budget(Budget(COMPILE_CHARACTERS, COMPILE_SECONDS)):
            code = self.compile(_Bounds().visit(tree))
            return Template.from_code(self, code, self.make_globals(None))

    def variables(self, tree: nodes.Template) -> frozenset[str]:
        """Return the names that a parsed template reads and that neither it nor the environment sets."""
        with self.budget(Budget(COMPILE_CHARACTERS, COMPILE_SECONDS)):
            read = meta.find_undeclared_variables(tree)
        # What only a branch sets is a variable to Jinja: there might be one where the branch is not taken.
        own = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
        return frozenset(read - own - self.globals.keys())

    # Called by what _Bounds puts into templates.

    def counted(self, values: Any, characters: int) -> Iterator[Any]:
        """Yield what a loop walks through; ``characters`` is the text that each turn may print."""
        return self._budget().count(values, characters)

    def weighed(self, value: Any) -> Any:
        """Return a value that was made."""
        self._budget().weigh(value)
        return value

    # Called by Jinja.

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063
        """Call what a template calls: a macro, a loop, a method or one of the environment's functions."""
        own = getattr(__obj, "__self__", None)
        if own is __self and __obj.__name__ in {"counted", "weighed"}:
            return __obj(*args)
        budget = __self._budget()
        budget.spend()
        if isinstance(__obj, LoopContext) and args:
            args = (budget.count(args[0]), *args[1:])
        elif isinstance(__obj, (BuiltinMethodType, MethodType)):
            if __obj.__name__ == "join" and args:
                args = (list(args[0]), *args[1:])  # its length counts
            _check_method(budget, own, __obj.__name__, args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        budget.weigh(result)
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Evaluate an operator, unless the result would be enormous."""
        budget = self._budget()
        if operator == "%" and isinstance(left, str):
            budget.weigh_percent(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            budget.spend()
            if left.bit_length() * abs(right) > MAX_INTEGER_BITS:
                raise SecurityError("a power is too large")
        result = super().call_binop(context, operator, left, right)
        budget.weigh(result)
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the sandbox's ``str.format``, which looks at the widths first."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        layout: str = value.__self__

        def run(*args: Any, **kwargs: Any) -> str:
            self._budget().weigh_format(layout, (args, kwargs))
            return wrapped(*args, **kwargs)

        return run

    def _printed(self, value: Any) -> str:
        budget = self._budget()
        budget.weigh(value)
        text = str(value)
        budget.spend(len(text))
        return text

    def _budget(self) -> Budget:
        budget: Budget = self._local.budget
        return budget


class _Bounds(NodeTransformer):
    """Puts calls of the environment around loops and around what makes values without a call."""

    def visit(self, node: nodes.Node, *_: Any, **__: Any) -> Any:
        """Return what takes the place of ``node``."""
        text = _text(node) if isinstance(node, nodes.For) else 0
        self.generic_visit(node)
        if isinstance(node, nodes.For):
            node.iter = _call("counted", node.iter, nodes.Const(text, lineno=node.lineno))
        elif isinstance(node, nodes.Concat):
            node.nodes = [_call("weighed", operand) for operand in node.nodes]
        return _call("weighed", node) if isinstance(node, nodes.Expr) and _makes(node) else node


def _text(loop: nodes.For) -> int:
    """Return the most characters of its own that a turn of a loop prints."""
    constants = sum(len(str(constant.value)) for constant in loop.find_all(nodes.Const))
    return constants + sum(len(data.data) for data in loop.find_all(nodes.TemplateData))


def _makes(node: nodes.Expr) -> bool:
    """Tell whether an expression makes a value, or takes long, without a call, a filter or an operator."""
    if isinstance(node, nodes.Tuple):
        return node.ctx == "load"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Slice)
    if isinstance(node, nodes.Name):
        return node.ctx == "load" and node.name in {"varargs", "kwargs"}
    return isinstance(node, (nodes.List, nodes.Dict, nodes.Compare, nodes.Test, nodes.Concat))


def _call(name: str, *arguments: nodes.Node) -> nodes.Call:
    line = arguments[0].lineno
    function = nodes.EnvironmentAttribute(name, lineno=line)
    return nodes.Call(function, cast("list[nodes.Expr]", list(arguments)), [], None, None, lineno=line)


def _check_method(
    budget: Budget, own: Any, name: str, args: tuple[Any, ...], options: Mapping[str, Any]
) -> None:
    """Refuse a method that templates do not need; note what a text's may make, before it is made."""
    if not any(isinstance(own, kind) and name in names for kind, names in _METHODS):
        raise SecurityError(f"{type(own).__name__}.{name} is not possible here")
    if not isinstance(own, str):
        return
    values = (*args, *options.values())
    if name in {"center", "ljust", "rjust", "zfill"}:
        budget.spend(sum(abs(value) for value in values if isinstance(value, int)))
    elif name == "expandtabs":
        budget.spend(own.count("\t") * sum(abs(value) for value in values if isinstance(value, int)))
    elif name == "replace" and len(args) > 1:
        budget.spend(own.count(str(args[0])) * len(str(args[1])))
    elif name == "join" and args:
        budget.spend(len(own) * len(args[0]))
        budget.weigh(args[0])
