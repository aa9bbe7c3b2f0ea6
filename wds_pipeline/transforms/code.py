"""Which code a transform is made of: the modules that define it, and a digest of what they say.

Found by reading, so that nothing of a user's is run for it: the module that is named, those that the name
comes from when it is imported there, and those of its base classes and decorators. What its code calls is not
followed. Python's and installed packages are left out, unless it is one of these that is named.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from wds_pipeline.dataset.syntax import parsed


def modules_of(target: str) -> list[str]:
    """The modules of `module:name` that are files, the named one first, definitions after what uses them."""
    module, _, name = target.partition(":")
    found: list[str] = []
    waiting, seen = [(module, name)], set()
    while waiting:
        module, name = waiting.pop(0)
        if (module, name) in seen:
            continue
        seen.add((module, name))
        path = file_of(module)
        if path is None or (found and not _is_users(path, module, found[0])):
            continue
        tree = _parsed(path, *_state(path))
        sources = None
        if tree is not None:
            sources = _sources(tree, name, module, path.endswith("__init__.py"))
        known = sources is not None or tree is None or not name or not found
        if module not in found and known:
            found.append(module)
        waiting += sources or ()
    return found


def code_digest(modules: list[str]) -> str:
    """A digest of modules' code as Python reads it, without docstrings; of one that has none, of its file."""
    parts = []
    for module in modules:
        path = file_of(module) or ""
        parts.append(f"{module} {_digest(path, *_state(path))}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def file_of(module: str) -> str | None:
    """The file of a module, which is not imported, nor is the package that it is in; None if it has none."""
    spec = _spec(module)
    origin = spec.origin if spec is not None else None
    return origin if origin is not None and os.path.isfile(origin) else None


def _spec(module: str) -> ModuleSpec | None:
    importlib.invalidate_caches()
    path: Any = None
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        loaded = sys.modules.get(name)
        spec = getattr(loaded, "__spec__", None) or _find(name, path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and end < len(parts):
            return None
    return spec


def _find(name: str, path: Any) -> ModuleSpec | None:
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec
    return None


def _is_users(path: str, module: str, named: str) -> bool:
    """Whether a module is the user's, or of the same package as the one that is named."""
    top = module.partition(".")[0]
    if top == named.partition(".")[0]:
        return True
    folders = [sysconfig.get_path(each) for each in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed = any(path.startswith(os.path.join(each, "")) for each in folders)
    return top != "wds_pipeline" and not installed


def _sources(
    tree: ast.Module, name: str, module: str, package: bool
) -> list[tuple[str, str]] | None:
    """Where a name of a module comes from, as (module, name); None if the module has no such name."""
    imported: dict[str, tuple[str, str]] = {}
    stars: list[str] = []
    defined: dict[str, list[ast.expr]] = {}
    for node in _statements(tree.body):
        if isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, package)
            for alias in node.names:
                if alias.name == "*":
                    stars.append(base)
                else:
                    imported[alias.asname or alias.name] = (base, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                imported[alias.asname or whole] = (whole, "")
        elif isinstance(node, ast.ClassDef):
            defined.setdefault(node.name, []).extend([*node.bases, *node.decorator_list])
        elif isinstance(node, ast.FunctionDef):
            defined.setdefault(node.name, []).extend(node.decorator_list)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    defined.setdefault(target.id, []).append(node.value)
    found: list[tuple[str, str]] = []
    if name in defined:
        for used in (each for expression in defined[name] for each in _names(expression)):
            head, *rest = used.split(".")
            if head in imported:
                base, inner = imported[head]
                found += _attributes(base, [each for each in (inner, *rest) if each])
            else:
                found.append((module, head))
    elif name in imported:
        base, inner = imported[name]
        found += _attributes(base, [inner] if inner else [])
    elif stars:
        found += [(base, name) for base in stars]
    else:
        return None
    return found


def _attributes(base: str, names: list[str]) -> Iterator[tuple[str, str]]:
    """`a`, [`b`, `c`] may be the module a.b and its c, or the module a and its b."""
    for end in range(len(names) + 1):
        yield ".".join([base, *names[:end]]), names[end] if end < len(names) else ""


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """A module's statements, also those under `if` and `try`."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from _statements(getattr(node, part, []))
        for handler in getattr(node, "handlers", []):
            yield from _statements(handler.body)


def _names(expression: ast.expr) -> Iterator[str]:
    """The names in an expression, with their attributes: `a.b`."""
    if isinstance(expression, ast.Attribute):
        inner = list(_names(expression.value))
        if isinstance(expression.value, ast.Name | ast.Attribute) and inner:
            yield f"{inner[0]}.{expression.attr}"
        else:
            yield from inner
    elif isinstance(expression, ast.Name):
        yield expression.id
    else:
        for child in ast.walk(expression):
            if child is not expression and isinstance(child, ast.Name | ast.Attribute):
                yield from _names(child)


def _absolute(node: ast.ImportFrom, module: str, package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".") if package else module.split(".")[:-1]
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _state(path: str) -> tuple[int, int]:
    """What tells that a file was written anew."""
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=256)
def _parsed(path: str, _modified: int, _size: int) -> ast.Module | None:
    """A module's syntax tree; None if it has none, or a mistake in it, which its import will tell."""
    try:
        source = Path(path).read_bytes() if path.endswith(".py") else None
        return None if source is None else parsed(lambda: ast.parse(source))
    except (SyntaxError, ValueError):
        return None


@lru_cache(maxsize=256)
def _digest(path: str, modified: int, size: int) -> str:
    tree = _parsed(path, modified, size)
    data = (
        Path(path).read_bytes() if tree is None else _told(tree).encode(errors="backslashreplace")
    )
    return hashlib.sha256(data).hexdigest()


def _told(node: Any) -> str:
    """A syntax tree as text: the same in each version of Python, which differ in what `ast.dump` says of
    nothing."""
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, [])]
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            fields = [
                (name, value[1:] if name == "body" and _is_docstring(value[0]) else value)
                for name, value in fields
            ]
        inside = ", ".join(f"{name}={_told(value)}" for name, value in fields)
        return f"{type(node).__name__}({inside})"
    if isinstance(node, list):
        return f"[{', '.join(map(_told, node))}]"
    return repr(node)


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
