"""The command line of verbs that take --flags."""

import pytest

from cctrain.commands.flags import Parser
from cctrain.errors import RequestError


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("--recip", " Did you mean --recipe?"),
        ("recipe=tiny", " Did you mean --recipe?"),
        ("-recipe", " Did you mean --recipe?"),
        ("zzz", ""),
    ],
)
def test_an_unknown_flag_is_refused_with_those_that_are_allowed_and_the_nearest(argument, meant):
    parser = Parser("doctor", "What it does.")
    parser.add_argument("--recipe")
    with pytest.raises(RequestError) as caught:
        parser.parse_args([argument])
    assert str(caught.value) == f"doctor: unrecognized arguments: {argument}. Allowed is --help, --recipe.{meant}"


def test_other_errors_are_argparses_own():
    parser = Parser("doctor", None)
    parser.add_argument("--recipe")
    with pytest.raises(RequestError, match="doctor: argument --recipe: expected one argument"):
        parser.parse_args(["--recipe"])
