"""
The help of commands whose options are the fields of dataclasses, within a second. Those of transformers and TRL are read
from their sources: importing them takes five.
"""

import argparse
import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


# The classes whose fields are a stage's options of training, each with the module that it stands in, the base first.
TRAINING = (
    ("transformers.training_args", "TrainingArguments"),
    ("trl.trainer.base_config", "_BaseConfig"),
    ("trl.trainer.sft_config", "SFTConfig"),
    ("trainers.guided_sft_config", "GuidedSFTConfig"),
)


class Option(NamedTuple):
    """One field as its source has it."""

    name: str
    type: str
    default: str
    help: str


def source_of(module: str) -> Path:
    """The file of a module, found without importing the packages around it."""
    package, *inner = module.split(".")
    return Path(importlib.util.find_spec(package).submodule_search_locations[0], *inner).with_suffix(".py")


def words_of(node: ast.expr) -> str:
    """A string as it stands in the source; what is computed in it stays as it is written."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            words_of(part) if isinstance(part, ast.Constant) else ast.unparse(part)[2:-1] for part in node.values
        )
    if isinstance(node, ast.BinOp):
        return words_of(node.left) + words_of(node.right)
    return ast.unparse(node)


def read_options(module: str, name: str) -> Iterator[Option]:
    """The fields that a dataclass defines itself, from its source."""
    tree = ast.parse(source_of(module).read_text(encoding="utf-8"))
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    for node in body:
        if not isinstance(node, ast.AnnAssign) or node.target.id.startswith("_"):
            continue
        keywords = {}
        if isinstance(node.value, ast.Call):
            keywords = {keyword.arg: keyword.value for keyword in node.value.keywords}
        metadata = keywords.get("metadata")
        described = dict(zip(map(words_of, metadata.keys), metadata.values, strict=True)) if metadata else {}
        default = keywords.get("default", keywords.get("default_factory"))
        yield Option(
            node.target.id,
            ast.unparse(node.annotation),
            "" if default is None else ast.unparse(default),
            " ".join(words_of(described["help"]).split()) if "help" in described else "",
        )


def wants_help() -> bool:
    return not {"-h", "--help"}.isdisjoint(sys.argv[1:])


def print_help(description: str, *argument_classes: type, training: bool = False) -> None:
    """
    Prints the options of a command.

    Args:
        description (`str`): The command's docstring.
        argument_classes (`type`): Dataclasses of this project, whose fields are options.
        training (`bool`, *optional*, defaults to `False`): Whether the fields of [`GuidedSFTConfig`] are options as well.
    """
    from transformers import HfArgumentParser

    parser = HfArgumentParser(argument_classes, description=description, usage="%(prog)s [options]")
    parser.formatter_class = type("Formatter", (parser.formatter_class, argparse.RawDescriptionHelpFormatter), {})
    options = {}
    for source in TRAINING if training else ():
        for option in read_options(*source):
            options.pop(option.name, None)  # what a class overrides is listed with it
            options[option.name] = source[1].lstrip("_"), option
    for owner in dict.fromkeys(owner for owner, _ in reversed(options.values())):
        group = parser.add_argument_group(f"options of training, {owner}")
        for name, option in sorted((name, option) for name, (owned, option) in options.items() if owned == owner):
            shown = f"{option.help} (default: {option.default.replace('%', '%%')})".strip()
            group.add_argument(f"--{name}", metavar=option.type, help=shown, default=argparse.SUPPRESS)
    parser.print_help()
