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
        ("recipes", ""),  # a word, and no flag mistyped
    ],
)
def test_an_unknown_flag_is_refused_with_those_that_are_allowed_and_the_nearest(argument, meant):
    parser = Parser("doctor", "What it does.")
    parser.add_argument("--recipe")
    with pytest.raises(RequestError) as caught:
        parser.parse_args([argument])
    assert str(caught.value) == f"doctor: unrecognized arguments: {argument}. Allowed is --help, --recipe.{meant}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["RUN", "--keep", "x"], "--keep x: allowed is a number"),
        (["RUN", "--track", "x"], "--track x: allowed is wandb"),
        (["RUN", "--leave-out", "x"], "--leave-out x: allowed is status, steady"),
        (["RUN", "--json=3"], "--json=3: no value is allowed"),
        (["RUN", "--json", "--markdown"], "--markdown and --json: give one of them"),
        (["RUN", "--tolls"], "--tolls needs NAME|FILE"),
        (["RUN", "--diff", "a"], "--diff needs OFF ON"),
        (["RUN", "--allow"], "--allow needs a value"),
        ([], "RUN missing: allowed is a run directory"),
    ],
)
def test_what_is_wrong_with_a_flag_is_said_with_what_is_allowed(arguments, said):
    parser = Parser("compare", None)
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--keep", type=float)
    parser.add_argument("--track", choices=("wandb",))
    parser.add_argument("--tolls", metavar="NAME|FILE")
    parser.add_argument("--diff", nargs=2, metavar=("OFF", "ON"))
    parser.add_argument("--allow", nargs="+")
    parser.add_argument("--leave-out", choices=("status", "steady"))
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true")
    shape.add_argument("--markdown", action="store_true")
    with pytest.raises(RequestError) as caught:
        parser.parse_args(arguments)
    assert str(caught.value) == f"compare: {said}"
