"""The API page, from the public names in ``sklearn_relflat/__init__.pyi``.

A comment inside ``__all__`` there begins a section. A public module with an
``__all__`` of its own (``callbacks``, ``datasets``) is a section too, named after the
first line of its docstring.
"""

import ast
import io
import tokenize
from pathlib import Path

PACKAGE = "sklearn_relflat"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE


def public_modules(root: Path = ROOT) -> dict[str, ast.Module]:
    """Parsed modules without a leading underscore, by name."""
    files = [*root.glob("*.py"), *root.glob("*/__init__.py")]
    named = {
        (file.parent.name if file.stem == "__init__" else file.stem): file
        for file in files
        if file != root / "__init__.py"
    }
    return {
        name: ast.parse(file.read_text(encoding="utf-8"))
        for name, file in sorted(named.items())
        if not name.startswith("_")
    }


def declared_names(module: ast.Module) -> list[str]:
    """Names in the ``__all__`` of a module, none if it has no ``__all__``."""
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def stub_sections(stub: str) -> dict[str, list[str]]:
    """Names in the ``__all__`` of a stub, under the comment that precedes them."""
    sections: dict[str, list[str]] = {}
    title, inside = "Public names", False
    for token in tokenize.generate_tokens(io.StringIO(stub).readline):
        if token.type == tokenize.NAME and token.string == "__all__":
            inside = True
        elif inside and token.type == tokenize.COMMENT:
            title = token.string.lstrip("# ").rstrip(".:")
            title = title[:1].upper() + title[1:]
        elif inside and token.type == tokenize.STRING:
            sections.setdefault(title, []).append(ast.literal_eval(token.string))
    return sections


def sections(root: Path = ROOT) -> list[tuple[str, str, list[str]]]:
    """Title, module and public names of every section of the API page."""
    modules = public_modules(root)
    stub = stub_sections((root / "__init__.pyi").read_text(encoding="utf-8"))
    found = [
        (title, PACKAGE, [name for name in names if name not in modules])
        for title, names in stub.items()
    ]
    for name, module in modules.items():
        first_line = (ast.get_docstring(module) or name).splitlines()[0].rstrip(".")
        found.append((first_line, f"{PACKAGE}.{name}", declared_names(module)))
    return [(title, module, names) for title, module, names in found if names]


def page(found: list[tuple[str, str, list[str]]]) -> str:
    """Text of the API page in reStructuredText."""
    heading = "API reference"
    lines = [heading, "=" * len(heading), ""]
    if not found:
        lines += ["There are no public names yet.", ""]
    for title, module, names in found:
        lines += [title, "-" * len(title), "", f".. currentmodule:: {module}", ""]
        if module != PACKAGE:
            lines += [f"In the module ``{module}``.", ""]
        lines += [".. autosummary::", "   :toctree: generated", "   :nosignatures:", ""]
        lines += [f"   {name}" for name in names] + [""]
    return "\n".join(lines)


def write_page(docs: Path) -> None:
    """Write ``api/index.rst`` in the documentation folder, if it changed."""
    file, text = docs / "api" / "index.rst", page(sections())
    file.parent.mkdir(exist_ok=True)
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")
