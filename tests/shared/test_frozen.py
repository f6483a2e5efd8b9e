"""Our dataclasses beside the standard ones: whatever is done to both comes to the same."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from the0 import frozen


class Standard:
    @dataclasses.dataclass(frozen=True, slots=True)
    class Point:
        x: int
        y: int = 2
        names: list[str] = dataclasses.field(default_factory=list)
        key: str = dataclasses.field(default="", repr=False)

        @property
        def sum(self) -> int:
            return self.x + self.y

    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Named:
        """With words of its own."""

        name: str = "n"
        size: int

        def __str__(self) -> str:
            return f"{self.name} of {self.size}"


class Ours:
    @frozen.dataclass(frozen=True, slots=True)
    class Point:
        x: int
        y: int = 2
        names: list[str] = frozen.field(default_factory=list)
        key: str = frozen.field(default="", repr=False)

        @property
        def sum(self) -> int:
            return self.x + self.y

    @frozen.dataclass(frozen=True, slots=True, kw_only=True)
    class Named:
        """With words of its own."""

        name: str = "n"
        size: int

        def __str__(self) -> str:
            return f"{self.name} of {self.size}"


def told(act: Callable[[Any], object], kinds: Any) -> str:
    """What comes of it, an error too, without the names of the two families."""
    try:
        found = act(kinds)
    except Exception as reason:  # noqa: BLE001 - whatever it is, it has to be the same
        found = f"{type(reason).__name__}: {reason}"
    return str(found).replace("Standard", "Ours")


@pytest.mark.parametrize(
    "act",
    [
        lambda k: repr(k.Point(1)),
        lambda k: repr(k.Point(1, 3, ["a"], key="secret")),
        lambda k: k.Point(1, key="secret").key,
        lambda k: k.Point(1, 5).sum,
        lambda k: k.Point(),
        lambda k: k.Point(1, 2, [], "", 5),
        lambda k: k.Point(1, z=1),
        lambda k: k.Point(1) == k.Point(1),
        lambda k: k.Point(1) == k.Point(2),
        lambda k: k.Point(1) == 1,
        lambda k: k.Point(1).names is k.Point(1).names,
        lambda k: hash(k.Point(1)),
        lambda k: setattr(k.Point(1), "x", 2),
        lambda k: delattr(k.Point(1), "x"),
        lambda k: hasattr(k.Point(1), "__dict__"),
        lambda k: k.Point.__match_args__,
        lambda k: k.Point.__slots__,
        lambda k: k.Named(size=1),
        lambda k: repr(k.Named(size=1)),
        lambda k: k.Named("n", 1),
        lambda k: k.Named(name="n"),
        lambda k: hash(k.Named(size=1)) == hash(k.Named(size=1)),
        lambda k: {k.Named(size=1), k.Named(size=1), k.Named(size=2)}.__len__(),
        lambda k: k.Named.__doc__,
        lambda k: (k.Named.__name__, k.Named.__qualname__, k.Named.__module__, k.Named.__init__.__module__),
        lambda k: k.Named.__match_args__,
        lambda k: dataclasses.replace(k.Point(1), y=7),
        lambda k: dataclasses.asdict(k.Point(1, names=["a"])),
        lambda k: [(f.name, f.type, f.repr, f.kw_only) for f in dataclasses.fields(k.Named)],
        lambda k: [(f.name, f.default) for f in dataclasses.fields(k.Point(1))][1],
        lambda k: dataclasses.is_dataclass(k.Point),
        lambda k: copy.deepcopy(k.Point(1, names=["a"])),
        lambda k: pickle.loads(pickle.dumps(k.Named(size=3))),
    ],
)
def test_the_same_comes_of_both(act: Callable[[Any], object]) -> None:
    assert told(act, Ours) == told(act, Standard)


def test_replace_is_the_standard_one() -> None:
    point = Ours.Point(1, names=["a"], key="k")
    assert frozen.replace(point, y=9) == dataclasses.replace(point, y=9) == Ours.Point(1, 9, ["a"], "k")
    with pytest.raises(TypeError, match="other"):
        frozen.replace(point, other=1)  # type: ignore[call-arg]


def test_nothing_is_added_to_a_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="other"):  # the standard one says something else
        Ours.Point(1).other = 2  # type: ignore[attr-defined]


def test_what_it_does_not_make_is_refused() -> None:
    with pytest.raises(TypeError, match="slots"):
        frozen.dataclass(frozen=True, slots=False)(Ours)

    class Under(Ours):
        x: int

    with pytest.raises(TypeError, match="base class"):
        frozen.dataclass(frozen=True, slots=True)(Under)
