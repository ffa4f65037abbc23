#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""words.py HEADER <RUST: puts the header's comments, as documentation, on the Rust that bindgen made of it.

A constant's words stand behind it or right above it, a struct's and its fields' in a kernel-doc comment (`@field: …`).
"""

import re
import sys
import textwrap

COMMENT = r"/\*+\n?((?:[^*]|\*(?!/))*)\*/"


def lines_of(comment: str) -> list[str]:
    """The text of a comment, without its frame of asterisks."""
    bare = [re.sub(r"^\s*\* ?", "", line).rstrip() for line in comment.strip("\n").splitlines()]
    return textwrap.dedent("\n".join(bare)).strip().splitlines()


def markdown(lines: list[str]) -> list[str]:
    """`EINVAL  why` becomes an item of a list, `@field` and `struct name` code."""
    lines = [re.sub(r"@(\w+)", r"`\1`", re.sub(r"\bstruct (v3_\w+)", r"[`\1`]", line)) for line in lines]
    lines = [re.sub(r"^\s*(E[A-Z0-9]+) {2,}(.*)", r"- `\1`: \2", line) for line in lines]
    # What goes on in the next line is further in than a name of an error.
    lines = [re.sub(r"^ {4,}", "  ", line) for line in lines]
    return [re.sub(r"^[a-z]+(?=[ ,]|$)", lambda word: word[0].capitalize(), lines[0]), *lines[1:]]


def constants(header: str) -> dict[str, list[str]]:
    behind = rf"^#define[ \t]+(\w+)[ \t]+\S.*?[ \t]*{COMMENT}$"
    above = rf"^[ \t]*{COMMENT}\n(?:#define[ \t]+|[ \t]+|__extension__ enum )(\w+)"
    words = {name: lines_of(text) for text, name in re.findall(above, header, re.MULTILINE)}
    return words | {name: lines_of(text) for name, text in re.findall(behind, header, re.MULTILINE)}


def structs(header: str) -> dict[str, dict[str, list[str]]]:
    """{struct: {field: words}}; the words of the struct itself have no name."""
    found = {}
    for text, name in re.findall(rf"^{COMMENT}\nstruct (\w+) \{{", header, re.MULTILINE):
        words: dict[str, list[str]] = {}
        field = ""
        for line in lines_of(text):
            start = re.match(r"(?:@(\w+):|struct \w+ -) (.*)", line)
            field = start[1] or "" if start else field
            words.setdefault(field, []).append(start[2] if start else line.strip())
        found[name] = words
    return found


def main() -> None:
    header = open(sys.argv[1]).read()
    of_constants, of_structs, fields = constants(header), structs(header), {}

    def document(item: re.Match) -> str:
        nonlocal fields
        text, indent, kind, name = item[0], item[1], item[2], item[3]
        if kind == "struct":
            fields = of_structs[name]
        words = {"struct": lambda: fields[""], "const": lambda: of_constants[name], None: lambda: fields[name],
                 "type": lambda: of_constants.get(name, [f"The type `{name}` of C."])}[kind]()
        return "".join(f"{indent}/// {line}".rstrip() + "\n" for line in markdown(words)) + text

    item = r"^(?:#\[.*\]\n)*( *)pub (?:(const|type|struct) )?(\w+)"
    print(re.sub(item, document, sys.stdin.read(), flags=re.MULTILINE), end="")


if __name__ == "__main__":
    main()
