"""Links of the README to lines of code: each names what is defined there, and leads to the line where that is.

    python -m tests.line_links

puts all line numbers right after the code has moved.
"""

import ast
import re
from pathlib import Path

__all__ = ["corrected", "definitions"]

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[`([\w.]+)`\]\(([\w/]+\.py)#L(\d+)\)")


def definitions(path: Path) -> dict[str, int]:
    """Line of every class, function and method in a file, by qualified name."""
    found = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.ClassDef, ast.FunctionDef)):
                found[prefix + child.name] = child.lineno
                visit(child, f"{prefix}{child.name}.")

    visit(ast.parse(path.read_text(encoding="utf-8")), "")
    return found


def corrected(text: str, root: Path = ROOT) -> str:
    """A text with the line numbers of its links put right.

    Raises:
        KeyError: A file defines nothing of the name in the link's text.
    """
    return LINK.sub(lambda m: f"[`{m[1]}`]({m[2]}#L{definitions(root / m[2])[m[1]]})", text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(corrected(readme.read_text(encoding="utf-8")), encoding="utf-8")
